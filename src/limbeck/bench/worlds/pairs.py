"""`pairs`: noisy digits with a waveform of the same class, of which the student sees the digit."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bench.worlds import _families
from limbeck.bench.worlds._build import stratified, whole
from limbeck.bench.worlds._paired import Alone, Both, Only, Wave
from limbeck.bench.worlds._text import taught
from limbeck.bench.worlds.digits import _pictures
from limbeck.core.crowd import Crowd
from limbeck.core.objectives import Labels
from limbeck.core.rng import generator
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import Frozen
from limbeck.errors import Missing, UsageError, nearest

CLASSES, LENGTH = 10, 40
_TEST, _VALID, _POOL = 597, 200, 1000
_NOISE = {"a": 0.9, "b": 1.1}  # standard deviations, where a modality's own is 1
_SHAPE = (1, 8, 8)
PEERS = ("both", "a", "b")


def task(
    *,
    teacher: str | None = None,
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task: x {"a": (N, 1, 8, 8), "b": (N, 40)}, ten classes.

    `a` is a digit of scikit-learn's in noise, `b` the waveform of its class, shifted, scaled and in
    noise of its own: each is right where the other errs. The student is shown `a` alone.
    `peers` are fresh networks to be trained along: "both" of both modalities, "b" of the waveform.

    Args:
        teacher: "both" (by default), "a" or "b", by what it sees, or several joined by
            '+', which learn from twice as many pairs as the student; or 'none'.
        student: a family of models of pictures; 'mlp-small' by default.
        seed: of the run; makes no difference here.
        tiny: 192 pairs and 24 steps.
        n: training pairs; 500 by default.
        data_seed: of the split, the noise and the waveforms.

    Raises:
        Missing: no such teacher or family.
    """
    n = whole("n", n or (192 if tiny else 500), 64, _POOL)
    x, y = draw(data_seed)
    order = stratified(y, "pairs", data_seed)
    test, valid, pool = torch.split(order, [_TEST, _VALID, _POOL])
    if tiny:
        test, valid, pool = test[:64], valid[:64], pool[: n + 128]

    def part(rows: Tensor) -> dict[str, Any]:
        return {"x": {name: v[rows] for name, v in x.items()}, "y": y[rows]}

    family = student or ("mlp-tiny" if tiny else "mlp-small")
    make = _families.factory(family, _SHAPE, CLASSES)
    adam = Optimiser("adamw", lr=1e-2 if tiny else 3e-3, weight_decay=1e-2)
    rest = part(pool[n:])["x"]
    made = Task(
        teacher=None,
        student=make,
        train=part(pool[:n]),
        valid=part(valid),
        test=part(test),
        budget=Budget(steps=24, batch=16, optimiser=adam)
        if tiny
        else Budget(epochs=60, batch=64, optimiser=adam),
        data={
            "peers": {name: network(name, tiny) for name in ("both", "b")},
            "names": tuple(str(k) for k in range(CLASSES)),
            **({"unlabelled": rest} if len(pool) > n else {}),
        },
        readers={"student": Only("a")},
        classes=CLASSES,
        name="pairs",
    )
    alone = replace(made, train=part(pool), readers={})
    return _taught(made, alone, teacher or "both", _families.blueprint(make)[0], tiny)


def _taught(made: Task, alone: Task, teacher: str, mine: Any, tiny: bool) -> Task:
    """The task with its trained teachers, and where the sides' views are read."""
    if not isinstance(teacher, str):
        raise UsageError(f"the teacher is {teacher!r}; give what it sees in quotes: 'both'")
    names = [] if teacher == "none" else [word.strip() for word in teacher.split("+")]
    for name in names:
        if name not in PEERS:
            raise Missing(f"no teacher of pairs is called {name!r}{nearest(name, PEERS)}")
    steps, lr = (150, 1e-2) if tiny else (1000, 3e-3)
    budget = Budget(
        steps=steps, batch=64, optimiser=Optimiser("adamw", lr, weight_decay=0.05), warmup=0.1
    )
    modules = [
        taught(f"pairs-{name}", network(name, tiny), Labels(), alone, budget) for name in names
    ]
    tables: list[Any] = [_taps(m) for m in modules]
    paths: dict[str, Any] = {}
    for name, path in mine.items():
        theirs = tuple(t[name] for t in tables if name in t)
        if len(theirs) == len(tables):
            paths[name] = (theirs if len(theirs) > 1 else theirs[0] if theirs else None, path)
    frozen = [Frozen(m) for m in modules]
    value = None if not frozen else frozen[0] if len(frozen) == 1 else Crowd(frozen)
    return replace(made, teacher=value, taps=paths)


def _taps(model: nn.Module) -> dict[str, Any]:
    """Where a teacher's views are read; of an `Alone` in what it holds."""
    if isinstance(model, Alone):
        inner: Any = model.model.taps
        return {
            name: [f"model.{p}" for p in path] if isinstance(path, list) else f"model.{path}"
            for name, path in inner.items()
        }
    table: Any = model.taps
    return dict(table)


def network(name: str, tiny: bool = False) -> Callable[[], nn.Module]:
    """The factory of a network that is called with both modalities and sees one, or both."""
    picture = _families.factory("mlp-small" if tiny else "mlp", _SHAPE, CLASSES)
    wave = partial(Wave, LENGTH, CLASSES, (8, 16) if tiny else (16, 32))
    if name == "both":
        return lambda: Both(picture(), wave(), CLASSES, 16 if tiny else 64)
    return lambda: Alone(name, picture() if name == "a" else wave())


def draw(data_seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Draw {"a": (1797, 1, 8, 8), "b": (1797, 40)} and y; noise and waveforms are by the seed."""
    x, y = _pictures()
    x = (x - x.mean()) / x.std()
    a = x + _NOISE["a"] * torch.randn(x.shape, generator=generator("pairs", data_seed, "a"))
    rng = generator("pairs", data_seed, "b")
    waves = templates(generator("pairs", data_seed, "waves"))[y]
    shift = torch.randint(-4, 5, (len(y),), generator=rng)
    at = (torch.arange(LENGTH) - shift[:, None]) % LENGTH
    size = 0.75 + 0.5 * torch.rand(len(y), 1, generator=rng)
    b = size * waves.gather(1, at) + _NOISE["b"] * torch.randn(len(y), LENGTH, generator=rng)
    return {"a": a / a.std(), "b": b / b.std()}, y


def templates(rng: torch.Generator) -> Tensor:
    """A smooth periodic wave of unit size for each class, of the first four harmonics: (10, 40)."""
    phase = torch.arange(LENGTH) * (2 * torch.pi / LENGTH)
    waves = torch.stack([f(k * phase) for k in range(1, 5) for f in (torch.sin, torch.cos)])
    made = torch.randn(CLASSES, len(waves), generator=rng) @ waves
    return made / made.std(1, keepdim=True)
