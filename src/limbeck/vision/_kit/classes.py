"""Class numbers, and what a teacher gives on average for each class."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.data import Batch
from limbeck.errors import UsageError

__all__ = ["class_means", "class_numbers"]


def class_means(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """mu_c, the mean of all features of class c; zero for a class without samples.

    Args:
        pairs: chunks of features (B, D) and labels (B,).

    Returns:
        (C, D) in float32 on the CPU, C one more than the highest label.
    """
    total, count = torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, 1, dtype=torch.float64)
    for e, y in pairs:
        e, y = e.cpu().double(), y.cpu()
        more = max(0, int(y.max()) + 1 - len(total))
        total = F.pad(total, (0, e.shape[1] - total.shape[1], 0, more)).index_add_(0, y, e)
        count = F.pad(count, (0, 0, 0, more)).index_add_(0, y, torch.ones_like(e[:, :1]))
    return (total / count.clamp_min(1)).float()


def class_numbers(batch: Batch, does: str) -> Tensor:
    """The class numbers (B,) of a batch; `does` says who needs them, as "crd tells classes apart".

    Raises:
        UsageError: y is something else.
    """
    y: Tensor = batch.y
    if y.dim() != 1 or y.is_floating_point():
        raise UsageError(
            f"{does}, but y is {tuple(y.shape)} {y.dtype}; give one class number for each sample"
        )
    return y.long()
