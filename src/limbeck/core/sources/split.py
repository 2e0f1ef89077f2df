"""Splits of labelled samples: by class, and always the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.core.rng import generator

__all__ = ["hold_out", "split"]

Shares = tuple[float, float, float]


def split(y: Tensor, shares: Shares = (0.7, 0.15, 0.15)) -> tuple[Tensor, Tensor, Tensor]:
    """Cut samples into train, valid and test, each class in its share.

    A class of three samples or more is in all three; one of two is in train and test, one of one
    in train. The draw has a fixed seed: everybody who splits these labels gets the same rows.

    Args:
        y: labels (N,), int64.
        shares: of the three; they add up to one.

    Returns:
        Row numbers of the three, each ascending.
    """
    train, valid, test = _cut(y, shares)
    return train, valid, test


def hold_out(y: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Cut samples into those kept and those held out, each class in its share.

    Args:
        y: labels (N,), int64.
        share: of each class that is held out; at least one sample where the class has two.

    Returns:
        Row numbers of the kept and of the held out, each ascending.
    """
    kept, out = _cut(y, (1 - share, share))
    return kept, out


def _cut(y: Tensor, shares: Sequence[float]) -> list[Tensor]:
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in torch.unique(y).tolist():
        rows = (y == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator("split", label))]
        sizes = _sizes(len(rows), shares)
        for part, taken in zip(parts, rows.split(sizes), strict=True):
            part.append(taken)
    return [torch.cat(part).sort().values if part else y.new_empty(0) for part in parts]


def _sizes(n: int, shares: Sequence[float]) -> list[int]:
    """How many of a class's n samples each part gets; the first takes what is left."""
    if n < len(shares):
        return [1, *[0] * (len(shares) - n), *[1] * (n - 1)]
    sizes: list[int] = []
    for left, share in enumerate(shares[1:], 2):  # one at least is left for each of the others
        most = n - sum(sizes) - (len(shares) - left) - 1
        sizes.append(min(max(1, round(n * share)), most))
    return [n - sum(sizes), *sizes]
