"""ULD - sorted probabilities against sorted probabilities, whatever the two vocabularies are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.core.card import Card
from limbeck.core.data import Batch, Epochs
from limbeck.core.engine import fit
from limbeck.core.method import Clock, Mean, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.signals import Signal, TopK
from limbeck.core.task import Task
from limbeck.core.text.facts import text_of
from limbeck.core.text.places import count, cross_entropy, wanted
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.language.uld.answers import Answers

CARD = Card(
    key="uld",
    title="Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
    year=2025,
    arxiv="2402.12030",
    code="https://github.com/Nicolas-BZRD/llm-recipes",
    kinds=("response", "cross_tokenizer", "transport", "sequence"),
    needs=("signal", "y"),
    gives="model",
    world="charlm",
    stages=("write", "fit"),
    tiny={"answers": "teacher", "new": 4},
    departs="Answers are the data's unless answers='teacher'; the paper has the teacher write "
    "them, here the likeliest token each time. As in the code, the last place of the student's "
    "answer (its EOS) is not compared and the teacher's is; here that holds for plain texts too. "
    "Of an answer in several turns all places are paired, in their order; the code takes as many "
    "places from the first turn on.",
)

ENTRIES = 2**23  # probabilities of a side that exist at a time, about


def distance(q: Tensor, p: Tensor, top: int = 0) -> Tensor:
    """sum_k abs(q_(k) - p_(k)) over probabilities in falling order, padded with zeros.

    It is 2 W_1 under the cost 1[i != j], minimal over all ways to rename the tokens.

    Args:
        q: (N, V) the student's.
        p: (N, V') the teacher's.
        top: how many of the largest are compared; 0 for all.
    """
    width = min(top or max(q.shape[-1], p.shape[-1]), max(q.shape[-1], p.shape[-1]))

    def ranked(x: Tensor) -> Tensor:
        most = min(width, x.shape[-1])
        found = x.topk(most).values if top else x.sort(-1, descending=True).values
        return F.pad(found, (0, width - found.shape[-1]))

    return (ranked(q) - ranked(p)).abs().sum(-1)


def paired(batch: Batch, s_end: bool = True, t_end: bool = True) -> tuple[Tensor, Tensor]:
    """The places that are compared, (B, T) and (B, U): in each text equally many, in their order.

    These are the first of the wanted places of both, as many as the shorter side has.

    Args:
        batch: x has "t_wanted" (B, U), or both sides read the same tokens; y.
        s_end: whether the last wanted place of the student's side counts.
        t_end: the same of the teacher's.
    """
    mine = _without_end(wanted(batch.y), s_end)
    theirs = _without_end(batch.x.get("t_wanted", wanted(batch.y)), t_end)
    most = torch.minimum(mine.sum(1), theirs.sum(1))[:, None]
    return mine & (mine.cumsum(1) <= most), theirs & (theirs.cumsum(1) <= most)


def _without_end(where: Tensor, end: bool) -> Tensor:
    return where if end else where & (where.cumsum(1) < where.sum(1, keepdim=True))


@dataclass(frozen=True)
class ULD(Objective):
    """A language model is taught the sorted probabilities of a teacher with any tokenizer.

    label * CE(y) + uld * mean of sum_k abs(q_(k) - p_(k)), q_(1) >= q_(2) ... the student's
    probabilities at `tau`, p_(k) the teacher's at `t_tau`, the shorter vector padded with zeros;
    of both the first `top`, or all. The i-th place of an answer is compared with the teacher's
    i-th, up to the shorter one's length; `s_end`, `t_end` say whether a side's last place counts.
    The mean is over an answer's places and then over texts (per = "text"). CE is of the student's
    tokens. answers = "teacher": before that the teacher answers each prompt, the likeliest token
    each time, `new` at most (0: half of the context); plain text is gone on from after `least`
    tokens, and of a chat the first answer is written.

    Trained: the student. Frozen: the teacher.
    Raises: UsageError where a side shows other places than the batch has, or the teacher is to
    write and cannot.
    Source: Boizard et al., TMLR 2025, arXiv 2402.12030, equations 3 and 4; the weight 1.5 and the
    ends of answers are the authors' code's.
    Relatives: `alm` compares the likelihoods of pieces of text that both tokenizers agree on.

    Example:
        >>> distance(torch.tensor([[0.2, 0.8]]), torch.tensor([[0.7, 0.3, 0.0]]))
        tensor([0.2000])
    """

    label: float = number(1.0, least=0)
    uld: float = number(1.5, least=0)
    tau: float = number(1.0, above=0)
    t_tau: float = number(1.0, above=0)
    top: int = number(0, least=0)
    s_end: bool = False
    t_end: bool = True
    per: Literal["token", "text"] = "text"
    answers: Literal["data", "teacher"] = "data"
    new: int = number(0, least=0)
    least: int = number(8, least=1)
    card = CARD

    def run(self, task: Task) -> Result:
        """One fit, on the data's answers or on those that the teacher writes first."""
        student, teacher, batches = current().student(task), task.the_teacher(), task.batches()
        if self.answers == "teacher":
            text = text_of(task)
            writer = Answers(text, self.new or text.context // 2, self.least)
            written = writer(teacher, task.set("train"), "write")
            batches = Epochs(written, "train", task.budget.workers)
        fitted = fit(self, student, teacher, batches, name="fit", task=task)
        return Result(model=fitted.student, log=fitted.log)

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The places of both sides that are compared."""
        return paired(batch, self.s_end, self.t_end)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        mine, _ = self.pairs(batch)
        found = mine.any(1) if self.per == "text" else mine
        return {"label": count(batch), "uld": found.sum()}

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Mean]:
        """The weighted `label` and `uld`."""
        out = {}
        if self.label:
            out["label"] = cross_entropy(s.signal, batch, weight=self.label)
        if self.uld:
            mine, theirs = self.pairs(batch)
            each = self._distances(
                s.signal.at(_within(mine, s.signal, "student")),
                t.signal.at(_within(theirs, t.signal, "teacher")),
            )
            if self.per == "text":
                each = each / mine.sum(1, keepdim=True).expand_as(mine)[mine]
            out["uld"] = Mean(self.uld * each.sum(), self.counts(batch)["uld"])
        return out

    def _distances(self, s: Signal, t: Signal) -> Tensor:
        """The distance at each of N places; probabilities exist a few places at a time."""

        def found(part: slice) -> Tensor:
            with torch.no_grad():
                p = self._theirs(t.at(part))
            return distance(s.at(part).log_p(self.tau).exp(), p, self.top)

        n, size = s.shape[0], max(1, ENTRIES // max(s.vocab, t.vocab))
        if n <= size:
            return found(slice(0, n))
        parts = [slice(i, i + size) for i in range(0, n, size)]
        again: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(found, part, **again) for part in parts])

    def _theirs(self, t: Signal) -> Tensor:
        """The teacher's probabilities (N, V'), or those of its likeliest tokens (N, K)."""
        if not isinstance(t, TopK):
            return t.log_p(self.t_tau).exp()
        most = int((t.ids >= 0).sum(-1).min())
        if not 0 < self.top <= most or self.t_tau != t.tau:
            raise UsageError(
                f"the teacher shows its {most} likeliest tokens at temperature {t.tau:g}, and uld "
                f"was asked for top={self.top} (0: all) at t_tau={self.t_tau:g}; give "
                f"top={most} and t_tau={t.tau:g}"
            )
        return t.logp.exp()


def _within(where: Tensor, signal: Signal, side: str) -> Tensor:
    """A mask of places as a signal's shape, which may lack columns of padding."""
    cut = where[:, : signal.shape[1]]
    if cut.shape != signal.shape or int(cut.sum()) != int(where.sum()):
        raise UsageError(
            f"the {side} shows {tuple(signal.shape)} places of a batch of {tuple(where.shape)}; "
            "give it the reader of its own tokens, Causal(vocab, side='t_') for a teacher with "
            "another tokenizer"
        )
    return cut
