"""Wrong: its after_step moves the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Objective, number
from limbeck.core.views import Side

CARD = Card(
    key="after_step",
    title="Wrong: its after_step moves the student",
    year=2024,
    arxiv="",
    code="",
    kinds=("response",),
    needs=("logits", "y", "weights"),
    gives="model",
    world="blobs",
    stages=("fit",),
    tiny={},
    departs="none known",
)
FAILS = ("after_step",)


@dataclass(frozen=True)
class AfterStep(Objective):
    """A student is taught the teacher's class probabilities beside the true labels.

    label * CE(y, s) + soft * KL(softmax(t) || softmax(s)).

    Trained: the student. Frozen: the teacher.
    Source: none.
    Relatives: `kd`.

    Example:
        >>> AfterStep().label
        0.5
    """

    label: float = number(0.5, least=0)
    soft: float = number(0.5, least=0)
    card = CARD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Any]:
        """The weighted `label` and `soft`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.soft:
            out["soft"] = self.soft * kl(s.logits, t.logits, 1.0).mean()
        return out

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """A hidden way to the student."""
        parts: Any = nn.Module()
        parts.way = [s.model]
        return parts

    def after_step(self, parts: Any, seen: Any, clock: Clock) -> None:
        """Shrink the student."""
        for p in parts.way[0].parameters():
            p.mul_(0.999)
