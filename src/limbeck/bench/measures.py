"""Measures that several trials name, beside a world's own score."""

from __future__ import annotations

from collections.abc import Callable

from limbeck.core.data import Table, reader_of
from limbeck.core.evaluate import evaluating, predict
from limbeck.core.method import Result
from limbeck.core.rng import Draws
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.text.generate import generate
from limbeck.core.text.replay import prompts_of
from limbeck.errors import UsageError

__all__ = ["NAMED", "agreement", "reverse_kl"]

_LEAST = 8  # tokens of a prompt
_TEXTS = 500


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


def reverse_kl(task: Task, result: Result, on: str) -> float:
    """KL(student || teacher) for each token of what the student writes, estimated on its texts.

    It goes on from the first tokens of at most 500 of a set's texts, for half of the context; the
    same draws for every student.
    """
    teacher, text = task.the_teacher(), task.data.get("text")
    if not isinstance(teacher, Frozen) or text is None or result.model is None:
        raise UsageError("the reverse KL needs a teacher and a student that are language models")
    table = Table(task.set(on), on)
    batch = table.rows(table.some(_TEXTS))
    new = text.context // 2
    ids, mask = prompts_of(batch, new, text.context, text.pad, _LEAST)
    with evaluating(result.model), evaluating(teacher.module):
        written = generate(
            (result.model, teacher.module),
            ids,
            mask,
            new=new,
            draws=Draws(batch.index, "reverse_kl", on),
            eos=text.eos,
            pad=text.pad,
            weights=(1.0, 0.0),
            own=True,
            vocab=text.vocab,
        )
    assert written.own is not None
    ours, theirs = written.own[:, written.valid].double()
    return float((ours - theirs).mean())


NAMED: dict[str, Callable[[Task, Result, str], float]] = {
    "agreement": agreement,
    "reverse_kl": reverse_kl,
}
"""Measures by the names that trials give them."""
