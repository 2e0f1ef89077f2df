"""DistilBERT - half of the teacher's layers are pre-trained again, by what it says and shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import Divergence, summed
from limbeck.core.method import Clock, Mean, Method, Objective, Result, Rng, number
from limbeck.core.run import current
from limbeck.core.signals import Dense, Signal
from limbeck.core.tables import Table
from limbeck.core.task import Task
from limbeck.core.text.facts import MaskedText, text_of
from limbeck.core.text.masking import Masking, rates_of
from limbeck.core.text.places import IGNORED, columns, count, cross_entropy, wanted
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.language.distilbert.beginning import begin

CARD = Card(
    key="distilbert",
    title="DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
    year=2019,
    arxiv="1910.01108",
    code="https://github.com/huggingface/transformers-research-projects",
    kinds=("response", "feature", "masking", "initialisation", "self_supervised"),
    needs=("logits|signal", "hidden", "y", "index", "teacher_weights"),
    gives="model",
    world="masklm",
    stages=("fit",),
    tiny={},
    departs="Of each text a fixed share of the tokens is hidden, as in BERT, at least one; the "
    "paper's script fixes the share over a batch. A student that is a BERT keeps its token-type "
    "embeddings, which the paper removes; a DistilBERT has none.",
    lacks=("the optional second distillation, while the student is tuned to answer questions",),
)


def cosines(s: Tensor, t: Tensor) -> Tensor:
    """1 - cos(s, t) of each row: hidden states (..., H) -> (...).

    Args:
        s: the student's.
        t: the teacher's.
    """
    if s.shape != t.shape:
        raise UsageError(
            f"the student's hidden states are {tuple(s.shape)}, the teacher's {tuple(t.shape)}; "
            "they are compared as they are, so give a student of the teacher's width, or cos=0"
        )
    return 1 - F.cosine_similarity(s.float(), t.float(), dim=-1)


@dataclass(frozen=True)
class DistilBERT(Method):
    """A student that begins with some of the teacher's layers is pre-trained again, by three terms.

    kd * tau^2 KL(p_t || p_s) at the temperature tau + label * CE(hidden tokens) + cos * (1 -
    cos(h_s, h_t)) of the last hidden states. kd is a mean over all tokens that are not padding
    (over = "tokens") or over the hidden ones ("masked"), cos over all, label over the hidden ones.
    Both sides see the same text, in which other tokens are hidden at every step: `share` of each,
    of which the share `replaced` becomes the mask, `random` some token, and the rest stays; a token
    that occurs n times in the data is hidden in proportion to n^-smoothing. With `init`, embeddings
    and head are the teacher's, and so are `layers`, one for each of the student's (none named:
    evenly spread; 0, 2, 4, 7, 9, 11 of 12 for 6). Where the task is causal nothing is hidden, label
    is CE of the next token, and "masked" are the places that are trained on.

    Trained: the student. Frozen: the teacher.
    Raises: UsageError where the student cannot begin with the teacher's weights, or its hidden
    states are of another width.
    Source: Sanh et al., 2019, arXiv 1910.01108, sections 2 and 3; the weights 5, 2, 1, tau = 2 and
    smoothing = 0.7 are those of the authors' script for DistilBERT.
    Relatives: `kd` on a classifier is the paper's second distillation, `gkd` with own = 0 the
    first term for causal models.

    Example:
        >>> import torch
        >>> round(float(cosines(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]))), 4)
        0.04
    """

    label: float = number(2.0, least=0)
    kd: float = number(5.0, least=0)
    cos: float = number(1.0, least=0)
    tau: float = number(2.0, above=0)
    over: Literal["tokens", "masked"] = "tokens"
    init: bool = True
    layers: tuple[int, ...] = ()
    share: float = number(0.15, above=0, most=1)
    replaced: float = number(0.8, least=0, most=1)
    random: float = number(0.1, least=0, most=1)
    smoothing: float = number(0.7, least=0)
    card = CARD

    def run(self, task: Task) -> Result:
        """The student is begun with the teacher's weights, then trained in one fit."""
        masking = self.masking(task)
        student, teacher = current().student(task), task.the_teacher()
        if self.init:
            module = getattr(teacher, "module", None)
            if not isinstance(module, nn.Module):
                raise UsageError(
                    "the student is to begin with the teacher's weights, and there is no teacher "
                    "whose weights are here; give one, or init=false"
                )
            begin(student, module, self.layers)
        triple = Triple(self, masking)
        fitted = fit(triple, student, teacher, task.batches(), name="fit", task=task)
        return Result(model=fitted.student, log=fitted.log)

    def masking(self, task: Task) -> Masking | None:
        """How tokens of a task are hidden; None where it is causal."""
        text = task.data.get("text")
        if not isinstance(text, MaskedText):
            if text_of(task).other is not None:
                raise UsageError(
                    "teacher and student have other tokenizers, and their places are compared one "
                    "by one; give a student with the teacher's tokenizer"
                )
            return None
        table = Table(task.set("train"))
        rates = rates_of(table, text.vocab, self.smoothing) if self.smoothing else None
        return Masking(text.mask, text.vocab, self.share, self.replaced, self.random, rates)


@dataclass(frozen=True, eq=False)
class Triple(Objective):
    """The three terms of one fit.

    Attributes:
        of: the method.
        masking: how tokens are hidden; None for causal models.
    """

    of: DistilBERT
    masking: Masking | None = None

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        found = batch if self.masking is None else self.masking.batch(batch, rng)
        return found, found

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        whole = batch.x["mask"].sum()
        told = count(batch) if self.masking is None else self.masking.count(batch.tokens).sum()
        each = {"label": told, "kd": whole if self.of.over == "tokens" else told, "cos": whole}
        return {name: value for name, value in each.items() if getattr(self.of, name)}

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Mean]:
        """The weighted `label`, `kd` and `cos`."""
        m, counts, out = self.of, self.counts(batch), {}
        there = columns(batch.x)[1].bool()
        if m.label:
            out["label"] = self._label(s)
        if m.kd:
            where = there if m.over == "tokens" else self._told(s.batch.y)[:, : there.shape[1]]
            mine, theirs = (self._signal(side).at(where) for side in (s, t))
            weights = m.kd * m.tau**2 * torch.ones(int(where.sum()), device=where.device)
            out["kd"] = Mean(
                summed(Divergence("forward_kl"), mine, theirs, weights, m.tau), counts["kd"]
            )
        if m.cos:
            out["cos"] = Mean(m.cos * cosines(s.hidden, t.hidden)[there].sum(), counts["cos"])
        return out

    def _label(self, s: Side) -> Mean:
        """CE of the hidden tokens, or of the next ones."""
        if self.masking is None:
            return cross_entropy(s.signal, s.batch, weight=self.of.label)
        y = s.batch.y[:, : s.logits.shape[1]]
        where = self._told(y)
        nats = F.cross_entropy(s.logits[where].float(), y[where], reduction="sum")
        return Mean(self.of.label * nats, where.sum())

    def _told(self, y: Tensor) -> Tensor:
        """The places (B, T) whose prediction has a label."""
        return wanted(y) if self.masking is None else y != IGNORED

    def _signal(self, side: Side) -> Signal:
        found: Signal = side.signal if self.masking is None else Dense(side.logits)
        return found
