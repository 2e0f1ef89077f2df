"""Masked language models: which tokens are hidden from them, and how they are looked at.

A sample is stored as it is scored: with some of its tokens hidden, which its number decides. `x`
has "ids" (B, T) with the hidden ones replaced and "mask" (B, T), `y` (B, T) the token at each
hidden place, else IGNORED, `tokens` (B, T) the token at each place that may be hidden (never the
first of a sample), else IGNORED; from the last an objective's `prepare` hides others at every step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.method import Clock, Mean, Objective, Rng, number
from limbeck.core.rng import Draws
from limbeck.core.signals import Dense
from limbeck.core.tables import Table
from limbeck.core.text.places import IGNORED, columns, cross_entropy
from limbeck.core.text.scores import nll
from limbeck.core.text.view import body_of
from limbeck.core.views import Lazy, Side
from limbeck.errors import UsageError

__all__ = ["Masked", "MaskedTokens", "Masking", "fixed", "masked_nll", "rates_of"]

masked_nll = replace(nll, name="masked nll")
"""Nats a hidden token. Which are hidden is stored with the samples, so that models compare."""


@dataclass(frozen=True, eq=False)
class Masking:
    """Hides a share of each sample's tokens; how many is known from the sample alone.

    Attributes:
        mask: the id that stands for a hidden token.
        vocab: ids below it may stand instead of one.
        share: of the tokens that may be hidden; at least one is.
        replaced: the share of the hidden ones that become `mask`.
        random: the share that become some token; the rest stay as they are, and are asked all the
            same.
        rates: (V,) how readily each token is hidden, in proportion; all alike where None.
    """

    mask: int
    vocab: int
    share: float = 0.15
    replaced: float = 0.8
    random: float = 0.1
    rates: Tensor | None = None

    def __post_init__(self) -> None:
        if self.replaced + self.random > 1 + 1e-9:
            raise UsageError(
                f"of the hidden tokens {self.replaced:g} are replaced and {self.random:g} random; "
                "their sum may not be above 1"
            )

    def count(self, tokens: Tensor) -> Tensor:
        """How many tokens of each sample are hidden, (B,), of `tokens` (B, T)."""
        free = (tokens != IGNORED).sum(1)
        return (self.share * free).round().long().clamp_min(1).minimum(free)

    def hidden(self, tokens: Tensor, draws: Draws) -> Tensor:
        """The places (B, T) that are hidden: drawn one after the other, none of them twice.

        Each draw takes a token with a probability in proportion to its rate: the first to arrive,
        where each arrives after an exponential time of its rate.
        """
        free = tokens != IGNORED
        time = -torch.log1p(-draws.rand(tokens.shape[1]).double())
        if self.rates is not None:
            time = time / self.rates.to(tokens.device)[tokens.clamp_min(0)]
        rank = time.masked_fill(~free, torch.inf).argsort(dim=1, stable=True).argsort(1)
        return rank < self.count(tokens)[:, None]

    def __call__(
        self, ids: Tensor, tokens: Tensor, draw: Callable[[str], Draws]
    ) -> tuple[Tensor, Tensor]:
        """What is shown (B, T), and the labels (B, T): the token at each hidden place.

        Args:
            ids: (B, T), of which only those at places that are never hidden are read.
            tokens: (B, T), the tokens that may be hidden, else IGNORED.
            draw: gives draws for each sample under a name.
        """
        width = tokens.shape[1]
        there = self.hidden(tokens, draw("hide"))
        how, other = draw("how").rand(width), draw("other").randint(self.vocab, width)
        shown = torch.where(tokens != IGNORED, tokens, ids)
        instead = torch.where(how < self.replaced, self.mask, other)
        changed = there & (how < self.replaced + self.random)
        return torch.where(changed, instead, shown), torch.where(there, tokens, IGNORED)

    def batch(self, batch: Batch, rng: Rng) -> Batch:
        """A batch with other tokens hidden than those that it was stored with."""
        ids, y = self(batch.x["ids"], batch.tokens, lambda name: rng(name, batch.index))
        return batch.replace(x={**batch.x, "ids": ids}, y=y)


def fixed(x: Mapping[str, Tensor], tokens: Tensor, masking: Masking, name: str) -> dict[str, Any]:
    """The columns of a set, with tokens hidden by the number of each sample.

    Args:
        x: "ids" and "mask" (N, T), with nothing hidden.
        tokens: (N, T), the tokens that may be hidden, else IGNORED.
        masking: how.
        name: of the set, so that sets differ.
    """
    index = torch.arange(len(tokens))
    ids, y = masking(x["ids"], tokens, lambda word: Draws(index, "masks", name, word))
    return {"x": {**x, "ids": ids}, "y": y, "tokens": tokens}


def rates_of(table: Table, vocab: int, smoothing: float) -> Tensor:
    """How readily each token is hidden, (V,): its count in a set to the power -smoothing.

    A token that is not there counts as if it were there once.
    """
    counts = torch.zeros(vocab, dtype=torch.int64)
    for batch in table.chunks(512):
        told = torch.as_tensor(batch.tokens)
        counts += told[told != IGNORED].bincount(minlength=vocab)
    return counts.clamp_min(1).double() ** -smoothing


@dataclass(frozen=True)
class Masked:
    """The reader of a side that fills in hidden tokens: a masked model of transformers.

    Attributes:
        vocab: how many tokens mean something; columns beyond are padding.
    """

    vocab: int

    def __call__(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the model: (B, T) without the columns that are padding in every row."""
        ids, mask = columns(x)
        return {"input_ids": ids, "attention_mask": mask}

    def view(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Lazy:
        """The entries logits (B, T, V) and hidden (B, T, H), before the head, of one pass.

        `signal` is the distribution over the next token at each place, as a causal model shows it:
        what stands at place i in `logits` stands at i - 1, and that of the first at the last.
        """

        @functools.cache
        def passed() -> tuple[Tensor, Tensor]:
            kept: list[Tensor] = []
            hook = body_of(model).register_forward_hook(lambda m, x, out: kept.append(out[0]))
            try:
                logits = model(**inputs).logits[..., : self.vocab]
            finally:
                hook.remove()
            return logits, kept[-1]

        return Lazy(
            logits=lambda: passed()[0],
            hidden=lambda: passed()[1],
            signal=lambda: Dense(passed()[0].roll(-1, 1)),
        )


@dataclass(frozen=True)
class MaskedTokens(Objective):
    """Cross-entropy of hidden tokens, others at every step; no teacher is asked."""

    mask: int
    vocab: int
    share: float = 0.15
    label: float = number(1.0, above=0)

    @property
    def _masking(self) -> Masking:
        return Masking(self.mask, self.vocab, self.share)

    def asks(self) -> tuple[str, ...]:
        return ("student:signal", "index")

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        found = self._masking.batch(batch, rng)
        return found, found

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"label": self._masking.count(batch.tokens).sum()}

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Mean]:
        return {"label": cross_entropy(s.signal, s.batch, weight=self.label)}
