"""Wrong: it counts other samples than it sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Mean, Objective, number
from limbeck.core.views import Side

CARD = Card(
    key="counts",
    title="Wrong: it counts other samples than it sums",
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
FAILS = ("counts",)


@dataclass(frozen=True)
class Counts(Objective):
    """A student is taught the teacher's class probabilities beside the true labels.

    label * CE(y, s) + soft * KL(softmax(t) || softmax(s)).

    Trained: the student. Frozen: the teacher.
    Source: none.
    Relatives: `kd`.

    Example:
        >>> Counts().label
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
            out["soft"] = Mean(self.soft * kl(s.logits, t.logits, 1.0).sum(), len(batch))
        return out

    def counts(self, batch: Batch) -> dict[str, float]:
        """One too many."""
        return {"soft": len(batch) + 1.0} if self.soft else {}
