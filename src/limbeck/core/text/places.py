"""Places: where in a text a model predicts a token that is trained on. The shift is made here only.

At place i a causal model has seen tokens up to i and predicts token i + 1. Labels y (B, T) are not
shifted: y[b, i] is token i where it is trained on, IGNORED elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from limbeck.core.data import Batch
from limbeck.core.losses.divergences import Divergence, check_vocabularies, summed
from limbeck.core.method import Mean
from limbeck.core.signals import Sampled, Signal
from limbeck.errors import UsageError

__all__ = [
    "CROSS_ENTROPY",
    "IGNORED",
    "Per",
    "columns",
    "count",
    "cross_entropy",
    "labels",
    "labels_of",
]
__all__ += ["matched", "told", "wanted"]

IGNORED = -100
CROSS_ENTROPY = Divergence("forward_kl")  # of a label, which is one draw of weight 1


def wanted(y: Tensor) -> Tensor:
    """The places (B, T) whose next token is trained on; the last is none."""
    return torch.cat([y[:, 1:] != IGNORED, torch.zeros_like(y[:, :1], dtype=torch.bool)], 1)


Per = Literal["token", "text"]
"""What an average is over: all wanted places alike, or texts, each the mean of its own."""


def count(batch: Batch, per: Per = "token") -> Tensor:
    """How many wanted places, or texts with any, a batch has, ()."""
    return (wanted(batch.y) if per == "token" else wanted(batch.y).any(1)).sum()


def labels(y: Tensor) -> Tensor:
    """The next token at each wanted place, in their order (N,)."""
    return y[:, 1:][y[:, 1:] != IGNORED]


def told(y: Tensor, signal: Signal) -> Tensor:
    """The wanted places as a mask of a signal's shape, which may lack columns of padding."""
    where = wanted(y)[:, : signal.shape[1]]
    if len(where) != signal.shape[0] or int(where.sum()) != int(wanted(y).sum()):
        raise UsageError(
            f"a side shows {tuple(signal.shape)} places of a batch whose labels are "
            f"{tuple(y.shape)}; both must be of the same tokens"
        )
    return where


def matched(
    how: Divergence,
    s: Signal,
    t: Signal,
    batch: Batch,
    *,
    weight: float = 1.0,
    tau: float = 1.0,
    per: Per = "token",
) -> Mean:
    """Weight * the mean of D(t, s) over a batch; its count is `count(batch, per)`.

    Shapes: s, t of (B, T) places.
    """
    check_vocabularies(s, t)
    here = s.at(told(batch.y, s))
    weights = weight * _shares(batch.y, per)
    total = summed(how, here, t.at(told(batch.y, t)), weights, tau)
    return Mean(total, count(batch, per))


def cross_entropy(s: Signal, batch: Batch, *, weight: float = 1.0, per: Per = "token") -> Mean:
    """Weight * the mean of -log q(next token); its count is `count(batch, per)`."""
    here, ids = s.at(told(batch.y, s)), labels(batch.y)
    truth = Sampled(ids[:, None], torch.ones(len(ids), 1, device=ids.device), s.vocab)
    total = summed(CROSS_ENTROPY, here, truth, weight * _shares(batch.y, per))
    return Mean(total, count(batch, per))


def _shares(y: Tensor, per: Per) -> Tensor:
    """What each wanted place counts, (N,): 1, or one over how many its text has."""
    where = wanted(y)
    each = where.float() if per == "token" else where / where.sum(1, keepdim=True).clamp_min(1)
    return each[where]


def labels_of(batch: Batch, side: str) -> Tensor:
    """Labels (B, U) of a side's own tokens: `y`, or those of a teacher's with another tokenizer."""
    if not side:
        return torch.as_tensor(batch.y)
    ids, there = batch.x[f"{side}ids"], batch.x[f"{side}wanted"]
    y = torch.full_like(ids, IGNORED)
    y[:, 1:] = torch.where(there[:, :-1], ids[:, 1:], IGNORED)
    return y


def columns(x: Mapping[str, Tensor], side: str = "") -> tuple[Tensor, Tensor]:
    """A side's ids and mask (B, T) without the columns that are padding in every row.

    `side` is "" for the student's tokens, "t_" for those of a teacher with another tokenizer.
    """
    ids, mask = x[f"{side}ids"], x[f"{side}mask"]
    length = int(mask.any(0).sum())
    return ids[:, :length], mask[:, :length]
