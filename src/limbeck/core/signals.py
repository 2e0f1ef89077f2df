"""Signals: a distribution over a vocabulary at each place, in whatever form a side has it.

A loss asks for a divergence; whether the teacher's side is dense, kept as its likeliest entries,
sampled, or never made whole is the signal's matter (`core/losses/divergences.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError

FLOOR = 2.0**-24  # the least tail mass: what is left of 1 in float32 is rounding below it


@dataclass(frozen=True, eq=False)
class Head:
    """From hidden states to logits: cap * tanh((h W^T + b) * scale / cap), without a cap linear.

    Columns from `vocab` on are padding: they are not there.

    Attributes:
        weight: (V', H) with V' >= vocab, of any floating type.
        bias: (V',) or None.
        vocab: V, how many columns mean something; None for all.
        scale: on the raw logits.
        cap: the soft cap of the logits; None for none.
    """

    weight: Tensor
    bias: Tensor | None = None
    vocab: int | None = None
    scale: float = 1.0
    cap: float | None = None

    @property
    def size(self) -> int:
        """How many columns there are."""
        return self.weight.shape[0] if self.vocab is None else self.vocab

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., H)."""
        bias = None if self.bias is None else self.bias[: self.size]
        z = torch.nn.functional.linear(hidden, self.weight[: self.size], bias)
        if self.scale != 1.0:
            z = z * self.scale
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)


class Signal(ABC):
    """A distribution over `vocab` tokens at each of `shape` places."""

    vocab: int
    shape: torch.Size

    @abstractmethod
    def at(self, where: Tensor | slice) -> Signal:
        """The places that a mask, numbers or a slice pick, in one row: leading shape (N,)."""

    def log_p(self, tau: float = 1.0) -> Tensor:
        """Log-probabilities (..., V) in float32 or wider, where all of them are known."""
        raise UsageError(
            f"{self} gives no probability to each of its {self.vocab} tokens; use a divergence "
            "that is defined for it, or a dense teacher"
        )

    def __str__(self) -> str:
        return f"a {type(self).__name__} signal"


@dataclass(frozen=True, eq=False)
class Dense(Signal):
    """Logits (..., V)."""

    logits: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocab", self.logits.shape[-1])
        object.__setattr__(self, "shape", self.logits.shape[:-1])

    def at(self, where: Tensor | slice) -> Dense:
        return Dense(self.logits[where])

    def log_p(self, tau: float = 1.0) -> Tensor:
        z = self.logits if self.logits.dtype == torch.float64 else self.logits.float()
        return (z / tau).log_softmax(-1)


@dataclass(frozen=True, eq=False)
class Linear(Signal):
    """Hidden states (..., H) and a head: the logits need never be whole."""

    hidden: Tensor
    head: Head

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocab", self.head.size)
        object.__setattr__(self, "shape", self.hidden.shape[:-1])

    def at(self, where: Tensor | slice) -> Linear:
        return Linear(self.hidden[where], self.head)

    def log_p(self, tau: float = 1.0) -> Tensor:
        return Dense(self.head(self.hidden)).log_p(tau)


@dataclass(frozen=True, eq=False)
class TopK(Signal):
    """The likeliest entries: ids (..., K), their log-probabilities (..., K) at temperature tau.

    What they lack of 1 is one further outcome, the tail: a divergence is taken over K + 1 outcomes,
    never over a distribution that was scaled up. A place that has fewer entries has the id -1 in
    their stead, with the log-probability -inf, which is no outcome.
    """

    ids: Tensor
    logp: Tensor
    vocab: int
    tau: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.ids.shape[:-1])

    def at(self, where: Tensor | slice) -> TopK:
        return TopK(self.ids[where], self.logp[where], self.vocab, self.tau)

    def log_outcomes(self) -> Tensor:
        """Log-probabilities (..., K + 1), the tail last."""
        return torch.cat([self.logp, log_rest(self.logp)], -1)

    def of(self, logq: Tensor) -> Tensor:
        """What another distribution, log q (..., V), gives to the entries: (..., K)."""
        return logq.gather(-1, self.ids.clamp_min(0)).masked_fill(self.ids < 0, -torch.inf)


@dataclass(frozen=True, eq=False)
class Sampled(Signal):
    """Draws: ids (..., n) and weights (..., n) with E[sum_i w_i f(id_i)] = E_p f at tau.

    Ids may repeat. A label is one draw of weight 1.
    """

    ids: Tensor
    weights: Tensor
    vocab: int
    tau: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.ids.shape[:-1])

    def at(self, where: Tensor | slice) -> Sampled:
        return Sampled(self.ids[where], self.weights[where], self.vocab, self.tau)


@dataclass(frozen=True, eq=False)
class Mixture(Signal):
    """sum_m w_m p_m of several signals: probabilities are mixed, not logits.

    Attributes:
        of: signals of one vocabulary and shape.
        weights: (M,), at least 0, with sum 1.
    """

    of: Sequence[Signal]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.of) != len(self.weights) or not self.of:
            raise UsageError(
                f"a mixture of {len(self.of)} signals was given {len(self.weights)} weights; give "
                "one each"
            )
        if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise UsageError(
                f"the weights of a mixture are {tuple(self.weights)}; they must be at least 0 and "
                "sum to 1"
            )
        if len({(s.vocab, s.shape) for s in self.of}) > 1:
            told = ", ".join(f"{tuple(s.shape)} of {s.vocab}" for s in self.of)
            raise UsageError(f"a mixture needs one shape and one vocabulary, and was given {told}")
        object.__setattr__(self, "vocab", self.of[0].vocab)
        object.__setattr__(self, "shape", self.of[0].shape)

    def at(self, where: Tensor | slice) -> Mixture:
        return Mixture(tuple(s.at(where) for s in self.of), self.weights)

    def log_p(self, tau: float = 1.0) -> Tensor:
        parts = [s.log_p(tau) + _log(w) for s, w in zip(self.of, self.weights, strict=True)]
        return torch.stack(parts).logsumexp(0)


def is_whole(signal: Signal) -> bool:
    """Whether the probability of every token is known."""
    if isinstance(signal, Mixture):
        return all(is_whole(s) for s in signal.of)
    return isinstance(signal, Dense | Linear)


def as_signal(value: Any) -> Signal:
    """A signal; a tensor is its logits."""
    return value if isinstance(value, Signal) else Dense(value)


def log_rest(logp: Tensor) -> Tensor:
    """Log of 1 - sum exp(logp) over the last axis, (..., 1), at least log 2^-24."""
    return (1 - logp.exp().sum(-1, keepdim=True)).clamp_min(FLOOR).log()


def _log(weight: float) -> float:
    return float(torch.tensor(weight, dtype=torch.float64).log())
