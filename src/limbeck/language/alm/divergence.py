"""How far two sides are apart about one event: "this chunk" against "anything else"."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

How = Literal["binary_ce", "binary_kl", "reverse_binary_kl", "binary_kl_limit", "abs", "abs_exp"]

EPS = 1e-6  # taken off log-likelihoods, so that no event is certain


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, in two branches: each where it is exact, and so its gradient."""
    near = x > -math.log(2)
    zero = torch.full_like(x, -math.log(2))
    return torch.where(
        near,
        torch.where(near, x, zero).expm1().neg().log(),
        torch.where(near, zero, x).exp().neg().log1p(),
    )


def compared(how: How, a: Tensor, b: Tensor, tau: float) -> Tensor:
    """The divergence of each event, (N,), from log-likelihoods a of the teacher, b of the student.

    With P = exp(a / tau - eps), Q = exp(b / tau - eps):

    | how | value |
    |---|---|
    | binary_ce | -P log Q - (1 - P) log(1 - Q) |
    | binary_kl | the same less its value at Q = P |
    | reverse_binary_kl | Q log(Q / P) + (1 - Q) log((1 - Q) / (1 - P)) |
    | binary_kl_limit | (a - b) + a log(b / a), the limit of tau binary_kl |
    | abs | abs(a - b) |
    | abs_exp | abs(P - Q) |
    """
    if how == "abs":
        return (a - b).abs()
    if how == "binary_kl_limit":
        a, b = a - EPS, b - EPS
        return (a - b) + a * ((-b).log() - (-a).log())
    p, q = a / tau - EPS, b / tau - EPS
    if how == "abs_exp":
        return (p.exp() - q.exp()).abs()
    if how == "reverse_binary_kl":
        return _cross(q, q) - _cross(q, p)
    return -_cross(p, q) if how == "binary_ce" else _cross(p, p) - _cross(p, q)


def _cross(p: Tensor, q: Tensor) -> Tensor:
    """P log Q + (1 - P) log(1 - Q), from log P and log Q."""
    return p.exp() * q - p.expm1() * log1mexp(q)
