"""MiniLLM - the reverse KL of whole texts, followed by policy gradient on mixed samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Batches, Beside
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import Divergence
from limbeck.core.method import Clock, Facts, Mean, Objective, Result, number
from limbeck.core.objectives import NextTokens
from limbeck.core.run import current
from limbeck.core.signals import Signal
from limbeck.core.task import Budget, Task
from limbeck.core.teachers import Nobody
from limbeck.core.text.facts import Text, text_of
from limbeck.core.text.generate import Written
from limbeck.core.text.onpolicy import OnPolicy, Source
from limbeck.core.text.places import IGNORED, count, cross_entropy, labels, matched, told
from limbeck.core.updates import Phase
from limbeck.core.views import Side

CARD = Card(
    key="minillm",
    title="MiniLLM: Knowledge Distillation of Large Language Models",
    year=2024,
    arxiv="2306.08543",
    code="https://github.com/microsoft/LMOps",
    kinds=("response", "sequence", "on_policy", "reward"),
    needs=("signal", "y", "index"),
    gives="model",
    world="charlm",
    stages=("fit",),
    tiny={"new": 4, "inner": 2},
    departs="Sums over tokens are divided by the tokens of the step, as in the code; the paper "
    "divides by texts. The discount and the whitening are the code's; it whitens padding along, "
    "here written tokens alone. The single-step part has no importance weight, as in the code: the "
    "paper's w of one token has the mean 1 there. Returns begin at the next token and are divided "
    "by how many they sum, T - t; the paper prints T - t - 1, the code begins at the token itself. "
    "`inner` optimiser steps are on all texts of a step and one batch of the corpus; the code cuts "
    "16 rollouts a process into batches of 4, each with its own. Log-ratios are not clipped (the "
    "code: at 50). The corpus is the task's set `corpus`; without one its term is left out. Plain "
    "text has no prompts: there one goes on from the first `least` tokens. The student comes "
    "fine-tuned on the data, or `tune` says for how long it is. On the corpus the code takes half "
    "of the paper's term and half of forward KL to the teacher: corpus=0.5, corpus_kd=0.5.",
)


def returns(
    rewards: Tensor, there: Tensor, gamma: float = 1.0, normalise: bool = True, *, own: bool = False
) -> Tensor:
    """R_t = sum_{k > t} gamma^(k - t - 1) r_k, or from k = t on; 0 where it sums nothing.

    Args:
        rewards: (B, N), log p / q of each written token, 0 where none is.
        there: (B, N) bool, which were written, without gaps.
        gamma: the discount.
        normalise: divide by how many tokens are summed.
        own: begin at the token itself.
    """
    total, tokens = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    found = []
    for r, here in zip(rewards.T.flip(0), there.T.flip(0), strict=True):
        after = (total, tokens)
        total, tokens = r + gamma * total, tokens + here
        value, n = (total, tokens) if own else after
        found.append(value / n.clamp_min(1) if normalise else value)
    return torch.stack(found[::-1], 1).masked_fill(~there, 0)


def surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """max(-A rho, -A rho'), rho' within 1 - clip and 1 + clip; with clip = 0 -A rho.

    `ratio` rho and `advantage` A are of each token (N,), and so is the value.
    """
    plain = -advantage * ratio
    return torch.maximum(plain, -advantage * ratio.clamp(1 - clip, 1 + clip)) if clip else plain


class Rollouts(OnPolicy):
    """Texts that teacher and student write together, with what is known of each written token.

    Beside a batch's columns, at the labels and 0 elsewhere, all (B, T): `old` log q of the student
    that wrote, `weight` q / (alpha p + (1 - alpha) q), `returns` of r = log p / q.
    """

    def __init__(self, method: MiniLLM, main: Batches, text: Text) -> None:
        super().__init__(main, text, new=method.new or text.context // 2, least=method.least)
        self.method = method

    wants_own = True

    def source(self, u: float, student: nn.Module, clock: Clock) -> Source:
        return "mixed"

    def share(self) -> float:
        return self.method.alpha

    def noted(self, written: Written) -> dict[str, Tensor]:
        return self.method.known(written)


class Scale(nn.Module):
    """Mean and deviation of a step's returns."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))


@dataclass(frozen=True)
class MiniLLM(Objective):
    """A language model follows the reverse KL of whole texts, KL(q, p), by policy gradient.

    single * KL(q, p) of the next token at each place, whose gradient is exact, + long * max(-A
    rho, -A clip(rho)) + corpus * CE + corpus_kd * KL(p, q) on a generic corpus, means over tokens.
    Texts are drawn token by token, `new` at most (0: half of the context), from alpha p + (1 -
    alpha) q; plain text is gone on from after `least` tokens. A is the mean of log p / q over the
    tokens that follow (`normalise`, `gamma`), less its mean over the step's tokens and over their
    deviation (`whiten`). rho is q now over what the token was drawn from. With single = 0 returns
    begin at the token itself: plain policy gradient. alpha = 0 is on-policy; with gamma = 1 and
    normalise, whiten and clip off the gradient is then without bias that of the KL of texts.
    `tune`: before, the student is fine-tuned on the data for that share of the budget; the best by
    the score on valid goes on.

    Trained: the student, `inner` times on each set of texts. Frozen: the teacher, which has to be
    live, as it writes along. Moved in a look before: the scale of the returns.
    Raises: UsageError where the vocabularies differ, or no prompt would fit.
    Source: Gu et al., ICLR 2024, arXiv 2306.08543, section 2.2; discount, whitening, clip and
    inner steps are the authors' code's.
    Relatives: `gkd(divergence="reverse_kl", own=1)` is the single-step part at alpha = 0;
    `distillm` skews the divergence and replays texts.

    Example:
        >>> one, all_ = torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)
        >>> returns(one, all_)
        tensor([[3., 4., 0.]])
    """

    single: float = number(1.0, least=0)
    long: float = number(1.0, least=0)
    corpus: float = number(1.0, least=0)
    corpus_kd: float = number(0.0, least=0)
    alpha: float = number(0.2, least=0, below=1)
    inner: int = number(4, least=1)
    clip: float = number(0.2, least=0, below=1)
    gamma: float = number(0.95, least=0, most=1)
    normalise: bool = True
    whiten: bool = True
    new: int = number(0, least=0)
    least: int = number(8, least=1)
    tune: float = number(0.0, least=0)  # share of the budget
    card = CARD

    def known(self, written: Written) -> dict[str, Tensor]:
        """The columns of `Rollouts`, from texts of which the teacher's own log p comes first."""
        assert written.own is not None
        p, q = written.own
        r = returns(p - q, written.valid, self.gamma, self.normalise, own=not self.single)
        each = {"old": q, "weight": (q - written.logp).exp(), "returns": r}
        at = written.y != IGNORED
        return {
            n: torch.zeros_like(at, dtype=v.dtype).masked_scatter(at, v[written.valid])
            for n, v in each.items()
        }

    @property
    def scales(self) -> bool:
        """Whether returns are whitened."""
        return self.whiten and self.long > 0

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The scale of the returns, where they are whitened."""
        return Scale() if self.scales else nn.Module()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        out = {n: count(batch) for n in ("single", "long") if getattr(self, n)}
        beside = [n for n in ("corpus", "corpus_kd") if getattr(self, n) and "corpus" in batch]
        return {**out, **{n: count(batch.corpus) for n in beside}}

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Mean]:
        """The weighted `single`, `long` and `corpus`, those whose weight is not zero."""
        out = {}
        if self.single:
            how = Divergence("reverse_kl")
            out["single"] = matched(how, s.signal, t.signal, batch, weight=self.single)
        if self.long:
            at = batch.y != IGNORED
            advantage = batch.returns[at]
            if self.scales:
                advantage = (advantage - parts.mean) / parts.deviation
            ratio = (logq(s.signal, batch) - batch.old[at]).exp() * batch.weight[at]
            total = surrogate(ratio, advantage, self.clip).sum()
            out["long"] = Mean(self.long * total, count(batch))
        if self.corpus and "corpus" in batch:
            there = s(batch.corpus).signal
            out["corpus"] = cross_entropy(there, batch.corpus, weight=self.corpus)
        if self.corpus_kd and "corpus" in batch:
            how, q, p = Divergence("forward_kl"), s(batch.corpus).signal, t(batch.corpus).signal
            out["corpus_kd"] = matched(how, q, p, batch.corpus, weight=self.corpus_kd)
        return out

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> dict[str, Tensor]:
        """The returns of all written tokens."""
        return {"returns": batch.returns[batch.y != IGNORED]} if self.scales else {}

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        """They give the scale."""
        if seen:
            var, mean = torch.var_mean(seen["returns"], correction=0)
            parts.mean.copy_(mean)
            parts.deviation.copy_((var + 1e-8).sqrt())

    def update(self) -> tuple[Phase, ...]:
        """A look at the returns, then `inner` steps on the same texts."""
        policy = Phase("policy", repeat=self.inner)
        return (Phase("look", train=()), policy) if self.scales else (policy,)

    def run(self, task: Task) -> Result:
        """The student's own fine-tuning, then one fit on what both write."""
        text = text_of(task)
        main: Batches = task.batches()
        if (self.corpus or self.corpus_kd) and task.set_or_none("corpus") is not None:
            main = Beside(main, corpus=task.batches("corpus"))
        student, teacher = current().student(task), task.the_teacher()
        batches, log = Rollouts(self, main, text), list[Any]()
        if self.tune:
            own, name = replace(task, budget=self._tuning(task)), "fit/tune"
            log = fit(NextTokens(), student, Nobody(), task.batches(), name=name, task=own).log
        fitted = fit(self, student, teacher, batches, name="fit", task=task)
        return Result(model=fitted.student, log=log + fitted.log)

    def _tuning(self, task: Task) -> Budget:
        """A share of the task's budget, of which the best on valid is kept."""
        return replace(task.budget.part(self.tune), keep="last" if task.valid is None else "best")


def logq(s: Signal, batch: Batch) -> Tensor:
    """Log-probability under `s` of the next token at each wanted place of `batch` (N,)."""
    return s.at(told(batch.y, s)).log_p().gather(-1, labels(batch.y)[:, None])[:, 0]
