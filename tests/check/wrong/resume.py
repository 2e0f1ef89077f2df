"""Wrong: it counts where no checkpoint looks."""

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
    key="resume",
    title="Wrong: it counts where no checkpoint looks",
    year=2024,
    arxiv="",
    code="",
    kinds=("response",),
    needs=("logits", "y"),
    gives="model",
    world="blobs",
    stages=("fit",),
    tiny={},
    departs="none known",
)
FAILS = ("resume",)


@dataclass(frozen=True)
class Resume(Objective):
    """A student is taught the teacher's class probabilities beside the true labels.

    label * CE(y, s) + soft * KL(softmax(t) || softmax(s)).

    Trained: the student. Frozen: the teacher.
    Source: none.
    Relatives: `kd`.

    Example:
        >>> Resume().label
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
            out["soft"] = self.soft * (1 + 0.1 * parts.count) * kl(s.logits, t.logits, 1.0).mean()
        return out

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """A count that is no buffer."""
        parts: Any = nn.Module()
        parts.count = 0
        return parts

    def after_step(self, parts: Any, seen: Any, clock: Clock) -> None:
        """Count."""
        parts.count += 1
