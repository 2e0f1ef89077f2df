"""What the stages minimise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.core.losses.divergences import check_classes, kl


def kd_loss(p: Tensor, q: Tensor, tau: float = 4.0) -> Tensor:
    """kd(p <- q) = tau^2 KL(softmax(q / tau) || softmax(p / tau)), for each sample.

    Of maps it is the mean over places. The gradient goes to both sides.
    Shapes: p, q (B, C, ...) logits -> (B,).
    """
    check_classes(p, q)
    each = kl(p.movedim(1, -1), q.movedim(1, -1), tau)
    return each.flatten(1).mean(1) if each.dim() > 1 else each


def by_teacher(s: Tensor, group: Tensor, tau: float, back: bool = False) -> Tensor:
    """Kd of a student and each teacher of a group: (student <- teacher), or `back` the other way.

    Shapes: s (B, C, ...) the student's logits, group (B, K, C, ...) -> (B, K).
    """
    pairs = [(z, s) if back else (s, z) for z in group.unbind(1)]
    return torch.stack([kd_loss(p, q, tau) for p, q in pairs], 1)


def balance_loss(g: Tensor, by: str = "kl") -> Tensor:
    """How far the mean choice m = mean_b softmax(g_b) is from uniform, u = 1 / K.

    By "kl", KL(u || m); by "cv", the standard deviation of m (unbiased) over its mean.
    Shapes: g (B, K) logits of the gate -> ().
    """
    log_m = g.float().log_softmax(1).logsumexp(0) - math.log(len(g))
    if by == "cv":
        m = log_m.exp()
        return (m.var() + 1e-12).sqrt() / m.mean()
    return -log_m.mean() - math.log(len(log_m))


def routed_loss(each: Tensor, r: Tensor, k: int = 1, weighted: bool = False) -> Tensor:
    """The mean over samples of a sample's k teachers with the largest r.

    They count alike, which gives r no gradient; or, `weighted`, by r over its sum over the k.
    Shapes: each (B, K) losses by teacher, r (B, K) -> ().
    """
    top = r.topk(k, 1)
    share = top.values / top.values.sum(1, keepdim=True) if weighted else 1 / k
    return (share * each.gather(1, top.indices)).sum(1).mean()


def fallen(epoch: int, by: float, every: int) -> float:
    """by^n, with n the multiples of `every` below `epoch`, 0 among them: what a weight is then."""
    return float(by ** math.ceil(epoch / every))
