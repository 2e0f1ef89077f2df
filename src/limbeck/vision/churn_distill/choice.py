"""What changed between two models, and the best mixture of several under a bound on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.views import entries_of


def flips(new: Tensor, base: Tensor, y: Tensor) -> dict[str, float]:
    """Shares of samples on which two models differ: churn = good + bad + neutral.

    Good ones the new model alone has right, bad ones the base model alone, neutral ones neither.
    Shapes: new, base (N, C) logits or probabilities, y (N,).
    """
    a, b = new.argmax(1), base.argmax(1)
    kinds = {
        "churn": a != b,
        "good": (a == y) & (b != y),
        "bad": (a != y) & (b == y),
        "neutral": (a != b) & (a != y) & (b != y),
    }
    return {name: float(rows.double().mean()) for name, rows in kinds.items()}


def best_mixture(p: Tensor, w: Tensor, alpha: Tensor, within: float = 1e-6) -> Tensor:
    """The weights alpha in the simplex that minimise -mean_n sum_c w_nc log sum_k alpha_k p_knc.

    By alpha_k <- alpha_k d_k with d_k = mean_n sum_c w_nc p_knc / h_nc, which never raises the
    loss; the loss is above its least by at most max_k d_k - 1, and `within` bounds that.
    Shapes: p (K, N, C) probabilities, w (N, C) with rows of sum 1, alpha (K,) to begin from,
    above 0 -> (K,).
    """
    for _ in range(3000):
        h = torch.einsum("k,knc->nc", alpha, p)
        d = torch.einsum("nc,knc->k", w / h, p) / len(w)
        if float(d.max()) - 1 < within:
            break
        alpha = alpha * d / (alpha * d).sum()
    return alpha


def choose_mixture(p: Tensor, g: Tensor, y: Tensor, eps: float) -> Tensor:
    """Alpha in the simplex of least CE(y, h) with mean KL(g || h) <= eps, h = sum_k alpha_k p_k.

    Both are convex in alpha, so that alpha minimises lam CE(y, h) + (1 - lam) CE(g, h) for the
    largest lam that keeps the bound; where lam = 0 does not keep it, it is alpha for lam = 0.
    Shapes: p (K, N, C) and g (N, C) probabilities, y (N,) -> (K,).
    """
    p, g = (x.double().clamp_min(1e-12) for x in (p, g))
    g = g / g.sum(1, keepdim=True)
    labels = F.one_hot(y, p.shape[2]).to(p)
    even = torch.full((len(p),), 1 / len(p), dtype=p.dtype)

    def solved(lam: float) -> tuple[Tensor, bool]:
        alpha = best_mixture(p, lam * labels + (1 - lam) * g, even)
        h = torch.einsum("k,knc->nc", alpha, p)
        return alpha, float((g * (g / h).log()).sum(1).mean()) <= eps

    alpha, kept = solved(1.0)
    if kept:
        return alpha
    alpha, kept = solved(0.0)
    low, high = 0.0, 1.0
    for _ in range(20 if kept else 0):
        middle = (low + high) / 2
        found, kept = solved(middle)
        if kept:
            low, alpha = middle, found
        else:
            high = middle
    return alpha


class Mixture(nn.Module):
    """sum_k alpha_k softmax(z_k) of several networks, as logits: its logarithm."""

    alpha: Tensor

    def __init__(self, members: Sequence[nn.Module], alpha: Tensor) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("alpha", alpha.float())

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """From what each member takes -> (B, C)."""
        outputs = [entries_of(m(*args, **kwargs))["logits"] for m in self.members]
        logs = torch.stack([z.float().log_softmax(-1) for z in outputs])
        return (logs + self.alpha.log()[:, None, None]).logsumexp(0)
