"""The fused road: head and divergence together, a few places at a time.

Logits of N places over V tokens never exist. For each chunk of places both sides' logits lie in
two reused buffers, where the gradient in the logits is formed by its closed form; what leaves a
chunk is its rows of the hidden states' gradient and a sum into the head's, in float32. In terms of
u = dD / d log q, the gradient in the student's logits is u - q sum(u).

The definitions are those of `divergences.py`; tests hold values and gradients equal to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.core.signals import Dense, Head, Linear, Sampled, Signal, TopK, log_rest

ENTRIES = 2**23  # logits in a buffer, about
_TINY = torch.finfo(torch.float32).tiny
_LEAST = -1e30


@dataclass(frozen=True, eq=False)
class _Job:
    """What is constant: the divergence, the teacher's signal, the head's shape, temperature."""

    how: Any
    t: Signal
    head: Head
    tau: float


def summed(how: Any, s: Linear, t: Signal, weights: Tensor, tau: float) -> Tensor:
    """sum_n weights_n D_n; see `divergences.summed`."""
    job = _Job(how, t, s.head, tau)
    total: Tensor = _apply(s.hidden, s.head.weight, s.head.bias, weights, job)
    return total


def _apply(hidden: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor, job: _Job) -> Any:
    inputs = (hidden, weight, bias)
    grad = torch.is_grad_enabled()
    wanted = tuple(grad and x is not None and x.requires_grad for x in inputs)
    return _Fused.apply(hidden, weight, bias, weights, job, wanted)


class _Fused(torch.autograd.Function):
    """Value and gradients in one sweep; a second backward pass sweeps again."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, weights: Any, *rest: Any) -> Tensor:
        job, wanted = rest
        ctx.job, ctx.wanted = job, wanted
        ctx.save_for_backward(hidden, weight, bias, weights)
        total, ctx.grads = _sweep(hidden, weight, bias, weights, job, wanted)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        hidden, weight, bias, weights = ctx.saved_tensors
        grads, ctx.grads = ctx.grads, None  # given away, so that they may be scaled in place
        if grads is None:
            _, grads = _sweep(hidden, weight, bias, weights, ctx.job, ctx.wanted)
        like = (hidden, weight, bias)
        found = [
            None if g is None else g.mul_(outer[0]).to(x.dtype)
            for g, x in zip(grads, like, strict=True)
        ]
        return (*found, None, None, None)


Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def _sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weights: Tensor,
    job: _Job,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Grads]:
    """The sum, and the gradients that are wanted, in float32 or wider."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        h, w = hidden.to(wide), weight[: job.head.size].to(wide)
        b = None if bias is None else bias[: job.head.size].to(wide)
        dh = torch.empty_like(h) if wanted[0] else None
        dw = weight.new_zeros(weight.shape, dtype=wide) if wanted[1] else None
        db = bias.new_zeros(bias.shape, dtype=wide) if bias is not None and wanted[2] else None
        total = h.new_zeros((), dtype=torch.float64)
        n, v = len(h), len(w)
        size = max(1, min(n, ENTRIES // v))
        room = _Buffers(h, size, v)
        for start in range(0, n, size):
            part = slice(start, min(n, start + size))
            z = _logits(h[part], w, b, job.head, room.take(0, part))
            capped = None if job.head.cap is None else z / job.head.cap
            value, dz = _chunk(job, z.div_(job.tau), part, room, any(wanted))
            total += (value.double() * weights[part]).sum()
            if dz is None:
                continue
            dz.mul_((weights[part].to(wide) * (job.head.scale / job.tau))[:, None])
            if capped is not None:
                dz.mul_(1 - capped.square())
            if dh is not None:
                torch.mm(dz, w, out=dh[part])
            if dw is not None:
                dw[:v].addmm_(dz.T, h[part])
            if db is not None:
                db[:v] += dz.sum(0)
        return total.to(wide), (dh, dw, db)


class _Buffers:
    """Rows of logits that are used again for each chunk."""

    def __init__(self, like: Tensor, size: int, v: int) -> None:
        self._like, self._shape = like, (size, v)
        self._all: dict[int, Tensor] = {}

    def take(self, k: int, part: slice) -> Tensor:
        """The k-th buffer's rows for a chunk."""
        if k not in self._all:
            self._all[k] = self._like.new_empty(self._shape)
        return self._all[k][: part.stop - part.start]


def _logits(h: Tensor, w: Tensor, b: Tensor | None, head: Head, out: Tensor) -> Tensor:
    """The head's logits, in a buffer."""
    if b is None:
        torch.mm(h, w.T, out=out)
    else:
        torch.addmm(b, h, w.T, out=out)
    if head.scale != 1.0:
        out.mul_(head.scale)
    return out if head.cap is None else out.div_(head.cap).tanh_().mul_(head.cap)


