"""Divergences between two distributions over classes, from logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UsageError


def check_classes(s: Tensor, t: Tensor) -> None:
    """Refuse logits of different shapes, which would broadcast or mean different classes."""
    if s.shape != t.shape:
        raise UsageError(
            f"the student's logits are {tuple(s.shape)}, the teacher's {tuple(t.shape)}; both "
            "sides need the same samples and "
            "the same number of classes (a method on features does not)"
        )


def _wide(z: Tensor) -> Tensor:
    """Half precision as float32; what is wider stays as it is."""
    return z if z.dtype == torch.float64 else z.float()


def soft_cross_entropy(s: Tensor, t: Tensor, tau: float = 1.0) -> Tensor:
    """H(p_t, p_s) = -sum_c p_t log p_s with p = softmax(z / tau), per sample.

    Shapes: s, t (..., C) logits -> (...). No tau^2.
    """
    check_classes(s, t)
    return -((_wide(t) / tau).softmax(-1) * (_wide(s) / tau).log_softmax(-1)).sum(-1)


def kl(s: Tensor, t: Tensor, tau: float = 1.0) -> Tensor:
    """tau^2 KL(p_t || p_s) with p = softmax(z / tau), summed over classes, per sample.

    tau^2 keeps the gradient's size when tau grows. Exactly zero for equal logits, where its
    gradient is zero to rounding.
    Shapes: s, t (..., C) logits -> (...).
    """
    check_classes(s, t)
    log_s, log_t = (_wide(s) / tau).log_softmax(-1), (_wide(t) / tau).log_softmax(-1)
    return tau**2 * F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
