"""`digits`: the 1797 handwritten digits of 8x8 pixels that scikit-learn brings."""

from functools import cache

import torch

from limbeck.bench.worlds._build import Plan, Sets, build, spoiled, stratified, whole
from limbeck.bench.worlds._teachers import Recipe, Samples
from limbeck.core.task import Task

_TEST, _VALID, _POOL = 597, 200, 1000
PLAN = Plan(
    pair=("cnn-large", "cnn-small"),
    recipe=Recipe(epochs=60),
    epochs=100,
    tiny_pair=("cnn-medium", "cnn-tiny"),
)


def task(
    *,
    teacher: str | None = None,
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    tail: float = 1.0,
    noise: float = 0.0,
    data_seed: int = 0,
) -> Task:
    """Make the task: x (N, 1, 8, 8), about centred and of unit size; ten classes.

    Of 1000 pictures that are neither for test nor for choices, n have labels and the rest are the
    set `unlabelled`. Few labels keep the student well below its teacher.

    Args:
        teacher: a family, several joined by '+', or 'none'; 'cnn-large' by default.
        student: a family; 'cnn-small' by default.
        seed: of the run; makes no difference here.
        tiny: 192 pictures and 24 steps.
        n: training pictures; 500 by default.
        tail: above 1, of n so many go that the first class is so many times as frequent as the
            last, with even ratios between; valid and test stay as they are.
        noise: the share of training labels that are wrong; the true ones are `data["clean"]`.
        data_seed: of the split, the order of classes and the wrong labels.
    """
    n = whole("n", n or (192 if tiny else 500), 64, _POOL)
    x, y = _pictures()
    order = stratified(y, "digits", data_seed)
    test, valid, pool = torch.split(order, [_TEST, _VALID, _POOL])
    x = (x - x[pool].mean()) / x[pool].std()
    if tiny:
        test, valid, pool = test[:64], valid[:64], pool[: n + 128]
    train = pool[:n]
    sets = Sets(
        train=(x[train], y[train]),
        valid=(x[valid], y[valid]),
        test=(x[test], y[test]),
        names=[str(k) for k in range(10)],
        unlabelled=x[pool[n:]],
    )
    sets = spoiled("digits", sets, tail, noise, data_seed)
    return build("digits", sets, PLAN, teacher, student, tiny)


@cache
def _pictures() -> Samples:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(y).long()
