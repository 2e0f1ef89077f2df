"""DistiLLM - skewed KL, on data, on what the student wrote, and on what it wrote before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Batches, Beside, Table, reader_of
from limbeck.core.engine import fit
from limbeck.core.evaluate import measure
from limbeck.core.losses.divergences import Divergence
from limbeck.core.method import Clock, Mean, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.text.facts import Text, text_of
from limbeck.core.text.onpolicy import OnPolicy, Source
from limbeck.core.text.places import IGNORED, count, cross_entropy, matched
from limbeck.core.text.replay import Replay
from limbeck.core.text.scores import nll
from limbeck.core.views import Side

CARD = Card(
    key="distillm",
    title="DistiLLM: Towards Streamlined Distillation for Large Language Models",
    year=2024,
    arxiv="2402.03898",
    code="https://github.com/jongwooko/distillm",
    kinds=("response", "sequence", "on_policy", "replay", "schedule"),
    needs=("signal", "y", "index"),
    gives="model",
    world="charlm",
    stages=("fit",),
    tiny={"new": 4, "every": 6, "phi": 0.5},
    departs="The loss on valid is measured every `every` steps, an epoch when 0; the interval is "
    "not in the paper. The KL holds the teacher's entropy, which the code leaves out: the same "
    "gradient. A generic corpus is the task's set `corpus`; without one its term is left out. "
    "Plain text has no prompts: there the student goes on from the first `least` tokens.",
)


class Scheduler(OnPolicy):
    """Whose texts a step has, by a threshold phi that rises when the loss on valid does.

    With r uniform: r < phi * share(t) writes anew, and so does r < phi while the replay has room;
    otherwise r < phi replays, and the rest are data. A loss on valid that is at least the one at
    the last rise (at the start: of the untrained student) plus `slack` raises phi by `rise`.
    """

    def __init__(self, method: DistiLLM, task: Task, main: Batches, text: Text) -> None:
        new = method.new or text.context // 2
        super().__init__(
            main,
            text,
            new=new,
            temperature=method.temperature,
            top_p=method.top_p,
            least=method.least,
            replay=Replay(method.replay, text.pad),
        )
        self.method, self.valid = method, Table(task.set("valid"), "valid")
        self.reader = reader_of(task.readers, "student")
        self.phi, self.last, self.at = method.phi, float("inf"), -1

    def source(self, u: float, student: nn.Module, clock: Clock) -> Source:
        self.watch(student, clock)
        share = fresh(self.method.ratio, clock.step / clock.steps)
        return decided(u, self.phi, share, len(self.kept) >= self.kept.capacity)

    @property
    def kept(self) -> Replay:
        """The replay, which is always there."""
        assert self.replay is not None
        return self.replay

    def watch(self, student: nn.Module, clock: Clock) -> None:
        """Measure on valid where it is time, once a step."""
        if clock.step == self.at or clock.step % (self.method.every or clock.steps_per_epoch):
            return
        loss = measure(student, self.valid, nll, self.reader, next(student.parameters()).device)
        if clock.step == 0:
            self.last = loss
        elif loss >= self.last + self.method.slack:
            self.phi, self.last = min(self.phi + self.method.rise, 1.0), loss
        self.at = clock.step

    def state(self) -> dict[str, Any]:
        return {**super().state(), "phi": self.phi, "last": self.last, "at": self.at}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.phi, self.last, self.at = state["phi"], state["last"], state["at"]


def fresh(ratio: str, done: float) -> float:
    """The share of phi that writes anew, by the `ratio`'s name, when a fraction `done` is over."""
    return {"decreasing": 1 - done, "constant": 0.5, "increasing": done}[ratio]


def decided(r: float, phi: float, share: float, full: bool) -> Source:
    """Whose texts, for a draw r, threshold `phi`, the `share` of it, and a `full` replay or not."""
    if r < phi * share or (r < phi and not full):
        return "student"
    return "replay" if r < phi else "data"


