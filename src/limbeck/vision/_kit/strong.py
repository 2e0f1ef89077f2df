"""A strong view of pictures: two random operations of RandAugment's, and a grey square."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UsageError

__all__ = ["DRAWS", "OPERATIONS", "strong"]

DRAWS = 7  # uniform numbers that a picture's view is made of
_LUMA = (0.299, 0.587, 0.114)


def strong(x: Tensor, u: Tensor, does: str) -> Tensor:
    """Pictures after two operations drawn with replacement, and under a grey square.

    Each operation has a strength drawn uniformly from its range; the square has a side of up to
    half the width and the middle of the picture's range. That range is 0 to 1 for bytes and for
    floats within it, else from the picture's lowest value to its highest.

    Args:
        x: (B, C, H, W), bytes or floats; bytes are divided by 255.
        u: (B, 7) uniform draws in [0, 1).
        does: who asks for it, to begin a sentence with.

    Raises:
        UsageError: x is no pictures.
    """
    if not isinstance(x, Tensor) or x.dim() != 4:
        told = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(f"{does} pictures (B, C, H, W), but was given inputs {told}")
    x = x if x.is_floating_point() else x.float() / 255
    low, high = (v[:, None, None, None] for v in (x.flatten(1).amin(1), x.flatten(1).amax(1)))
    usual = (low >= 0) & (high <= 1)
    low = low.where(~usual, 0)
    span = (high - low).where(~usual & (high > low), 1)
    y = (x - low) / span
    names = list(OPERATIONS)
    for which, strength in zip(u[:, 0:2].T, u[:, 2:4].T, strict=True):
        chosen = (which * len(names)).long()
        for k in chosen.unique().tolist():
            rows = (chosen == k).nonzero()[:, 0]
            change, least, most = OPERATIONS[names[k]]
            v = least + (most - least) * strength[rows].to(y.dtype)
            y = y.index_copy(0, rows, change(y[rows], v[:, None, None, None]))
    return _cut(y, *(0.5 * u[:, 4:5], u[:, 5:6], u[:, 6:7])) * span + low


def _grey(x: Tensor) -> Tensor:
    """The luminance (B, 1, H, W) of pictures of three channels; the mean of others."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def _bytes(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255)


def _autocontrast(x: Tensor, v: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).where(high > low, 1), x)


def _contrast(x: Tensor, v: Tensor) -> Tensor:
    mean = _grey(x).mean((1, 2, 3), keepdim=True)
    return mean + v * (x - mean)


def _colour(x: Tensor, v: Tensor) -> Tensor:
    return _grey(x) + v * (x - _grey(x))


def _equalised(x: Tensor, v: Tensor) -> Tensor:
    """Each channel with all of 256 levels about equally often; as it is where pixels are few."""
    level = _bytes(x).long().flatten(2)
    count = torch.zeros(*x.shape[:2], 256, dtype=torch.long, device=x.device)
    count.scatter_add_(2, level, torch.ones_like(level))
    last = count.gather(2, level.amax(2, keepdim=True))
    step = (level.shape[2] - last) // 255
    table = (count.cumsum(2) - count + step // 2) // step.clamp(min=1)
    new = table.clamp(max=255).gather(2, level).view_as(x).to(x.dtype) / 255
    return torch.where(step[..., None] > 0, new, x)


def _posterised(x: Tensor, v: Tensor) -> Tensor:
    """The upper `v` bits of each byte."""
    step = 2.0 ** (8 - v.floor())
    return (_bytes(x) / step).floor() * step / 255


def _solarised(x: Tensor, v: Tensor) -> Tensor:
    return torch.where(x * 255 < v, x, 1 - x)


def _sharpness(x: Tensor, v: Tensor) -> Tensor:
    """Between a smoothed picture (0) and itself (1); its border stays."""
    kernel = x.new_ones(1, 1, 3, 3)
    kernel[..., 1, 1] = 5
    smooth = x.clone()
    if min(x.shape[2:]) > 2:
        inner = F.conv2d(x.flatten(0, 1)[:, None], kernel / kernel.sum())
        smooth[..., 1:-1, 1:-1] = inner.view(*x.shape[:2], *inner.shape[2:])
    return smooth + v * (x - smooth)


def _moved(x: Tensor, *six: Tensor | float) -> Tensor:
    """Pixel (p, q) reads at (a p + b q + c, d p + e q + f), the nearest; black outside.

    Coordinates are in pixels from the upper left corner; the six numbers are (B, 1, 1, 1) or one.
    """
    height, width = x.shape[2:]
    a, b, c, d, e, f = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in six)
    p = torch.arange(width, device=x.device, dtype=x.dtype) + 0.5
    q = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] + 0.5
    along, down = 2 * (a * p + b * q + c) / width - 1, 2 * (d * p + e * q + f) / height - 1
    grid = torch.stack([at.expand(len(x), 1, height, width)[:, 0] for at in (along, down)], -1)
    return F.grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _rotated(x: Tensor, v: Tensor) -> Tensor:
    """By `v` degrees about the middle, against the clock."""
    cos, sin = (v * (math.pi / 180)).cos(), (v * (math.pi / 180)).sin()
    p, q = x.shape[3] / 2, x.shape[2] / 2
    return _moved(x, cos, -sin, p - cos * p + sin * q, sin, cos, q - sin * p - cos * q)


def _cut(x: Tensor, side: Tensor, left: Tensor, top: Tensor) -> Tensor:
    """A square of 1 / 2, `side` of the width, somewhere around (left, top); shares (B, 1)."""
    height, width = x.shape[2:]
    side = side * width
    start = [(at * n - side / 2).clamp(min=0).floor() for at, n in ((left, width), (top, height))]
    inside = []
    for begin, n in zip(start, (width, height), strict=True):
        at = torch.arange(n, device=x.device)
        inside.append((at >= begin) & (at <= begin + side) & (side > 0))
    along, down = inside
    return torch.where((down[:, :, None] & along[:, None, :])[:, None], x.new_tensor(0.5), x)


Operation = tuple[Callable[[Tensor, Tensor], Tensor], float, float]
OPERATIONS: dict[str, Operation] = {
    "autocontrast": (_autocontrast, 0, 1),
    "brightness": (lambda x, v: v * x, 0.05, 0.95),
    "colour": (_colour, 0.05, 0.95),
    "contrast": (_contrast, 0.05, 0.95),
    "equalise": (_equalised, 0, 1),
    "identity": (lambda x, v: x, 0, 1),
    "posterise": (_posterised, 4, 8),
    "rotate": (_rotated, -30, 30),
    "sharpness": (_sharpness, 0.05, 0.95),
    "shear_x": (lambda x, v: _moved(x, 1, v, 0, 0, 1, 0), -0.3, 0.3),
    "shear_y": (lambda x, v: _moved(x, 1, 0, 0, v, 1, 0), -0.3, 0.3),
    "solarise": (_solarised, 0, 256),
    "translate_x": (lambda x, v: _moved(x, 1, 0, v * x.shape[3], 0, 1, 0), -0.3, 0.3),
    "translate_y": (lambda x, v: _moved(x, 1, 0, 0, 0, 1, v * x.shape[2]), -0.3, 0.3),
}
"""Name to operation on pictures (B, C, H, W) in [0, 1] at strengths (B, 1, 1, 1), and its range."""
