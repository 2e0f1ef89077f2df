"""`bags`: bags of Fashion-MNIST's pictures; positive are those that hold some handbags."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.bench.worlds._bag_models import DSMIL, Gated, MultiHead, factory, padded
from limbeck.bench.worlds._build import whole
from limbeck.bench.worlds._teachers import Samples
from limbeck.bench.worlds._text import taught
from limbeck.bench.worlds.fashion import _part, find
from limbeck.core.objectives import Labels
from limbeck.core.rng import generator
from limbeck.core.score import Score
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import Frozen
from limbeck.errors import UsageError

__all__ = ["DSMIL", "Gated", "MultiHead", "area", "padded", "task"]

NAMES = ("none", "handbags")
WANTED = 8  # Fashion-MNIST's class of bags, here handbags
SIZE, WITNESSES = (40, 60), (3, 10)  # instances of a bag, and handbags of a positive one, from, to
CUES = 5  # fixed pictures
WIDTH = 32  # principal components
_TRAIN = 50_000  # of 60,000 pictures; the rest fills valid
MORE = 10  # a teacher's bags for each of the student's
Bags = dict[str, Any]


def area(z: Tensor, y: Tensor) -> float:
    """The area under the ROC curve of two classes: how often a positive is ranked above a negative.

    Shapes: z (N, 2) logits, y (N,) of 0 and 1; equal ranks count one half.
    """
    rank = (z[:, 1] - z[:, 0]).double()
    apart = rank[y == 1][:, None] - rank[y == 0]
    return float(((apart > 0).double() + (apart == 0).double() / 2).mean())


AUC = Score("AUC", True, area)


def task(
    *,
    teacher: str | None = None,
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    cue: float = 0.9,
    folder: str | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task: x (B, 60, 32) with a mask, 40 to 60 instances a bag; the score is the AUC.

    An instance is a picture of 14x14 in its first 32 principal components, each of unit size.
    Half of the bags hold 3 to 10 handbags. Each bag also holds one of five fixed pictures: in train
    and valid which one mostly tells the label, in test it tells nothing. The teacher has learned
    from ten times as many bags in which it tells nothing.

    Args:
        teacher: 'abmil' (gated attention, the default), 'abmil-small', 'mha' (multi-head), 'dsmil',
            or 'none'.
        student: the same but for 'none'; 'abmil' by default.
        seed: of the run; makes no difference here.
        tiny: small networks, 32 bags of 8 to 12 instances and 24 steps.
        n: bags to train on; 40 by default.
        cue: how often the fixed picture is one of the label's own two.
        folder: as for `fashion`.
        data_seed: of the bags.
    """
    n = whole("n", n or (32 if tiny else 40), 8, 1000)
    if not isinstance(cue, int | float) or not 0 <= cue <= 1:
        raise UsageError(f"cue is {cue!r}; give a number from 0 to 1")
    pictures = _features(str(find(folder)))
    held = (32, 32) if tiny else (60, 200)

    def part(name: str, count: int, cue: float) -> Bags:
        return _bags(pictures[name], count, cue, tiny, name, data_seed)

    usual = "abmil-small" if tiny else "abmil"
    made = Task(
        teacher=None,
        student=factory(student or usual, WIDTH, 2),
        train=part("train", n, cue),
        valid=part("valid", held[0], cue),
        test=part("test", held[1], 0.0),
        score=AUC,
        budget=_budget(24, 8, 1e-2) if tiny else _budget(50 * n, 1, 1e-3),
        data={"names": NAMES},
        classes=2,
        name="bags",
    )
    if teacher == "none":
        return made
    family = teacher or usual
    alone = Task(
        teacher=None,
        student=made.student,
        train=part("teacher", MORE * n, 0.0),
        score=AUC,
        classes=2,
    )
    budget = _budget(100, 8, 1e-2) if tiny else _budget(20 * MORE * n // 8, 8, 1e-3)
    module = taught(f"bags-{family}", factory(family, WIDTH, 2), Labels(), alone, budget)
    return replace(made, teacher=Frozen(module))


def _budget(steps: int, batch: int, lr: float) -> Budget:
    """The paper's AdamW under a cosine to 0; its rate is larger: instances have 32 numbers."""
    spec = Optimiser("adamw", lr=lr, weight_decay=1e-5)
    return Budget(steps=steps, batch=batch, optimiser=spec)


def _bags(pictures: Samples, count: int, cue: float, tiny: bool, *place: Any) -> Bags:
    """Bags and their labels, every second one positive; bag i is the same however many there are.

    Args:
        pictures: features (N, 32) and classes (N,) of what bags are filled with.
        count: how many bags.
        cue: how often the fixed picture is one of the label's own.
        tiny: whether bags are small.
        place: what seeds them.
    """
    x, y = pictures
    (low, high), (few, many) = ((8, 12), (2, 4)) if tiny else (SIZE, WITNESSES)
    wanted, others = x[y == WANTED], x[y != WANTED]
    fixed, others = others[:CUES], others[CUES:]
    bags: list[tuple[Tensor, int]] = []
    for i in range(count):
        rng, label = generator("bags", *place, i), i % 2

        def some(least: int, most: int, rng: torch.Generator = rng) -> int:
            return int(torch.randint(least, most + 1, (), generator=rng))

        def drawn(of: Tensor, many: int, rng: torch.Generator = rng) -> Tensor:
            return of[torch.randint(len(of), (many,), generator=rng)]

        size, witnesses = some(low, high), label * some(few, many)
        told = float(torch.rand((), generator=rng)) < cue
        mark = 2 * label + some(0, 1) if told else some(0, CUES - 1)
        inside = (drawn(wanted, witnesses), drawn(others, size - 1 - witnesses), fixed[mark, None])
        bags.append((torch.cat(inside)[torch.randperm(size, generator=rng)], label))
    return padded(bags)


@cache
def _features(folder: str) -> dict[str, Samples]:
    """Components and classes of Fashion-MNIST's pictures, for train, valid and test.

    The fixed pictures are the first five of `train` that are no handbags, in all three.
    """
    (x, y), (x_test, y_test) = (_part(Path(folder), part, "14x14") for part in ("train", "test"))
    x, x_test = x.flatten(1).double(), x_test.flatten(1).double()
    mean = x[:_TRAIN].mean(0)
    values, axes = torch.linalg.eigh(torch.cov((x[:_TRAIN] - mean).T))
    axes = axes[:, -WIDTH:].flip(1) / values[-WIDTH:].flip(0).sqrt()
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # else the sign is free
    x, x_test = (((z - mean) @ axes).float() for z in (x, x_test))
    first = (y != WANTED).nonzero()[:CUES, 0]

    def led(x_part: Tensor, y_part: Tensor) -> Samples:
        return torch.cat((x[first], x_part)), torch.cat((y[first], y_part))

    rest = torch.ones(len(y), dtype=torch.bool)
    rest[first] = False
    train = led(x[:_TRAIN][rest[:_TRAIN]], y[:_TRAIN][rest[:_TRAIN]])
    return {
        "train": train,
        "teacher": train,
        "valid": led(x[_TRAIN:], y[_TRAIN:]),
        "test": led(x_test, y_test),
    }
