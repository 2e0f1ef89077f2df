"""A right method of several stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Method, Objective, Result, number
from limbeck.core.run import current, loop, rng, stage
from limbeck.core.task import Task
from limbeck.core.views import Side

CARD = Card(
    key="right_stages",
    title="A right method of several stages",
    year=2024,
    arxiv="",
    code="",
    kinds=("response",),
    needs=("logits", "y"),
    gives="model",
    world="blobs",
    stages=("first", "shape", "rounds"),
    tiny={},
    departs="none known",
)
FAILS = ()


@dataclass(frozen=True)
class Soft(Objective):
    """The terms of one fit."""

    label: float = number(0.5, least=0)
    soft: float = number(0.5, least=0)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Any]:
        """The weighted `label` and `soft`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.soft:
            out["soft"] = self.soft * kl(s.logits, t.logits, 1.0).mean()
        return out


@dataclass(frozen=True)
class RightStages(Method):
    """A student is taught the teacher's class probabilities beside the true labels.

    label * CE(y, s) + soft * KL(softmax(t) || softmax(s)).

    In `rounds` rounds, after a first fit, and a pause between.

    Trained: the student. Frozen: the teacher.
    Source: none.
    Relatives: `kd`.

    Example:
        >>> RightStages().label
        0.5
    """

    label: float = number(0.5, least=0)
    soft: float = number(0.5, least=0)
    rounds: int = number(2, least=1)
    card = CARD

    def run(self, task: Task) -> Result:
        """A first fit, some numbers, and rounds of fits."""
        student, teacher = current().student(task), task.the_teacher()
        objective = Soft(self.label, self.soft)
        log = fit(objective, student, teacher, task.batches(), name="first").log
        shape = stage("shape", lambda: {"noise": torch.randn(3, generator=rng("noise"))})
        for p in student.parameters():
            p.data.add_(0.01 * shape["noise"].sum())
        state = {"student": student, "log": log}
        for _ in loop("rounds", state, self.rounds):
            fitted = fit(objective, student, teacher, task.batches(), name="fit")
            state["log"] = state["log"] + fitted.log
        return Result(model=student, log=state["log"])
