"""`protected`: a table of people whose labels favour one of two groups, beyond their merit."""

from dataclasses import replace

import torch

from limbeck.bench.worlds._build import Plan, Sets, build, whole
from limbeck.bench.worlds._teachers import Recipe, Samples
from limbeck.core.rng import generator
from limbeck.core.task import Optimiser, Task

NAMES = ("refused", "granted")
FEATURES, PROXIES = 6, 3
_BIAS = 1.5  # what belonging to the favoured group counts, in deviations of merit
_NOISE = (0.7, 0.8, 0.5)  # of features, proxies and labels
PLAN = Plan(
    pair=("mlp-large", "mlp-small"),
    recipe=Recipe(epochs=10),
    epochs=40,
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
    """Make the task: x (N, 10), two classes.

    Columns 0 to 5 are noisy looks at a person's merit, 6 to 8 at the group, and the last is the
    group itself, -1 or 1. The label is 1 where merit + 1.5 for the group + noise exceeds 0.75.

    Args:
        teacher: a family of MLPs, several joined by '+', or 'none'; 'mlp-large' by default.
        student: a family of MLPs; 'mlp-small' by default.
        seed: of the run; makes no difference here.
        tiny: 192 samples and 24 steps.
        n: training samples; 5000 by default.
        data_seed: of all samples.
    """
    n = whole("n", n or (192 if tiny else 5000), 64, 100_000)
    sizes = (n, 64, 64, 128) if tiny else (n, 1000, 3000, 2000)
    train, valid, test, more = (
        draw(size, data_seed, part)
        for size, part in zip(sizes, ("train", "valid", "test", "unlabelled"), strict=True)
    )
    sets = Sets(train, valid, test, NAMES, more[0])
    made = build("protected", sets, PLAN, teacher, student, tiny)
    if tiny:
        return made
    optimiser = Optimiser("adamw", lr=3e-3, weight_decay=1e-4)
    return replace(made, budget=replace(made.budget, batch=256, optimiser=optimiser))


def draw(n: int, data_seed: int, part: str) -> Samples:
    """Draw x (n, 10) and y (n,); sample i does not depend on n."""
    rng = generator("protected", data_seed, part)
    u = torch.randn(n, 3 + FEATURES + PROXIES, generator=rng)
    merit, coin, chance, features, proxies = torch.split(u, [1, 1, 1, FEATURES, PROXIES], 1)
    group = (coin > 0).float()
    side = 2 * group - 1
    looks = (merit + _NOISE[0] * features) / (1 + _NOISE[0] ** 2) ** 0.5
    hints = (side + _NOISE[1] * proxies) / (1 + _NOISE[1] ** 2) ** 0.5
    y = (merit + _BIAS * group + _NOISE[2] * chance > _BIAS / 2)[:, 0].long()
    return torch.cat((looks, hints, side), 1), y
