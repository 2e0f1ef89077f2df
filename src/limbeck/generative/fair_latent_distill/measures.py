"""How fair and how useful a classifier is, and how like real rows made ones are."""

from __future__ import annotations

import torch
from torch import Tensor


def ratio(rates: Tensor) -> float:
    """The smallest rate over the largest; 1 where all are 0. Shapes: rates (K,) -> a number."""
    top = float(rates.max())
    return float(rates.min()) / top if top else 1.0


def rates(chosen: Tensor, s: Tensor, among: Tensor) -> Tensor:
    """The share that is chosen in each group, of the rows `among` that count.

    Groups without such rows are left out. Shapes: chosen, among (N,) bool, s (N,) -> (K,).
    """
    out = [
        chosen[(s == group) & among].double().mean()
        for group in torch.unique(s)
        if bool(((s == group) & among).any())
    ]
    return torch.stack(out) if out else torch.zeros(1, dtype=torch.float64)


def parity_ratio(chosen: Tensor, s: Tensor) -> float:
    """The demographic parity ratio of what is chosen (N,) bool, by groups s (N,)."""
    return ratio(rates(chosen, s, torch.ones_like(chosen)))


def odds_ratio(chosen: Tensor, true: Tensor, s: Tensor) -> float:
    """The equalised odds ratio: the lesser of the ratios of true and of false positive rates.

    Shapes: chosen, true (N,) bool, s (N,).
    """
    return min(ratio(rates(chosen, s, true)), ratio(rates(chosen, s, ~true)))


def auroc(score: Tensor, true: Tensor) -> float:
    """How often a true row scores above another one, ties by half; score (N,), true (N,) bool.

    One half where either kind is missing.
    """
    ordered = score.double().sort().values
    below = torch.searchsorted(ordered, score.double())
    upto = torch.searchsorted(ordered, score.double(), right=True)
    ranks = (below + upto + 1).double() / 2
    n, m = int(true.sum()), int((~true).sum())
    return float((ranks[true].sum() - n * (n + 1) / 2) / (n * m)) if n and m else 0.5


def f1(chosen: Tensor, true: Tensor) -> float:
    """2 TP / (2 TP + FP + FN); 0 where there is none of them. Shapes: chosen, true (N,) bool."""
    both, either = int((chosen & true).sum()), int(chosen.sum() + true.sum())
    return 2 * both / either if either else 0.0


def density_coverage(real: Tensor, made: Tensor, k: int = 5) -> tuple[float, float]:
    """How densely made rows lie where real ones do, and the share of real rows that one lies near.

    Near row i is what lies within the distance of its k-th nearest real neighbour. Density is the
    mean over made rows of the real rows that they are near to, over k; about 1 for rows of the same
    distribution, and it may exceed 1. Coverage counts real rows, at most 1.
    Source: Naeem et al., ICML 2020, arXiv 2002.09797, equations 5 and 6.
    Shapes: real (N, D), made (M, D).
    """
    apart = torch.cdist(real, real)
    apart.fill_diagonal_(torch.inf)
    k = min(k, len(real) - 1)
    radius = apart.kthvalue(k, dim=1).values
    near = torch.cdist(real, made) <= radius[:, None]
    return float(near.sum() / (k * made.shape[0])), float(near.any(1).double().mean())
