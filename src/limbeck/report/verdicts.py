"""What a trial's numbers say: paired differences, their interval, a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Interval", "interval", "of_groups", "verdict"]

_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, (low, high)."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


def interval(differences: Sequence[float]) -> Interval:
    """The 95 % t interval of paired differences, of which there are two or more.

    mean -+ t(0.975, n - 1) s / sqrt(n),  s the deviation with n - 1 in its denominator
    """
    n = len(differences)
    mean = math.fsum(differences) / n
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    half = _quantile(n - 1) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def of_groups(groups: Sequence[Sequence[float]]) -> Interval:
    """The 95 % interval of the mean of groups' means, each group with a spread of its own.

    mean -+ t(0.975, f) e,  e^2 = sum_g v_g / G^2,  v_g = s_g^2 / n_g,
    f = (sum_g v_g)^2 / sum_g (v_g^2 / (n_g - 1))  (Welch and Satterthwaite)
    """
    means = [math.fsum(group) / len(group) for group in groups]
    errors = []
    for group, middle in zip(groups, means, strict=True):
        n = len(group)
        errors.append(math.fsum((d - middle) ** 2 for d in group) / (n - 1) / n)
    mean, whole = math.fsum(means) / len(groups), math.fsum(errors)
    if not whole:
        return Interval(mean, mean, mean)
    each = zip(groups, errors, strict=True)
    freedom = whole**2 / math.fsum(e**2 / (len(group) - 1) for group, e in each)
    half = _quantile(freedom) * math.sqrt(whole) / len(groups)
    return Interval(mean, mean - half, mean + half)


def verdict(intervals: Iterable[Interval]) -> str:
    """The word for intervals of (method - baseline), positive where the claim holds.

    *shown*: each lies above zero. *contradicted*: one lies below zero. *not shown*: anything else.
    """
    every = list(intervals)
    if all(i.low > 0 for i in every):
        return "shown"
    return "contradicted" if any(i.high < 0 for i in every) else "not shown"


def _quantile(freedom: float) -> float:
    """Student's t at 97.5 %, for so many degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf((1 + _LEVEL) / 2, freedom))
