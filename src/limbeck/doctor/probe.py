"""Short fits in memory: of the method, and of the student by heart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from limbeck.core.data import Epochs, Table, reader_of
from limbeck.core.engine import fit
from limbeck.core.evaluate import measure
from limbeck.core.method import Method, Objective, Result
from limbeck.core.objectives import Labels
from limbeck.core.rng import generator, globals_kept
from limbeck.core.run import Run
from limbeck.core.score import accuracy
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import Nobody
from limbeck.doctor import limits
from limbeck.errors import NonFinite, UsageError

Row = Mapping[str, Any]
_LONG = 15.0
"""Seconds above which it is said how long all fits will take."""
_FITS = 4
"""Short fits in all, in steps of the method's first: those without a teacher cost less."""
_PASS = 2
"""Batches that a fit by heart has in an epoch."""


class Probing(Run):
    """A run in memory that keeps its log's rows and its fits."""

    def __init__(self, task: Task, seed: int, device: str | None, **more: Any) -> None:
        super().__init__(task, seed, None, device, on_fit=self._on_fit, **more)
        self.rows: list[Row] = []
        self.fits: list[Any] = []

    def _on_fit(self, passes: Any) -> None:
        self.fits.append(passes)

    def tell(self, row: Row) -> None:
        self.rows.append(dict(row))

    def asked_of_teacher(self) -> set[str]:
        """The entries that the fits asked of the teacher."""
        return set().union(*(fit.teacher.asked for fit in self.fits))


@dataclass
class Tried:
    """What a short fit of a method gave."""

    rows: list[Row]
    model: nn.Module | None = None
    asked: set[str] = field(default_factory=set)  # of the teacher
    changes: bool = False  # whether the teacher sees other inputs than the data's own
    error: Exception | None = None


def shortened(budget: Budget, steps: int, lr: float | None = None) -> Budget:
    """The budget of a short fit, with its schedule over all of it."""
    optimiser = budget.optimiser if lr is None else replace(budget.optimiser, lr=lr)
    return replace(budget.unwatched(), steps=steps, epochs=None, optimiser=optimiser)


def tried(
    method: Method,
    task: Task,
    steps: int,
    seed: int,
    device: str | None,
    say: Callable[[str], None] = lambda sentence: None,
    share: float = 1.0,
) -> Tried:
    """A method's fits, each of so many steps; its error, where it cannot.

    Args:
        method: what is tried.
        task: it gets this task with a shorter budget.
        steps: of each fit.
        seed: of the fits.
        device: as for a run.
        say: takes a sentence where it will take long.
        share: of the task's learning rate.
    """
    begun: list[float] = []

    def after(stage: str, done: int) -> None:
        begun.append(time.perf_counter())
        if len(begun) == 4:  # the first step warms up
            each = (begun[-1] - begun[0]) / 3
            if (all_in_all := _FITS * each * steps) > _LONG:
                say(f"a step takes {each:.2g} s, so this takes about {all_in_all:.0f} s")

    lr = share * task.budget.optimiser.lr
    short = replace(task, budget=shortened(task.budget, steps, lr))
    run = Probing(short, seed, device, after_step=after, norms=1)
    out = Tried(run.rows)
    try:
        with run, globals_kept():
            result: Result = method.run(short)
        out.model = result.model
    except (ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        out.error = error
    if run.fits:
        out.asked = run.asked_of_teacher()
        out.changes = any(type(f.objective).prepare is not Objective.prepare for f in run.fits)
    return out


def losses(rows: Sequence[Row]) -> list[float]:
    """The sums of the terms, row by row; without rows of measurements."""
    return [math.fsum(row["terms"].values()) for row in rows if "terms" in row]


class _Enough(Exception):
    """A fit has learnt its samples, or there is no more time for it."""


def by_heart(task: Task, steps: int, seed: int, device: str | None) -> tuple[int, float]:
    """How many training samples a fresh student was asked to learn, and its accuracy on them.

    It has twice the steps of a short fit, or more if it must, Adam at several rates and no penalty
    on its weights, so that the task's own settings are not what fails. It ends once the samples are
    learnt; of slow models they are fewer, in smaller batches.

    Raises:
        UsageError: the time is over before it is known (the sentence says how to give more), or
            samples have several labels.
    """
    table = Table(task.set("train"))
    slow = steps < limits.STEPS
    most = limits.BY_HEART // 4 if slow else limits.BY_HEART
    tries = ((2, 2e-3), (6, 5e-3)) if slow else ((2, 2e-3), (2, 1e-2), (10, 5e-3))
    m = min(most, len(table))
    numbers = torch.randperm(len(table), generator=generator(seed, "by heart"))[:m]
    rows = table.rows(numbers, "by heart")
    if getattr(rows.columns.get("y"), "ndim", 1) == 2:
        raise UsageError("learning by heart is counted in classes, and a sample has several labels")
    few = Epochs({k: v for k, v in rows.columns.items() if k != "index"})
    reader = reader_of(task.readers, "student")
    best = 0.0
    end = time.perf_counter() + limits.HEART * max(1.0, steps / limits.LEAST)
    for times, lr in tries:
        budget = Budget(
            steps=times * steps, batch=max(1, min(most // 2, m)), optimiser=Optimiser("adam", lr=lr)
        )
        bare = replace(task, teacher=None, taps={}, budget=budget)
        student, device_ = _learning(bare, few, seed, device, end)
        if student is not None:
            best = max(best, measure(student, few.table, accuracy, reader, device_))
        if best >= limits.FITS:
            break
        if time.perf_counter() > end:
            raise UsageError(
                f"the time to learn {m} samples by heart was over when {best:.3f} of them were "
                f"learnt; --probe-steps {2 * steps} gives twice as much"
            )
    return m, best


def _learning(
    bare: Task, few: Epochs, seed: int, device: str | None, end: float
) -> tuple[nn.Module | None, torch.device]:
    """A fresh student after a fit on a few samples, and where it is; None where it broke."""

    def after(stage: str, done: int) -> None:
        last = losses(run.rows)[-_PASS:]  # as many batches as hold all samples
        learnt = len(last) == _PASS and max(last) < limits.KNOWN
        if learnt or time.perf_counter() > end:
            raise _Enough

    run = Probing(bare, seed, device, after_step=after)
    student: nn.Module | None = None
    try:
        with run, globals_kept():
            student = run.student(bare)
            fit(Labels(), student, Nobody(), few, name="by-heart")
    except _Enough:
        pass
    except NonFinite:
        student = None
    return student, run.device
