"""DKD - the two halves of the soft targets' divergence get weights of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import check_classes, kl
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="dkd",
    title="Decoupled Knowledge Distillation",
    year=2022,
    arxiv="2203.08679",
    code="https://github.com/megvii-research/mdistiller",
    kinds=("response",),
    needs=("logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The other classes are picked, where the authors' code takes 1000 from the target's "
    "logit, and the probability of all others is a log-sum-exp of logits, where it takes the "
    "logarithm of a sum of probabilities, which may be 0: the same values wherever its are finite. "
    "Detectors, whose class logits of proposals the paper applies the loss to, are another task.",
)


def split(z: Tensor, y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """The logits at tau of the target against all others together, and of the others.

    softmax of the first is (p_y, 1 - p_y), softmax of the second p over the others alone.
    Shapes: z (B, C) logits, y (B,) class numbers -> (B, 2), (B, C - 1).
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32)) / tau
    rest = torch.arange(z.shape[1] - 1, device=z.device)
    others = z.gather(1, rest + (rest >= y[:, None]))
    return torch.cat((z.gather(1, y[:, None]), others.logsumexp(1, keepdim=True)), 1), others


def tckd(s: Tensor, t: Tensor, y: Tensor, tau: float = 4.0) -> Tensor:
    """tau^2 KL of (p_y, 1 - p_y), teacher's to student's: target class distillation.

    Shapes: s, t (B, C) logits, y (B,) -> (B,).
    """
    return tau**2 * kl(split(s, y, tau)[0], split(t, y, tau)[0])


def nckd(s: Tensor, t: Tensor, y: Tensor, tau: float = 4.0) -> Tensor:
    """tau^2 KL over the classes other than y, teacher's to student's, each summing to 1.

    With two classes it is 0. Shapes: s, t (B, C) logits, y (B,) -> (B,).
    """
    return tau**2 * kl(split(s, y, tau)[1], split(t, y, tau)[1])


@dataclass(frozen=True)
class DKD(Objective):
    """A student is taught the teacher's soft targets, target class and other classes apart.

    label * CE(y, s) + w * (tckd * TCKD + nckd * NCKD), where p are softmaxes at tau and
    TCKD = tau^2 KL((p_y, 1 - p_y)_t || (p_y, 1 - p_y)_s),
    NCKD = tau^2 KL(p_t || p_s) among the classes other than y, renormalised,
    w = min(epoch / warmup, 1) with epochs from 1 (warmup = 0: w = 1).
    The divergence of `kd` is TCKD + (1 - p_y of the teacher) NCKD: the surer the teacher, the less
    it says of the other classes. Here the weights, the paper's alpha and beta, are free.

    Trained: the student. Frozen: the teacher.
    Raises: UsageError where the sides give different numbers of classes, or y is not one class
    number for each sample.
    Source: Zhao, Cui, Song, Qiu and Liang, CVPR 2022, arXiv 2203.08679, equations 6 and 7; weights
    and warm-up from the authors' code: nckd 8 on CIFAR-100 (2 or 6 for some pairs), and on ImageNet
    0.5 or 2 with tau 1 and warmup 1.
    Relatives: `kd`, which weighs the halves by the teacher's certainty; `pld` teaches the order of
    the other classes.

    Example:
        >>> import torch
        >>> t, s, y = torch.tensor([[2.0, 3.0, 1.0]]).log(), torch.zeros(1, 3), torch.tensor([0])
        >>> round(float(tckd(s, t, y, 1.0)), 6), round(float(nckd(s, t, y, 1.0)), 6)
        (0.0, 0.130812)
    """

    label: float = number(1.0, least=0)
    tckd: float = number(1.0, least=0)
    nckd: float = number(8.0, least=0)
    tau: float = number(4.0, above=0)
    warmup: int = number(20, least=0)
    card = CARD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `tckd` and `nckd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if not (self.tckd or self.nckd):
            return out
        check_classes(s.logits, t.logits)
        y, shape = batch.y, s.logits.shape
        if len(shape) != 2 or shape[1] < 2 or y.shape != shape[:1] or y.is_floating_point():
            raise UsageError(
                f"dkd sets a sample's class apart from the others, but y is {tuple(y.shape)} "
                f"{y.dtype} and logits are {tuple(shape)}; give one class number for each sample "
                "and logits (B, C) of two classes or more"
            )
        warm = min((clock.epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0
        for name, loss in (("tckd", tckd), ("nckd", nckd)):
            if weight := getattr(self, name):
                value = loss(s.logits, t.logits, y.long(), self.tau).mean()
                out[name] = warm * weight * value
        return out
