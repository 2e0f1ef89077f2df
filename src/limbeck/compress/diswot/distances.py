"""The distances, what they compare, and the random weights that it is seen at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def gram(x: Tensor) -> Tensor:
    """Row-normalised x x^T; a row of zeros stays. Shapes: (..., N, D) -> (..., N, N)."""
    return F.normalize(x @ x.mT, dim=-1)


def relation_distance(s: Tensor, t: Tensor) -> Tensor:
    """D_rel = sum (A_s - A_t)^2 / B^2, with A the `gram` of the samples' flattened features.

    Blind to a scale and to a rotation of the features; the sides' widths may differ.
    Shapes: s (B, ...), t (B, ...) -> ().
    """
    return (gram(s.flatten(1)) - gram(t.flatten(1))).square().mean()


def channel_distance(s: Tensor, t: Tensor) -> Tensor:
    """D_sem = sum (M_s - M_t)^2 / (K C), with M_k the `gram` of the channels of row k.

    For one number a channel, row i of M_k is sign(g_i) g / |g|, which needs no (K, C, C) tensor:
    rows whose signs agree differ by d_s - d_t, the others by d_s + d_t, with d = g / |g|.
    Shapes: s (K, C) or (K, C, ...), t alike (what follows C may differ) -> ().
    """
    if s.dim() > 2 or t.dim() > 2:
        s, t = (x.reshape(*x.shape[:2], -1) for x in (s, t))
        return (gram(s) - gram(t)).square().sum((1, 2)).mean() / s.shape[1]
    s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
    signs_s, signs_t = s.sign(), t.sign()
    agree = (signs_s * signs_t > 0).sum(1)
    against = (signs_s * signs_t < 0).sum(1)
    lone = ((signs_s == 0) != (signs_t == 0)).sum(1)  # a row of zeros against one of length 1
    rows = agree * (s - t).square().sum(1) + against * (s + t).square().sum(1) + lone
    return rows.mean() / s.shape[1]


def class_distance(s: Tensor, t: Tensor) -> Tensor:
    """D_sem of sides of different widths: sum (N_s - N_t)^2 / K, with N the `gram` of the classes.

    A mean over rows, as `channel_distance` is. Shapes: s (K, C_s), t (K, C_t) -> ().
    """
    return (gram(s) - gram(t)).square().sum(1).mean()


def classifier_gradient(logits: Tensor, y: Tensor, h: Tensor) -> Tensor:
    """The mean cross-entropy's gradient by the classifier's weight: (softmax - onehot)^T h / B.

    Shapes: logits (B, K), y (B,), h (B, C) the classifier's input -> (K, C).
    """
    return (logits.softmax(1) - F.one_hot(y, logits.shape[1])).mT @ h / len(h)


def gaussian_(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """N(0, 1) for weights, 0 for biases and other vectors, 1 and 0 for norm layers; in place."""
    with torch.no_grad():
        for m in module.modules():
            for name, p in m.named_parameters(recurse=False):
                if isinstance(m, NORMS):
                    p.fill_(float(name == "weight"))
                elif p.dim() > 1:
                    p.copy_(torch.randn(p.shape, generator=generator))
                else:
                    p.zero_()
    return module


def awake_(module: nn.Module) -> nn.Module:
    """Batch norms by the batch's own statistics, all else (dropout) in eval mode; in place."""
    for m in module.modules():
        m.training = isinstance(m, _NormBase)
    return module


def scaled(x: Tensor) -> Tensor:
    """Divided by the largest magnitude: no square overflows, and no distance sees the scale."""
    return x / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny)
