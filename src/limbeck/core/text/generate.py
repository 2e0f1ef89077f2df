"""Texts that causal models write, sampled from one or from a mixture, or likeliest.

Prompts come padded on either side and are left padded only in here. What is written comes back as
a training batch holds it: right padded, prompt first, labels on what was written.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.evaluate import evaluating
from limbeck.core.rng import Draws
from limbeck.core.signals import Dense, Mixture
from limbeck.core.text.beams import Hypotheses, beams, inner
from limbeck.core.text.lengths import apart, context_of, fits
from limbeck.core.text.replay import left_padded, right_padded
from limbeck.errors import NonFinite, UsageError

__all__ = ["Hypotheses", "Written", "beams", "context_of", "generate", "truncated"]


@dataclass(frozen=True, eq=False)
class Written:
    """Texts in training form: L = longest prompt + N, where N tokens at most were written.

    Attributes:
        ids: (B, L) int64, right padded, prompt first.
        mask: (B, L) int64.
        y: (B, L) int64, each written token (an EOS too), IGNORED on prompt and padding.
        valid: (B, N) bool, which of the N each row wrote; `logp[valid]` are in the order of
            `places.labels(y)`.
        logp: (B, N), log-probability of each token under what it was drawn from; 0 where none is.
        own: (M, B, N), that of each model at temperature 1, untruncated; None if it was not asked.
        cache: bytes of the models' caches at their largest.
    """

    ids: Tensor
    mask: Tensor
    y: Tensor
    valid: Tensor
    logp: Tensor
    own: Tensor | None = None
    cache: int = 0


def generate(
    models: Sequence[nn.Module],
    ids: Tensor,
    mask: Tensor,
    *,
    new: int,
    draws: Draws | None,
    eos: tuple[int, ...],
    pad: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    weights: tuple[float, ...] = (1.0,),
    own: bool = False,
    vocab: int | None = None,
) -> Written:
    """Go on from prompts until each row has an EOS, or has `new` tokens.

    Each model is tempered, the mixture sum_m w_m p_m is taken, and that is truncated: to its
    likeliest `top_k`, then to the fewest that hold `top_p`. A row's text depends on its own prompt
    and its own draws, not on the other rows nor on padding (but for rounding in the models); so
    prompts of near lengths are written on together, others apart, where that is cheaper.

    Args:
        models: causal models of one vocabulary; each keeps a cache of its own, if it can.
        ids: (B, P) prompts, padded on either side.
        mask: (B, P), 1 on tokens.
        new: how many tokens at most.
        draws: `clock.rng(name, index)`; may be None at temperature 0.
        eos: tokens that end a text; none for texts of `new` tokens.
        pad: what padding is filled with; it may be an EOS.
        temperature: 0 for the likeliest token (of the mixture at temperature 1).
        top_p: in (0, 1]; 1 truncates nothing.
        top_k: 0 truncates nothing.
        weights: of the models, (M,).
        own: whether each model's own log-probabilities are asked for.
        vocab: how many tokens mean something; columns beyond are never written.

    Raises:
        UsageError: the arguments do not fit each other, or the texts would not fit a context.
        NonFinite: a model gave no distribution.
    """
    _check(new, temperature, top_p, top_k, draws)
    ids, mask = left_padded(ids, mask, pad)
    start = ids.shape[1]
    for model in models:
        fits(model, start, new)
    u = None
    if temperature and draws is not None:  # 48 bits: tokens of 1e-8 come at their rate
        fine = draws.rand(new, stream=1).double() * 2.0**-24
        u = (draws.rand(new).double() + fine).to(ids.device)
    how = _How(new, eos, pad, temperature or 1.0, top_p, top_k, weights, own, vocab)
    groups, parts = apart(mask.sum(1), new), list[_Part]()
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        for rows in groups:
            first = start - int(mask[rows].sum(1).max())
            near = (ids[rows, first:], mask[rows, first:])
            parts.append(_together(models, *near, None if u is None else u[rows], how))
    valid, told = (_placed(groups, [getattr(p, n) for p in parts]) for n in ("valid", "logp"))
    if bad := int((told.isnan() & valid).any(1).sum()):
        raise NonFinite(
            f"{bad} of {len(ids)} texts could not be written: a model's logits hold NaN or +inf; "
            "look at its weights and its precision"
        )
    written = _placed(groups, [p.ids for p in parts]).masked_fill(~valid, pad)
    owns = [p.own for p in parts if p.own is not None]
    return Written(
        *right_padded(torch.cat([ids, written], 1), torch.cat([mask, valid.to(mask)], 1), start),
        valid,
        told.masked_fill(~valid, 0),
        _placed(groups, owns).masked_fill(~valid, 0) if owns else None,
        max(p.cache for p in parts),
    )


@dataclass(frozen=True)
class _How:
    """What is the same for all rows."""

    new: int
    eos: tuple[int, ...]
    pad: int
    tau: float
    top_p: float
    top_k: int
    weights: tuple[float, ...]
    own: bool
    vocab: int | None


@dataclass(frozen=True, eq=False)
class _Part:
    """What some rows wrote, (b, n) each; `own` (M, b, n)."""

    ids: Tensor
    valid: Tensor
    logp: Tensor
    own: Tensor | None
    cache: int


def _together(
    models: Sequence[nn.Module], ids: Tensor, mask: Tensor, u: Tensor | None, how: _How
) -> _Part:
    """Go on from left padded prompts, in one batch; the likeliest tokens without u (b, N)."""
    start, ends = ids.shape[1], torch.tensor(how.eos, device=ids.device)
    alive = mask.new_ones(len(ids)).bool()
    logp, owns = [], []
    readers = [_Reader(model) for model in models]
    while ids.shape[1] < start + how.new and bool(alive.any()):
        each = [Dense(reader(ids, mask)[:, : how.vocab]) for reader in readers]
        target = Mixture(each, how.weights).log_p(how.tau)
        if u is None:
            token = target.argmax(-1)
            logp.append(target.amax(-1) * 0)  # it was certain; NaN stays NaN
        else:
            target = truncated(target, how.top_k, how.top_p)
            token = _drawn(target, u[:, ids.shape[1] - start])
            logp.append(_of(target, token))
        if how.own:
            owns.append(torch.stack([_of(one.log_p(), token) for one in each]))
        ids = torch.cat([ids, torch.where(alive, token, how.pad)[:, None]], 1)
        mask = torch.cat([mask, alive[:, None].to(mask)], 1)
        alive = alive & ~torch.isin(token, ends)
    return _Part(
        ids[:, start:],
        mask[:, start:].bool(),
        torch.stack(logp, 1),
        torch.stack(owns, -1) if owns else None,
        sum(reader.held() for reader in readers),
    )


def _placed(groups: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Parts (..., b, n) of groups of rows as one tensor (..., B, N), each row in its place."""
    size, width = sum(map(len, groups)), max(part.shape[-1] for part in parts)
    out = parts[0].new_zeros(*parts[0].shape[:-2], size, width)
    for rows, part in zip(groups, parts, strict=True):
        out[..., rows, : part.shape[-1]] = part
    return out


