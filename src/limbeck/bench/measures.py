"""Measures that several trials name, beside a world's own score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.core.data import Table, reader_of
from limbeck.core.evaluate import evaluating, predict
from limbeck.core.teachers import Frozen
from limbeck.errors import UsageError

if TYPE_CHECKING:
    from limbeck.core.method import Result
    from limbeck.core.task import Task

__all__ = ["agreement"]


def agreement(task: Task, result: Result, on: str) -> float:
    """The share of a set's samples on which student and teacher give the same class."""
    teacher = task.the_teacher()
    if not isinstance(teacher, Frozen) or result.model is None:
        raise UsageError("agreement needs one teacher that is a module, and a student")
    table = Table(task.set(on), on)
    answers = []
    for model, side in ((teacher.module, "teacher"), (result.model, "student")):
        with evaluating(model):
            answers.append(predict(model, table, reader_of(task.readers, side))[0].argmax(-1))
    return float((answers[0] == answers[1]).double().mean())
