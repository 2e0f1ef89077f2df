"""GKD - the student writes, and is taught the teacher's distribution at each of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Batches
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import Divergence, summed
from limbeck.core.method import Clock, Facts, Mean, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.signals import Sampled
from limbeck.core.task import Task
from limbeck.core.text.facts import TaggedText, text_of
from limbeck.core.text.onpolicy import OnPolicy, Source
from limbeck.core.text.places import (
    CROSS_ENTROPY,
    IGNORED,
    Per,
    count,
    labels,
    matched,
    told,
    wanted,
)
from limbeck.core.text.rouge import rouge_l
from limbeck.core.views import Side
from limbeck.errors import UsageError

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
    tiny={"new": 4, "reward": 0.25},
    departs="The paper compares divergences and shares and gives no default; here the JSD at 0.5, "
    "half of the steps on the student's own texts, as in TRL. The share is a chance for each step, "
    "as in the paper's algorithm. Plain text has no prompts: there the student goes on from the "
    "first `least` tokens. The reward is ROUGE-L against the data's answer unless the task brings "
    "one, the paper's is a model of entailment; a moving mean of rewards is its baseline.",
)

Reward = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
"""From prompts, written responses and the data's own to a number each; at `task.data["reward"]`."""
KEEP = 0.9  # of the baseline, at each step that is rewarded


def overlap(prompts: Sequence[str], said: Sequence[str], truths: Sequence[str]) -> list[float]:
    """ROUGE-L of each response in `said` against the data's in `truths`, whatever the `prompts`."""
    return [rouge_l(truth, text) for truth, text in zip(truths, said, strict=True)]


class Mixed(OnPolicy):
    """Steps on the student's own texts with the chance `own`, else on the data or the teacher's."""

    own: float
    other: Source
    reward: Reward | None = None
    turn: Source = "data"

    def source(self, u: float, student: nn.Module, clock: Clock) -> Source:
        self.turn = "student" if u < self.own else self.other
        return self.turn

    def __call__(self, student: nn.Module, teacher: Any, clock: Clock) -> Batch:
        """The batch; what the student wrote has a column `reward` (B,), where that is asked."""
        made = super().__call__(student, teacher, clock)
        if self.reward is None or self.turn != "student":
            return made
        data = self.main(student, teacher, clock)
        rows = [
            (self._words(ids[: first_of(y)]), self._words(y), self._words(self._truth(z, there)))
            for ids, y, z, there in zip(made.x["ids"], made.y, data.y, data.x["mask"], strict=True)
        ]
        found = torch.tensor(list(self.reward(*zip(*rows, strict=True))), dtype=torch.float32)
        if found.shape != (len(made),) or not bool(found.isfinite().all()):
            raise UsageError(
                f"the reward gave {tuple(found.shape)} numbers of {len(made)} texts, or some that "
                "are not finite; it has to give one for each"
            )
        return made.replace(reward=found.to(made.y.device))

    def _truth(self, y: Tensor, there: Tensor) -> Tensor:
        """The data's answer, as long as one may be written; plain text begins as a prompt."""
        y = y[there.bool()]
        start = self.least if first_of(y) == 1 else first_of(y)
        return y[start : start + self.new]

    def _words(self, ids: Tensor) -> str:
        own = [i for i in ids.tolist() if i != IGNORED and i not in self.text.eos]
        if self.text.tokenizer is None:
            return " ".join(map(str, own))
        return str(self.text.tokenizer.decode(own, skip_special_tokens=True))


def first_of(y: Tensor) -> int:
    """The place of the first label in `y` (T,), or T."""
    return int((y != IGNORED).long().argmax()) if bool((y != IGNORED).any()) else len(y)


class Baseline(nn.Module):
    """A moving mean of rewards."""

    mean: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))


@dataclass(frozen=True)
class GKD(Objective):
    """A language model is taught the teacher's next-token distributions along its own texts.

    gkd * D(p, q), the mean over the tokens of each text and then over texts (per = "text"), or over
    all tokens; D is `divergence` at `beta`: for "jsd" beta KL(p, m) + (1 - beta) KL(q, m) with
    m = beta p + (1 - beta) q. With the chance `own` a step's responses are written by the student,
    at `temperature`, `new` tokens at most (0: half of the context), after a prompt of `least` at
    least; no gradient passes through the writing. Other steps are on the data's responses, or on
    the teacher's (`other`).

    With `reward` = a > 0 the loss is (1 - a) * that, and where the student wrote - a * E r(y) by
    policy gradient, -(r - b) log q(y) of each text, b a moving mean of rewards. r(y) is what
    `task.data["reward"]` says of a text, a function of (prompts, responses, the data's responses)
    that gives a number each; without one it is ROUGE-L against the data's response.

    Trained: the student. Frozen: the teacher. Moved: the mean of rewards.
    Raises: UsageError where the vocabularies differ, no prompt would fit, or the student is to be
    rewarded and never writes.
    Source: Agarwal et al., ICLR 2024, arXiv 2306.13649, algorithm 1 and equation 5.
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
    reward: float = number(0.0, least=0, most=1)  # its share, 1 - the paper's alpha
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward and not self.own:
            raise UsageError(
                f"GKD.reward is {self.reward:g}, and own is 0, so that the student writes nothing "
                "that could be rewarded; give own a share of the steps"
            )

    @property
    def how(self) -> Divergence:
        """The divergence."""
        return Divergence(self.divergence, self.beta)

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The baseline, where there are rewards."""
        return Baseline() if self.reward else nn.Module()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        out = {"gkd": count(batch, self.per)} if self._weight else {}
        if self.reward:
            out["reward"] = torch.tensor(len(batch), device=batch.y.device)
        return out

    @property
    def _weight(self) -> float:
        return self.gkd * (1 - self.reward)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Mean]:
        """The weighted `gkd` and `reward`, which is 0 where the student did not write."""
        out = {}
        if self._weight:
            out["gkd"] = matched(
                self.how, s.signal, t.signal, batch, weight=self._weight, per=self.per
            )
        if self.reward:
            there = "reward" in batch
            gain = batch.reward - parts.mean if there else batch.y.new_zeros(len(batch)).float()
            out["reward"] = Mean(self.reward * self._surprise(s, batch, gain), len(batch))
        return out

    def _surprise(self, s: Side, batch: Batch, gain: Tensor) -> Tensor:
        """sum_b gain_b * -log q(y_b), q at the temperature of the writing."""
        ids, row = labels(batch.y), wanted(batch.y).nonzero()[:, 0]
        one = torch.ones(len(ids), 1, device=ids.device)
        truth = Sampled(ids[:, None], one, s.signal.vocab, self.temperature)
        here = s.signal.at(told(batch.y, s.signal))
        return summed(CROSS_ENTROPY, here, truth, gain[row], self.temperature)

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> dict[str, Tensor]:
        there = self.reward and "reward" in batch
        return {"reward": batch.reward} if there else {}

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        """The mean of rewards moves; it begins with that of the first step that has any."""
        if "reward" in seen:
            found = seen["reward"].mean()
            keep = KEEP * (parts.seen > 0)
            parts.mean.copy_(keep * parts.mean + (1 - keep) * found)
            parts.seen.fill_(1)

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
        if self.reward:
            batches.reward = task.data.get("reward", overlap)
        return batches
