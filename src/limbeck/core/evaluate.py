"""Scores of models on sets of data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.core.data import Table
from limbeck.core.views import entries_of, shown

if TYPE_CHECKING:
    from limbeck.core.score import Score
    from limbeck.core.task import Task

_CHUNK = 32  # samples at a time, where they are sequences


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; every module's own mode is put back."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, training in modes:
            m.training = training


def predict(
    model: Callable[..., Any],
    table: Table,
    reader: Callable[[Any], Any] | None = None,
    device: torch.device | None = None,
    size: int = 512,
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) in float32 and labels (N,), on the CPU, of a model in eval mode."""
    logits, labels = [], []
    for batch in table.chunks(size):
        batch = batch.to(device or torch.device("cpu"))
        out = entries_of(shown(model, batch.columns["x"], reader))["logits"]
        logits.append(out.float().cpu())
        labels.append(torch.as_tensor(batch.y).cpu())
    return torch.cat(logits), torch.cat(labels)


def measure(
    model: nn.Module,
    table: Table,
    score: Score,
    reader: Callable[[Any], Any] | None = None,
    device: torch.device | None = None,
) -> float:
    """A score of a model on a set."""
    with evaluating(model):
        if score.each is None:
            assert score.of is not None
            return score.of(*predict(model, table, reader, device))
        total = count = 0.0
        for batch in table.chunks(_CHUNK):
            batch = batch.to(device or torch.device("cpu"))
            a, n = score.each(entries_of(shown(model, batch.columns["x"], reader)), batch)
            total, count = total + float(a), count + float(n)
        return total / count if count else math.nan


def score_teacher(task: Task, table: Table, device: torch.device) -> float | None:
    """The score of the task's teacher, where it is a module that gives logits; else None."""
    from limbeck.core.data import reader_of
    from limbeck.core.teachers import Frozen

    teacher = task.the_teacher()
    if not isinstance(teacher, Frozen):
        return None
    module = teacher.module.to(device)
    with evaluating(module):
        batch = table.rows(torch.arange(1)).to(device)
        reader = reader_of(task.readers, "teacher")
        if "logits" not in entries_of(shown(module, batch.columns["x"], reader)):
            return None
    return measure(module, table, task.score, reader, device)
