"""RS-KD - draws from the teacher's distribution stand for it, without bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import summed
from limbeck.core.method import Clock, Mean, Objective, number
from limbeck.core.packing import drawn
from limbeck.core.signals import Sampled, Signal, TopK, is_whole
from limbeck.core.text.places import CROSS_ENTROPY, count, cross_entropy, labels, told, wanted
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="rs_kd",
    title="Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs",
    year=2025,
    arxiv="2503.16870",
    code="",
    kinds=("response", "weighting"),
    needs=("signal", "y", "index"),
    gives="model",
    world="charlm",
    stages=("fit",),
    tiny={},
    departs="A live teacher is drawn from anew in each epoch; a cache that was written with "
    "--signal sampled holds one drawing for all, as in the paper. The weights of draws from p^u "
    "are not brought to the sum 1, which keeps them unbiased for every u, unless `normalise` is "
    "set. The "
    "paper's extra weight on hard tokens is reconstructed: 1 + (hard - 1) (1 - t(y)) with the "
    "target's share t(y) of the true token.",
)
Estimate = Literal["sampled", "tail", "topk", "topk_norm", "top_p", "gold"]


def target_of(kind: Estimate, t: Signal, ids: Tensor, k: int, mass: float) -> Sampled | TopK:
    """What stands for the teacher at N places, other than draws.

    tail: the k likeliest tokens, and one outcome for the rest. topk: their probabilities as they
    are, so that mass is lost. topk_norm: brought to the sum 1. top_p: of the k, the fewest that
    hold `mass`, as they are. gold: the rest of the mass is given to the true token.

    Args:
        kind: which.
        t: (N,), whole or with its likeliest entries.
        ids: true tokens (N,).
        k: how many.
        mass: of top_p.
    """
    if isinstance(t, TopK):
        top = t if t.ids.shape[-1] <= k else _best(t, k)
    else:
        found = t.log_p().topk(min(k, t.vocab))
        top = TopK(found.indices, found.values, t.vocab)
    if kind == "tail":
        return top
    p, some = top.logp.exp(), top.ids.clamp_min(0)  # what is no entry has the probability 0
    if kind == "topk_norm":
        p = p / p.sum(-1, keepdim=True)
    if kind == "top_p":
        ranked, order = p.sort(-1, descending=True)
        held = (ranked.cumsum(-1) - ranked < mass).to(p.dtype)
        p = p * torch.zeros_like(p).scatter(-1, order, held)
    if kind == "gold":
        rest = (1 - p.sum(-1, keepdim=True)).clamp_min(0)
        return Sampled(torch.cat([some, ids[:, None]], -1), torch.cat([p, rest], -1), t.vocab)
    return Sampled(some, p, t.vocab)


def _best(t: TopK, k: int) -> TopK:
    found = t.logp.topk(k)
    return TopK(t.ids.gather(-1, found.indices), found.values, t.vocab, t.tau)


@dataclass(frozen=True)
class RSKD(Objective):
    """A language model is taught the teacher's distribution by a few draws from it at each token.

    label * CE(y) + kd * mean over tokens of -sum_i w_i log q(v_i), for `draws` tokens v_i from
    r(v) proportional to p(v)^u with weights w_i = p / (draws r): E[sum_i w_i f(v_i)] = E_p f, so
    the gradient in the student's logits is q - p in the mean. `estimate` selects what the paper
    compares it with, of the `k` likeliest tokens or those that hold `mass`: "tail", "topk",
    "topk_norm", "top_p", "gold" (see `target_of`). `normalise` brings the weights to the sum 1;
    `hard` > 1 weighs tokens that the teacher did not expect.

    Trained: the student. Frozen: the teacher, which need not run: a cache of draws is read.
    Raises: UsageError where the teacher's cache does not hold what `estimate` needs.
    Source: Anshumann et al., ACL 2025, arXiv 2503.16870, sections 3 and 4: about 50 draws.
    Relatives: `gkd` with own = 0 and forward_kl is the whole sum.

    Example:
        >>> import torch
        >>> from limbeck.core.signals import Dense
        >>> p = torch.tensor([[0.6, 0.3, 0.1]])
        >>> target_of("topk_norm", Dense(p.log()), torch.tensor([2]), 2, 0.9).weights
        tensor([[0.6667, 0.3333]])
    """

    label: float = number(0.0, least=0)
    kd: float = number(1.0, least=0)
    estimate: Estimate = "sampled"
    draws: int = number(50, least=1)
    u: float = number(1.0, least=0, most=16)
    normalise: bool = False
    k: int = number(12, least=1)
    mass: float = number(0.98, above=0, most=1)
    hard: float = number(1.0, least=1)
    card = CARD

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        weights = {"kd": self.kd, "label": self.label}
        return {name: count(batch) for name, weight in weights.items() if weight}

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Mean]:
        """The weighted `label` and `kd`."""
        out = {}
        if self.label:
            out["label"] = cross_entropy(s.signal, batch, weight=self.label)
        if self.kd:
            theirs = t.signal.at(told(batch.y, t.signal))
            few = self._target(theirs, batch, clock)
            weights = self.kd * self._hard(few, labels(batch.y))
            total = summed(CROSS_ENTROPY, s.signal.at(told(batch.y, s.signal)), few, weights)
            out["kd"] = Mean(total, count(batch))
        return out

    def _target(self, t: Signal, batch: Batch, clock: Clock) -> Sampled | TopK:
        """What stands for the teacher at the wanted places."""
        if self.estimate != "sampled":
            if isinstance(t, Sampled):
                raise UsageError(
                    f"the teacher's cache holds draws, and estimate '{self.estimate}' needs its "
                    "likeliest tokens; write one with --signal topk, or use estimate=sampled"
                )
            return target_of(self.estimate, t, labels(batch.y), self.k, self.mass)
        if not is_whole(t):
            if not isinstance(t, Sampled):
                raise UsageError(
                    "the teacher shows its likeliest tokens, from which no unbiased draws can be "
                    "made; give estimate=tail, or a cache that was written with --signal sampled"
                )
            return self._scaled(t)
        where = wanted(batch.y)
        at = clock.rng("draws", batch.index).rand(where.shape[1], self.draws)
        fine = clock.rng("finer", batch.index).rand(where.shape[1], self.draws)
        ids, weights = drawn(t.log_p(), (at.double() + fine.double() * 2.0**-24)[where], self.u)
        return self._scaled(Sampled(ids, weights, t.vocab))

    def _scaled(self, t: Sampled) -> Sampled:
        if not self.normalise:
            return t
        return Sampled(t.ids, t.weights / t.weights.sum(-1, keepdim=True), t.vocab, t.tau)

    def _hard(self, few: Sampled | TopK, ids: Tensor) -> Tensor:
        """The weight of each place, (N,)."""
        values = few.logp.exp() if isinstance(few, TopK) else few.weights
        share = (values * (few.ids == ids[:, None])).sum(-1).clamp(0, 1)
        return 1 + (self.hard - 1) * (1 - share)
