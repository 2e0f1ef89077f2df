"""Where a stage ends in a ReLU: what that ReLU is given, and the BatchNorm that it comes from."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.data import reader_of
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.views import shown

__all__ = ["Place", "before_relu", "places"]

PASSED = (nn.MaxPool2d, nn.AvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity)
"""What may stand between a ReLU and the end of a stage."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Place:
    """A tap, and the path of the BatchNorm whose output it reads; None if it reads another's."""

    path: str
    norm: str | None


class Trace:
    """What made what in one forward pass of a model, and what stood at some taps.

    Args:
        model: of which all modules without others inside are watched.
        paths: of the taps; what is no module of the model is left to the taps themselves.
    """

    def __init__(self, model: nn.Module, paths: list[str]) -> None:
        self.made: dict[int, tuple[str, nn.Module, Any]] = {}  # by id of an output
        self.seen: dict[str, Any] = {}
        self.times = Counter[str]()
        self._alive: list[Any] = []  # so that no id is used twice
        modules = dict(model.named_modules())
        leaves = [n for n, m in modules.items() if not any(m.children())]
        self._handles = [modules[n].register_forward_hook(self._leaf(n)) for n in leaves]
        for path in paths:
            if path.partition(":")[0] in modules:
                at = modules[path.partition(":")[0]]
                self._handles.append(at.register_forward_hook(self._tap(path)))

    def _leaf(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.times[name] += 1
            self._alive.extend((args, output))
            given = args[0] if args else None
            if not (output is given and isinstance(module, PASSED)):  # else it made nothing
                self.made[id(output)] = (name, module, given)

        return hook

    def _tap(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._alive.extend((args, output))
            self.seen[path] = args[0] if path.endswith(":in") else output

        return hook

    def origin(self, value: Any) -> tuple[str, nn.Module | None, Any]:
        """The path of the module that made a value, that module, and what it made it from."""
        return self.made.get(id(value), ("", None, None))

    def place(self, path: str) -> Place:
        """The tap before the ReLU that its value comes from, if there is one to tap."""
        value = self.seen.get(path)
        name, module, given = self.origin(value)
        while isinstance(module, PASSED):
            name, module, given = self.origin(given)
        if isinstance(module, nn.ReLU) and not module.inplace and self.times[name] == 1:
            value, path = given, f"{name}:in"
        name, module, _ = self.origin(value)
        normed = isinstance(module, NORMS) and module.track_running_stats
        return Place(path, name if normed and self.times[name] == 1 else None)

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()


@contextlib.contextmanager
def _looking(model: nn.Module) -> Iterator[None]:
    """In eval mode without gradient; each module's mode is put back."""
    was = [(m, m.training) for m in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in was:
            module.training = training


def places(model: nn.Module, paths: list[str], x: Any, reader: Any = None) -> list[Place]:
    """Each of some taps moved before the ReLU that its module ends in, pooling and dropout passed.

    It stays where there is no such ReLU, or one that works in place or in several places.

    Args:
        model: runs once, in eval mode and without gradient.
        paths: of taps.
        x: raw inputs.
        reader: of the model.
    """
    trace = Trace(model, paths)
    device = next((p.device for p in model.parameters()), None)
    try:
        with _looking(model):
            shown(model, x.to(device) if isinstance(x, Tensor) and device else x, reader)
    finally:
        trace.close()
    return [trace.place(path) for path in paths]


def before_relu(task: Task, student: nn.Module) -> tuple[Task, list[str | None]]:
    """A task whose `blocks` are read before ReLU, and the BatchNorms that the teacher's come from.

    None stands for a stage that comes from none; the list is empty where the teacher is no module
    here.

    Args:
        task: its taps `blocks` are moved by `places`.
        student: the module that will be trained.
    """
    teacher, norms = task.the_teacher(), list[str | None]()
    theirs, mine = task.taps.get("blocks", (None, None))
    x = task.batches().first().x
    if theirs and isinstance(teacher, Frozen):
        paths = [theirs] if isinstance(theirs, str) else list(theirs)
        found = places(teacher.module, paths, x, reader_of(task.readers, "teacher"))
        theirs, norms = [p.path for p in found], [p.norm for p in found]
    if mine:
        paths = [mine] if isinstance(mine, str) else list(mine)
        mine = [p.path for p in places(student, paths, x, reader_of(task.readers, "student"))]
    taps = {"blocks": (theirs, mine)} if theirs or mine else {}
    return replace(task, teacher=teacher, taps={**task.taps, **taps}), norms
