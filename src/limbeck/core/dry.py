"""A look at a run without the run: shapes, parts, parameters, seconds a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck import registry
from limbeck.core import identity
from limbeck.core.rng import globals_kept
from limbeck.core.run import Run
from limbeck.core.task import Task
from limbeck.core.teachers import BlackBox, Frozen
from limbeck.core.untrained import Untrained

_STEPS = 4  # the first one warms up


class _EnoughSeen(Exception):
    pass


def look(
    method: str, task: Task, seed: int, device: str | None, fields: Mapping[str, Any]
) -> Iterator[str]:
    """Lines on a method's first fit on this task, from its first few steps, in memory."""
    chosen = registry.make(method, **fields)
    identity.check_task(task, chosen)
    teacher = task.the_teacher()
    yield repr(chosen)
    if isinstance(teacher, Untrained):
        yield _training(task, teacher)
        task = replace(task, teacher=Frozen(teacher.new()))
    if not chosen.card.stages:
        yield "it trains nothing"
        return
    fits: list[Any] = []
    times: list[float] = []
    shapes: dict[str, str] = {}

    def after(stage: str, done: int) -> None:
        times.append(time.perf_counter())
        if done >= _STEPS:
            shapes.update(_shapes(fits[-1]))
            raise _EnoughSeen

    run = Run(task, seed, device=device, after_step=after, on_fit=fits.append)
    try:
        with run, globals_kept():
            chosen.run(task)
    except _EnoughSeen:
        pass
    first = run.stages[0]
    for entry, shape in shapes.items():
        yield f"{entry}: {shape}"
    yield f"parameters: student {first['parameters']:,}, parts {first['parts']:,}"
    yield f"first stage: '{first['stage']}', {first['steps']} steps of {first['batch']} samples"
    if isinstance(teacher, BlackBox) and hasattr(teacher.ask, "asked"):
        n = teacher.ask.asked
        yield f"the teacher at {teacher.name} was sent {n} requests; its answers are kept"
    if len(times) > 1:
        alone = ", after the teacher's own training" if isinstance(teacher, Untrained) else ""
        yield f"seconds a step: {(times[-1] - times[0]) / (len(times) - 1):.4f}{alone}"


def _training(task: Task, teacher: Untrained) -> str:
    """What a run would do first."""
    batches = task.batches()
    steps = task.budget.total(batches.per_epoch(min(task.budget.batch, batches.samples)))
    return (
        f"the teacher '{teacher.name}': {teacher.why}, so it would be trained first, {steps} steps"
    )


def _shapes(passes: Any) -> dict[str, str]:
    """The shape of each view entry that was asked, on the few samples that parts are built from."""
    batch = passes.batches.first().to(passes.r.device)
    out: dict[str, str] = {}
    with torch.no_grad():
        shown = passes.objective.prepare(batch, passes.clock(0, "dry").rng)
        sides = {
            "student": passes.look.side_of(shown[0]),
            "teacher": passes.teacher.side(shown[1], passes.clock(0, "dry")),
        }
        asked = {"student": passes.look.asked, "teacher": passes.teacher.asked}
        for name, side in sides.items():
            for entry in sorted(asked[name] - {"again", "weights", "members"}):
                value = getattr(side, entry)
                told = [tuple(v.shape) if isinstance(v, Tensor) else v for v in _each(value)]
                out[f"{name}.{entry}"] = ", ".join(map(str, told))
    return out


def _each(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
