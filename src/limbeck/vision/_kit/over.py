"""A task's teacher over its training set, once and in order, before a fit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from limbeck.core.data import Batch, reader_of
from limbeck.core.method import Clock
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.teacher import Setting
from limbeck.core.views import Side

__all__ = ["over"]

CHUNK = 256  # samples at a time


def over(task: Task, name: str, rows: Tensor | None = None) -> Iterator[tuple[Batch, Side]]:
    """Batches of the training set as its first epoch shows them, each with the teacher's view.

    Args:
        task: its teacher may be any, a cache too; its taps and the teacher's reader are used.
        name: of the stage that asks.
        rows: numbers of samples; all when None.
    """
    run, table = current(), task.batches().table
    paths = {entry: pair[0] for entry, pair in task.taps.items()}
    teacher = task.the_teacher().attach(
        Setting(paths, reader_of(task.readers, "teacher"), run.device)
    )
    try:
        teacher.check(table)
        for numbers in torch.split(torch.arange(len(table)) if rows is None else rows, CHUNK):
            batch = table.rows(numbers, run.seed, 0).to(run.device)
            batch.place = (run.seed, 0)
            yield batch, teacher.side(batch, Clock(run.seed, name, 0, 1, 1))
    finally:
        teacher.close()
