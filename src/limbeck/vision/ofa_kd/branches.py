"""Exit branches: from what a stage of the student gives to logits, by the form of what it gives."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.vision._kit.patches import leading

HEADS = 4


def sep_conv(here: int, out: int) -> nn.Sequential:
    """Two separable convolutions, the first with stride 2.

    (B, here, H, W) -> (B, out, H / 2, W / 2), sides rounded up.
    """

    def half(stride: int, to: int) -> list[nn.Module]:
        return [
            nn.Conv2d(here, here, 3, stride, 1, groups=here, bias=False),
            nn.Conv2d(here, to, 1, bias=False),
            nn.BatchNorm2d(to),
            nn.ReLU(),
        ]

    return nn.Sequential(*half(2, here), *half(1, out))


def widths(here: int, left: int, wide: int) -> list[tuple[int, int]]:
    """The widths before and after each of `left` blocks, from `here`: doubled, the last `wide`."""
    outs = [here * 2 ** (i + 1) if i < left - 1 else wide for i in range(left)]
    return list(zip([here, *outs], outs, strict=False))


def of_map(here: int, left: int, wide: int, classes: int) -> nn.Sequential:
    """Of a map (B, here, H, W): `left` blocks `sep_conv` to width `wide`, pooling, a linear layer.

    The last stage, with nothing left, has a convolution of 1x1 instead. Gives (B, classes).
    """
    blocks: list[nn.Module] = [sep_conv(a, b) for a, b in widths(here, left, wide)]
    blocks = blocks or [nn.Conv2d(here, wide, 1)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes))


def of_vector(here: int, left: int, wide: int, classes: int) -> nn.Sequential:
    """Of a vector (B, here): `left` linear layers with BatchNorm and ReLU, and the last.

    The last stage has one without these instead. Gives (B, classes).
    """
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU())
        for a, b in widths(here, left, wide)
    ]
    return nn.Sequential(*(blocks or [nn.Linear(here, wide)]), nn.Linear(wide, classes))


class Merging(nn.Module):
    """Each 2x2 tokens become one: side by side, LayerNorm, a linear layer, `act`."""

    def __init__(self, here: int, out: int, act: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * here)
        self.reduce = nn.Linear(4 * here, out, bias=False)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(B, R * R, D) -> (B, R / 2 * R / 2, out)."""
        side = math.isqrt(x.shape[1]) // 2
        grid = x.reshape(len(x), side, 2, side, 2, -1).permute(0, 1, 3, 4, 2, 5)
        out: Tensor = self.act(self.reduce(self.norm(grid.flatten(3).flatten(1, 2))))
        return out


class Block(nn.Module):
    """A pre-norm transformer block on (B, T, D), of `HEADS` heads where D divides by them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = math.gcd(dim, HEADS)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def lead_of(tokens: int) -> int:
    """How many of some tokens come before the square of patches.

    Raises:
        UsageError: there is no such square.
    """
    lead = leading(tokens)
    if lead is None:
        raise UsageError(
            f"a stage of the student gives {tokens} tokens, which are no square of patches behind "
            "a few others; tap another module as `blocks`"
        )
    return lead


class OfTokens(nn.Module):
    """Of tokens (B, T, here): patches are merged down to a grid, then come transformer blocks.

    The logits are of the first token where some come before the patches, else of the mean.

    Args:
        tokens: T.
        here: width of the tokens.
        left: stages after this one; so many blocks, at least one.
        wide: width inside.
        classes: number of logits.
        grid: patches a side, below which none are merged.
    """

    def __init__(
        self, tokens: int, here: int, left: int, wide: int, classes: int, grid: int
    ) -> None:
        super().__init__()
        self.lead = lead_of(tokens)
        side, sides = math.isqrt(tokens - self.lead), list[int]()
        while side % 2 == 0 and side // 2 >= grid:
            side //= 2
            sides.append(side)
        merging: list[nn.Module] = []
        for i in range(len(sides)):
            act = nn.GELU() if i == 0 or i < len(sides) - 1 else nn.Identity()
            merging.append(Merging(wide if i else here, wide, act))
        self.merge = nn.Sequential(*merging)
        fits = here == wide or (merging and not self.lead)
        self.widen = nn.Identity() if fits else nn.Linear(here, wide)
        self.blocks = nn.Sequential(*(Block(wide) for _ in range(max(left, 1))))
        self.head = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, here) -> (B, classes)."""
        lead, patches = x[:, : self.lead], x[:, self.lead :]
        patches = self.merge(patches) if len(self.merge) else self.widen(patches)
        if self.lead:
            patches = torch.cat((self.widen(lead), patches), 1)
        seen = self.blocks(patches)
        return self.head(seen[:, 0] if self.lead else seen.mean(1))  # type: ignore[no-any-return]


def branch(
    x: Tensor, left: int, last: int, wide: int, classes: int, grid: int, draws: torch.Generator
) -> nn.Module:
    """The branch of a stage, freshly drawn.

    Args:
        x: what the stage gives: a map, tokens or a vector, of which only the shape counts.
        left: stages after it.
        last: width of the last stage, which branches of tokens have inside.
        wide: width before the logits of the others.
        classes: number of logits.
        grid: see `OfTokens`.
        draws: for the weights: of convolutions Kaiming's, of linear layers a truncated normal.

    Raises:
        UsageError: it is none of these.
    """
    made: nn.Module
    if x.dim() == 4:
        made = of_map(x.shape[1], left, wide, classes)
    elif x.dim() == 3:
        made = OfTokens(x.shape[1], x.shape[2], left, last, classes, grid)
    elif x.dim() == 2:
        made = of_vector(x.shape[1], left, wide, classes)
    else:
        raise UsageError(
            f"a stage of the student gives a tensor of shape {tuple(x.shape)}, which is no map "
            "(B, C, H, W), no tokens (B, T, D) and no vector (B, D); tap other modules as `blocks`"
        )
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=draws
            )
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=draws)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return made
