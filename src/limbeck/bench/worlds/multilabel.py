"""`multilabel`: one to four of scikit-learn's handwritten digits on a canvas; each is a label."""

import torch
from torch import Tensor

from limbeck.bench.worlds import _families
from limbeck.bench.worlds._build import _taps, stratified, whole
from limbeck.bench.worlds._teachers import Samples
from limbeck.bench.worlds._text import taught
from limbeck.bench.worlds.digits import _pictures
from limbeck.core.objectives import Labels
from limbeck.core.rng import generator
from limbeck.core.score import Score
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import Frozen, Nobody

NAMES = tuple(str(k) for k in range(10))
SIDE, CELL, MOST = 24, 12, 4  # pixels of canvas and cell, digits at most: one a cell
_TEST, _VALID, _POOL = 597, 200, 1000  # handwritten digits that each set is made of
_GRAIN = 0.1  # standard deviation of noise, where ink is 1


def mean_average_precision(z: Tensor, y: Tensor) -> float:
    """The mean over labels of the average precision of ranking samples by their logit.

    Labels that no sample has are left out. Shapes: z (N, C) logits, y (N, C) of 0 and 1.
    """
    from sklearn.metrics import average_precision_score

    there = [c for c in range(y.shape[1]) if y[:, c].any()]
    found = [float(average_precision_score(y[:, c].numpy(), z[:, c].numpy())) for c in there]
    return sum(found) / len(found) if found else float("nan")


MAP = Score("mAP", True, mean_average_precision)


def task(
    *,
    teacher: str | None = None,
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task: x (N, 1, 24, 24), y (N, 10) of 0 and 1; the score is mAP.

    Each of one to four different digits stands in a quarter of the canvas of its own, anywhere
    there, dark or bright; grain lies over all. The digits of train, valid and test are different
    handwritings of them.

    Args:
        teacher: a family, or 'none'; 'cnn-medium' by default.
        student: a family; 'cnn-small' by default.
        seed: of the run; makes no difference here.
        tiny: 192 pictures and 24 steps.
        n: training pictures; 2000 by default.
        data_seed: of all pictures.
    """
    n = whole("n", n or (192 if tiny else 2000), 64, 100_000)
    _, held_y = _pictures()
    parts = torch.split(stratified(held_y, "multilabel", data_seed), [_TEST, _VALID, _POOL])
    sizes = (64, 64, n) if tiny else (2000, 500, n)
    test, valid, train = (
        draw(part, size, name, data_seed)
        for part, size, name in zip(parts, sizes, ("test", "valid", "train"), strict=True)
    )
    shape, classes = train[0].shape[1:], len(NAMES)
    make = _families.factory(student or ("cnn-tiny" if tiny else "cnn-small"), shape, classes)
    family = teacher or ("cnn" if tiny else "cnn-medium")
    models = []
    if family != "none":
        above = _families.factory(family, shape, classes)
        alone = Task(
            teacher=None, student=above, train={"x": train[0], "y": train[1]}, classes=classes
        )
        budget = _budget(60, 32, 1e-2) if tiny else _budget(12 * n // 64, 64, 3e-3)
        models = [taught(f"multilabel-{family}", above, Labels(), alone, budget)]
    return Task(
        teacher=Frozen(models[0]) if models else Nobody(),
        student=make,
        train=train,
        valid=valid,
        test=test,
        score=MAP,
        budget=_budget(24, 16, 1e-2) if tiny else _budget(10 * n // 64, 64, 1e-2),
        data={"names": NAMES},
        taps=_taps([_families.taps_of(m) for m in models], _families.blueprint(make)[0]),
        classes=classes,
        name="multilabel",
    )


def draw(rows: Tensor, n: int, part: str, data_seed: int) -> Samples:
    """Draw x (n, 1, 24, 24) and y (n, 10) from the handwritten digits of these numbers."""
    ink, digit = _pictures()
    ink, digit = ink[rows, 0] / 16, digit[rows]
    of = [(digit == c).nonzero()[:, 0] for c in range(len(NAMES))]
    rng = generator("multilabel", data_seed, part)

    def some(below: int) -> int:
        return int(torch.randint(below, (), generator=rng))

    x, y = torch.zeros(n, 1, SIDE, SIDE), torch.zeros(n, len(NAMES)).long()
    free = CELL - ink.shape[-1] + 1
    for i in range(n):
        digits = torch.randperm(len(NAMES), generator=rng)[: 1 + some(MOST)].tolist()
        cells = torch.randperm(4, generator=rng).tolist()
        for c, cell in zip(digits, cells, strict=False):
            top, left = CELL * (cell // 2) + some(free), CELL * (cell % 2) + some(free)
            bright = 0.4 + 0.6 * float(torch.rand((), generator=rng))
            x[i, 0, top : top + 8, left : left + 8] = bright * ink[of[c][some(len(of[c]))]]
            y[i, c] = 1
    x += _GRAIN * torch.randn(x.shape, generator=rng)
    return (x - 0.1) / 0.25, y


def _budget(steps: int, batch: int, lr: float) -> Budget:
    return Budget(steps=steps, batch=batch, optimiser=Optimiser("adamw", lr=lr, weight_decay=0.01))
