"""Windows of feature maps, the teacher's classifier on them, and two contrasts between them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.vision._kit.patches import leading

__all__ = [
    "Local",
    "as_map",
    "feature_wise",
    "head_of",
    "local",
    "on_one_grid",
    "sample_wise",
    "unit",
]

EPS = 1e-6  # a vector that is shorter counts as zero


def as_map(x: Tensor) -> Tensor:
    """A map (B, D, H, W) stays; tokens (B, T, D) -> patches (B, D, h, h); (B, D) -> 1 x 1."""
    if x.dim() == 4:
        return x
    lead = leading(x.shape[1]) if x.dim() == 3 else None
    if lead is not None:
        patches = x[:, lead:].transpose(1, 2)
        side = math.isqrt(patches.shape[2])
        return patches.reshape(*patches.shape[:2], side, side)
    if x.dim() != 2:
        raise UsageError(
            f"msdcrd's feature has the shape {tuple(x.shape)}, which is no map (B, D, H, W), no "
            "tokens (B, T, D) with a square of patches and no vector (B, D); tap another module"
        )
    return x[:, :, None, None]


def on_one_grid(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps s and t, the larger one averaged down to the other's places along each side."""
    grid = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
    one, two = (x if x.shape[2:] == grid else F.adaptive_avg_pool2d(x, grid) for x in (s, t))
    return one, two


def local(x: Tensor, scales: tuple[int, ...]) -> Tensor:
    """Averages over the k x k windows of each k in `scales` that the map has places for.

    Shapes: x (B, D, H, W) -> (B, M, D), M the sum of k^2.
    """
    fits = [k for k in scales if k <= min(x.shape[2:])]
    if not fits:
        raise UsageError(
            f"msdcrd.scales is {scales}, but the feature has {x.shape[2]} x {x.shape[3]} places; "
            "give a smaller scale, as 1"
        )
    return torch.cat([F.adaptive_avg_pool2d(x, k).flatten(2) for k in fits], 2).transpose(1, 2)


def unit(x: Tensor, dim: int) -> Tensor:
    """Vectors x along `dim` at length 1; one shorter than `EPS` is zero, without gradient."""
    length = x.norm(dim=dim, keepdim=True)
    return x / torch.where(length > EPS, length, math.inf)


def sample_wise(s: Tensor, t: Tensor, image: Tensor | None = None, tau: float = 0.1) -> Tensor:
    """-1/N sum_i log softmax_j(cos(s_i, t_j) / tau) at j = i, over j = i and other pictures' rows.

    Shapes: s, t (N, D), image (N,) numbers of the rows' pictures, None where all may be negatives
    -> (). Zero for fewer than two rows.
    """
    if len(s) < 2:
        return (s * 0).sum()
    scores = unit(s, 1) @ unit(t, 1).T / tau
    if image is not None:
        near = (image[:, None] == image).fill_diagonal_(False)
        scores = scores.masked_fill(near, -math.inf)
    return F.cross_entropy(scores, torch.arange(len(s), device=s.device))


def feature_wise(s: Tensor, t: Tensor, tau: float = 0.1) -> Tensor:
    """-1/D sum_d log softmax_e(cos(S_d, T_e) / tau) at e = d, for the columns of s and t.

    Shapes: s, t (N, D) -> (). Zero for fewer than two rows.
    """
    if len(s) < 2:
        return (s * 0).sum()
    scores = unit(s, 0).T @ unit(t, 0) / tau
    return F.cross_entropy(scores, torch.arange(s.shape[1], device=s.device))


def head_of(model: nn.Module, width: int) -> nn.Linear:
    """The last linear layer that takes vectors of a `width`: the `model`'s classifier."""
    fits = [m for m in model.modules() if isinstance(m, nn.Linear) and m.in_features == width]
    if not fits:
        raise UsageError(
            f"msdcrd sorts local features by the teacher's classifier, but no linear layer of it "
            f"takes their {width} channels; tap the feature before its head, or give "
            "categorise=False"
        )
    return fits[-1]


class Local(nn.Module):
    """The student's projector, and a copy of the teacher's classifier.

    Buffers: `weight` (C, D), `bias` (C,), where local features are sorted.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, widths: tuple[int, int], head: nn.Linear | None) -> None:
        super().__init__()
        here, there = widths
        self.project: nn.Module = nn.Identity()
        if here != there:
            conv = nn.Conv2d(here, there, 1, bias=False)
            self.project = nn.Sequential(conv, nn.BatchNorm2d(there))
        if head is not None:
            weight = head.weight.detach().clone()
            bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach()
            self.register_buffer("weight", weight, persistent=False)
            self.register_buffer("bias", bias.clone(), persistent=False)

    def agree(self, u: Tensor, whole: Tensor) -> Tensor:
        """Whether local vectors (B, M, D) have the class of the whole ones (B, D) -> (B, M)."""
        with torch.autocast(u.device.type, enabled=False):
            wide = self.weight.dtype
            each = F.linear(u.to(wide), self.weight, self.bias).argmax(-1)
            one = F.linear(whole.to(wide), self.weight, self.bias).argmax(-1)
        return each == one[:, None]
