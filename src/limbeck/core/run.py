"""The run around all fits: seed, folder, device, what is remembered, and the front door."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.core import checkpoints, identity, processes
from limbeck.core.data import Table, reader_of
from limbeck.core.devices import Devices
from limbeck.core.evaluate import measure, score_teacher
from limbeck.core.files import write_json
from limbeck.core.journal import Journal
from limbeck.core.method import Method, Result
from limbeck.core.progress import Progress
from limbeck.core.rng import generator, globals_kept
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
    ) -> None:
        super().__init__(folder)
        self.task, self.seed, self.checkpoint = task, seed, checkpoint
        self.devices = Devices(device, trackers, folder)
        self.device = self.devices.device
        self.progress = progress or Progress("none")
        self.after_step = after_step
        self.on_fit = on_fit  # given each fit (a `Passes`) before its first step

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
        self.devices.close()


def run(
    method: str | Method,
    task: Task,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    taps: Mapping[str, Any] | None = None,
    device: str | None = None,
    checkpoint: int | None = None,
    progress: str = "none",
    trackers: tuple[str, ...] = (),
    command: str | None = None,
    **fields: Any,
) -> Result:
    """Run a method on a task.

    Args:
        method: a key ("kd", "kd(tau=2)"), a FILE.py with a card, or a method.
        task: what a user brings.
        seed: all randomness is a function of it.
        out: the run's folder; an unfinished run of the same kind in it goes on where it was.
        taps: added to the task's.
        device: "cpu", "cuda", ...; Accelerate's choice when None.
        checkpoint: steps between checkpoints; an epoch or a tenth of the fit when None.
        progress: "none", "bar" or "json".
        trackers: names of Accelerate's trackers ("tensorboard", "wandb", "mlflow").
        command: written into run.json.
        fields: the method's hyper-parameters.

    Returns:
        The result; `facts` holds the scores and what result.json says.
    """
    from limbeck import registry

    chosen: Any = method
    if isinstance(method, str):
        chosen = registry.make(method, **fields)
    elif fields:
        chosen = dataclasses.replace(chosen, **fields)
    if taps:
        task = dataclasses.replace(task, taps={**task.taps, **taps})
    identity.check_task(task, chosen)
    folder = Path(out) if out is not None else None
    with (
        Run(task, seed, folder, device, checkpoint, Progress(progress), trackers) as active,
        globals_kept(),
    ):
        told = identity.record(chosen, task, seed, command)
        if folder is not None:
            identity.open_folder(folder, told, task)
        result: Result = chosen.run(task)
        _finish(active, chosen, task, result, told)
    return result


def _finish(active: Run, method: Method, task: Task, result: Result, told: dict[str, Any]) -> None:
    """Scores and files of a finished run."""
    facts: dict[str, Any] = {k: told[k] for k in ("method", "fields", "world", "seed")}
    if result.model is not None and task.set_or_none(task.judged) is not None:
        table = Table(task.set(task.judged), task.judged)
        value = measure(
            result.model, table, task.score, reader_of(task.readers, "student"), active.device
        )
        facts |= {"score": value, "score_of": task.judged, "score_name": task.score.name}
        facts["teacher"] = score_teacher(task, table, active.device)
    if result.model is not None:
        facts["parameters"] = sum(p.numel() for p in result.model.parameters())
    if result.scores is not None:
        facts["scores"] = dict(result.scores)
    if result.report is not None:
        facts["report"] = dict(result.report)
    facts["stages"] = active.stages
    result.facts = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()
    }
    if active.folder is not None:
        folder = active.folder
        processes.by_the_first(lambda: _write(folder, result))


def _write(folder: Path, result: Result) -> None:
    """The files of a finished run; result.json comes last, and says that it is finished."""
    if result.model is not None:
        checkpoints.save(folder / "student.safetensors", checkpoints.of_module(result.model))
    if isinstance(result.data, dict):
        checkpoints.save(folder / "data.safetensors", result.data)
    write_json(folder / "result.json", result.facts)
