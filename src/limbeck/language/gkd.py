"""GKD - the student writes, and is taught the teacher's distribution at each of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Batches
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import Divergence
from limbeck.core.method import Clock, Mean, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.text.facts import TaggedText, text_of
from limbeck.core.text.onpolicy import OnPolicy, Source
from limbeck.core.text.places import Per, count, matched
from limbeck.core.views import Side

CARD = Card(
    key="gkd",
    title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
    year=2024,
    arxiv="2306.13649",
    code="https://github.com/huggingface/trl",
    kinds=("response", "sequence", "on_policy"),
    needs=("signal", "y", "index"),
    gives="model",
    world="charlm",
    stages=("fit",),
    tiny={"new": 4},
    departs="The paper compares divergences and shares and gives no default; here the JSD at 0.5, "
    "half of the steps on the student's own texts, as in TRL. The share is a chance for each step, "
    "as in the paper's algorithm. Plain text has no prompts: there the student goes on from the "
    "first `least` tokens.",
    lacks=("the sum with a reward, optimised by reinforcement learning",),
)


class Mixed(OnPolicy):
    """Steps on the student's own texts with the chance `own`, else on the data or the teacher's."""

    own: float
    other: Source

    def source(self, u: float, student: nn.Module, clock: Clock) -> Source:
        return "student" if u < self.own else self.other


@dataclass(frozen=True)
class GKD(Objective):
    """A language model is taught the teacher's next-token distributions along its own texts.

    gkd * D(p, q), the mean over the tokens of each text and then over texts (per = "text"), or over
    all tokens; D is `divergence` at `beta`: for "jsd" beta KL(p, m) + (1 - beta) KL(q, m) with
    m = beta p + (1 - beta) q. With the chance `own` a step's responses are written by the student,
    at `temperature`, `new` tokens at most (0: half of the context), after a prompt of `least` at
    least; no gradient passes through the writing. Other steps are on the data's responses, or on
    the teacher's (`other`).

    Trained: the student. Frozen: the teacher.
    Raises: UsageError where the vocabularies differ, or no prompt would fit.
    Source: Agarwal et al., ICLR 2024, arXiv 2306.13649, algorithm 1.
    Relatives: `minillm` follows the reverse KL of whole texts, `distillm` skews the divergence and
    replays texts, `seqkd` trains on the teacher's texts alone.

    Example:
        >>> GKD(divergence="reverse_kl", own=1.0).how
        Divergence(name='reverse_kl', a=0.5)
    """

    gkd: float = number(1.0, least=0)
    divergence: Literal["jsd", "forward_kl", "reverse_kl", "tv"] = "jsd"
    beta: float = number(0.5, above=0, below=1)
    own: float = number(0.5, least=0, most=1)
    other: Literal["data", "teacher"] = "data"
    new: int = number(0, least=0)
    least: int = number(8, least=1)
    temperature: float = number(1.0, above=0)
    per: Per = "text"
    card = CARD

    @property
    def how(self) -> Divergence:
        """The divergence."""
        return Divergence(self.divergence, self.beta)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"gkd": count(batch, self.per)} if self.gkd else {}

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Mean]:
        """The weighted `gkd`."""
        if not self.gkd:
            return {}
        found = matched(self.how, s.signal, t.signal, batch, weight=self.gkd, per=self.per)
        return {"gkd": found}

    def run(self, task: Task) -> Result:
        """One fit, of which a share of the steps is on the student's texts."""
        student, teacher = current().student(task), task.the_teacher()
        fitted = fit(self, student, teacher, self._batches(task), name="fit", task=task)
        return Result(model=fitted.student, log=fitted.log)

    def _batches(self, task: Task) -> Batches:
        """The data's, some with written responses; tags are of the data's words alone."""
        tagged = isinstance(task.data.get("text"), TaggedText)
        if tagged and not self.own and self.other == "data":
            return task.batches()
        text = text_of(task)
        new = self.new or text.context // 2
        batches = Mixed(
            task.batches(), text, new=new, temperature=self.temperature, least=self.least
        )
        batches.own, batches.other = self.own, self.other
        return batches
