"""Short fits in memory: of the method, of the student alone, at other rates, and by heart."""

from __future__ import annotations

import math
import statistics
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
from limbeck.core.task import Budget, Optimiser, Task, accuracy
from limbeck.core.teachers import Nobody
from limbeck.doctor import limits
from limbeck.errors import NonFinite

Row = Mapping[str, Any]
_MOST = 10.0
"""The highest rate that is tried unasked."""
_LONG = 15.0
"""Seconds above which it is said how long all fits will take."""
_FITS = 4
"""Short fits in all, in steps of the method's first: those without a teacher cost less."""


class _Probing(Run):
    """A run in memory that keeps its log's rows and its fits."""

    def __init__(self, task: Task, seed: int, device: str | None, **more: Any) -> None:
        super().__init__(task, seed, None, device, on_fit=self._on_fit, norms=1, **more)
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
    run = _Probing(short, seed, device, after_step=after)
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


@dataclass(frozen=True)
class Rates:
    """Losses on labels at the end of short fits, by learning rate.

    Attributes:
        own: the task's rate.
        whole: the rate at which a short fit goes as far as the whole run does at its own.
        start: the loss before anything is learnt.
        end: rate -> loss; infinite where it turned infinite.
    """

    own: float
    whole: float
    start: float
    end: Mapping[float, float]

    @property
    def best(self) -> float:
        """The rate with the lowest loss."""
        return min(self.end, key=lambda lr: self.end[lr])


@dataclass(frozen=True)
class Alone:
    """The student without a teacher: short fits at several rates, and its model at the task's."""

    rates: Rates
    model: nn.Module | None
    rows: list[Row]


def alone(task: Task, steps: int, seed: int, device: str | None) -> Alone:
    """Fit the student on the labels at the task's rate, at a tenth, and further where need be."""
    own = task.budget.optimiser.lr
    per_epoch = task.batches().per_epoch(task.budget.batch)
    far = max(1.0, task.budget.total(per_epoch) / steps)
    rows, model = _on_labels(task, steps, seed, device, own)
    slow = _on_labels(task, steps, seed, device, own / 10)
    first = losses(slow[0])[:5]  # one batch alone may be a hard one
    start = min(first[0], statistics.median(first)) if first else math.inf
    end = {own: _end(rows, model), own / 10: _end(*slow)}

    def ask(lr: float) -> None:
        if lr not in end and lr <= max(own, _MOST):
            end[lr] = _end(*_on_labels(task, steps, seed, device, lr))

    if not min(end.values()) < (1 - limits.LEARNT) * start:
        for lr in (own / 100, own / 1000, own * far, own * 10, own * 100, own * 1000):
            ask(lr)
    return Alone(Rates(own, own * far, start, end), model, rows)


def _on_labels(
    task: Task, steps: int, seed: int, device: str | None, lr: float
) -> tuple[list[Row], nn.Module | None]:
    """The rows of a short fit on the labels, and the student; None where it turned infinite."""
    bare = replace(task, teacher=None, taps={}, budget=shortened(task.budget, steps, lr))
    run = _Probing(bare, seed, device)
    try:
        with run, globals_kept():
            student = run.student(bare)
            fit(Labels(), student, Nobody(), bare.batches(), name="alone")
    except NonFinite:
        return run.rows, None
    return run.rows, student


def losses(rows: Sequence[Row]) -> list[float]:
    """The sums of the terms, row by row; without rows of measurements."""
    return [math.fsum(row["terms"].values()) for row in rows if "terms" in row]


def _end(rows: Sequence[Row], model: nn.Module | None) -> float:
    """The median loss of the last quarter; infinite where the fit did not reach its end."""
    if model is None:
        return math.inf
    found = losses(rows)
    return statistics.median(found[-max(1, len(found) // 4) :])


def by_heart(task: Task, steps: int, seed: int, device: str | None) -> tuple[int, float]:
    """How many training samples a fresh student was asked to learn, and its accuracy on them.

    It has twice the steps of a short fit, or ten times if it must, Adam at several rates and no
    penalty on its weights, so that the task's own settings are not what fails.
    """
    table = Table(task.set("train"))
    m = min(limits.BY_HEART, len(table))
    numbers = torch.randperm(len(table), generator=generator(seed, "by heart"))[:m]
    rows = table.rows(numbers, "by heart")
    few = Epochs({k: v for k, v in rows.columns.items() if k != "index"})
    best = 0.0
    for times, lr in ((2, 1e-2), (2, 2e-3), (10, 5e-3)):
        budget = Budget(steps=times * steps, batch=min(64, m), optimiser=Optimiser("adam", lr=lr))
        bare = replace(task, teacher=None, taps={}, budget=budget)
        run = _Probing(bare, seed, device)
        try:
            with run, globals_kept():
                student = run.student(bare)
                fit(Labels(), student, Nobody(), few, name="by-heart")
        except NonFinite:
            continue
        reader = reader_of(task.readers, "student")
        best = max(best, measure(student, few.table, accuracy, reader, run.device))
        if best >= limits.FITS:
            break
    return m, best
