"""From raw pictures to what a model takes: channels, size, range and normalisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Reader", "Wants", "fit"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow has it


@dataclass(frozen=True)
class Wants:
    """How a model's own configuration says that it is shown pictures; None: it does not say.

    Args:
        size: pixels a side.
        channels: 1 or 3.
        mean: of each channel, where pixels are in [0, 1].
        std: the same.
        interpolation: "bilinear" or "bicubic".
        keyword: the argument of `forward`; None for the first.
    """

    size: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"
    keyword: str | None = None


@dataclass(frozen=True)
class Reader:
    """Shows raw pictures (B, C, H, W) to one side's model.

    Bytes become numbers in [0, 1]; floats are taken as they are. Then grey and colour are made
    from each other, the shorter side is brought to `size` and the middle is cut out, and each
    channel is normalised.

    Args:
        channels: what the model takes.
        size: pixels a side; None leaves it.
        mean: of each channel; None: pixels are not normalised.
        std: the same.
        interpolation: "bilinear" or "bicubic", both antialiased.
        keyword: gives {keyword: pictures}; None gives the pictures.
    """

    channels: int
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"
    keyword: str | None = None
    _constants: dict[Any, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, x: Tensor) -> Any:
        """Raw (B, C, H, W), bytes or floats -> (B, channels, size, size), or a dict of it."""
        bytes_ = not x.is_floating_point()
        if bytes_:
            x = x.float() / 255
        x = _channels(x, self.channels)
        if self.size is not None:
            x = fit(x, self.size, self.interpolation)
            x = x.clamp(0, 1) if bytes_ else x  # bicubic overshoots
        if self.mean is not None:
            mean, std = self._on(x)
            x = (x - mean) / std
        return x if self.keyword is None else {self.keyword: x}

    def _on(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (1, C, 1, 1) where x is; moved there once, not at each step."""
        key = (x.device, x.dtype)
        if key not in self._constants:
            mean, std = (
                torch.tensor(v, device=x.device, dtype=x.dtype)[None, :, None, None]
                for v in (self.mean, self.std)
            )
            self._constants[key] = (mean, std)
        return self._constants[key]

    def about(self, side: int) -> dict[str, Any]:
        """The same as plain facts; `side` is that of the raw pictures."""
        size = self.size or side
        shown: dict[str, Any] = {"kind": "pictures", "size": [self.channels, size, size]}
        shown["mean"] = list(self.mean or (0.0,) * self.channels)
        shown["std"] = list(self.std or (1.0,) * self.channels)
        return {**shown, "interpolation": self.interpolation}


def fit(x: Tensor, size: int, interpolation: str) -> Tensor:
    """Bring the shorter side of floats (B, C, H, W) to `size` and cut out the middle."""
    h, w = x.shape[-2:]
    if (h, w) == (size, size):
        return x
    scale = size / min(h, w)
    shape = (max(size, round(h * scale)), max(size, round(w * scale)))
    if shape != (h, w):
        x = F.interpolate(x, shape, mode=interpolation, antialias=True, align_corners=False)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return x[..., top : top + size, left : left + size]


def _channels(x: Tensor, wanted: int) -> Tensor:
    """Grey (B, 1, H, W) as colour or the reverse; as it is where the number is right."""
    have = x.shape[1]
    if have == 1 and wanted > 1:
        return x.expand(-1, wanted, -1, -1)
    if have == 3 and wanted == 1:
        return (x * x.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    return x
