"""The stages of two networks in pairs, and what several methods do with a pair."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.vision._kit.maps import spatial, wide

__all__ = ["connector", "depths", "paired", "shares"]


def paired(
    s: Sequence[Tensor] | Tensor, t: Sequence[Tensor] | Tensor, does: str
) -> list[tuple[Tensor, Tensor]]:
    """The stages of student and teacher as maps in float32 or wider, in pairs.

    Where one side has more, those at the same share of its depth are taken; so the last stages are
    always a pair.

    Args:
        s: the student's stages, from first to last, or a single one; see `spatial`.
        t: the teacher's.
        does: what `spatial` begins its sentence with.
    """
    mine, theirs = ([x] if isinstance(x, Tensor) else list(x) for x in (s, t))
    n = min(len(mine), len(theirs))
    each = ([wide(spatial(x[k], does)) for k in depths(len(x), n)] for x in (mine, theirs))
    return list(zip(*each, strict=True))


def depths(stages: int, n: int) -> list[int]:
    """Which n of so many stages `paired` takes: numbers from 0, evenly, the last among them."""
    return [-(-k * stages // n) - 1 for k in range(1, n + 1)]


def shares(n: int) -> list[float]:
    """Weights of n stages from first to last: each half of the next one's, the last 1."""
    return [2.0 ** (k - n) for k in range(1, n + 1)]


def connector(here: int, out: int, draws: torch.Generator) -> nn.Sequential:
    """A 1x1 convolution without bias, of weights from N(0, 2 / out) by `draws`, and BatchNorm.

    Maps (B, here, H, W) -> (B, out, H, W).
    """
    conv = nn.Conv2d(here, out, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", generator=draws)
    return nn.Sequential(conv, nn.BatchNorm2d(out))
