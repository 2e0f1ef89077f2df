"""`blobs`: vectors from Gaussian mixtures, several modes a class, too much for a linear model."""

import torch

from limbeck.bench.worlds._build import Plan, Sets, build, whole
from limbeck.bench.worlds._teachers import Recipe, Samples
from limbeck.core.rng import generator
from limbeck.core.task import Task

CLASSES, MODES, WIDTH = 8, 4, 16
_SPREAD = 1.5  # of the centres, where a mode's own standard deviation is 1
PLAN = Plan(
    pair=("mlp-large", "mlp-small"),
    recipe=Recipe(epochs=40),
    epochs=30,
    tiny_pair=("mlp", "mlp-tiny"),
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
    """Make the task: x (N, 16), 8 classes of 4 modes each.

    Args:
        teacher: a family of MLPs, several joined by '+', or 'none'; 'mlp-large' by default.
        student: a family of MLPs; 'mlp-small' by default.
        seed: of the run; makes no difference here.
        tiny: 192 samples and 24 steps.
        n: training samples; 1000 by default.
        data_seed: of the mixture and all samples.
    """
    n = whole("n", n or (192 if tiny else 1000), 64, 100_000)
    sizes = (n, 64, 64, 128) if tiny else (n, 500, 3000, 2000)
    train, valid, test, more = (
        draw(size, data_seed, part)
        for size, part in zip(sizes, ("train", "valid", "test", "unlabelled"), strict=True)
    )
    names = [f"blob {k}" for k in range(CLASSES)]
    return build("blobs", Sets(train, valid, test, names, more[0]), PLAN, teacher, student, tiny)


def draw(n: int, data_seed: int, part: str) -> Samples:
    """Draw x (n, 16) and y (n,); sample i does not depend on n."""
    centres = torch.randn(CLASSES, MODES, WIDTH, generator=generator("blobs", data_seed, "centres"))
    rng = generator("blobs", data_seed, part)
    pick = torch.randint(MODES, (n,), generator=generator("blobs", data_seed, part, "modes"))
    y = torch.arange(n) % CLASSES
    x = _SPREAD * centres[y, pick] + torch.randn(n, WIDTH, generator=rng)
    return x / (1 + _SPREAD**2) ** 0.5, y
