"""What is asked of views in a run, whoever looks; and which teacher is the task's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from torch import nn

from limbeck.check.desk import LOOKS
from limbeck.check.look import modules_of
from limbeck.check.seen import TEACHER
from limbeck.core.task import Task
from limbeck.core.teacher import Teacher
from limbeck.core.views import Look

__all__ = ["is_given", "noted"]


def is_given(live: Teacher, task: Task) -> bool:
    """Whether a fit's teacher is the task's."""
    given, mine = task.the_teacher(), vars(live)
    return type(live) is type(given) and all(mine.get(k) is v for k, v in vars(given).items())


def _alike(model: nn.Module, other: nn.Module) -> bool:
    if type(model) is not type(other):
        return False
    shapes = ([p.shape for p in m.parameters()] for m in (model, other))
    return model is other or next(shapes) == next(shapes)


@contextlib.contextmanager
def noted(task: Task) -> Iterator[set[str]]:
    """Note what is asked of any view, also by a method that looks at models itself.

    Of teachers' views only those of the task's own teacher count, or of a copy of it.
    """
    found: set[str] = set()
    taught = modules_of(task.the_teacher())
    ask = Look.ask

    def noting(look: Look, name: str) -> None:
        ask(look, name)
        if look.side == "student":
            found.add(name if name in LOOKS else f"student:{name}")
        elif any(_alike(look.model, module) for module in taught):
            found.add(TEACHER.get(name, f"teacher:{name}"))

    with mock.patch.object(Look, "ask", noting):
        yield found
