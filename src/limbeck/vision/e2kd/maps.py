"""Explanations of a logit, how they are compared, and crops that go with their pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UsageError

DEAD = 1e-8  # the length up to which a map counts as zero


def grad_cam(a: Tensor, z: Tensor, graph: bool = False) -> Tensor:
    """relu(sum_k w_k a_k), w_k the mean over places of dz / da_k.

    With `graph` it can be differentiated, which takes second derivatives of what lies above a.
    Shapes: a (B, K, h, w) a map, z (B,) logits that depend on it -> (B, 1, h, w).
    """
    weight = slope_of(z, a, graph, "feature map").mean((2, 3), keepdim=True)
    return (weight * wide(a)).sum(1, keepdim=True).relu()


def input_gradient(x: Tensor, z: Tensor, graph: bool = False) -> Tensor:
    """The gradient dz / dx; of ReLU networks without biases, and of B-cos ones, x . dz/dx is z.

    Shapes: x (B, C, H, W) pictures, z (B,), `graph` as in `grad_cam` -> (B, C, H, W).
    """
    return slope_of(z, x, graph, "inputs")


def wide(x: Tensor) -> Tensor:
    """Half precision x as float32; what is wider stays as it is."""
    return x if x.dtype == torch.float64 else x.float()


def slope_of(z: Tensor, at: Tensor, graph: bool, what: str) -> Tensor:
    """The gradient of sum z with respect to `at`, called `what`; `graph` as in `grad_cam`."""
    found = None
    if z.requires_grad and at.requires_grad:
        (found,) = torch.autograd.grad(z.sum(), at, create_graph=graph, allow_unused=True)
    if found is None:
        raise UsageError(
            f"e2kd takes the gradient of a logit with respect to the {what}, but none reaches it; "
            "tap a module of 'feature' below the logits, whose parameters or inputs are trained"
        )
    return wide(found)


def explanation_loss(s: Tensor, t: Tensor) -> Tensor:
    """1 - cos(s, t), the mean over samples; a map that is zero counts 1, without gradient.

    Shapes: s, t (B, ...) maps of one shape -> ().
    """
    s, t = s.flatten(1), t.flatten(1)
    alive = (s.detach().norm(dim=1) > DEAD) & (t.norm(dim=1) > DEAD)
    unit = torch.ones_like(s)  # stands for dead maps, whose norm has no gradient
    s, t = (torch.where(alive[:, None], x, unit) for x in (s, t))
    cos = (s * t).sum(1) / (s.norm(dim=1) * t.norm(dim=1))
    return 1 - torch.where(alive, cos, 0.0).mean()


def cut(x: Tensor, box: Tensor) -> Tensor:
    """Crops of maps, enlarged to their size, and mirrored.

    Shapes: x (B, C, H, W), box (B, 5): top, left, height and width as shares of the picture, and
    above 0.5 where it is mirrored -> (B, C, H, W).
    """
    top, left, height, width, mirror = box.to(x).unbind(1)
    v, u = ((torch.arange(n, device=x.device) + 0.5) / n for n in x.shape[2:])
    across = torch.where(mirror[:, None] > 0.5, 1 - u, u).to(x)
    ys = top[:, None] + height[:, None] * v.to(x)
    xs = left[:, None] + width[:, None] * across
    grid = torch.stack(
        (xs[:, None].expand(-1, x.shape[2], -1), ys[:, :, None].expand(-1, -1, x.shape[3])), 3
    )
    return F.grid_sample(x, 2 * grid - 1, padding_mode="border", align_corners=False)


def boxes(u: Tensor, crop: float, flip: bool) -> Tensor:
    """Boxes for `cut`: areas from `crop` to 1, sides in ratios from 3 / 4 to 4 / 3, `flip` by half.

    Shapes: u (B, 5) uniform draws -> (B, 5).
    """
    area, ratio = crop + (1 - crop) * u[:, 0], (0.75 * (16 / 9) ** u[:, 1]).sqrt()
    ratio = ratio if crop < 1 else torch.ones_like(ratio)
    height, width = ((area.sqrt() * r).clamp(max=1) for r in (1 / ratio, ratio))
    mirror = u[:, 4] if flip else torch.zeros_like(area)
    return torch.stack(((1 - height) * u[:, 2], (1 - width) * u[:, 3], height, width, mirror), 1)
