"""ALM - both sides give the same likelihood to the same pieces of text, however they cut them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Batches
from limbeck.core.engine import fit
from limbeck.core.method import Clock, Facts, Mean, Objective, Result, Term, number
from limbeck.core.run import current, rng, stage
from limbeck.core.tables import Table
from limbeck.core.task import Task
from limbeck.core.text.facts import text_of
from limbeck.core.text.places import count, cross_entropy
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.language.alm import chunks
from limbeck.language.alm.balance import GradMag
from limbeck.language.alm.bias import Unbiased, biased_pairs
from limbeck.language.alm.chunks import Tokens
from limbeck.language.alm.divergence import compared
from limbeck.language.alm.hyper import put, taken
from limbeck.language.alm.pieces import Pieces, Tools, tokenizers_of
from limbeck.language.alm.transfer import embed

CARD = Card(
    key="alm",
    title="Cross-Tokenizer Distillation via Approximate Likelihood Matching",
    year=2025,
    arxiv="2503.20083",
    code="https://github.com/bminixhofer/tokenkit",
    kinds=("response", "cross_tokenizer", "self", "feature", "initialisation"),
    needs=("signal|signal+hidden", "y"),
    gives="model",
    world="charlm",
    stages=("pairs", "fit"),
    tiny={},
    departs="Weighted means are divided by the sum of the weights, not by the number of chunks nor "
    "by that of window sizes. Hidden states are scaled by the mean square of the teacher's in the "
    "text, where the code takes each channel's over the batch. The bias of a pair is found where "
    "it occurs and only as far as the limit, by the tokenizer's bare model, which does not split "
    "into words. Chunks that are not neighbours in the text are never merged. A term without a "
    "gradient in the last layer has no part in GradMag. The loss on labels is off, as in the "
    "paper's pure distillation; the code's later scripts add it. The hypernetwork is off too; "
    "where embeddings and head are not tied each has its own, and the code's reads both at once.",
)


@dataclass(frozen=True)
class ALM(Objective):
    """A language model gives each piece of text the likelihood that a teacher of other tokens does.

    alm * weighted mean over chunks of -P log Q - (1 - P) log(1 - Q), P = exp(a / tau): a, b are the
    sums of log p, log q over the chunk's tokens on either side, and a chunk is the least span where
    both have a token that ends. `divergence` has others, `windows` adds chunks of so many
    neighbours, `weigh` weighs them. label * CE(y) + latent * mean square difference of hidden
    states at chunks' ends, over the mean square of the teacher's, for sides of one width. With
    several terms and `balance` their gradients get one norm at the student's last layer.

    A tokenizer's cut says what may follow. Against that, chunks are merged until one ends: `merge`
    = "pairs" with two tokens whose ends rule out the same up to the mass `bias`; "space" where the
    teacher gives white space next more than `boundary`. `append_space` makes the event "chunk, then
    white space". Where both sides read the same tokens none of that is needed. init = "fvt" makes
    the student's embeddings out of the teacher's: with a copy of its body, a new tokenizer.
    `hyper` has a small network make the embeddings that are used of those that are trained; what
    it makes is delivered. Models brought to one tokenizer are an ensemble, `limbeck.Crowd`, whose
    signal is the mean of their probabilities.

    Trained: the student. Frozen: the teacher.
    Raises: UsageError where tokens cannot be read as bytes, widths differ, or all weights are 0.
    Source: Minixhofer et al., NeurIPS 2025, arXiv 2503.20083, section 3; limits, white space and
    balance are the authors' code's.
    Relatives: `uld` compares sorted probabilities of one place after another.

    Example:
        >>> ALM(tau=1.0).compared(torch.tensor([-0.7]), torch.tensor([-0.7]))
        tensor([0.6931])
    """

    alm: float = number(1.0, least=0)
    label: float = number(0.0, least=0)
    latent: float = number(0.0, least=0)
    tau: float = number(100.0, above=0)
    divergence: Literal[
        "binary_ce", "binary_kl", "reverse_binary_kl", "binary_kl_limit", "abs", "abs_exp"
    ] = "binary_ce"
    weigh: Literal["chunk", "tokens", "log_tokens"] = "chunk"
    windows: tuple[int, ...] = (1,)
    merge: Literal["pairs", "space", "none"] = "pairs"
    bias: float = number(1e-4, least=0)
    boundary: float = number(0.1, least=0, below=1)
    append_space: bool = True
    balance: bool = True
    init: Literal["none", "fvt"] = "none"
    hyper: bool = False
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.windows or min(self.windows) < 1:
            raise UsageError(f"windows are of {self.windows} chunks; give sizes of at least 1")

    def compared(self, a: Tensor, b: Tensor) -> Tensor:
        """The divergence of events with the log-likelihoods a of the teacher, b of the student."""
        return compared(self.divergence, a, b, self.tau)

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The tokens that begin with white space, where they are asked."""
        asked = self.alm and (self.append_space or self.merge == "space")
        if not asked or "t_ids" not in batch.x:
            return nn.Module()
        task = current().task
        text = None if task is None else text_of(task)
        mine, theirs = tokenizers_of(text, "append_space=False and merge='none'")
        return Tools(Pieces(mine).blanks(s.signal.vocab), Pieces(theirs).blanks(t.signal.vocab))

    def spans(self, batch: Batch) -> tuple[Tokens, Tokens]:
        """The chunks that a batch comes with."""
        pairs = self.merge == "pairs" and "t_ids" in batch.x
        if pairs and "merged" not in batch.x:
            raise UsageError(
                "chunks are merged by pairs in alm's own run, and this is another method's; give "
                "merge='space' or 'none'"
            )
        return chunks.sides(batch, pairs)

    def weights(self, tokens: Tensor) -> Tensor:
        """What windows of so many of the teacher's tokens count; none with 0."""
        tokens = tokens.float()
        one = {"chunk": (tokens > 0).float(), "tokens": tokens, "log_tokens": tokens.log1p()}
        return one[self.weigh]

    def _moves(self, batch: Batch) -> bool:
        """Whether chunks depend on what the teacher says."""
        return self.merge == "space" and "t_ids" in batch.x

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        out = {"label": count(batch)} if self.label else {}
        if self.latent:
            out["latent"] = (chunks.sides(batch)[1].sizes() > 0).sum()
        if self.alm and not self._moves(batch):
            sizes = self.spans(batch)[1].sizes()
            each = [self.weights(chunks.windows(sizes, n)).sum() for n in self.windows]
            out["alm"] = torch.stack(each).sum()
        return out

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The weighted `alm`, `label` and `latent`, those whose weight is not zero."""
        out: dict[str, Term] = {}
        if self.alm:
            out["alm"] = self._matched(parts, s, t, batch)
        if self.label:
            out["label"] = cross_entropy(s.signal, batch, weight=self.label)
        if self.latent:
            total = chunks.latent(s.hidden, t.hidden, *chunks.sides(batch))
            out["latent"] = Mean(self.latent * total, self.counts(batch)["latent"])
        return out

    def _matched(self, parts: Any, s: Side, t: Side, batch: Batch) -> Term:
        one, other = self.spans(batch)
        q = chunks.read(s.signal, one, getattr(parts, "blank", None))
        with torch.no_grad():
            p = chunks.read(t.signal, other, getattr(parts, "t_blank", None))
        if self._moves(batch):
            ends = p[1].gather(1, other.last()).exp() > self.boundary
            one, other = chunks.merged(one, other, ends | chunks.apart(one, other))
        append = self.append_space and "t_ids" in batch.x
        there, total, weights = other.sizes() > 0, [], []
        for n in self.windows:
            last = chunks.closing(there, n) if append else None
            b, a = (_events(*side, n, last) for side in ((q, one), (p, other)))
            w = self.weights(chunks.windows(other.sizes(), n))
            total.append((w[w > 0] * self.compared(a[w > 0], b[w > 0])).sum())
            weights.append(w.sum())
        value, size = torch.stack(total).sum(), torch.stack(weights).sum()
        if self._moves(batch):  # how many there are is known now only
            return self.alm * value / (size + (size == 0))
        return Mean(self.alm * value, size)

    def _biased(self, task: Task) -> tuple[Tensor, int]:
        """Which pairs of tokens are biased, and the factor of the teacher's in their numbers."""
        table = Table(task.set("train"))
        if "t_ids" not in table.rows(torch.arange(1)).x:
            return torch.zeros(0, dtype=torch.int64), 0
        mine, theirs = tokenizers_of(text_of(task), "merge='space' or 'none'")
        return biased_pairs(table, mine, theirs, self.bias), len(mine)

    def update(self) -> tuple[Phase, ...]:
        """One phase, with the terms in balance where there are several."""
        several = sum(map(bool, (self.alm, self.label, self.latent))) > 1
        return (Phase(join=GradMag()),) if self.balance and several else (Phase(),)

    def run(self, task: Task) -> Result:
        """One fit, after a look at which pairs of tokens are biased."""
        batches: Batches = task.batches()
        student, teacher = current().student(task), task.the_teacher()
        if self.init == "fvt":
            embed(student, teacher, text_of(task))
        if self.alm and self.merge == "pairs":
            batches = Unbiased(batches, *stage("pairs", lambda: self._biased(task)))
        if self.hyper:
            put(student, rng("hyper"))
        fitted = fit(self, student, teacher, batches, name="fit", task=task)
        if self.hyper:
            taken(fitted.student)
        return Result(model=fitted.student, log=fitted.log)


def _events(read: tuple[Tensor, Tensor], side: Tokens, n: int, last: Tensor | None) -> Tensor:
    """Log-likelihoods of windows of n chunks, (B, W); with what follows the chunks in `last`."""
    each, following = read
    found = side.total(each)
    if last is not None:
        found = found + following.gather(1, side.last()) * last
    return chunks.windows(found, n).clamp_max(0)
