"""LumiNet - logits are standardised over the batch, class by class, before they are compared."""

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

CARD = Card(
    key="luminet",
    title="LumiNet: The Bright Side of Perceptual Knowledge Distillation",
    year=2023,
    arxiv="2310.03669",
    code="https://github.com/ismail31416/LumiNet",
    kinds=("response", "relation", "schedule"),
    needs=("logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The weight `perception` is the square of the code's ALPHA; the paper's own scale is a "
    "function of tau: tau^2 is perception=16 at tau 4. Batches of a fit are all whole, where the "
    "code's last one of an epoch may be short. Detectors, whose class logits the paper applies the "
    "loss to, are another task.",
)
EXEMPT = {
    "accumulate": "logits are standardised over a micro-batch; the statistics of others are unseen"
}
EPS = 1e-5  # beside the variance


def perception(z: Tensor) -> Tensor:
    """(z_bc - mean_b z_bc) / sqrt(var_b z_bc + EPS), each class standardised over the batch.

    The variance is the biased one; the gradient passes through both moments.
    Shapes: z (B, C) logits -> (B, C), at least float32.
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    centred = z - z.mean(0)
    return centred / (centred.square().mean(0) + EPS).sqrt()


def luminet_loss(s: Tensor, t: Tensor, tau: float = 4.0) -> Tensor:
    """KL(softmax(perception(t) / tau) || softmax(perception(s) / tau)), the mean over samples.

    No tau^2. Zero where each class's logits are a s + b of the teacher's, a > 0, up to EPS.
    Shapes: s, t (B, C) logits of one batch -> ().
    """
    check_classes(s, t)
    return kl(perception(s) / tau, perception(t) / tau).mean()


@dataclass(frozen=True)
class LumiNet(Objective):
    """A student is taught how a sample's logits stand out among those of the batch.

    label * CE(y, s) + w * perception * KL(softmax(h(t) / tau) || softmax(h(s) / tau)), h the logits
    with each class standardised over the batch, and w = min(epoch / warmup, 1) with epochs from 1
    (warmup = 0: w = 1). The labels are compared with the plain logits, which are what ships.

    A batch of one says nothing: h is 0 then. With several processes or micro-batches each has its
    own moments. A class whose logit is constant in the batch stays 0, and what little it moves is
    magnified by up to 1 / sqrt(EPS).

    Trained: the student. Frozen: the teacher.
    Raises: UsageError where the sides give different numbers of classes.
    Source: Hossain et al., arXiv 2310.03669, section 3; constants from the authors' code, which are
    those of ResNet32x4 to ResNet8x4 on CIFAR-100 (33^2, label 2); other pairs have 35^2 at tau 4 or
    70^2 and 75^2 at tau 8 with label 1 or 2; on ImageNet 2^2 at tau 0.7, label 1 and warmup 1.
    Relatives: `kd` compares plain logits; `dkd` splits them; `rkd` relates samples by embeddings.

    Example:
        >>> import torch
        >>> t = torch.tensor([[1.0, 4.0], [2.0, -1.0], [6.0, 0.0]])
        >>> bool(luminet_loss(t * torch.tensor([3.0, 0.5]) + 7, t) < 1e-8)
        True
    """

    label: float = number(2.0, least=0)
    perception: float = number(1089.0, least=0)
    tau: float = number(4.0, above=0)
    warmup: int = number(20, least=0)
    card = CARD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label` and `perception`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.perception:
            warm = min((clock.epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0
            weight = warm * self.perception
            out["perception"] = weight * luminet_loss(s.logits, t.logits, self.tau)
        return out
