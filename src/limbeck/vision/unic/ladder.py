"""Tokens of any network, their running statistics, and the ladder of projectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UsageError

Grid = tuple[int, int]


def tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """What a network shows, as one global token and a map of patches.

    A map (B, D, H, W) gives its mean and itself; tokens (B, 1 + M, D) give the first, and the
    others as a square map (a row, where M is no square); a vector (B, D) gives itself twice.

    Returns:
        The global token (B, 1, D) and the map (B, D, H, W).
    """
    if x.dim() == 4:
        return x.mean((2, 3))[:, None], x
    if x.dim() == 3:
        patches = x[:, 1:].transpose(1, 2)
        m, side = patches.shape[2], math.isqrt(patches.shape[2])
        rows, columns = (side, side) if side**2 == m else (1, m)
        return x[:, :1], patches.reshape(*patches.shape[:2], rows, columns)
    return x[:, None], x[..., None, None]


def on_grid(x: Tensor, grid: Grid) -> Tensor:
    """A map (B, D, H, W) as tokens (B, h * w, D), averaged down or interpolated up to a grid."""
    here = (x.shape[2], x.shape[3])
    if here != grid:
        if any(g[0] == 1 < g[1] for g in (here, grid)):
            raise UsageError(
                f"patches of a grid {here} are to be laid on a grid {grid}, but one of them is a "
                "row, whose shape is not known; tap a map (B, D, H, W), or a square of tokens"
            )
        if here[0] <= grid[0] and here[1] <= grid[1]:
            x = F.interpolate(x, grid, mode="bilinear", align_corners=False)
        else:
            x = F.adaptive_avg_pool2d(x, grid)
    return x.flatten(2).transpose(1, 2)


def moments(y: Tensor) -> Tensor:
    """Tokens (B, M, D) -> (1, 3, D): their number, mean, and sum of squares about it."""
    y = y.flatten(0, 1).float()
    mean = y.mean(0)
    return torch.stack((torch.full_like(mean, len(y)), mean, (y - mean).square().sum(0)))[None]


def pooled(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of several sets of tokens (R, 3, D) -> those of their union.

    Returns:
        Number, mean and standard deviation (divisor n - 1; 0 for n = 1), each (D,).
    """
    n, means, squares = rows.unbind(1)
    total = n.sum(0)
    mean = (n * means).sum(0) / total
    about = (squares + n * (means - mean).square()).sum(0)
    return total, mean, (about / (total - 1).clamp_min(1)).sqrt()


class Ladder(nn.Module):
    """For one teacher and kind of token: a projector on each block, and its targets' statistics.

    Args:
        widths: channels of each block.
        hidden: units of each projector.
        out: channels of the teacher.
        rng: draws the weights.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, widths: Sequence[int], hidden: Sequence[int], out: int, rng: Any) -> None:
        super().__init__()
        self.rungs = nn.ModuleList(
            nn.Sequential(nn.Linear(d, h), nn.GELU(), nn.Linear(h, out))
            for d, h in zip(widths, hidden, strict=True)
        )
        for layer in (m for m in self.rungs.modules() if isinstance(m, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=rng)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.zeros(out))
        self.register_buffer("sd", torch.ones(out))

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Each block's tokens (B, M, D_l) -> sum over l of W2 GELU(W1 x_l), (B, M, out)."""
        first, *others = (f(x) for f, x in zip(self.rungs, blocks, strict=True))
        return sum(others, first)  # type: ignore[no-any-return]

    def target(self, y: Tensor) -> Tensor:
        """The teacher's tokens (B, M, out), each channel standardised by what was seen so far."""
        return (y.float() - self.mean) / (self.sd + 1e-6)

    def move(self, rows: Tensor, m: float) -> None:
        """Mean and deviation go by m towards those of a step, given its moments (R, 3, out)."""
        n, mean, sd = pooled(rows)
        self.mean.lerp_(mean, m)
        self.sd.lerp_(torch.where(n > 1, sd, self.sd), m)
