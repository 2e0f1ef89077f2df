"""`biased`: shapes before a colour that tells the class in training, and no longer in the test."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.bench.worlds import shapes
from limbeck.bench.worlds._build import Plan, Sets, build, whole
from limbeck.bench.worlds._teachers import Recipe, Samples
from limbeck.core.rng import generator
from limbeck.core.task import Optimiser, Task
from limbeck.errors import UsageError

NAMES = shapes.NAMES
SHIFTS = ("random", "reversed", "inverted", "noise")
_SURE = 0.9  # of the pictures have their class's colour behind
_SIDE, _TINY_SIDE = 24, 16
PLAN = Plan(
    pair=("cnn-medium", "cnn-medium"),
    recipe=Recipe(epochs=15),
    epochs=4,
    tiny_pair=("cnn", "cnn"),
    tiny_recipe=Recipe(epochs=24, batch=32),
)


def task(
    *,
    teacher: str | None = None,
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task: x (N, 3, 24, 24), about centred and of unit size; eight classes.

    The teacher was trained on shapes before all kinds of stripes and colours, half of them
    inverted, with more or less noise. In training and
    validation nine of ten pictures have the colour of their class behind. The test set holds the
    four shifts in equal parts: colours at random, those of another class, inverted pictures and
    noise; `data["shifts"]` holds each, and "alike" with training's own bias.

    Args:
        teacher: a family, several joined by '+', or 'none'; 'cnn-medium' by default.
        student: a family, the teacher's as a rule, whose weights are then its start.
        seed: of the run; makes no difference here.
        tiny: 192 pictures and 24 steps, of 16 pixels a side.
        n: training pictures; 2000 by default.
        data_seed: of all pictures.
    """
    n = whole("n", n or (192 if tiny else 2000), 64, 100_000)
    side = _TINY_SIDE if tiny else _SIDE
    few, many = (64, 768) if tiny else (500, 4000)

    def drawn(size: int, part: str, kind: str) -> Samples:
        return draw(size, data_seed, part, kind, side)

    more = drawn(few, "unlabelled", "alike")[0]
    before = Sets(
        drawn(many, "before", "diverse"),
        drawn(few, "seen", "diverse"),
        drawn(few, "seen too", "diverse"),
        NAMES,
        more,
    )
    made = build("biased", before, PLAN, teacher, student, tiny)
    shifts = {kind: drawn(few, "test", kind) for kind in ("alike", *SHIFTS)}
    test = tuple(torch.cat([shifts[kind][i] for kind in SHIFTS]) for i in (0, 1))
    budget = made.budget
    if not tiny:
        budget = replace(budget, optimiser=Optimiser("adamw", lr=2e-3, weight_decay=0.1))
    return replace(
        made,
        train=drawn(n, "train", "alike"),
        valid=drawn(few, "valid", "alike"),
        test=test,
        data={**made.data, "shifts": shifts},
        budget=budget,
    )


def colours(hue: Tensor) -> Tensor:
    """Colours (n, 3) of hues (n,) in turns, each channel in [0, 1]."""
    turns = hue[:, None] - torch.tensor([0.0, 1 / 3, 2 / 3])
    return 0.5 + 0.5 * (2 * math.pi * turns).cos()


def draw(n: int, data_seed: int, part: str, kind: str, side: int = _SIDE) -> Samples:
    """Draw x (n, 3, side, side) and y (n,); picture i does not depend on n.

    Args:
        n: pictures.
        data_seed: of all.
        part: of the data; equal parts have equal shapes, whatever the kind.
        kind: "diverse", "alike", or one of SHIFTS.
        side: pixels.
    """
    if kind not in ("diverse", "alike", *SHIFTS):
        raise UsageError(f"biased has no pictures of the kind {kind!r}")
    u = torch.rand(n, 12, generator=generator("biased", data_seed, part))
    y = torch.arange(n) % len(NAMES)
    axis = torch.linspace(-1, 1, side)
    at = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))[None]  # (1, 2, S, S)
    own = y / len(NAMES)
    hue = {"reversed": (own + 0.5) % 1}.get(kind, u[:, 0])
    if kind == "alike":
        hue = torch.where(u[:, 1] < _SURE, own, hue)
    x = (0.8 * colours(hue))[:, :, None, None].expand(-1, -1, side, side)
    if kind == "diverse":  # stripes of a second colour, in any direction
        angle, width = 2 * math.pi * u[:, 2], 2 + 6 * u[:, 3]
        along = torch.stack((angle.cos(), angle.sin()), 1)[:, :, None, None] * at
        waves = 0.5 + 0.5 * (width[:, None, None] * along.sum(1) + 9 * u[:, 4, None, None]).sin()
        x = x + waves[:, None] * (0.8 * colours(u[:, 5])[:, :, None, None] - x)
    size = 0.5 + 0.2 * u[:, 6]
    a, b = shapes._local(at, (2 * u[:, 7:9] - 1) * (1 - size[:, None]), size, 0.1 * u[:, 9] - 0.05)
    inside = torch.empty_like(a)
    for label, name in enumerate(NAMES):
        inside[y == label] = shapes._inside(name, a[y == label], b[y == label])
    grey = (u[:, 10, None] * 0.6 + 0.4).expand(-1, 3)[:, :, None, None]
    x = shapes._paint(x, grey, inside, size * side / 2)
    grain = torch.full((n, 1, 1, 1), 0.3 if kind == "noise" else 0.06)
    turned = torch.full((n, 1, 1, 1), kind == "inverted")
    if kind == "diverse":
        grain, turned = 0.3 * u[:, 1, None, None, None], u[:, 11, None, None, None] < 0.5
    x = torch.where(turned, 1 - x, x)
    noise = torch.randn(x.shape, generator=generator("biased", data_seed, part, "grain"))
    return ((x + grain * noise).clamp(0, 1) - 0.45) / 0.3, y
