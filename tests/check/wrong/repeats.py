"""Wrong: it starts from the clock on the wall."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.views import Side

CARD = Card(
    key="repeats",
    title="Wrong: it starts from the clock on the wall",
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
FAILS = ("cached", "repeats", "resume")


@dataclass(frozen=True)
class Repeats(Objective):
    """A student is taught the teacher's class probabilities beside the true labels.

    label * CE(y, s) + soft * KL(softmax(t) || softmax(s)).

    Trained: the student. Frozen: the teacher.
    Source: none.
    Relatives: `kd`.

    Example:
        >>> Repeats().label
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
        """A fit of a student that was never the same."""
        student = current().student(task)
        with torch.no_grad():
            next(student.parameters()).mul_(1 + 1e-3 * (time.time_ns() % 997))
        fitted = fit(self, student, task.the_teacher(), task.batches(), name="fit")
        return Result(model=fitted.student, log=fitted.log)
