"""How pictures are kept, and how they are drawn for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.core.data import Table
from limbeck.core.hub import library
from limbeck.errors import UsageError, nearest
from limbeck.vision._kit.pictures import Found, opened, unreadable
from limbeck.vision._kit.readers import fit

__all__ = ["Shape", "check_augment", "drawn", "kept", "statistics"]

MEMORY = 2**30  # bytes of decoded pictures that are kept in memory
AUGMENTS = ("none", "flip", "crop", "crop,flip")
_MEASURED = 2000  # pictures from which means and deviations are learnt


@dataclass(frozen=True)
class Shape:
    """How pictures are kept: pixels a side, channels, and how they are brought to that size."""

    side: int
    channels: int
    interpolation: str = "bilinear"

    def of(self, picture: Any) -> Any:
        """A picture of Pillow as bytes, a tensor as it is typed: (channels, side, side)."""
        if not isinstance(picture, Tensor):
            return self._of_pillow(picture)
        if picture.shape[0] == 1 and self.channels == 3:
            picture = picture.expand(3, -1, -1)
        if picture.shape[-2:] == (self.side, self.side):
            return picture
        x = fit(picture.float()[None], self.side, self.interpolation)[0]
        return x if picture.is_floating_point() else x.round().clamp(0, 255).to(torch.uint8)

    def _of_pillow(self, picture: Any) -> Tensor:
        from PIL import Image, ImageOps

        mode = "L" if self.channels == 1 else "RGB"
        picture.draft(mode, (self.side, self.side))  # a JPEG is decoded no larger than need be
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
            picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
        picture = picture.convert(mode)
        if picture.size != (self.side, self.side):
            how = getattr(Image.Resampling, self.interpolation.upper())
            picture = ImageOps.fit(picture, (self.side, self.side), how)
        x = torch.from_numpy(np.array(picture))
        return x[None] if x.dim() == 2 else x.permute(2, 0, 1).contiguous()


class Lazy(Dataset[Any]):
    """Pictures that are opened whenever they are asked for: (channels, side, side), label."""

    def __init__(self, found: Found, name: str, shape: Shape) -> None:
        self.found, self.name, self.shape = found, name, shape

    def __len__(self) -> int:
        return len(self.found.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        picture = opened(self.found, i, self.name)
        try:
            return self.shape.of(picture), self.found.y[i]
        except (OSError, SyntaxError, ValueError) as error:
            raise unreadable(self.found, i, error) from error


def kept(sets: Mapping[str, Found], shape: Shape) -> dict[str, Any]:
    """Each set as tensors (x, y), where all fit into memory, else as a data set that opens files.

    Raises:
        UsageError: a picture cannot be read.
    """
    size = sum(len(f.y) for f in sets.values() if f.x is None) * shape.channels * shape.side**2
    out: dict[str, Any] = {}
    for name, found in sets.items():
        lazy = Lazy(found, name, shape)
        if found.x is not None:
            out[name] = (found.x, found.y)
        elif found.moves or size >= MEMORY:
            out[name] = lazy
        else:
            out[name] = (_decoded(lazy), found.y)
    return out


def _decoded(lazy: Lazy) -> Tensor:
    """All pictures (N, C, H, W), opened by several threads: Pillow lets go of Python's lock."""
    from concurrent.futures import ThreadPoolExecutor

    x: Tensor | None = None
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(lazy), 256):  # in pieces, so that a broken file ends it soon
            rows = range(start, min(start + 256, len(lazy)))
            piece = torch.stack([x for x, _ in pool.map(lazy.__getitem__, rows)])
            if x is None:
                x = piece.new_empty((len(lazy), *piece.shape[1:]))
            x[start : start + len(piece)] = piece
    assert x is not None
    return x


def statistics(source: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of a kept set, where pixels are in [0, 1]."""
    table, sums, count = Table(source), [], 0
    numbers = torch.linspace(0, len(table) - 1, min(_MEASURED, len(table))).long()
    for rows in torch.split(numbers, 256):
        x = table.rows(rows, "statistics").x
        x = x.double() if x.is_floating_point() else x.double() / 255
        count += x.numel() // x.shape[1]
        sums.append(torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]))
    mean, square = torch.stack(sums).sum(0) / count
    std = (square - mean.square()).clamp_min(1e-6).sqrt()
    return _rounded(mean), _rounded(std)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(v, 4) for v in values.tolist())


def check_augment(augment: str) -> None:
    """Refuse a word for augmentation that is not known."""
    if augment not in AUGMENTS:
        raise UsageError(f"no augmentation is called {augment!r}{nearest(str(augment), AUGMENTS)}")


class Drawn(Dataset[Any]):
    """A kept set whose pictures are cropped or mirrored at random, as a training step asks.

    The draws are torch's global ones, which a run seeds for each sample and epoch.
    """

    def __init__(self, source: Any, augment: str, side: int) -> None:
        v2 = library("torchvision.transforms.v2")
        made = {
            "crop": lambda: v2.RandomResizedCrop(side, scale=(0.6, 1.0), antialias=True),
            "flip": v2.RandomHorizontalFlip,
        }
        self.source = source
        self.transforms = [made[word]() for word in augment.split(",")]

    def __len__(self) -> int:
        return len(self.source[1]) if isinstance(self.source, tuple) else len(self.source)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        source = self.source
        x, y = (source[0][i], source[1][i]) if isinstance(source, tuple) else source[i]
        for transform in self.transforms:
            x = transform(x)
        return x, y


def drawn(source: Any, augment: str, side: int) -> Any:
    """A kept set with augmentation, or as it is where `augment` is "none"."""
    return source if augment == "none" else Drawn(source, augment, side)
