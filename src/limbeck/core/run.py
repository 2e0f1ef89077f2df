"""The run around all fits: seed, folder, device, and what is remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.core import processes
from limbeck.core.devices import Devices
from limbeck.core.journal import Journal
from limbeck.core.progress import Progress
from limbeck.core.rng import generator
from limbeck.core.task import Task

_CURRENT: ContextVar[Run | None] = ContextVar("limbeck_run", default=None)


def current() -> Run:
    """The run that is going on, or a fresh one in memory."""
    return _CURRENT.get() or Run()


def stage(name: str, f: Callable[[], Any]) -> Any:
    """The result of f (nested tensors and plain values), remembered once finished."""
    return current().stage(name, f)


def loop(name: str, state: dict[str, Any], total: int) -> Iterator[int]:
    """Rounds 0 .. total - 1 over a state of modules, tensors and plain values.

    The body changes the state in place; a resumed run goes on after the last whole round.
    """
    return current().loop(name, state, total)


def rng(name: str) -> torch.Generator:
    """A generator by (seed, stage, name), for draws outside `fit`."""
    return current().rng(name)


class Run(Journal):
    """Seed, task, folder and devices of one execution; without a folder all stays in memory."""

    def __init__(
        self,
        task: Task | None = None,
        seed: int = 0,
        folder: Path | None = None,
        device: str | None = None,
        checkpoint: int | None = None,
        progress: Progress | None = None,
        trackers: tuple[str, ...] = (),
        after_step: Callable[[str, int], None] = lambda stage, done: None,
        on_fit: Callable[[Any], None] = lambda passes: None,
        norms: int = 50,
    ) -> None:
        super().__init__(folder)
        self.task, self.seed, self.checkpoint = task, seed, checkpoint
        self.devices = Devices(device, trackers, folder)
        self.device = self.devices.device
        self.progress = progress or Progress("none")
        self.after_step = after_step
        self.on_fit = on_fit  # given each fit (a `Passes`) before its first step
        self.norms = norms  # steps at least between two looks at the terms' gradients, which cost

    def rng(self, name: str) -> torch.Generator:
        """See `limbeck.rng`."""
        return generator(self.seed, "/".join(self._scope), name)

    def student(self, task: Task, name: str = "student") -> nn.Module:
        """A fresh student of a task, drawn by (seed, name)."""
        return task.new_student(self.seed, name)

    def log(self, row: Mapping[str, Any]) -> None:
        """A row for metrics.jsonl and the trackers."""
        self.tell(row)
        if not processes.rank():
            self.devices.track(row)

    @contextmanager
    def at(self, task: Task) -> Iterator[None]:
        """Be the current run, with this task, while a fit goes on."""
        before, self.task = self.task, task
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            self.task = before
            _CURRENT.reset(token)

    def __enter__(self) -> Run:
        self._token = _CURRENT.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _CURRENT.reset(self._token)
        self.progress.close()
        self.devices.close()
