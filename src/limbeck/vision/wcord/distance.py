"""Both forms of the distance: values of a 1-Lipschitz critic, and the cost of a transport plan."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

MOST = 2**24  # hidden units of pairs that are there at a time


def dual_loss(joint: Tensor, product: Tensor) -> Tensor:
    """-(E_joint g - E_product g), from the critic's values; a constant in g cancels.

    Shapes: joint (B,), product (B, M) -> ().
    """
    return product.mean() - joint.mean()


def sinkhorn(cost: Tensor, eps: float, rounds: int) -> Tensor:
    """The plan that minimises sum pi cost - eps H(pi) with even marginals 1 / n and 1 / m.

    By rounds of u <- (1 / n) / (K v), v <- (1 / m) / (K^T u), K = exp(-cost / eps), in logarithms;
    after them columns are exact and rows nearly. Shapes: cost (n, m) -> (n, m).
    """
    n, m = cost.shape
    k = -cost / eps
    v = k.new_zeros(m)
    u = v
    for _ in range(rounds):
        u = -math.log(n) - (k + v).logsumexp(1)
        v = -math.log(m) - (k + u[:, None]).logsumexp(0)
    return (u[:, None] + k + v).exp()


def primal_loss(t: Tensor, s: Tensor, eps: float, rounds: int) -> Tensor:
    """sum_ij pi_ij c_ij with c = 1 - cos(t_i, s_j) and pi its plan, held fixed.

    eps and rounds are those of `sinkhorn`. Shapes: t, s (B, D) of length 1 -> ().
    """
    cost = 1 - t @ s.T
    return (sinkhorn(cost.detach(), eps, rounds) * cost).sum()


class Critic(nn.Module):
    """g(h_t, h_s), two layers with ReLU between, each of spectral norm 1: g is 1-Lipschitz."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.first = spectral_norm(nn.Linear(2 * dim, hidden))
        self.last = spectral_norm(nn.Linear(hidden, 1, bias=False))  # which would cancel

    def forward(
        self, rows: Tensor, t: Tensor, bank_s: Tensor, bank_t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """g(t_b, bank_s[rows_bk]) and g(bank_t[rows_bk], s_b).

        The first layer is linear in each side, so that both are mapped before they are paired: all
        of a bank, or where that is less its rows. Of the pairs' hidden units only those of some
        anchors are there at a time, once more in the backward pass.
        Shapes: rows (B, K) numbers, t, s (B, D), bank_s, bank_t (N, D) -> (B, K) twice.
        """
        layers: Any = (self.first, self.last)  # whose types torch's parametrisation hides
        of_t, of_s = layers[0].weight.chunk(2, 1)
        bias, last = layers[0].bias, layers[1].weight[0]
        some = max(1, MOST // (rows.shape[1] * len(bias)))

        def paired(anchor: Tensor, mine: Tensor, bank: Tensor, theirs: Tensor) -> Tensor:
            table = bank @ theirs.T if len(bank) <= rows.numel() else None

            def values(first: Tensor, numbers: Tensor) -> Tensor:
                other = bank[numbers] @ theirs.T if table is None else F.embedding(numbers, table)
                of: Tensor = other.add_(first[:, None]).relu_() @ last
                return of

            own = anchor @ mine.T + bias
            pieces = [(own[i : i + some], rows[i : i + some]) for i in range(0, len(rows), some)]
            return torch.cat(
                [
                    checkpoint(values, *piece, use_reentrant=False, preserve_rng_state=False)
                    for piece in pieces
                ]
            )

        return paired(t, of_t, bank_s, of_s), paired(s, of_s, bank_t, of_t)
