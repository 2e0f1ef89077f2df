"""One arm of a trial, run once: a method or the labels alone, on a world, with one seed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from limbeck.core.card import call
from limbeck.errors import UsageError

__all__ = ["Job", "perform"]

_WHOLE = ("epochs", "steps", "batch")


@dataclass(frozen=True)
class Job:
    """One run of one arm.

    Attributes:
        arm: its name in the trial.
        setting: what is run, such as "rkd(distance=25, lr_factor=0.5)".
        world: with its options.
        budget: instead of the world's.
        seed: of the run.
        measure: of the trial.
        on: "valid" while tuning, "test" where it is reported.
        owner: the key in whose trial the measure is defined, and its number there; None for the
            standard ones.
        cache: a folder with the teacher's outputs, which are then read from it: the same bits.
    """

    arm: str
    setting: str
    world: str
    budget: tuple[tuple[str, float], ...]
    seed: int
    measure: str
    on: str
    owner: tuple[str, int] | None = None
    cache: str | None = None

    @property
    def place(self) -> dict[str, Any]:
        """What tells its row from others."""
        return {
            "arm": self.arm,
            "setting": self.setting,
            "world": self.world,
            "budget": dict(self.budget),
            "seed": self.seed,
            "measure": self.measure,
            "on": self.on,
        }


def perform(job: Job) -> dict[str, Any]:
    """Run a job on one thread; gives value, what it took, and what it was measured beside.

    Returns:
        {"value", "steps" (optimiser steps of all its fits), "seconds" (of the processor), "parts"
        (parameters that are trained beside the student and do not ship, of the fit with most)}.
    """
    import torch

    from limbeck import registry
    from limbeck.bench import worlds
    from limbeck.runs import teaching
    from limbeck.runs.door import run

    torch.set_num_threads(1)
    task = worlds.make(job.world)
    name, values = call(job.setting)
    changes = {k: values.pop(k) for k in ("lr_factor", *_WHOLE) if k in values}
    task = replace(task, budget=budget(task.budget, {**dict(job.budget), **changes}))
    began = time.process_time()
    if name == "labels":
        alone = replace(task, teacher=None, taps={})
        truth: Any = teaching.truth(alone)
        result = run(replace(truth, **values), alone, seed=job.seed)
    else:
        result = run(registry.make(name, **values), task, seed=job.seed, cache=job.cache)
    seconds = time.process_time() - began
    value = measured(job, task, result)
    stages = result.facts["stages"]
    return {
        "value": value,
        "steps": sum(stage["steps"] for stage in stages),
        "seconds": round(seconds, 2),
        "parts": max((stage["parts"] for stage in stages), default=0),
    }


def budget(usual: Any, changes: Mapping[str, float]) -> Any:
    """A budget with other durations, and a learning rate `lr_factor` times as high.

    Raises:
        UsageError: an unknown word.
    """
    changes = dict(changes)
    rate = changes.pop("lr_factor", 1)
    if unknown := [k for k in changes if k not in _WHOLE]:
        raise UsageError(f"a trial's budget cannot set {unknown[0]!r}; it knows {_WHOLE}")
    if "epochs" in changes:
        changes["steps"] = changes.get("steps")  # type: ignore[assignment]
    if changes.get("steps"):
        changes["epochs"] = None  # type: ignore[assignment]
    optimiser = replace(usual.optimiser, lr=usual.optimiser.lr * rate)
    return replace(usual, optimiser=optimiser, **changes)


def measured(job: Job, task: Any, result: Any) -> float:
    """The trial's number of a result, on `valid` or `test`."""
    from limbeck.bench import measures
    from limbeck.core.data import Table, reader_of
    from limbeck.core.evaluate import measure

    if job.owner is not None:
        from limbeck.bench.trial import defined

        key, number = job.owner
        own = defined(key)[number - 1].measure
        assert own is not None
        return float(own(task, result, job.on))
    if job.measure in measures.NAMED:
        return measures.NAMED[job.measure](task, result, job.on)
    if result.model is None:
        raise UsageError(
            f"{job.setting} gives no model, so the world's score cannot be its measure; define a "
            "measure in the trial's file"
        )
    table = Table(task.set(job.on), job.on)
    return measure(result.model, table, task.score, reader_of(task.readers, "student"))
