"""MLKD - samples, pairs of samples and pairs of classes are matched at several temperatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import check_classes, kl
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.maps import wide
from limbeck.vision._kit.strong import DRAWS, strong

CARD = Card(
    key="mlkd",
    title="Multi-level Logit Distillation",
    year=2023,
    arxiv="",
    code="https://github.com/Jin-Ying/Multi-Level-Logit-Distillation",
    kinds=("response", "relation", "augmentation"),
    needs=("logits", "y", "index", "again"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The terms, their weights and where a temperature takes which view are the authors' "
    "code's, not the paper's formula, which sums the three levels with weight 1. The strong view "
    "is made of the weak one, where the code crops and mirrors anew; its operations work on "
    "tensors, on each picture's own range where that is not 0 to 1, and the square that is cut out "
    "has the middle of it. Medians are of a micro-batch, where the code has one for each device.",
)
EXEMPT = {
    "accumulate": "it relates the samples of a micro-batch; pairs across two are not seen",
    "doubled": "squares of all pairs of samples are divided by their number once, as in the paper",
}


def upto_median(c: Tensor) -> Tensor:
    """Which of the numbers c are at most their median, which may lie between the middle two.

    Shapes: c (N,) -> (N,) bool.
    """
    return c <= c.quantile(0.5)


def gram_loss(s: Tensor, t: Tensor, m: Tensor) -> Tensor:
    """sum_ij m_j (t t^T - s s^T)_ij^2 / N: for m = 1 the squared Frobenius norm over N.

    It is of samples for probabilities (B, C), of classes for their transpose.
    Shapes: s, t (N, M), m (N,) -> ().
    """
    return ((t @ t.mT - s @ s.mT).square() * m).sum() / len(s)


@dataclass(frozen=True)
class MLKD(Objective):
    """A student is taught the teacher's probabilities, and how samples and classes relate in them.

    label * (CE(y, s) + CE(y, s')) + instance * (m_i sum_k KL_k(t, s) + sum KL_k(t', s'), the last
    over the first `strong` of `taus` and of t, s over the rest)
    + samples * m_i sum_k |P_t P_t^T - P_s P_s^T|^2 / B
    + classes * m_c sum_k |P_t^T P_t - P_s^T P_s|^2 / C, sums over the temperatures k in `taus`,
    KL_k = k^2 KL(P_t || P_s), the mean over samples, and P (B, C) the softmaxes at k.
    s' and t' are of a strong view that both sides see: two of 14 operations and a grey square. With
    views="one" there is none, nor the terms of it.

    Masks keep samples of which the teacher is at most as sure as the median, and classes whose
    probability over the batch is at most the median. By `masks`, "share": m is only the share that
    is kept, about 1/2, as in the authors' code; "each": KLs, and columns of squares, are left out
    where their sample (class) is not kept; "none": m = 1.

    The level of classes grows like (B / C)^2: with ten classes and batches of 64 its weight is some
    hundred times too large, and training goes astray; give classes=0.01 there.

    Trained: the student. Frozen: the teacher. Two views are two passes of both.
    Raises: UsageError where the sides give different numbers of classes, inputs are no pictures
    (B, C, H, W) for two views, a temperature is not above 0, or there are fewer than `strong`.
    Source: Jin, Wang and Lin, CVPR 2023; weights and temperatures are the authors' code's for
    CIFAR-100 (240 to 480 epochs); on ImageNet label 0.5, weights 0.5 and taus 1, 3, 5, 2, 6.
    `strong` is 3 there since the lines of the strong view name the weak one for 2 and 6.
    Relatives: `kd` is one level at one temperature; `dist` relates by correlation; `lskd` may
    stand before the instance level.

    Example:
        >>> import torch
        >>> t, s = torch.tensor([[0.75, 0.25], [0.25, 0.75]]), torch.full((2, 2), 0.5)
        >>> float(gram_loss(s, t, torch.ones(2)))
        0.03125
    """

    label: float = number(0.1, least=0)
    instance: float = number(0.9, least=0)
    samples: float = number(0.9, least=0)
    classes: float = number(0.9, least=0)
    taus: tuple[float, ...] = (4.0, 3.0, 5.0, 2.0, 6.0)  # above 0
    strong: int = number(3, least=0)  # how many of taus, from the first, are of the strong view
    masks: Literal["share", "each", "none"] = "share"
    views: Literal["two", "one"] = "two"
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.taus or min(self.taus) <= 0:
            raise UsageError(f"MLKD.taus is {self.taus}; give one temperature or more, above 0")
        if self.views == "two" and self.strong > len(self.taus):
            raise UsageError(
                f"MLKD.strong is {self.strong}, but there are {len(self.taus)} taus to count from"
            )

    def asks(self) -> tuple[str, ...]:
        return CARD.needs if self.views == "two" else ("logits", "y")

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `instance`, `samples` and `classes`."""
        out: dict[str, Tensor] = {}
        views = [(s, t)]
        if self.views == "two":
            u = clock.rng("strong", batch.index).rand(DRAWS)
            seen = batch.replace(x=strong(batch.x, u, "mlkd's strong view is of"))
            views.append((s(seen), t(seen)))
        if self.label:
            each = [F.cross_entropy(side.logits.float(), batch.y) for side, _ in views]
            out["label"] = self.label * torch.stack(each).sum()
        if not (self.instance or self.samples or self.classes):
            return out
        check_classes(s.logits, t.logits)
        mine, theirs = (wide(side.logits) for side in (s, t))
        m, c = self._masks(theirs.detach())
        if self.instance:
            each = [(m * kl(mine, theirs, k)).mean() for k in self.taus]
            if self.views == "two":
                for i, k in enumerate(self.taus):
                    mine_k, theirs_k = views[i < self.strong]
                    each.append(kl(mine_k.logits, theirs_k.logits, k).mean())
            out["instance"] = self.instance * torch.stack(each).sum()
        p = [((mine / k).softmax(1), (theirs / k).softmax(1)) for k in self.taus]
        if self.samples:
            each = [gram_loss(a, b, m) for a, b in p]
            out["samples"] = self.samples * torch.stack(each).sum()
        if self.classes:
            each = [gram_loss(a.mT, b.mT, c) for a, b in p]
            out["classes"] = self.classes * torch.stack(each).sum()
        return out

    def _masks(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """How much samples (B,) and classes (C,) count, by the teacher's logits (B, C)."""
        p = t.softmax(1)
        if self.masks == "none":
            return torch.ones_like(p[:, 0]), torch.ones_like(p[0])
        m, c = (upto_median(v).to(p.dtype) for v in (p.amax(1), p.sum(0)))
        return (m, c) if self.masks == "each" else (m.mean().expand_as(m), c.mean().expand_as(c))
