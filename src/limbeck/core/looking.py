"""A teacher asked outside a fit: about batches of a set, or about the whole training set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from limbeck.core.data import Batch, Table, reader_of
from limbeck.core.method import Clock
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.teacher import Setting, Teacher
from limbeck.core.views import Side

__all__ = ["asking", "look_over"]


@contextmanager
def asking(
    teacher: Teacher, setting: Setting, table: Table, seed: int = 0
) -> Iterator[Callable[[Batch], Side]]:
    """A teacher, to be asked about batches of a table; afterwards it is as it was.

    Args:
        teacher: any that is not moved by a fit.
        setting: where it is read, and on which device.
        table: of whose rows the batches are.
        seed: of what a `Crowd` draws.

    Raises:
        UsageError: the teacher is a cache of other samples.
    """
    live, clock = teacher.attach(setting), Clock(seed, "look", 0, 1, 1)
    try:
        live.check(table)
        yield lambda batch: live.side(batch, clock)
    finally:
        live.close()


def look_over(
    task: Task, size: int = 256, rows: Tensor | None = None
) -> Iterator[tuple[Batch, Side]]:
    """The training set in its order, as its first epoch shows it, with the teacher's view of it.

    For what a method learns of its teacher before it fits: class means, statistics, a choice.

    Args:
        task: of the current run, whose seed and device are used.
        size: samples at a time.
        rows: their numbers; all when None.

    Raises:
        UsageError: the teacher is a cache of other samples.
    """
    run, table = current(), task.batches().table
    paths = {name: pair[0] for name, pair in task.taps.items()}
    setting = Setting(paths, reader_of(task.readers, "teacher"), run.device)
    with asking(task.the_teacher(), setting, table, run.seed) as view:
        for numbers in torch.split(torch.arange(len(table)) if rows is None else rows, size):
            batch = table.rows(numbers, run.seed, 0).to(run.device)
            batch.place = (run.seed, 0)
            yield batch, view(batch)
