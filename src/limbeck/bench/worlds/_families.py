"""Families: models by name, each in several sizes, and what lies around and between two of them."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from limbeck.bench.worlds._models import CNN, MLP, ResNet, Taps, ViT
from limbeck.errors import Missing, UsageError, nearest

Factory = Callable[[], nn.Module]

# In each family from the smallest to the largest; the name without an addition is a usual student.
SIZES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "mlp-tiny": (MLP, {"widths": (8, 8)}),
    "mlp-small": (MLP, {"widths": (16, 16)}),
    "mlp": (MLP, {"widths": (32, 32)}),
    "mlp-large": (MLP, {"widths": (256, 256, 256)}),
    "cnn-tiny": (CNN, {"widths": (3, 3, 4)}),
    "cnn-small": (CNN, {"widths": (4, 6, 8)}),
    "cnn": (CNN, {"widths": (8, 16, 32)}),
    "cnn-medium": (CNN, {"widths": (16, 32, 64)}),
    "cnn-large": (CNN, {"widths": (32, 64, 128)}),
    "deep-thin": (CNN, {"widths": (8, 8, 8), "depths": (3, 3, 3), "norm": False}),
    "resnet-small": (ResNet, {"widths": (4, 8, 16)}),
    "resnet": (ResNet, {"widths": (8, 16, 32)}),
    "resnet-large": (ResNet, {"widths": (16, 32, 64), "depths": (2, 2, 2)}),
    "vit-small": (ViT, {"dim": 16, "depth": 2, "heads": 2}),
    "vit": (ViT, {"dim": 32, "depth": 3}),
    "vit-large": (ViT, {"dim": 64, "depth": 4}),
}


def factory(family: str, in_shape: Sequence[int], classes: int) -> Factory:
    """Give the factory of a family's models.

    Raises:
        Missing: no family is called so.
        UsageError: the family takes pictures and these samples are none.
    """
    if family not in SIZES:
        raise Missing(f"no model family is called {family!r}{nearest(str(family), SIZES)}")
    kind, sizes = SIZES[family]
    if kind is not MLP and len(in_shape) != 3:
        usable = ", ".join(name for name, (k, _) in SIZES.items() if k is MLP)
        raise UsageError(
            f"the family {family!r} takes pictures, and the samples here are vectors of "
            f"{math.prod(in_shape)} numbers; choose one of: {usable}"
        )
    return partial(kind, tuple(in_shape), classes, **sizes)


def taps_of(model: nn.Module) -> Taps:
    """Give where a model's views are read."""
    return cast(Taps, model.taps)


def blueprint(make: Factory) -> tuple[Taps, int]:
    """Give the taps and the number of parameters of what a factory makes, drawing nothing."""
    with torch.device("meta"):
        model = make()
    return taps_of(model), sum(p.numel() for p in model.parameters())


def between(
    student: str, teachers: Sequence[str], in_shape: Sequence[int], classes: int
) -> dict[str, Factory]:
    """Give the families of the two sides' kinds that lie between them in size, largest first.

    Plain deep ones are left out: as a rule they do not learn what the others do.
    """
    ends = (student, *teachers)
    kinds = {SIZES[name][0] for name in ends}
    near = [name for name, (kind, sizes) in SIZES.items() if kind in kinds and "norm" not in sizes]
    made = {name: factory(name, in_shape, classes) for name in {*near, *ends}}
    size = {name: blueprint(make)[1] for name, make in made.items()}
    top = max((size[name] for name in teachers), default=0)
    inside = [name for name in near if size[student] < size[name] < top]
    return {name: made[name] for name in sorted(inside, key=lambda name: -size[name])}


def space(student: str, in_shape: Sequence[int], classes: int) -> dict[str, Factory]:
    """Give twelve architectures of the student's kind to search in, by name.

    "w4-d211" has 4 channels in its first stage and 2, 1 and 1 layers in its stages. All have the
    student's tap paths for `feature` and `embedding`.
    """
    kind = SIZES[student][0]
    make = partial(partial, kind, tuple(in_shape), classes)
    if kind is ViT:
        return {
            f"w{w}-d{d}": make(dim=w, depth=d, heads=2) for w in (8, 16, 32) for d in (1, 2, 3, 4)
        }
    if kind is MLP:
        return {
            f"w{w}-d{a}{b}": make(widths=(w, w), depths=(a, b))
            for w in (8, 16, 32)
            for a, b in ((1, 1), (1, 2), (2, 1), (2, 2))
        }
    return {
        f"w{w}-d{a}{b}{c}": make(widths=(w, 2 * w, 4 * w), depths=(a, b, c))
        for w in (2, 4, 8)
        for a, b, c in ((1, 1, 1), (1, 1, 2), (2, 1, 1), (2, 2, 2))
    }
