"""Pictures as they are found, and what they are like."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core.rng import globals_kept
from limbeck.errors import UsageError

__all__ = ["Found", "Look", "look", "opened", "unreadable"]

_LOOKED = 64  # pictures from which sizes are learnt


@dataclass
class Found:
    """One set of labelled pictures that are not opened yet.

    Args:
        y: labels (N,), int64.
        open: gives picture i: of Pillow, or a tensor (H, W) or (C, H, W).
        said: gives the name of picture i, for a sentence.
        x: all pictures (N, C, H, W), bytes or floats, where they are in memory.
        moves: whether a picture may differ each time, by a data set's own transforms.
        names: of the pictures, where they have some; else their numbers.
    """

    y: Tensor
    open: Callable[[int], Any]
    said: Callable[[int], str]
    x: Tensor | None = None
    moves: bool = False
    names: Sequence[int | str] = ()

    def __post_init__(self) -> None:
        self.names = self.names or range(len(self.y))

    def take(self, rows: Tensor) -> Found:
        """The samples of these numbers."""
        at = rows.tolist()
        return Found(
            self.y[rows],
            lambda i: self.open(at[i]),
            lambda i: self.said(at[i]),
            None if self.x is None else self.x[rows],
            self.moves,
            [self.names[i] for i in at],
        )


@dataclass(frozen=True)
class Look:
    """What some pictures of a set are like.

    Args:
        side: the shorter side in pixels; the median, where they differ.
        alike: whether all are square and of that side.
        channels: 1 where all are grey, else 3.
        free: whether they are floats that leave [0, 1]: normalised already.
    """

    side: int
    alike: bool
    channels: int
    free: bool


def look(found: Found, name: str) -> Look:
    """Look at a few pictures, evenly spaced over a set.

    Raises:
        UsageError: one is no picture, or they are floats of an unknown range.
    """
    sides: list[int] = []
    grey, low, high = True, 0.0, 1.0
    numbers = torch.linspace(0, len(found.y) - 1, min(_LOOKED, len(found.y))).long()
    with globals_kept():
        for i in sorted(set(numbers.tolist())):
            picture = opened(found, i, name)
            if isinstance(picture, Tensor):
                size, colours = picture.shape[-2:], picture.shape[0]
                if picture.is_floating_point():
                    low, high = min(low, float(picture.min())), max(high, float(picture.max()))
            else:
                size, colours = picture.size, 1 if _is_grey(picture) else 3
            sides += size
            grey &= colours == 1
    if low >= 0 and high > 16:  # no usual normalisation gives this: bytes that were made floats
        raise UsageError(
            f"the pictures of '{name}' are floats from {low:g} to {high:g}; give bytes (uint8), or "
            "floats in 0..1"
        )
    shorter = sorted(min(pair) for pair in zip(sides[::2], sides[1::2], strict=True))
    median = shorter[len(shorter) // 2]
    return Look(median, set(sides) == {median}, 1 if grey else 3, low < 0 or high > 1)


def _is_grey(picture: Any) -> bool:
    return picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I")


def opened(found: Found, i: int, name: str) -> Any:
    """Picture i: of Pillow, or a tensor (C, H, W) of bytes or floats."""
    try:
        picture = found.open(i)
        if hasattr(picture, "convert") and hasattr(picture, "load"):
            return picture
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for a broken file
        raise unreadable(found, i, error) from error
    if isinstance(picture, np.ndarray):
        picture = torch.from_numpy(picture)
    if not isinstance(picture, Tensor) or picture.dim() not in (2, 3):
        shape = f" of shape {tuple(picture.shape)}" if isinstance(picture, Tensor) else ""
        raise UsageError(
            f"sample {i} of '{name}' is a {type(picture).__name__}{shape}; give pictures of Pillow "
            "or tensors (C, H, W)"
        )
    picture = picture[None] if picture.dim() == 2 else picture
    if picture.shape[0] not in (1, 3):
        raise UsageError(
            f"a picture of '{name}' is of shape {tuple(picture.shape)}; give (C, H, W) with 1 or 3 "
            "channels"
        )
    if picture.is_floating_point():
        return picture.float()
    if picture.dtype != torch.uint8:
        raise UsageError(
            f"the pictures of '{name}' are {str(picture.dtype)[6:]}; give bytes (uint8), or floats "
            "in 0..1"
        )
    return picture


def unreadable(found: Found, i: int, error: Exception) -> UsageError:
    """The sentence for a picture that cannot be read."""
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    why = re.sub(r" ?<_io\.[^>]*>", "", why)  # bytes in memory have no name that says anything
    said = found.said(i)
    told = "" if said in why else f" ({why})"
    return UsageError(f"{said} cannot be read as a picture{told}; mend or remove it")
