"""Wrong: no seed makes a difference."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.core.card import Card
from limbeck.core.method import Method, Result, number
from limbeck.core.task import Task

CARD = Card(
    key="seeds",
    title="Wrong: no seed makes a difference",
    year=2024,
    arxiv="",
    code="",
    kinds=("response",),
    needs=(),
    gives="scores",
    world="blobs",
    stages=(),
    tiny={},
    departs="none known",
)
FAILS = ("seeds",)


@dataclass(frozen=True)
class Seeds(Method):
    """A student is taught the teacher's class probabilities beside the true labels.

    label * CE(y, s) + soft * KL(softmax(t) || softmax(s)).

    Trained: the student. Frozen: the teacher.
    Source: none.
    Relatives: `kd`.

    Example:
        >>> Seeds().label
        0.5
    """

    label: float = number(0.5, least=0)
    soft: float = number(0.5, least=0)
    card = CARD

    def run(self, task: Task) -> Result:
        """The same scores at all times."""
        return Result(scores={"a": 1.0, "b": 2.0})
