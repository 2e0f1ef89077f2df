"""Feature maps of both sides in one form and on one grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.vision._kit.patches import leading

__all__ = ["alike", "spatial", "unit", "wide"]


def wide(x: Tensor) -> Tensor:
    """Half precision x as float32; what is wider stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor, dims: int | tuple[int, ...] = -1) -> Tensor:
    """X / |x| along dims; zero, without gradient, where x is zero."""
    length: Tensor = x.norm(dim=dims, keepdim=True)
    return x / length.where(length > 0, torch.inf)


def spatial(x: Tensor, does: str) -> Tensor:
    """Any feature as a map.

    Args:
        x: a map (B, C, H, W), which stays; tokens (B, P + R * R, C), whose last R * R are patches
            in the order of reading -> (B, C, R, R); a vector (B, C) -> (B, C, 1, 1).
        does: who asks for it and what for, to begin a sentence with, such as "at compares maps".

    Raises:
        UsageError: x is none of these.
    """
    if x.dim() == 4:
        return x
    if x.dim() == 2:
        return x[:, :, None, None]
    lead = leading(x.shape[1]) if x.dim() == 3 else None
    if lead is None:
        raise UsageError(
            f"{does}, but a feature of shape {tuple(x.shape)} is no map (B, C, H, W), no square of "
            "tokens (B, T, C) and no vector (B, C); tap another module"
        )
    side = math.isqrt(x.shape[1] - lead)
    return x[:, lead:].mT.reshape(len(x), -1, side, side)


def alike(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps s and t, the larger one averaged down to the other's places along each side.

    Shapes: s (B, C, H, W), t (B, D, I, J) -> (B, C, h, w), (B, D, h, w), h = min(H, I) and
    w = min(W, J).
    """
    grid = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
    one, two = (x if x.shape[2:] == grid else F.adaptive_avg_pool2d(x, grid) for x in (s, t))
    return one, two
