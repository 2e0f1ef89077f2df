"""What a side makes of some places of a text, whether it shows all tokens or the likeliest."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from limbeck.core.losses.divergences import Divergence, rows
from limbeck.core.signals import Dense, Signal, TopK

__all__ = ["Seen", "apart", "seen"]

_KL = Divergence("forward_kl")


@dataclass(frozen=True, eq=False)
class Seen:
    """Of N places.

    Attributes:
        signal: log-probabilities as a Dense, or a TopK.
        own: (N,) log-probabilities of the text's own next tokens.
        best: (N,) those of the likeliest tokens.
        likeliest: (N,) which these are.
        entropy: summed over places, in nats; NaN where only the likeliest tokens are shown.
    """

    signal: Dense | TopK
    own: Tensor
    best: Tensor
    likeliest: Tensor
    entropy: float


def seen(signal: Signal, ids: Tensor, truth: Tensor | None) -> Seen:
    """Look at a signal of N places.

    Args:
        signal: whole, or a TopK.
        ids: the text's own next tokens, (N,).
        truth: their log-probabilities, which a TopK does not hold.
    """
    if isinstance(signal, TopK):
        assert truth is not None
        best = signal.logp.max(-1)
        likeliest = signal.ids.gather(-1, best.indices[:, None])[:, 0]
        return Seen(signal, truth, best.values, likeliest, math.nan)
    lp = signal.log_p()
    best = lp.max(-1)
    own = lp.gather(-1, ids[:, None])[:, 0]
    entropy = -float((lp.exp() * lp.clamp_min(-1e30)).sum())
    return Seen(Dense(lp), own, best.values, best.indices, entropy)


def apart(side: Seen, teacher: Seen) -> Tensor:
    """KL(teacher || side) of each place, (N,); of a TopK over its tokens and the rest as one."""
    if isinstance(side.signal, Dense) and isinstance(teacher.signal, Dense):
        return _KL(side.signal.logits, teacher.signal.logits)  # they are normalised
    return rows(_KL, side.signal, teacher.signal)
