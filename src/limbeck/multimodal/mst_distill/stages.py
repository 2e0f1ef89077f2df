"""The three stages, each as what its fit minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts, Objective
from limbeck.core.task import Optimiser
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.multimodal.mst_distill.losses import (
    balance_loss,
    by_teacher,
    fallen,
    kd_loss,
    routed_loss,
)
from limbeck.multimodal.mst_distill.teachers import logits_of


def phases(rate: float, of: str) -> tuple[Phase, ...]:
    """One phase, in which what lies `of` student or parts has Adam at its own `rate`, if any."""
    adam = Optimiser("adam", rate or 1.0, schedule="constant")
    return (Phase(optimisers={of: adam}),) if rate else (Phase(),)


class Gate(nn.Module):
    """Logits over K teachers from the student's logits: two linear layers with nothing between.

    Of maps (B, C, H, W): a 1x1 convolution, ReLU, a depthwise 3x3 of stride 2, ReLU, the mean over
    places, a linear layer.
    """

    def __init__(self, classes: int, teachers: int, maps: bool) -> None:
        super().__init__()
        wide = 2 * classes
        self.inner: nn.Module = nn.Linear(classes, wide)
        if maps:
            self.inner = nn.Sequential(
                nn.Conv2d(classes, wide, 1),
                nn.ReLU(),
                nn.Conv2d(wide, wide, 3, 2, 1, groups=wide),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
        self.out = nn.Linear(wide, teachers)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, ...) -> (B, K)."""
        return self.out(self.inner(z))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Together(Objective):
    """The first stage: student and peers learn from labels and from each other."""

    m: Any  # the method
    peers: nn.ModuleDict

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        return self.peers

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m, out = self.m, {}
        zs = [s.logits, *(logits_of(peer, batch.x) for peer in parts.values())]
        if m.label:
            losses = [F.cross_entropy(z.float(), batch.y) for z in zs]
            out["label"] = m.label * torch.stack(losses).sum()
        if m.mutual:
            pairs = [kd_loss(p, q, m.tau).mean() for p in zs for q in zs if p is not q]
            out["mutual"] = m.mutual * torch.stack(pairs).sum()
        return out

    def update(self) -> tuple[Phase, ...]:
        return phases(self.m.rate, "parts")


@dataclass(frozen=True)
class Masks(Objective):
    """The second stage: the fit's student is the group of teachers, its teacher the student."""

    m: Any  # the method

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        each = by_teacher(t.logits, s.logits, self.m.tau, back=True)
        return {"mask": self.m.mask * each.mean(0).sum()}  # each mask has its own loss

    def update(self) -> tuple[Phase, ...]:
        return phases(self.m.rate, "student")


@dataclass(frozen=True)
class Routed(Objective):
    """The third stage: the teacher is the group."""

    m: Any  # the method

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        z, teachers = s.logits, t.logits.shape[1]
        if self.m.k > teachers:
            raise UsageError(
                f"mst_distill takes the best k={self.m.k} of its teachers, and there are "
                f"{teachers}; give a smaller k"
            )
        return Gate(z.shape[1], teachers, z.dim() == 4)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m, z, out = self.m, s.logits, {}
        if m.label:
            out["label"] = m.label * F.cross_entropy(z.float(), batch.y)
        if m.kd or m.balance:
            g = parts(z).float()
        if m.kd:
            weight = m.kd * fallen(clock.epoch, m.kd_fall, m.kd_every)
            each = by_teacher(z, t.logits.detach(), m.tau)
            out["kd"] = weight * routed_loss(each, g.softmax(1), m.k, m.weighted)
        if m.balance:
            weight = m.balance * fallen(clock.epoch, m.balance_fall, m.balance_every)
            out["balance"] = weight * balance_loss(g, m.balance_by)
        return out

    def update(self) -> tuple[Phase, ...]:
        return phases(self.m.rate, "parts")