def truncated(logp: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Log-probabilities (..., V) of the likeliest `top_k`, then of the fewest that hold `top_p`.

    The token that reaches `top_p` is in; of equally likely ones the lower number goes first.
    """
    if top_p == 1 and not 0 < top_k < logp.shape[-1]:
        return logp
    ordered, order = logp.sort(dim=-1, descending=True, stable=True)
    out = torch.arange(logp.shape[-1], device=logp.device) >= (top_k or math.inf)
    p = ordered.masked_fill(out, -math.inf).double().softmax(-1)
    out = out | (p.cumsum(-1) - p >= top_p) & (top_p < 1)
    out = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, order, out.expand_as(order))
    return logp.masked_fill(out, -math.inf).log_softmax(-1)


class _Reader:
    """One model that reads a text as it grows, each token once if it has a cache."""

    def __init__(self, model: Any) -> None:
        self.model, self.past, self.seen = model, None, 0
        self.takes = set(inspect.signature(inner(model).forward).parameters)

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, V) of the token after the last of ids (B, L)."""
        places = (mask.cumsum(1) - 1).clamp_min(0)
        more = {
            "position_ids": places[:, self.seen :],
            "past_key_values": self.past,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        more = {name: value for name, value in more.items() if name in self.takes}
        out = self.model(input_ids=ids[:, self.seen :], attention_mask=mask, **more)
        self.past = getattr(out, "past_key_values", None)
        self.seen = 0 if self.past is None else ids.shape[1]
        z: Tensor = out.logits[:, -1]
        return z if z.dtype == torch.float64 else z.float()

    def held(self) -> int:
        """Bytes of the cache, which only grows."""
        kept = [t for layer in getattr(self.past, "layers", ()) for t in vars(layer).values()]
        return sum(t.numel() * t.element_size() for t in kept if isinstance(t, Tensor))


def _drawn(logp: Tensor, u: Tensor) -> Tensor:
    """The token (B,) at which the sums of probabilities (B, V) go beyond u (B,)."""
    sums = logp.double().exp().cumsum(-1)
    # one that adds nothing is never the first beyond
    token = torch.searchsorted(sums, u[:, None] * sums[:, -1:], right=True)[:, 0]
    return token.clamp_max(logp.shape[-1] - 1)  # beyond only where the sums are NaN


def _of(logp: Tensor, token: Tensor) -> Tensor:
    return logp.gather(-1, token[:, None])[:, 0]


def _check(new: int, temperature: float, top_p: float, top_k: int, draws: Draws | None) -> None:
    if new < 1 or not (0 <= temperature < math.inf and 0 < top_p <= 1 and top_k >= 0):
        raise UsageError(
            f"{new} tokens were asked for at temperature {temperature}, top_p {top_p}, top_k "
            f"{top_k}; they must be at least 1, 0 or above, in (0, 1], and 0 or above"
        )
    if temperature and draws is None:
        raise UsageError("sampling needs draws; give clock.rng(name, index), or temperature 0")
