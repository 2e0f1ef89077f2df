"""From a world's data and two family names to a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from limbeck.bench.worlds import _families
from limbeck.bench.worlds._models import Taps
from limbeck.bench.worlds._teachers import Recipe, Samples, trained
from limbeck.core.crowd import Crowd
from limbeck.core.rng import generator
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teacher import Teacher
from limbeck.core.teachers import Frozen, Nobody
from limbeck.errors import UsageError

# What serves scratch students best, by the start of the family's name; the rest, convolutions
# with BatchNorm, take the last. Plain deep nets do not learn by SGD at all.
_SGD = Optimiser("sgd", lr=0.2, weight_decay=2e-3, momentum=0.9, nesterov=True)
_OPTIMISERS = {
    "mlp": replace(_SGD, lr=0.1, weight_decay=5e-4),
    "vit": Optimiser("adamw", lr=1e-2, weight_decay=0.01),
    "deep": Optimiser("adamw", lr=1e-2, weight_decay=0.01),
}


@dataclass(frozen=True)
class Sets:
    """The data of a world: tensors on the CPU.

    Attributes:
        train: x (N, ...) float32 and y (N,) int64.
        valid: the same, for choices.
        test: the same, for the number that is reported.
        names: of the classes.
        unlabelled: further x, without labels; None where there are none.
        clean: the true labels (N,) of train, where some of train's own are wrong.
    """

    train: Samples
    valid: Samples
    test: Samples
    names: Sequence[str]
    unlabelled: Tensor | None = None
    clean: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """What a world settles beside its data.

    Attributes:
        pair: families of the usual teacher and student.
        recipe: of the teachers.
        epochs: of a fit.
        tiny_pair: the pair of the tiny world.
    """

    pair: tuple[str, str]
    recipe: Recipe
    epochs: float
    tiny_pair: tuple[str, str]
    tiny_recipe: Recipe = field(default=Recipe(epochs=16, batch=32))


def build(
    world: str, sets: Sets, plan: Plan, teacher: str | None, student: str | None, tiny: bool
) -> Task:
    """Make the task of a world.

    Args:
        world: its name.
        sets: its data.
        plan: its settings.
        teacher: a family, several joined by '+', or 'none'; None for the world's own.
        student: a family; None for the world's own.
        tiny: whether the sets are those of the tiny world.
    """
    usual = plan.tiny_pair if tiny else plan.pair
    teacher, student = teacher or usual[0], student or usual[1]
    for side, given in (("teacher", teacher), ("student", student)):
        if not isinstance(given, str):
            raise UsageError(f"the {side} is {given!r}; give the name of a model family in quotes")
    in_shape, classes = sets.train[0].shape[1:], len(sets.names)
    make = _families.factory(student, in_shape, classes)
    families = [] if teacher == "none" else [name.strip() for name in teacher.split("+")]
    for family in families:  # names are checked before anything is trained
        _families.factory(family, in_shape, classes)
    recipe = plan.tiny_recipe if tiny else plan.recipe
    models = [
        # A second teacher of the same family differs by its seed.
        trained(world, family, families[:k].count(family), sets.train, sets.test, classes, recipe)
        for k, family in enumerate(families)
    ]
    data: dict[str, Any] = {
        "space": _families.space(student, in_shape, classes),
        "assistants": _families.between(student, families, in_shape, classes),
        "names": tuple(sets.names),
    }
    if sets.unlabelled is not None and len(sets.unlabelled):
        data["unlabelled"] = sets.unlabelled
    if sets.clean is not None:
        data["clean"] = sets.clean
    optimiser = _OPTIMISERS.get(student.partition("-")[0], _SGD)
    return Task(
        teacher=_teacher([Frozen(model) for model in models]),
        student=make,
        train=sets.train,
        valid=sets.valid,
        test=sets.test,
        budget=Budget(steps=24, batch=16, optimiser=optimiser)
        if tiny
        else Budget(epochs=plan.epochs, batch=64, optimiser=optimiser),
        data=data,
        taps=_taps([_families.taps_of(model) for model in models], _families.blueprint(make)[0]),
        classes=classes,
        name=world,
    )


def _teacher(frozen: list[Frozen]) -> Teacher:
    if not frozen:
        return Nobody()
    return frozen[0] if len(frozen) == 1 else Crowd(frozen)


def _taps(teachers: list[Taps], student: Taps) -> dict[str, Any]:
    """Pair the sides' tables; a crowd's paths are a tuple with one for each member."""
    pairs: dict[str, Any] = {}
    for name, path in student.items():
        paths = tuple(table[name] for table in teachers)
        pairs[name] = (paths if len(paths) > 1 else paths[0] if paths else None, path)
    return pairs


def stratified(y: Tensor, *place: Any) -> Tensor:
    """Order samples at random, so that the first n hold every class in its share, for every n.

    Args:
        y: labels (N,).
        place: what seeds the order.

    Returns:
        The order (N,).
    """
    order = torch.randperm(len(y), generator=generator(*place))
    share = torch.empty(len(y), dtype=torch.float64)
    for label in torch.unique(y):
        rows = order[y[order] == label]
        share[rows] = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    return order[share[order].argsort(stable=True)]


def spoiled(world: str, sets: Sets, tail: float, noise: float, data_seed: int) -> Sets:
    """Give the sets with a long-tailed and wrongly labelled training set; the others as they are.

    Args:
        world: its name.
        sets: of the world as it is.
        tail: how many times as frequent the first class is as the last. Of C classes in an order
            of `data_seed`, the k-th from 0 keeps m tail^(-k / (C - 1)) samples, rounded, with m
            the count of the rarest before; which they are does not depend on `tail`. 1: as it is.
        noise: the share of labels that are replaced, each by one of the other classes, all as
            likely; a larger share has the same wrong ones and more. `clean` has the truth.
        data_seed: which decides, with the world's name, what goes and what is wrong.

    Raises:
        UsageError: a number that cannot be, or a class would be left without samples.
    """
    tail, noise = _real("tail", tail, 1, 10_000), _real("noise", noise, 0, 1)
    (x, y), classes = sets.train, len(sets.names)
    if tail > 1:
        counts, order = torch.bincount(y, minlength=classes), generator(world, data_seed, "order")
        most, kept = int(counts.min()), []
        for k, label in enumerate(torch.randperm(classes, generator=order).tolist()):
            many = round(most * tail ** (-k / (classes - 1)))
            if not many:
                raise UsageError(
                    f"tail is {tail:g}, and of {most} samples a class none would be left of the "
                    f"last one; give less than {2 * most}, or a larger n"
                )
            kept.append((y == label).nonzero()[:many, 0])
        rows = torch.cat(kept).sort().values
        x, y = x[rows], y[rows]
    if not noise:
        return replace(sets, train=(x, y))
    rng = generator(world, data_seed, "noise")
    wrong = torch.randperm(len(y), generator=rng)[: round(noise * len(y))]
    shift = torch.randint(1, classes, (len(y),), generator=rng)
    given = y.clone()
    given[wrong] = (y + shift)[wrong] % classes
    return replace(sets, train=(x, given), clean=y)


def _real(name: str, value: object, low: float, high: float) -> float:
    """Check a number that the user gave."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}; give a number from {low} to {high}")
    return float(value)


def whole(name: str, value: object, low: int, high: int) -> int:
    """Check a whole number that the user gave."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}; give a whole number from {low} to {high}")
    return value
