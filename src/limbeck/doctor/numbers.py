"""The measures: likeness of features, softened entropies, the best order of classes, errors."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA of two features of the same samples, without its bias for few samples.

    HSIC is estimated without bias (Song et al. 2012), since features usually have far more numbers
    than there are samples, where the plain estimate is near 1 for anything.

    Shapes: a (N, ...), b (N, ...), N > 3 -> a number up to 1, near 0 for what is unrelated.
    """
    k, m = (_gram(x) for x in (a, b))
    across, one, other = _hsic(k, m), _hsic(k, k), _hsic(m, m)
    return across / math.sqrt(one * other) if one > 0 and other > 0 else 0.0


def _gram(x: Tensor) -> Tensor:
    x = x.flatten(1).double()
    x = x - x.mean(0)
    scale = x.square().mean().sqrt()
    k = (x / scale.clamp_min(1e-12)) @ (x / scale.clamp_min(1e-12)).T
    return k.fill_diagonal_(0)


def _hsic(k: Tensor, m: Tensor) -> float:
    """The estimate for Gram matrices (N, N) whose diagonals are zero."""
    n = len(k)
    middle = (k.sum() * m.sum()) / ((n - 1) * (n - 2))
    return float(((k * m).sum() + middle - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)) / (n * (n - 3)))


def entropy(logits: Tensor, tau: float) -> float:
    """Mean entropy of softmax(logits / tau), (N, C): 1 is uniform over classes, 0 is one-hot."""
    p = (logits.double() / tau).softmax(-1)
    return float(torch.special.entr(p).sum(-1).mean()) / math.log(logits.shape[-1])


def confusion(guess: Tensor, y: Tensor, classes: int) -> Tensor:
    """How often each class was guessed for each label: (C guessed, C true), counts."""
    return torch.bincount(guess * classes + y, minlength=classes**2).view(classes, classes)


def best_order(counts: Tensor) -> Tensor:
    """For each guessed class the label that it stands for, so that most samples are right.

    The assignment problem, by shortest augmenting paths (Kuhn, Munkres): C^3 at most.

    Shapes: counts (C, C) -> (C,).
    """
    cost = -counts.double().numpy()
    n = len(cost)
    u, v = np.zeros(n + 1), np.zeros(n + 1)  # potentials of rows and columns, which begin at 1
    row_of = np.zeros(n + 1, dtype=int)  # the row that a column has; column 0 is the free one
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        least, came = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=int)
        done = np.zeros(n + 1, dtype=bool)
        while row_of[column]:
            done[column] = True
            i = row_of[column]
            reduced = cost[i - 1] - u[i] - v[1:]
            closer = ~done[1:] & (reduced < least[1:])
            least[1:][closer] = reduced[closer]
            came[1:][closer] = column
            open_ = np.flatnonzero(~done[1:]) + 1
            following = open_[np.argmin(least[open_])]
            step = least[following]
            u[row_of[done]] += step
            v[done] -= step
            least[~done] -= step
            column = following
        while column:
            row_of[column] = row_of[came[column]]
            column = came[column]
    order = torch.empty(n, dtype=torch.long)
    order[torch.as_tensor(row_of[1:] - 1)] = torch.arange(n)
    return order


def error_of(share: float, n: int) -> float:
    """The standard error of a share of n samples; never nought, so that 100 % is no certainty."""
    share = (share * n + 1) / (n + 2)
    return math.sqrt(share * (1 - share) / n)
