"""What the stages minimise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.losses.divergences import kl
from limbeck.core.score import concordance


def triplet_loss(e: Tensor, margin: Tensor) -> Tensor:
    """max(0, |e1 - e2|^2 - |e1 - e3|^2 + m) + max(0, |e1 - e2|^2 - |e2 - e3|^2 + m), the mean.

    Shapes: e (B, 3, D) embeddings, of which the first two are more alike, margin (B,) -> ().
    """
    one, two, three = e.float().unbind(1)
    near, far, off = ((a - b).square().sum(1) for a, b in ((one, two), (one, three), (two, three)))
    return ((near - far + margin).relu() + (near - off + margin).relu()).mean()


def balanced_loss(z: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """weights_y CE(y, z), the mean over samples. Shapes: z (B, C), y (B,), weights (C,) -> ()."""
    return (weights[y] * F.cross_entropy(z.float(), y, reduction="none")).mean()


def class_weights(y: Tensor | None, classes: int) -> Tensor:
    """N / (C n_c): each class counts alike; 1 without labels y (N,), 0 for an empty class. (C,)."""
    if y is None:
        return torch.ones(classes)
    counts = torch.bincount(y, minlength=classes)
    return torch.where(counts > 0, len(y) / (classes * counts.clamp_min(1)), 0.0)


def distil_loss(
    e_s: Tensor, e_t: Tensor, z_s: Tensor, z_t: Tensor, tau: float = 2.0, match: str = "both"
) -> Tensor:
    """|e_s - e_t|^2 + tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau)), for each sample.

    `tau` is of the second summand; `match` "embedding" or "logits" takes one alone.
    Shapes: e_s, e_t (B, D) of length 1, z_s, z_t (B, C) logits -> (B,).
    """
    pulled = (e_s.float() - e_t.float()).square().sum(1)
    if match == "embedding":
        return pulled
    soft = kl(z_s, z_t, tau)
    return soft if match == "logits" else pulled + soft


def ccc_loss(p: Tensor, y: Tensor) -> Tensor:
    """1 - CCC over all steps of all sequences in a row, the mean over what is followed.

    Shapes: p, y (..., D) -> ().
    """
    p, y = p.flatten(0, -2), y.flatten(0, -2)
    return 1 - concordance(p.float(), y.float()).mean()
