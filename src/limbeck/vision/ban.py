"""BAN - a network teaches a fresh one of its own kind, which then teaches the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import Fitted, fit
from limbeck.core.losses.divergences import Divergence, check_classes, soft_cross_entropy
from limbeck.core.method import Clock, Facts, Mean, Method, Objective, Result, number
from limbeck.core.objectives import Labels, NextTokens
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.teacher import Teacher
from limbeck.core.teachers import Frozen, Nobody
from limbeck.core.text.places import count, cross_entropy, matched
from limbeck.core.updates import Phase
from limbeck.core.views import Side, entries_of
from limbeck.errors import UsageError

CARD = Card(
    key="ban",
    title="Born-Again Neural Networks",
    year=2018,
    arxiv="1805.04770",
    code="",
    kinds=("self", "response", "ensemble", "stagewise", "weighting"),
    needs=("student:logits|student:signal", "y", "index"),
    gives="model",
    world="digits(teacher='none')",
    stages=("generation",),
    tiny={"generations": 2},
    departs="A teacher that the user gives is generation 0 and no member of the ensemble, since it "
    "need not be a module that reads as the student does. DKPP draws a new permutation for each "
    "sample at each step, which the paper leaves open. Of language models there are the modes and "
    "what it gives that the paper has for them: kd, and the last generation.",
)


def confidence(t: Tensor) -> Tensor:
    """The largest probability, max_c softmax(t)_c. Shapes: t (B, C) logits -> (B,)."""
    return t.float().softmax(1).amax(1)


def cwtm_loss(s: Tensor, y: Tensor, w: Tensor, mean: Tensor) -> Tensor:
    """sum_b w_b / (sum_u w_u) CE(y_b, s_b), the weights being those of the whole step.

    With their mean over the step's samples it is the mean over samples of w_b / mean CE(y_b, s_b).
    Shapes: s (B, C) logits, y (B,) classes, w (B,), mean () -> ().
    """
    return (w / mean * F.cross_entropy(s.float(), y, reduction="none")).mean()


def permuted(p: Tensor, keys: Tensor) -> Tensor:
    """Rows of p with the largest entry in its place and all others in the order of keys.

    Shapes: p (B, C) probabilities, keys (B, C - 1) uniform draws -> (B, C).
    """
    others = torch.arange(p.shape[1] - 1, device=p.device)
    others = others + (others >= p.argmax(1, keepdim=True)).long()  # (B, C - 1): all but the top
    return p.scatter(1, others, p.gather(1, others.gather(1, keys.argsort(1))))


def dkpp_loss(s: Tensor, t: Tensor, keys: Tensor) -> Tensor:
    """H(p', softmax(s)) with p' the permuted softmax(t), the mean over samples.

    Shapes: s, t (B, C) logits, keys (B, C - 1) uniform draws -> ().
    """
    check_classes(s, t)
    return -(permuted(t.float().softmax(1), keys) * s.float().log_softmax(1)).sum(1).mean()


class Ensemble(nn.Module):
    """BANE: the mean of several networks' probabilities, as logits: its logarithm."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """From what each member takes -> (B, C)."""
        outputs = [entries_of(m(*args, **kwargs))["logits"] for m in self.members]
        logs = [z.float().log_softmax(-1) for z in outputs]
        return torch.stack(logs).logsumexp(0) - math.log(len(logs))


class Weights(nn.Module):
    """The mean confidence over a step's samples, which a look sets before the step is made."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))


@dataclass(frozen=True)
class Generation(Objective):
    """What a generation learns from the one before."""

    m: BAN

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        return Weights() if self.m.mode == "cwtm" and self.m.ban else nn.Module()

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m, out = self.m, {}
        if m.label:
            out["label"] = m.label * F.cross_entropy(s.logits.float(), batch.y)
        if m.ban and m.mode == "kd":
            out["ban"] = m.ban * soft_cross_entropy(s.logits, t.logits).mean()
        if m.ban and m.mode == "cwtm":
            w = confidence(t.logits)
            out["ban"] = m.ban * cwtm_loss(s.logits, batch.y, w, parts.mean)
        if m.ban and m.mode == "dkpp":
            keys = clock.rng("permutation", batch.index).rand(t.logits.shape[1] - 1)
            out["ban"] = m.ban * dkpp_loss(s.logits, t.logits, keys)
        return out

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> dict[str, Tensor]:
        weighs = self.m.mode == "cwtm" and self.m.ban
        return {"confidence": confidence(t.logits)} if weighs else {}

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        if seen:
            parts.mean.copy_(seen["confidence"].mean())

    def update(self) -> tuple[Phase, ...]:
        """For CWTM a look first: its weights are divided by their sum over the whole step."""
        look = (Phase("weigh", train=()),) if self.m.mode == "cwtm" and self.m.ban else ()
        return (*look, Phase())


@dataclass(frozen=True)
class Texts(Objective):
    """The same of a language model: means over the tokens that are trained on."""

    m: BAN

    def asks(self) -> tuple[str, ...]:
        return ("student:signal", "y", *(("teacher:signal",) if self.m.ban else ()))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {n: count(batch) for n in ("label", "ban") if getattr(self.m, n)}

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Mean]:
        m, out = self.m, {}
        if m.label:
            out["label"] = cross_entropy(s.signal, batch, weight=m.label)
        if m.ban:  # less the teacher's entropy, which has no gradient
            how = Divergence("forward_kl")
            out["ban"] = matched(how, s.signal, t.signal, batch, weight=m.ban)
        return out


@dataclass(frozen=True)
class BAN(Method):
    """A fresh student is taught by the student before it, and teaches the next: `generations`.

    Generation 0 is the task's teacher; without one it is a student trained on labels. Generation
    k > 0 minimises label * CE(y, s) + ban * L from generation k - 1 alone, at temperature 1. L is
    `mode`: "kd", the cross-entropy H(softmax(t), softmax(s)); or what tells where its gain comes
    from: "cwtm", CE(y, s) of samples weighted by the teacher's confidence max_c softmax(t)_c, or
    "dkpp", as "kd" with all but the teacher's largest probability permuted. label=1 is BAN+L.
    On texts both terms are means over the tokens that are trained on (in the paper with label=1).

    `gives`: the "last" generation, or the "ensemble", the mean probability of all that were trained
    here. The teacher may be of another architecture: then they are reborn in the student's.

    Trained: each generation afresh, with the task's budget; a student given as a module, not as
    a factory, starts each time from the same weights. The last one starts where other methods'
    students do. Frozen: the generation before. A finished generation is not trained again when a
    run is taken up.
    Raises: UsageError for texts with another mode, or an ensemble.
    Source: Furlanello et al., ICML 2018, arXiv 1805.04770, section 3; both terms have weight 1.
    Relatives: `kd` is one generation from a larger teacher; `takd` goes down in size.

    Example:
        >>> import torch
        >>> s, y, w = torch.zeros(3, 2), torch.zeros(3).long(), torch.tensor([0.9, 0.6, 0.5])
        >>> round(float(cwtm_loss(s, y, w, w.mean()).exp()), 3)
        2.0
    """

    generations: int = number(3, least=1)
    label: float = number(0.0, least=0)
    ban: float = number(1.0, least=0)
    mode: Literal["kd", "cwtm", "dkpp"] = "kd"
    gives: Literal["last", "ensemble"] = "last"
    card = CARD

    def run(self, task: Task) -> Result:
        """One fit after the other."""
        if "text" in task.data and (self.mode != "kd" or self.gives != "last"):
            raise UsageError(
                f"ban has no mode='{self.mode}' with gives='{self.gives}' for texts; give "
                "mode='kd' and gives='last'"
            )
        teacher, fits = task.the_teacher(), list[Fitted]()
        if isinstance(teacher, Nobody):
            fits.append(self._born(task, Nobody(), 0))
        for k in range(1, self.generations + 1):
            if fits:
                teacher = Frozen(fits[-1].student)
            fits.append(self._born(task, teacher, k))
        students = [f.student for f in fits]
        model = Ensemble(students) if self.gives == "ensemble" else students[-1]
        return Result(model=model, log=[row for f in fits for row in f.log])

    def _born(self, task: Task, teacher: Teacher, k: int) -> Fitted:
        """Generation k, taught by a teacher; by labels alone for k = 0."""
        last = k == self.generations
        student = current().student(task, "student" if last else f"generation/{k}")
        born: Objective = Texts(self) if "text" in task.data else Generation(self)
        first: Objective = NextTokens() if "text" in task.data else Labels()
        read = task.readers
        if teacher is not task.the_teacher():  # a generation, which reads as the student does
            mine = read.get("student")
            read = {"teacher": mine, "student": mine} if mine else {}
        own = replace(task, taps={}, readers=read)
        return fit(
            born if k else first, student, teacher, task.batches(), name=f"generation/{k}", task=own
        )
