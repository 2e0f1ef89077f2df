"""Wrong: it takes long."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, Result, number
from limbeck.core.task import Task
from limbeck.core.views import Side

CARD = Card(
    key="time",
    title="Wrong: it takes long",
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
FAILS = ("time",)
SECONDS = 0.5  # for this file, so that its test need not take long


@dataclass(frozen=True)
class Time(Objective):
    """A student is taught the teacher's class probabilities beside the true labels.

    label * CE(y, s) + soft * KL(softmax(t) || softmax(s)).

    Trained: the student. Frozen: the teacher.
    Source: none.
    Relatives: `kd`.

    Example:
        >>> Time().label
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

    def run(self, task: Task) -> Result:
        """A fit, after a while."""
        end = time.process_time() + 0.06
        while time.process_time() < end:
            pass
        return super().run(task)
