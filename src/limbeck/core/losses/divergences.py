"""Divergences between a teacher's distribution p and a student's q, over every signal.

One definition each: `Divergence` on log-probabilities of the same outcomes. `rows` and `summed`
take signals: dense ones over the whole vocabulary, the likeliest entries over K + 1 outcomes (the
rest of the mass is one), draws where the divergence is linear in p. Where the student shows hidden
states and a head, `summed` goes the fused road (`fused.py`) to the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.losses import fused
from limbeck.core.signals import Linear, Mixture, Sampled, Signal, TopK, is_whole, log_rest
from limbeck.errors import UsageError, nearest

Name = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "tv",
    "alpha",
    "adaptive",
]
NAMES: tuple[str, ...] = get_args(Name)
_LEAST = -1e30  # stands for log 0, so that 0 log 0 is 0
_OPEN = {"jsd": (True, True), "skew_kl": (False, True), "skew_reverse_kl": (False, True)}


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


@dataclass(frozen=True)
class Divergence:
    """D(p, q) by name; p is the teacher's distribution, a constant, q the student's.

    | name | D(p, q) | `a` |
    |---|---|---|
    | forward_kl | KL(p, q) = sum p log(p / q) | |
    | reverse_kl | KL(q, p) | |
    | jsd | a KL(p, m) + (1 - a) KL(q, m), m = a p + (1 - a) q | the teacher's weight |
    | skew_kl | KL(p, a p + (1 - a) q) | the teacher's share |
    | skew_reverse_kl | KL(q, (1 - a) p + a q) | the student's share |
    | tv | sum of abs(p - q) / 2 | |
    | alpha | (sum p^a q^(1 - a) - 1) / (a (a - 1)); 1 is forward, 0 reverse KL | the order |
    | adaptive | w KL(p, q) + (1 - w) KL(q, p) | mass of the teacher's head |

    The adaptive weight is w = g / (g + g'), where g sums abs(p - q) over the teacher's head (the
    fewest tokens that hold the mass `a`) and g' over the rest; it has no gradient. GKD's beta is
    the `a` of jsd; its ends, where GKD takes the two KLs, are refused here, since jsd is 0 there.

    Raises:
        UsageError: there is no such divergence, or `a` cannot be.
    """

    name: Name
    a: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UsageError(f"no divergence is called '{self.name}'{nearest(self.name, NAMES)}")
        lowest, highest = _OPEN.get(self.name, (False, False))
        below = self.a < 0 or (lowest and self.a == 0)
        above = self.a > 1 or (highest and self.a == 1)
        if self.name != "alpha" and (below or above):
            low, high = "above" if lowest else "from", "below" if highest else "up to"
            raise UsageError(
                f"the {self.name} divergence was given {self.a:g}; it goes {low} 0 and {high} 1"
            )

    def __call__(self, lq: Tensor, lp: Tensor) -> Tensor:
        """D of each row, from log-probabilities (..., V) of the same outcomes -> (...)."""
        lq, lp, a = lq.clamp_min(_LEAST), lp.clamp_min(_LEAST), self.a
        match self.name:
            case "forward_kl":
                return _kl(lp, lq)
            case "reverse_kl":
                return _kl(lq, lp)
            case "jsd":
                m = _mixed(lp, lq, a)
                return a * _kl(lp, m) + (1 - a) * _kl(lq, m)
            case "skew_kl":
                return _kl(lp, _mixed(lp, lq, a))
            case "skew_reverse_kl":
                return _kl(lq, _mixed(lp, lq, 1 - a))
            case "tv":
                return (lp.exp() - lq.exp()).abs().sum(-1) / 2
            case "alpha":
                if a in (0.0, 1.0):
                    return _kl(lp, lq) if a else _kl(lq, lp)
                return ((a * lp + (1 - a) * lq).exp().sum(-1) - 1) / (a * (a - 1))
        w = head_weight(lq, lp, a)
        return w * _kl(lp, lq) + (1 - w) * _kl(lq, lp)


def _kl(lp: Tensor, lq: Tensor) -> Tensor:
    return (lp.exp() * (lp - lq)).sum(-1)


def _mixed(lp: Tensor, lq: Tensor, a: float) -> Tensor:
    """log(a p + (1 - a) q), exactly log q where p = q, and finite where one of them underflows."""
    d = lp - lq
    e = torch.expm1(-d.abs())
    return lq + torch.where(d > 0, d + torch.log1p((1 - a) * e), torch.log1p(a * e))


@torch.no_grad()
def head_weight(lq: Tensor, lp: Tensor, mass: float) -> Tensor:
    """The adaptive divergence's weight of forward KL, (...)."""
    p = lp.exp()
    ranked, order = p.sort(-1, descending=True)
    head = (ranked.cumsum(-1) - ranked) < mass  # up to and with the token that reaches the mass
    gap = (p - lq.exp()).abs().gather(-1, order)
    first, whole = (gap * head).sum(-1), gap.sum(-1)
    return torch.where(whole > 0, first / whole.clamp_min(1e-30), torch.full_like(whole, 0.5))


# --- over signals ---------------------------------------------------------------------------------


def rows(how: Divergence, s: Signal, t: Signal, tau: float = 1.0) -> Tensor:
    """D at each place, by the plain definition: signals of one shape (...) -> (...) float32.

    Both sides' logits are divided by tau; there is no factor tau^2. Of draws it is the
    cross-entropy sum_i w_i (-log q(id_i)), which is forward KL up to the teacher's entropy.

    Raises:
        UsageError: the vocabularies differ, or the divergence is not defined for this signal.
    """
    _check(how, s, t, tau)
    if isinstance(t, Mixture) and not is_whole(t):
        each = [w * rows(how, s, m, tau) for w, m in zip(t.weights, t.of, strict=True)]
        return torch.stack(each).sum(0)
    lq = s.log_p(tau)
    if isinstance(t, Sampled):
        return -(t.weights * lq.gather(-1, t.ids)).sum(-1)
    if isinstance(t, TopK):
        lq = t.of(lq)
        return how(torch.cat([lq, log_rest(lq)], -1), t.log_outcomes())
    return how(lq, t.log_p(tau).detach())


def summed(how: Divergence, s: Signal, t: Signal, weights: Tensor, tau: float = 1.0) -> Tensor:
    """sum_n weights_n D_n over places: signals of shape (N,), weights (N,) -> ().

    The same number as `(weights * rows(how, s, t, tau)).sum()`. Where the student is a `Linear`
    signal the logits are made a few places at a time, and gradients with them.

    Raises:
        UsageError: as `rows`.
    """
    _check(how, s, t, tau)
    if not isinstance(s, Linear):
        return (weights * rows(how, s, t, tau)).sum()
    if isinstance(t, Mixture) and not is_whole(t):
        each = [w * summed(how, s, m, weights, tau) for w, m in zip(t.weights, t.of, strict=True)]
        return torch.stack(each).sum()
    return fused.summed(how, s, t, weights, tau)


def check_vocabularies(s: Signal, t: Signal) -> None:
    """Refuse two sides of other tokens.

    Raises:
        UsageError: they differ; the sentence says what there is for such.
    """
    if s.vocab != t.vocab:
        raise UsageError(
            f"the student has {s.vocab} tokens and the teacher {t.vocab}; where they share a "
            "tokenizer, say how many of them mean something (vocab=), else use a method for other "
            "tokenizers: limbeck list --kind cross_tokenizer"
        )


def _check(how: Divergence, s: Signal, t: Signal, tau: float) -> None:
    check_vocabularies(s, t)
    if s.shape != t.shape:
        raise UsageError(
            f"the student shows {tuple(s.shape)} places and the teacher {tuple(t.shape)}; both "
            "must see the same tokens"
        )
    if not is_whole(s):
        raise UsageError(f"the student shows {s}; it must give logits, or hidden states and a head")
    _check_cell(how, t, tau)


def _check_cell(how: Divergence, t: Signal, tau: float) -> None:
    """Refuse a divergence that this signal cannot give."""
    if is_whole(t):
        return
    if isinstance(t, Mixture):
        if how.name != "forward_kl":
            raise UsageError(
                f"{how.name} of a mixture needs each part's whole distribution; only forward_kl is "
                "defined where parts are kept as some of their entries"
            )
        for part in t.of:
            _check_cell(how, part, tau)
        return
    if isinstance(t, Sampled) and how.name != "forward_kl":
        raise UsageError(
            f"{how.name} is not defined for draws, from which only expectations under the teacher "
            "can be estimated; use forward_kl, or keep the likeliest entries"
        )
    if how.name == "adaptive":
        raise UsageError(
            "the adaptive divergence ranks the teacher's whole vocabulary; use a dense teacher"
        )
    kept = getattr(t, "tau", tau)
    if kept != tau:
        raise UsageError(
            f"{t} was kept at temperature {kept:g}, and {tau:g} is asked; what lies outside its "
            "entries cannot be brought to another temperature, so write it again at that one"
        )
