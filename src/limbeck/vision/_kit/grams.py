"""Inner products of all with all: of the samples of a batch, or of the channels of a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.vision._kit.maps import spatial, unit, wide

__all__ = ["Norm", "gram", "layers", "products", "samples"]

Norm = Literal["rows", "matrix", "none"]


def products(x: Tensor) -> Tensor:
    """The products x x^T in float32 or wider, also where autocast would take less.

    Shapes: x (..., N, D) -> (..., N, N).
    """
    with torch.autocast(x.device.type, enabled=False):
        return wide(x) @ wide(x).mT


def gram(x: Tensor, norm: Norm = "rows") -> Tensor:
    """A = x x^T; with each row brought to length 1, or the whole of each matrix, or as it is.

    Shapes: x (..., N, D) -> (..., N, N).
    """
    a = products(x)
    return a if norm == "none" else unit(a, -1 if norm == "rows" else (-2, -1))


def layers(feature: Tensor | Sequence[Tensor], does: str) -> list[Tensor]:
    """A side's feature or features as maps (B, C, H, W); see `spatial`."""
    found = [feature] if isinstance(feature, Tensor) else list(feature)
    return [spatial(x, does) for x in found]


def samples(x: Tensor, does: str) -> Tensor:
    """What relates samples needs two of them at least; x (B, ...) -> (B, D) in float32 or wider.

    Raises:
        UsageError: there is only one.
    """
    if len(x) < 2:
        raise UsageError(
            f"{does}, but a micro-batch has {len(x)}; give at least 2, by a larger batch or less "
            "accumulation"
        )
    return wide(x.flatten(1))
