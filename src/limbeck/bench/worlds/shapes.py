"""`shapes`: procedural colour pictures of a shape before clutter; the label is the shape."""

import math

import torch
from torch import Tensor

from limbeck.bench.worlds._build import Plan, Sets, build, whole
from limbeck.bench.worlds._teachers import Recipe, Samples
from limbeck.core.rng import generator
from limbeck.core.task import Task
from limbeck.errors import UsageError

NAMES = ("circle", "ring", "square", "bar", "triangle", "cross", "star", "moon")
_CLUTTER = 4  # bars behind each shape
_DRAWS = 12 + 7 * _CLUTTER  # uniform numbers that make one picture, without its grain
_EASY = torch.tensor([0.2] * 3 + [0.9] * 3 + [0.5] * 2 + [0.9, 0.5, 0.5, 0.0])
_GRAIN = 0.12  # its standard deviation, where colours are in [0, 1]
PLAN = Plan(
    pair=("resnet-large", "cnn"),
    recipe=Recipe(epochs=12),
    epochs=15,
    tiny_pair=("cnn", "cnn-small"),
)


def task(
    *,
    teacher: str | None = None,
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    side: int | None = None,
    plain: bool | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task: x (N, 3, side, side), about centred and of unit size; eight classes.

    Place, size, turn and colours are random, which an MLP cannot cope with.

    Args:
        teacher: a family, several joined by '+', or 'none'; 'resnet-large' by default.
        student: a family; 'cnn' by default.
        seed: of the run; makes no difference here.
        tiny: 192 pictures and 24 steps.
        n: training pictures; 3000 by default.
        side: pixels, a multiple of 4; 24 by default, 16 in the tiny world.
        plain: bright, near the middle, upright and without clutter; by default in the tiny world
            only, whose few pictures teach nothing otherwise.
        data_seed: of all pictures.
    """
    n = whole("n", n or (192 if tiny else 3000), 64, 100_000)
    side = whole("side", side or (16 if tiny else 24), 12, 64)
    if side % 4:
        raise UsageError(f"side is {side}; give a multiple of 4")
    plain = tiny if plain is None else bool(plain)
    sizes = (n, 64, 64, 128) if tiny else (n, 1000, 3000, 2000)
    train, valid, test, more = (
        draw(size, data_seed, part, side, plain)
        for size, part in zip(sizes, ("train", "valid", "test", "unlabelled"), strict=True)
    )
    return build("shapes", Sets(train, valid, test, NAMES, more[0]), PLAN, teacher, student, tiny)


def draw(n: int, data_seed: int, part: str, side: int, plain: bool = False) -> Samples:
    """Draw x (n, 3, side, side) and y (n,); picture i does not depend on n."""
    # One row of numbers for each picture, drawn row by row: a longer table only adds rows.
    rng = generator("shapes", data_seed, part)
    u = torch.rand(n, _DRAWS, generator=rng)
    if plain:  # every number nearer to one that makes it easy: dark, bright, no slope, ...
        u[:, :12] = _EASY + 0.2 * (u[:, :12] - 0.5)
    y = torch.arange(n) % len(NAMES)
    seeds = generator("shapes", data_seed, part, "grain")
    x = torch.cat(
        [
            _pictures(rows, labels, side, seeds, not plain)
            for rows, labels in zip(torch.split(u, 1000), torch.split(y, 1000), strict=True)
        ]
    )
    return (x - (0.22 if plain else 0.35)) / 0.25, y


def _pictures(u: Tensor, y: Tensor, side: int, grain: torch.Generator, clutter: bool) -> Tensor:
    axis = torch.linspace(-1, 1, side)
    at = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))[None]  # (1, 2, S, S)
    form, bars = u[:, :12, None, None], u[:, 12:].view(-1, _CLUTTER, 7)
    # Dark behind, bright before; a slope of light lies over what is behind.
    x = 0.5 * form[:, :3] + 0.5 * ((form[:, 6:8] - 0.5) * at).sum(1, keepdim=True)
    for c in bars.unbind(1) if clutter else ():
        size = 0.1 + 0.25 * c[:, 5]
        inside = _bar(*_local(at, 2 * c[:, 3:5] - 1, size, c[:, 6]), 0.3)
        x = _paint(x, 0.8 * c[:, :3, None, None], inside, size * side / 2)
    size = 0.35 + 0.25 * u[:, 8]
    a, b = _local(at, (2 * u[:, 9:11] - 1) * (1 - size[:, None]), size, u[:, 11])
    inside = torch.empty_like(a)
    for label, name in enumerate(NAMES):
        rows = y == label
        inside[rows] = _inside(name, a[rows], b[rows])
    x = _paint(x, 0.4 + 0.6 * form[:, 3:6], inside, size * side / 2)
    return (x + _GRAIN * torch.randn(x.shape, generator=grain)).clamp(0, 1)


def _local(at: Tensor, centre: Tensor, size: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (n, S, S) in which the thing at `centre` (n, 2) is of size 1 and upright."""
    dx, dy = ((at - centre[:, :, None, None]) / size[:, None, None, None]).unbind(1)
    c, s = (2 * math.pi * turn).cos()[:, None, None], (2 * math.pi * turn).sin()[:, None, None]
    return c * dx + s * dy, c * dy - s * dx


def _paint(x: Tensor, colour: Tensor, inside: Tensor, pixels: Tensor) -> Tensor:
    """Lay a colour over x where `inside` is above 0, with an edge one pixel soft."""
    alpha = (inside * pixels[:, None, None] + 0.5).clamp(0, 1)[:, None]
    return x + alpha * (colour - x)


def _bar(u: Tensor, v: Tensor, half: float) -> Tensor:
    return torch.minimum(1 - u.abs(), half - v.abs())


def _inside(name: str, u: Tensor, v: Tensor) -> Tensor:
    """About the distance to the edge of a shape of size 1, positive inside."""
    rho = torch.hypot(u, v)
    if name == "circle":
        return 0.9 - rho
    if name == "ring":
        return 0.22 - (rho - 0.75).abs()
    if name == "square":
        return 0.75 - torch.maximum(u.abs(), v.abs())
    if name == "bar":
        return _bar(u, v, 0.35)
    if name == "triangle":
        turns = [math.pi * (0.5 + 2 * k / 3) for k in range(3)]
        edges = [math.cos(a) * u + math.sin(a) * v for a in turns]
        return 0.52 - torch.stack(edges).amax(0)
    if name == "cross":
        return torch.maximum(_bar(u, v, 0.27), _bar(v, u, 0.27))
    if name == "star":  # fold the plane into one half of an arm, whose edge is a straight line
        tip, notch, half = 1.1, 0.45, math.pi / 5
        angle = (torch.remainder(torch.atan2(v, u), 2 * half) - half).abs()
        a, b = rho * (half - angle).cos(), rho * (half - angle).sin()
        ex, ey = notch * math.cos(half) - tip, notch * math.sin(half)
        return (ex * b - ey * (a - tip)) / math.hypot(ex, ey)
    return torch.minimum(0.95 - rho, torch.hypot(u - 0.5, v) - 0.72)  # moon
