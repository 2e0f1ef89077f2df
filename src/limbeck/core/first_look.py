"""A first look at a task's models: whether they take its samples and give its classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.data import Table, reader_of
from limbeck.core.evaluate import evaluating
from limbeck.core.rng import globals_kept
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.untrained import Untrained
from limbeck.core.views import entries_of, shown
from limbeck.errors import UsageError

__all__ = ["check_models", "classes_of"]

LOOKED = 64
"""As many samples of a data set tell its labels, where these are not in memory."""

_FIT = re.compile(r"\b(dtype|double|shapes?|sizes?|channels?|dimensions?)\b", re.IGNORECASE)
"""Words of torch's errors where samples and model do not fit each other."""


def check_models(task: Task, needs: tuple[str, ...]) -> None:
    """Refuse, before anything is trained, models that cannot learn this task's labels.

    Only where a method needs both the student's logits and labels: others may show a model other
    inputs, or take its outputs for something else than classes.

    Args:
        task: whose `train` is looked at.
        needs: of the method, as its card says.

    Raises:
        UsageError: a model takes no such samples, or gives fewer outputs than there are classes.
    """
    if "y" not in needs or not {"logits", "student:logits"} & {*needs} or task.train is None:
        return
    table = Table(task.train)
    x = table.rows(torch.arange(min(2, len(table))), "look").columns["x"]
    y = _labels(table)
    _check(task, "student", task.new_student(0), x, y)
    teacher = task.the_teacher()
    if isinstance(teacher, Untrained):
        _check(task, "teacher", teacher.new(), x, y)
    elif isinstance(teacher, Frozen) and "logits" in needs:  # else it may be read inside alone
        _check(task, "teacher", teacher.module, x, None)


def _labels(table: Table) -> Tensor | None:
    """Whole numbers (N,), of all samples or of a few all over the set; None for other labels."""
    y = table.labels()
    if y is None and table.tensors is None:
        numbers = torch.linspace(0, len(table) - 1, min(LOOKED, len(table))).long()
        y = table.rows(numbers, "look").columns.get("y")
    whole = isinstance(y, Tensor) and y.dim() == 1 and not y.is_floating_point()
    return y if whole else None


def _check(task: Task, side: str, module: nn.Module, x: Any, y: Tensor | None) -> None:
    """One model; labels None where it knows the classes already."""
    reader = reader_of(task.readers, side)
    place = next((p.device for p in module.parameters()), torch.device("cpu"))
    low_precision = torch.autocast(place.type, torch.bfloat16, task.budget.precision != "fp32")
    try:
        with low_precision, globals_kept():
            gives = classes_of(module, x, f"the {side}", reader)
    except UsageError as error:
        if error.__cause__ is None or _FIT.search(str(error.__cause__)):
            raise
        return  # what fails on this device may work on the run's
    if gives is None or y is None or int(y.max()) < gives:
        return
    low, high = int(y.min()), int(y.max())
    told = f"the labels of 'train' go from {low} to {high}"
    if low == 1 and high == gives:
        raise UsageError(
            f"{told}, and the {side} has {gives} logits; classes are numbered from 0, so subtract 1"
        )
    raise UsageError(
        f"{told}: {high + 1} classes, but the {side} has {gives} logits; give one with "
        f"{high + 1}, or number the classes from 0 to {gives - 1}"
    )


def classes_of(
    module: nn.Module, x: Any, name: str, reader: Callable[[Any], Any] | None = None
) -> int | None:
    """How many logits a model gives for a sample; None where it gives no logits.

    Args:
        module: in any mode; left as it is, but for layers that learn their sizes now.
        x: a few samples (B, ...), or a mapping of such.
        name: of the model, for a sentence.
        reader: what the samples go through first.

    Raises:
        UsageError: it cannot take such samples.
    """
    first = next(module.parameters(), None)
    x = x if first is None else _to(x, first.device)
    try:
        with evaluating(module):
            entries = entries_of(shown(module, x, reader))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(_refused(module, x, name, error, reader is None)) from error
    logits = entries.get("logits")
    return None if logits is None else int(logits.shape[-1])


def _refused(module: nn.Module, x: Any, name: str, error: Exception, as_is: bool) -> str:
    """The sentence for an error; `as_is`: the model was given the samples without a reader."""
    if not isinstance(x, Tensor):
        return f"{name} does not take the samples: {' '.join(str(error).split())}"
    kind = str(x.dtype).removeprefix("torch.")
    weights = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if as_is and x.is_floating_point() and weights and x.dtype not in weights:
        have = str(weights.pop()).removeprefix("torch.")
        how = ".float()" if have == "float32" else f".to(torch.{have})"
        return f"the samples are {kind} and the weights of {name} {have}; convert them with x{how}"
    told = " ".join(str(error).split())
    return f"{name} does not take samples of shape {tuple(x.shape[1:])} and type {kind}: {told}"


def _to(x: Any, device: torch.device) -> Any:
    if isinstance(x, Mapping):
        return {k: _to(v, device) for k, v in x.items()}
    return x.to(device) if isinstance(x, Tensor) else x
