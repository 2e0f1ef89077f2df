"""Wrong: its scores depend on where a candidate stands."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from limbeck.core.card import Card
from limbeck.core.method import Method, Result, number
from limbeck.core.run import rng
from limbeck.core.task import Task

CARD = Card(
    key="permuted",
    title="Wrong: its scores depend on where a candidate stands",
    year=2024,
    arxiv="",
    code="",
    kinds=("response",),
    needs=("data:space",),
    gives="scores",
    world="blobs",
    stages=(),
    tiny={},
    departs="none known",
)
FAILS = ("permuted",)


@dataclass(frozen=True)
class Permuted(Method):
    """A student is taught the teacher's class probabilities beside the true labels.

    label * CE(y, s) + soft * KL(softmax(t) || softmax(s)).

    Trained: the student. Frozen: the teacher.
    Source: none.
    Relatives: `kd`.

    Example:
        >>> Permuted().label
        0.5
    """

    label: float = number(0.5, least=0)
    soft: float = number(0.5, least=0)
    card = CARD

    def run(self, task: Task) -> Result:
        """A candidate's place, and a draw."""
        draw = float(torch.rand((), generator=rng("draw")))
        return Result(scores={name: i + draw for i, name in enumerate(task.data["space"])})
