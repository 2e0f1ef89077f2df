"""What a trial's numbers say: paired differences, their interval, a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Interval", "interval", "verdict"]

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


def verdict(intervals: Iterable[Interval]) -> str:
    """The word for intervals of (method - baseline), positive where the claim holds.

    *shown*: each lies above zero. *contradicted*: one lies below zero. *not shown*: anything else.
    """
    every = list(intervals)
    if all(i.low > 0 for i in every):
        return "shown"
    return "contradicted" if any(i.high < 0 for i in every) else "not shown"


def _quantile(freedom: int) -> float:
    """Student's t at 97.5 %, for so many degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf((1 + _LEVEL) / 2, freedom))
