"""WSLD - a soft label counts the less, the better the student already fits the true one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side
from limbeck.vision._kit.classes import class_numbers

CARD = Card(
    key="wsld",
    title="Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
    year=2021,
    arxiv="2102.00650",
    code="https://github.com/bellymonster/Weighted-Soft-Label-Distillation",
    kinds=("response", "weighting"),
    needs=("logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The soft term is the KL divergence, which differs from the paper's cross-entropy by "
    "the teacher's entropy, weighted: the same gradient. The teacher is in eval mode, where the "
    "authors' ImageNet script lets its BatchNorm move along.",
)
EPS = 1e-7  # beside the teacher's loss


@torch.no_grad()
def weights(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """1 - exp(-l_s / (l_t + EPS)), with l the cross-entropy of a sample's label at temperature 1.

    Near 0 where the student is surer of the label than the teacher is, 1 - 1 / e where they are
    alike, near 1 where it lags behind; a constant.
    Shapes: s, t (B, C) logits, y (B,) class numbers -> (B,).
    """
    mine, theirs = (
        F.cross_entropy(z.to(torch.promote_types(z.dtype, torch.float32)), y, reduction="none")
        for z in (s, t)
    )
    return -torch.expm1(-mine / (theirs + EPS))


def wsl_loss(s: Tensor, t: Tensor, y: Tensor, tau: float = 4.0) -> Tensor:
    """The mean over samples of w tau^2 KL(softmax(t / tau) || softmax(s / tau)), w of `weights`.

    Shapes: s, t (B, C) logits, y (B,) class numbers -> ().
    """
    each = kl(s, t, tau)
    return (weights(s, t, y) * each).mean()


@dataclass(frozen=True)
class WSLD(Objective):
    """A student is taught the teacher's probabilities, most where it fits the label worse.

    label * CE(y, s) + wsl * mean_i w_i tau^2 KL(softmax(t_i / tau) || softmax(s_i / tau)),
    w_i = 1 - exp(-l_s / l_t), l_s and l_t each side's cross-entropy of the sample's label at
    temperature 1. Where the student is ahead, a soft label mainly keeps it from fitting
    (it raises bias to lower variance); dropping such samples hurts, so they get less weight.

    A teacher that fits its training set to the last label gives every sample weight 1.

    Trained: the student. Frozen: the teacher. Stopped: w.
    Raises: UsageError where the sides give different numbers of classes, or y is not one class
    number for each sample.
    Source: Zhou et al., ICLR 2021, arXiv 2102.00650; the weight wsl, the paper's alpha, and tau
    are those of CIFAR-100, EPS the authors' code's; on ImageNet 2.5 at tau 2.
    Relatives: `kd` weighs all samples alike; `dkd` weighs a sample's other classes apart.

    Example:
        >>> import torch
        >>> t, s, y = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2), torch.tensor([0])
        >>> round(float(weights(s, t, y)), 4), round(float(wsl_loss(s, t, y, 1.0)), 4)
        (0.9101, 0.1191)
    """

    label: float = number(1.0, least=0)
    wsl: float = number(2.25, least=0)
    tau: float = number(4.0, above=0)
    card = CARD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label` and `wsl`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.wsl:
            y = class_numbers(batch, "wsld weighs a sample by the loss of its label")
            out["wsl"] = self.wsl * wsl_loss(s.logits, t.logits, y, self.tau)
        return out
