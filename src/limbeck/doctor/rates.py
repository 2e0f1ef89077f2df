"""Short fits of the student alone, at several rates."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import nn

from limbeck.core.engine import fit
from limbeck.core.objectives import Labels
from limbeck.core.rng import globals_kept
from limbeck.core.task import Optimiser, Task
from limbeck.core.teachers import Nobody
from limbeck.doctor import limits
from limbeck.doctor.probe import Probing, Row, losses, shortened
from limbeck.errors import NonFinite


def usual(optimiser: Optimiser) -> float:
    """A rate at which most students learn."""
    return limits.USUAL.get(optimiser.name, 1e-3)


def highest(optimiser: Optimiser) -> float:
    """The highest rate that is tried or proposed unasked."""
    return limits.HIGHEST.get(optimiser.name, 1e-2)


def paced(task: Task, seed: int, device: str | None, answer: float) -> int:
    """The steps of a short fit that all of them have time for.

    Args:
        task: whose student is timed.
        seed: of the fit.
        device: as for a run.
        answer: seconds of the teacher for a sample.
    """
    begun: list[float] = []
    _on_labels(task, 4, seed, device, None, lambda stage, done: begun.append(time.perf_counter()))
    if len(begun) < 3:  # the last step is not told
        return limits.STEPS
    each = statistics.median(b - a for a, b in pairwise(begun))
    step = 6 * each + 2 * answer * task.budget.batch  # two fits of six ask the teacher
    return max(limits.LEAST, min(limits.STEPS, int(limits.GOAL / step)))


@dataclass(frozen=True)
class Rates:
    """Losses on labels at the end of short fits, by learning rate.

    Attributes:
        own: the task's rate.
        whole: the rate at which a short fit goes as far as the whole run does at its own.
        start: the loss before anything is learnt.
        end: rate -> loss; infinite where it turned infinite.
        drift: how far the weights went at the task's rate, by their own size.
        usual: a rate at which most students learn.
        highest: the highest that is proposed unasked.
    """

    own: float
    whole: float
    start: float
    end: Mapping[float, float]
    drift: float
    usual: float
    highest: float

    @property
    def best(self) -> float:
        """The lowest rate whose loss is among the lowest."""
        lowest = min(self.end.values())
        near = lowest + limits.ALIKE_RATES * max(0.0, self.start - lowest)
        return min((lr for lr, v in self.end.items() if v <= near), default=self.own)


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
    mine = _on_labels(task, steps, seed, device, own)
    slow = _on_labels(task, steps, seed, device, own / 10)
    first = losses(slow.rows)[:5]  # one batch alone may be a hard one
    start = min(first[0], statistics.median(first)) if first else math.inf
    end = {own: mine.end, own / 10: slow.end}
    optimiser = task.budget.optimiser
    top = max(own, highest(optimiser))
    learnt = limits.LEARNT * min(1.0, steps / limits.STEPS)
    if not min(end.values()) < (1 - learnt) * start:
        tries: list[float] = []
        if not mine.drift < limits.STUCK:  # what hardly moves is not too fast
            tries += [own / 100, own / 1000]
        if mine.drift < 1:  # what went further than its own size is not too slow
            tries += [own * 10, own * far, usual(optimiser), own * 100, own * 1000]
        begun = time.perf_counter()
        for lr in tries:
            if time.perf_counter() - begun > limits.GOAL:
                break
            if lr <= top and all(max(lr, had) > 1.5 * min(lr, had) for had in end):
                end[lr] = _on_labels(task, steps, seed, device, lr).end
    rates = Rates(own, own * far, start, end, mine.drift, usual(optimiser), top)
    return Alone(rates, mine.model, mine.rows)


@dataclass
class _Short:
    """A short fit on the labels: its rows, and its student, None where it turned infinite."""

    rows: list[Row]
    model: nn.Module | None = None
    drift: float = math.inf  # of all weights, by their size at first

    @property
    def end(self) -> float:
        """The median loss of the last quarter; infinite where the fit did not reach its end."""
        found = losses(self.rows)
        if self.model is None or not found:
            return math.inf
        return statistics.median(found[-max(1, len(found) // 4) :])


def _on_labels(
    task: Task,
    steps: int,
    seed: int,
    device: str | None,
    lr: float | None,
    after_step: Callable[[str, int], None] = lambda stage, done: None,
) -> _Short:
    bare = replace(task, teacher=None, taps={}, budget=shortened(task.budget, steps, lr))
    run = Probing(bare, seed, device, after_step=after_step)
    out = _Short(run.rows)
    try:
        with run, globals_kept():
            student = run.student(bare)
            before = [p.detach().clone() for p in student.parameters()]
            fit(Labels(), student, Nobody(), bare.batches(), name="alone")
    except NonFinite:
        return out
    out.model = student
    after = [p.detach() for p in student.parameters()]
    way = sum(
        float((a.to(b.device) - b).square().sum()) for a, b in zip(after, before, strict=True)
    )
    size = sum(float(b.square().sum()) for b in before)
    out.drift = math.sqrt(way / size) if size > 0 else math.inf
    return out
