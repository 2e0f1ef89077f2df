"""Whether a teacher is fed and read as it was trained: scale of inputs, order of classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.core.data import Table, reader_of
from limbeck.core.task import Task
from limbeck.doctor import limits, numbers
from limbeck.doctor.sides import Answers, answers, few_of, taught_by
from limbeck.errors import UsageError

Change = Callable[[Tensor], Tensor]
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Better:
    """Other inputs with which a teacher is much better.

    Attributes:
        what: of the inputs, after "when".
        accuracy: with them, on the samples of the trial.
        as_is: without.
        change: from the inputs as they are.
    """

    what: str
    accuracy: float
    as_is: float
    change: Change


def other_inputs(
    task: Task, table: Table, device: torch.device, classes: int
) -> tuple[Better | None, int]:
    """The usual scale of inputs with which the teacher is much better, if there is one.

    Returns:
        That, and how many were tried.
    """
    few = few_of(table, limits.LOOKED)

    def asked(most: int, change: Change | None = None) -> Answers:
        with taught_by(task, few, device, change=change) as side_of:
            return answers(side_of, few, most, device, classes)

    given = asked(limits.LOOKED)
    as_is = given.accuracy
    if as_is >= limits.SURE or given.logits.shape[1] != classes:
        return None, 0
    noise = limits.NOISE * numbers.error_of(as_is, len(given))
    chance = limits.CHANCE * float(torch.bincount(given.y).max()) / len(given)
    least = max(as_is + max(limits.FEED_GAIN, noise), min(chance, limits.SURE))
    glance = given.at(slice(limits.GLANCE)).accuracy + limits.FEED_GAIN / 2
    best: Better | None = None
    tried = 0
    begun = time.perf_counter()
    for what, change in _changes(task, few, device).items():
        if time.perf_counter() - begun > 2 * limits.PATIENCE:
            break  # a slow teacher; how many were tried is told
        try:
            if asked(limits.GLANCE, change).accuracy < glance:
                tried += 1
                continue
            value = asked(limits.LOOKED, change).accuracy
        except (UsageError, RuntimeError):  # inputs that this teacher does not take
            continue
        tried += 1
        if value > (best.accuracy if best else least):
            best = Better(what, value, as_is, change)
    return best, tried


def _changes(task: Task, table: Table, device: torch.device) -> Mapping[str, Change]:
    """What is done to inputs elsewhere and may be lacking here, by name."""
    reader = reader_of(task.readers, "teacher")
    x = table.rows(torch.arange(len(table)), "in order").to(device).columns["x"]
    z = reader(x) if reader else x
    if not (isinstance(z, Tensor) and z.is_floating_point() and z.dim() > 1):
        return {}
    axes = [d for d in range(z.dim()) if d != 1]
    mean, std = z.mean(axes, keepdim=True), z.std(axes, keepdim=True).clamp_min(1e-6)
    out: dict[str, Change] = {
        "each channel is standardised": lambda x: (x - mean) / std,
        "all is standardised by one mean and deviation": lambda x: (x - z.mean()) / z.std(),
        "divided by 255": lambda x: x / 255,
        "multiplied by 255": lambda x: x * 255,
        "brought from 0..1 to -1..1": lambda x: 2 * x - 1,
        "brought from -1..1 to 0..1": lambda x: (x + 1) / 2,
    }
    if z.dim() == 4 and z.shape[1] == 3:
        centre, spread = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in _IMAGENET)
        top = 255 if z.max() > 2 else 1
        out["scaled with ImageNet's mean and deviation"] = lambda x: (x / top - centre) / spread
        out["ImageNet's mean and deviation are undone"] = lambda x: x * spread + centre
        out["the channels are in the order blue, green, red"] = lambda x: x.flip(1)
    about: Mapping[str, Any] = task.about.get("inputs", {})
    if about.get("mean") is not None and about.get("std") is not None:
        shape = [1, -1, *[1] * (z.dim() - 2)]
        m, s = (torch.tensor(about[k], device=device).view(shape) for k in ("mean", "std"))
        out["the task's own mean and deviation are undone"] = lambda x: x * s + m
        out["scaled with the task's own mean and deviation"] = lambda x: (x - m) / s
    return out


@dataclass(frozen=True)
class Order:
    """The order of a teacher's classes that makes most samples right.

    Attributes:
        label_of: (C,), for each of the teacher's classes the label that it stands for.
        accuracy: in that order, on samples that did not choose it.
        as_is: without.
    """

    label_of: Tensor
    accuracy: float
    as_is: float

    @property
    def moved(self) -> list[tuple[int, int]]:
        """The teacher's classes that stand for another label, and which."""
        return [(i, k) for i, k in enumerate(self.label_of.tolist()) if i != k]

    def applied(self, given: Answers) -> Answers:
        """Answers with the classes in order."""
        logits = torch.empty_like(given.logits)
        logits[:, self.label_of] = given.logits
        return Answers(logits, given.y, given.hard)


def other_order(choose: Answers, judge: Answers) -> Order | None:
    """The order in which the teacher is much better, if there is one.

    Args:
        choose: its answers on samples that the order is found on.
        judge: on others, since the best order of many classes fits few samples by chance.
    """
    classes = choose.logits.shape[1]
    counts = numbers.confusion(choose.logits.argmax(-1), choose.y, classes)
    most = float(counts.max(1).values.sum()) / len(choose)  # no order is better than this
    if most - choose.accuracy < limits.ORDER_GAIN:
        return None
    found = Order(numbers.best_order(counts), 0.0, judge.accuracy)
    accuracy = found.applied(judge).accuracy
    noise = limits.NOISE * numbers.error_of(accuracy, len(judge))
    if accuracy - judge.accuracy < max(limits.ORDER_GAIN, noise):
        return None
    if accuracy < limits.LEARNED:  # any order of what knows little fits some samples
        return None
    return Order(found.label_of, accuracy, judge.accuracy)
