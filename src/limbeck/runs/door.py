"""The front door: `limbeck.run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck import registry
from limbeck.core import identity
from limbeck.core.method import Method, Result
from limbeck.core.progress import Progress
from limbeck.core.rng import globals_kept
from limbeck.core.run import Run
from limbeck.core.task import Task
from limbeck.runs import finish, teaching


def run(
    method: str | Method,
    task: Task,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    taps: Mapping[str, Any] | None = None,
    baseline: bool = False,
    cache: str | Path | None = None,
    device: str | None = None,
    checkpoint: int | None = None,
    progress: str = "none",
    trackers: tuple[str, ...] = (),
    command: str | None = None,
    **fields: Any,
) -> Result:
    """Run a method on a task.

    A teacher that is `Untrained` is trained first, on `train` with the task's budget, in a stage
    `teacher`; it is the same for every seed, and kept for later runs.

    Args:
        method: a key ("kd", "kd(tau=2)"), a FILE.py with a card, or a method.
        task: what a user brings.
        seed: all randomness is a function of it.
        out: the run's folder; an unfinished run of the same kind in it goes on where it was.
        taps: added to the task's.
        baseline: also train the student on the labels alone, same budget and seed, in a stage
            `baseline`.
        cache: a folder that `cache_teacher` wrote; the teacher's outputs are read from it.
        device: "cpu", "cuda", ...; Accelerate's choice when None.
        checkpoint: steps between checkpoints; an epoch or a tenth of the fit when None.
        progress: "none", "text" (sentences), "bar" or "json".
        trackers: names of Accelerate's trackers ("tensorboard", "wandb", "mlflow").
        command: written into run.json.
        fields: the method's hyper-parameters.

    Returns:
        The result; `facts` holds the scores and what result.json says.
    """
    chosen = _chosen(method, fields)
    if taps:
        task = dataclasses.replace(task, taps={**task.taps, **taps})
    identity.check_task(task, chosen)
    folder = Path(out) if out is not None else None
    shown = Progress(progress)
    with (
        Run(task, seed, folder, device, checkpoint, shown, trackers) as active,
        globals_kept(),
    ):
        told = identity.record(chosen, task, seed, command)
        if folder is not None:
            identity.open_folder(folder, told, task)
        for note in task.notes:
            shown.say(note)
        task = teaching.taught(active, task)
        if doubt := teaching.doubt(task, active.device):
            shown.say(doubt)
        task = teaching.cached(task, cache)
        result: Result = chosen.run(task)
        trained = active.finished("baseline")  # by an earlier call, whose result is kept
        alone = teaching.alone(active, task) if baseline or trained else None
        finish.finish(active, task, result, told, alone, doubt)
    return result


def again(
    method: str | Method,
    task: Task,
    *,
    seed: int,
    out: str | Path,
    cache: str | Path | None = None,
    device: str | None = None,
    **fields: Any,
) -> tuple[Task, Result]:
    """A finished run's task, with its trained teacher, and its result, from the stored stages.

    The method's Python is replayed, so that a student comes back as the method delivered it. The
    folder is not written to.

    Raises:
        UsageError: the folder holds another run.
    """
    chosen, folder = _chosen(method, fields), Path(out)
    with Run(task, seed, folder, device) as active, globals_kept():
        identity.compare(folder, identity.record(chosen, task, seed, None), task)
        task = teaching.cached(teaching.taught(active, task), cache)
        return task, chosen.run(task)


def _chosen(method: str | Method, fields: Mapping[str, Any]) -> Any:
    if isinstance(method, str):
        return registry.make(method, **fields)
    return dataclasses.replace(method, **fields) if fields else method  # type: ignore[type-var]
