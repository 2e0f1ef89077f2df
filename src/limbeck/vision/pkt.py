"""PKT - each sample's chances of picking another as its neighbour are the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side
from limbeck.vision._kit.classes import class_numbers
from limbeck.vision._kit.grams import products, samples
from limbeck.vision._kit.maps import unit

CARD = Card(
    key="pkt",
    title="Learning Deep Representations with Probabilistic Knowledge Transfer",
    year=2018,
    arxiv="1803.10837",
    code="https://github.com/passalis/probabilistic_kt",
    kinds=("feature", "relation"),
    needs=("embedding", "student:logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The paper transfers without labels; the default has them beside (label 1) and the "
    "weight of RepDistiller's CIFAR-100 comparisons. Sums leave a sample's own pair out, as the "
    "paper's do; the authors' code lets it in (own=True). Like that code's mean they are divided "
    "by B^2, where the paper adds up. Small numbers that the code adds to lengths and chances are "
    "left out; a cosine kernel counts 1e-7 at least. The gaussian's width is a multiple of each "
    "side's root mean square distance, where the paper says only that it must be chosen.",
)
EXEMPT = {
    "accumulate": "it relates the samples of a micro-batch; pairs across two are not seen",
    "doubled": "a sample's copy is then its nearest neighbour, and sums over B are divided by B^2",
}
DOES = "pkt relates the samples of a micro-batch"
LEAST = 1e-7  # of the cosine kernel, which is 0 for opposite vectors
Kernel = Literal["cosine", "gaussian"]


def others(x: Tensor) -> Tensor:
    """The rows of a matrix x without its diagonal: (B, B) -> (B, B - 1)."""
    return x[~torch.eye(len(x), dtype=torch.bool, device=x.device)].view(len(x), -1)


def neighbours(
    e: Tensor, kernel: Kernel = "cosine", width: float = 1.0, own: bool = False
) -> Tensor:
    """The log of p(j | i) = K_ij / sum_k K_ik, over others k of the batch, or all with `own`.

    The `kernel` K is (cos(e_i, e_j) + 1) / 2, or exp(-|e_i - e_j|^2 / (2 w^2)), w^2 being `width`^2
    times the mean squared distance of two samples, through which no gradient passes.
    Shapes: e (B, D) -> (B, B - 1), or (B, B) with `own`.
    """
    if kernel == "cosine":
        log = ((products(unit(e)) + 1) / 2).clamp_min(LEAST).log()
    else:
        e = e - e.mean(0)
        dots = products(e)
        far = dots.diagonal()
        squared = (far[:, None] + far - 2 * dots).clamp_min(0)
        mean = others(squared).detach().mean()
        log = -squared / (2 * width**2 * torch.where(mean > 0, mean, 1.0))
    return (log if own else others(log)).log_softmax(1)


def transfer_loss(log_q: Tensor, p: Tensor) -> Tensor:
    """sum_ij p log(p / q) / B^2. Shapes: log_q, p (B, N) by sample and other -> ()."""
    return (torch.xlogy(p, p) - p * log_q).sum() / len(p) ** 2


def labelled(y: Tensor, own: bool = False) -> Tensor:
    """p(j | i) where K_ij is 1 within a class and 0 else; zero where no other has the class.

    Shapes: y (B,) -> (B, B - 1), or (B, B) with `own`.
    """
    same = (y[:, None] == y).float()
    same = same if own else others(same)
    return same / same.sum(1, keepdim=True).clamp_min(1)


@dataclass(frozen=True)
class PKT(Objective):
    """A student is taught how likely each sample is to pick another as its neighbour.

    label * CE(y, s) + pkt * sum_ij p(j | i) log(p(j | i) / q(j | i)) / B^2
        + supervised * (the same with p of the labels: even within a class) (0)
        + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)) (0),
    p of the teacher's and q of the student's embeddings: p(j | i) = K_ij / sum_{k != i} K_ik, with
    the kernel K = (cos + 1) / 2, or exp(-|e_i - e_j|^2 / (2 w^2)), w `width` times the root mean
    square distance of that side. `own` lets j = i in. Widths of the two sides may differ, as
    nothing is projected. A sample without another of its class in the batch counts 0 under
    `supervised`.

    Without labels: label = 0.
    Trained: the student. Frozen: the teacher.
    Raises: UsageError for a single sample, and under `supervised` for what has no class.
    Source: Passalis and Tefas, ECCV 2018, arXiv 1803.10837, section 3; division by B^2 and the
    labelled term from the authors' code, label 1 and pkt 30000 from RepDistiller's comparisons.
    Relatives: `sp` and `cc` compare kernels of samples entry by entry; `rkd` distances and angles.

    Example:
        >>> import torch
        >>> s = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> t = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> round(9 * float(transfer_loss(neighbours(s), neighbours(t).exp())), 6)
        0.346574
    """

    label: float = number(1.0, least=0)
    pkt: float = number(30000.0, least=0)
    kernel: Kernel = "cosine"
    width: float = number(1.0, above=0)  # of the gaussian
    own: bool = False
    supervised: float = number(0.0, least=0)
    kd: float = number(0.0, least=0)
    tau: float = number(4.0, above=0)
    card = CARD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `pkt`, `supervised` and `kd`."""
        how, out = (self.kernel, self.width, self.own), {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.pkt or self.supervised:
            log_q = neighbours(samples(s.embedding, DOES), *how)
        if self.pkt:
            p = neighbours(samples(t.embedding, DOES), *how).exp()
            out["pkt"] = self.pkt * transfer_loss(log_q, p)
        if self.supervised:
            p = labelled(class_numbers(batch, "pkt's supervised term is of classes"), self.own)
            out["supervised"] = self.supervised * transfer_loss(log_q, p)
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        return out