@dataclass(frozen=True)
class DistiLLM(Objective):
    """A language model is taught a teacher's distributions by a skewed KL, partly on its own texts.

    kd * D + label * CE(y) + corpus * CE on a generic corpus, means over tokens. `divergence` D is
    "skew_kl", KL(p, a p + (1 - a) q), or "skew_reverse_kl", KL(q, (1 - a) p + a q).
    Texts are written at `temperature` and `top_p`, `new` tokens at most (0: half of the context),
    after a prompt of `least` at least; the newest `replay` of them are kept. The share of phi that
    writes anew goes by `ratio`; phi begins at `phi` and grows by `rise` where the loss on valid,
    measured each `every` steps, grew by `slack`.

    Trained: the student. Frozen: the teacher. Moved after the step: the replay of written texts.
    phi, from which it is decided whose texts a step has, rises with the loss on `valid`: see
    `Scheduler`.
    Raises: Missing without a set `valid`; UsageError where the vocabularies differ.
    Source: Ko et al., ICML 2024, arXiv 2402.03898, sections 3.1 (skew) and 3.2 (off-policy); the
    capacity, the rise, the slack and the weights are the authors' script's.
    Relatives: `gkd` writes anew at each step with a fixed chance; `minillm` follows the reverse KL
    of whole texts.

    Example:
        >>> [decided(r, 0.4, 0.5, full=True) for r in (0.1, 0.3, 0.6)]
        ['student', 'replay', 'data']
    """

    divergence: Literal["skew_kl", "skew_reverse_kl"] = "skew_kl"
    a: float = number(0.1, least=0, below=1)
    kd: float = number(1.0, least=0)
    label: float = number(0.0, least=0)
    corpus: float = number(1.0, least=0)
    phi: float = number(0.0, least=0, most=1)
    rise: float = number(0.1, least=0)
    slack: float = number(0.1, least=0)
    every: int = number(0, least=0)
    ratio: Literal["decreasing", "constant", "increasing"] = "decreasing"
    replay: int = number(1000, least=1)
    new: int = number(0, least=0)
    least: int = number(8, least=1)
    temperature: float = number(1.0, above=0)
    top_p: float = number(1.0, above=0, most=1)
    card = CARD

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        weights = {"kd": self.kd, "label": self.label}
        out = {name: count(batch) for name, weight in weights.items() if weight}
        return {**out, "corpus": count(batch.corpus)} if "corpus" in batch else out

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Mean]:
        """The weighted `kd`, `label` and `corpus`, those whose weight is not zero."""
        out = {}
        if self.kd:
            how = Divergence(self.divergence, self.a)
            out["kd"] = matched(how, s.signal, t.signal, batch, weight=self.kd)
        if self.label:
            out["label"] = cross_entropy(s.signal, batch, weight=self.label)
        if "corpus" in batch:
            there = s(batch.corpus).signal
            out["corpus"] = cross_entropy(there, batch.corpus, weight=self.corpus)
        return out

    def run(self, task: Task) -> Result:
        """One fit, with texts of the student's as the scheduler decides."""
        text, main = text_of(task), cast(Batches, task.batches())
        if self.corpus and task.set_or_none("corpus") is not None:
            main = Beside(main, corpus=task.batches("corpus"))
        batches = Scheduler(self, task, main, text)
        student, teacher = current().student(task), task.the_teacher()
        taught = Taught(self, batches)
        fitted = fit(taught, student, teacher, batches, name="fit", task=task)
        return Result(model=fitted.student, log=fitted.log)


@dataclass(frozen=True)
class Taught(Objective):
    """The objective together with the replay that it moves."""

    method: DistiLLM
    batches: Any

    def asks(self) -> tuple[str, ...]:
        return CARD.needs

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return self.method.counts(batch)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Mean]:
        return self.method.terms(parts, s, t, batch, clock)

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> dict[str, Tensor]:
        """Texts that were written now, padded to the context."""
        if "written" not in batch:
            return {}
        room = self.batches.text.context - batch.y.shape[1]
        return {
            "ids": F.pad(batch.x["ids"], (0, room), value=self.batches.text.pad),
            "mask": F.pad(batch.x["mask"], (0, room)),
            "y": F.pad(batch.y, (0, room), value=IGNORED),
            "index": batch.index,
        }

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        """They are kept."""
        if seen:
            x = {"ids": seen["ids"], "mask": seen["mask"]}
            self.batches.kept.add(Batch(x=x, y=seen["y"], index=seen["index"]))