def _chunk(
    job: _Job, z: Tensor, part: slice, room: _Buffers, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """D of each row of a chunk, and dD / dz (in a buffer), from the tempered logits z."""
    q = _normalised(z, room.take(2, part))
    t = job.t.at(part)
    if isinstance(t, Sampled | TopK):
        return _sparse(job.how, t, z, q, grad)
    lp = _teacher(t, job.tau, room.take(1, part))
    p = _normalised(lp, room.take(3, part))
    return _ROADS[job.how.name](job.how.a, z, lp.clamp_min_(_LEAST), q, p)


def _normalised(z: Tensor, out: Tensor) -> Tensor:
    """Logits become log-probabilities in place; the probabilities go into a buffer."""
    z.sub_(z.amax(-1, keepdim=True))
    total = torch.exp(z, out=out).sum(-1, keepdim=True)
    z.sub_(total.log())
    return out.div_(total)


def _teacher(t: Signal, tau: float, out: Tensor) -> Tensor:
    """The teacher's tempered logits, or log-probabilities, in a buffer."""
    if isinstance(t, Linear):
        head, v = t.head, t.head.size
        bias = None if head.bias is None else head.bias[:v].to(out.dtype)
        _logits(t.hidden.to(out.dtype), head.weight[:v].to(out.dtype), bias, head, out)
        return out.div_(tau)
    if isinstance(t, Dense):
        return out.copy_(t.logits).div_(tau)
    return out.copy_(t.log_p(tau))


def _sparse(
    how: Any, t: Sampled | TopK, lq: Tensor, q: Tensor, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Few entries of the teacher: the definition's own gradient in them, brought to the logits."""
    few = lq.gather(-1, t.ids) if isinstance(t, Sampled) else t.of(lq)
    if isinstance(t, Sampled):
        value, u = -(t.weights * few).sum(-1), -t.weights.to(few.dtype)
    else:
        few.requires_grad_(grad)
        with torch.enable_grad():
            rows = how(torch.cat([few, log_rest(few)], -1), t.log_outcomes().to(few.dtype))
            u = torch.autograd.grad(rows.sum(), few)[0] if grad else few
        value = rows.detach()
    if not grad:
        return value, None
    dz = q.mul_(-u.sum(-1, keepdim=True))
    return value, dz.scatter_add_(-1, t.ids.clamp_min(0), u)  # where there is no entry u is 0


# --- closed forms: (a, log q, log p, q, p), all to be overwritten -> (D of each row, dD / dz) -----

Road = Callable[[float, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _forward(a: float, lq: Tensor, lp: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Here u = -p."""
    return lp.sub_(lq).mul_(p).sum(-1), q.sub_(p)


def _reverse(a: float, lq: Tensor, lp: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Here u = q (log q - log p), the constant left out."""
    u = lq.sub_(lp).mul_(q)
    return _projected(u.sum(-1), u, q)


def _jsd(a: float, lq: Tensor, lp: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Here u = (1 - a) q log(q / m), the constant left out."""
    over = _over(a, lq, lp)
    theirs = lp.sub_(over).mul_(p).sum(-1)
    ours = over.neg_().mul_(q)
    value = a * theirs + (1 - a) * ours.sum(-1)
    return _projected(value, ours.mul_(1 - a), q)


def _skew(a: float, lq: Tensor, lp: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Here u = -(1 - a) p q / m."""
    if a == 0:
        return _forward(a, lq, lp, q, p)
    over = _over(a, lq, lp)
    value = lp.sub_(over).mul_(p).sum(-1)
    return _projected(value, over.neg_().exp_().mul_(p).mul_(a - 1), q)


def _skew_reverse(a: float, lq: Tensor, lp: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Here u = q log(q / m) - a q^2 / m, the constant left out."""
    if a == 0:
        return _reverse(a, lq, lp, q, p)
    over = _over(1 - a, lq, lp).neg_()
    share = torch.exp(over, out=lp)  # q / m
    value = torch.mul(over, q, out=p).sum(-1)
    return _projected(value, over.sub_(share.mul_(a)).mul_(q), q)


def _tv(a: float, lq: Tensor, lp: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Here u = q sign(q - p) / 2."""
    gap = torch.sub(q, p, out=lq)
    value = torch.abs(gap, out=lp).sum(-1) / 2
    return _projected(value, gap.sign_().mul_(q).div_(2), q)


def _alpha(a: float, lq: Tensor, lp: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Here u = -p^a q^(1 - a) / a."""
    if a in (0.0, 1.0):
        return (_forward if a else _reverse)(a, lq, lp, q, p)
    w = lp.mul_(a).add_(lq, alpha=1 - a).exp_()
    value = (w.sum(-1) - 1) / (a * (a - 1))
    return _projected(value, w.div_(-a), q)


def _adaptive(a: float, lq: Tensor, lp: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Here u = -w p + (1 - w) q (log q - log p)."""
    from limbeck.core.losses.divergences import head_weight

    w = head_weight(lq, lp, a)[:, None]
    log = lq.sub_(lp)
    forward = -torch.mul(p, log, out=lp).sum(-1)
    u = log.mul_(q)
    value = w[:, 0] * forward + (1 - w[:, 0]) * u.sum(-1)
    return _projected(value, u.mul_(1 - w).sub_(p.mul_(w)), q)


_ROADS: dict[str, Road] = {
    "forward_kl": _forward,
    "reverse_kl": _reverse,
    "jsd": _jsd,
    "skew_kl": _skew,
    "skew_reverse_kl": _skew_reverse,
    "tv": _tv,
    "alpha": _alpha,
    "adaptive": _adaptive,
}


def _over(a: float, lq: Tensor, lp: Tensor) -> Tensor:
    """Log(m / q) with m = a p + (1 - a) q, in lq's buffer; log(p / q) is left in lp's.

    It is the definition's own form of log m, which is exactly log q where p = q.
    """
    d = lp.sub_(lq)
    over = torch.abs(d, out=lq).neg_().expm1_()
    over.mul_(torch.where(d > 0, d.new_tensor(1 - a), d.new_tensor(a))).log1p_()
    return over.add_(d.clamp_min(0))


def _projected(value: Tensor, u: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """D, and u - q sum(u) in place."""
    return value, u.addcmul_(q, u.sum(-1, keepdim=True), value=-1)
