"""TGeo-KD - how far a teacher is believed is learnt for each sample, by what it does to others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Batches, Beside, Table, reader_of
from limbeck.core.engine import fit
from limbeck.core.looking import look_over
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Method, Objective, Result, number
from limbeck.core.run import current, stage
from limbeck.core.task import Optimiser, Task
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.classes import class_means, class_numbers
from limbeck.vision.tgeo_kd.geometry import Fusion, State, state_of
from limbeck.vision.tgeo_kd.virtual import Judges, Rows, Twin, stepped

CARD = Card(
    key="tgeo_kd",
    title="Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation",
    year=2024,
    arxiv="2312.15112",
    code="https://github.com/Chengming0501/TGeo-KD",
    kinds=("response", "weighting", "bilevel"),
    needs=("logits", "y", "weights"),
    gives="model",
    world="digits",
    stages=("means", "fit"),
    tiny={},
    departs="The ratio is learnt by the paper's two levels: in the authors' tabular code nothing "
    "reaches the fusion network (its ratios are made without gradient), and in their code for "
    "pictures it goes down the training loss itself, with the student. Its rate of 0.1 and decay "
    "of 0.05 were thus never at work; such a decay would be all that moves it, so AdamW with a "
    "rate of 0.001 and no decay stands here. The virtual step is one of plain descent at the rate "
    "`virtual`, whatever the student's optimiser. The judges, the paper's validation set, are "
    "held out of the training set, never train the student and do not enter the class means; what "
    "the score is reported on is never touched. Class means are taken once, as the first epoch "
    "shows the samples. The code for pictures has another state (sides as absolute values, angles "
    "at the label), one layer of 128, tau 1 and no tau^2; the state and layers here are those of "
    "the tabular code, tau 4 the usual of pictures. The rules for a ratio that the paper "
    "compares with are methods of their own.",
)
EXEMPT = {
    "accumulate": "the virtual step is made from a micro-batch, and what it does to the judges is "
    "no sum over its halves"
}
_NEEDS = "tgeo_kd weighs one label against the teacher"


def both_losses(s: Tensor, t: Tensor, y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """CE(y, s) and tau^2 KL(softmax(t / tau) || softmax(s / tau)) of each sample.

    Shapes: s, t (B, C) logits, y (B,) -> (B,) twice.
    """
    wide = s.to(torch.promote_types(s.dtype, torch.float32))
    return F.cross_entropy(wide, y, reduction="none"), kl(s, t, tau)


@dataclass(frozen=True, eq=False)
class Fused(Objective):
    """Both levels: the phase "outer" moves the fusion network, "inner" the student."""

    m: TGeoKD
    means: Tensor

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        return Fusion(self.means, self.m.hidden, self.m.state)

    def update(self) -> tuple[Phase, ...]:
        own = Optimiser("adamw", self.m.fusion_lr, weight_decay=self.m.fusion_decay)
        outer = Phase("outer", ("parts",), optimisers={"parts": own})
        inner = Phase("inner", ("student",))
        return (outer, inner) if self.m.outer else (inner,)

    def _weighed(self, parts: Any, z: Tensor, t: Side, batch: Batch) -> dict[str, Tensor]:
        """The terms of the training loss for a student's logits z; the ratio keeps its graph."""
        m, out = self.m, {}
        a = parts(z, t.logits, batch.y)
        hard, soft = both_losses(z, t.logits, batch.y, m.tau)
        if m.label:
            out["label"] = m.label * ((1 - a) * hard).mean()
        if m.kd:
            out["kd"] = m.kd * (a * soft).mean()
        return out

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m = self.m
        if clock.phase != "outer":
            return self._weighed(parts, s.logits, t, batch)
        twin = Twin(s.model, reader_of(getattr(current().task, "readers", {}), "student"))
        weights, moving = twin.weights(m.through)
        inner = self._weighed(parts, twin.logits(weights, s.batch.x), t, batch)
        if not inner:
            return {}
        virtual = stepped(sum(inner.values(), torch.zeros(())), weights, moving, m.virtual)
        z = twin.logits(virtual, batch.judges.x)
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        return {"outer": m.outer * F.cross_entropy(wide, batch.judges.y)}


@dataclass(frozen=True)
class TGeoKD(Method):
    """A student is taught by teacher and labels in a ratio that is learnt for each sample.

    label * mean (1 - a) CE(y, s) + kd * mean a tau^2 KL(softmax(t / tau) || softmax(s / tau)),
    with a = f_w(state), f_w a small network with layers of `hidden` units, and the state (by
    `state`, see `state_of`) made of the probabilities of student and teacher, the true label, and
    the teacher's mean over the label's class, so that one odd sample counts less.

    Two levels, in turn at each step. Outer: w goes down outer * CE of the judges, samples held out
    of the training set (a share of `hold`), at theta' = theta - virtual * gradient of the loss
    above on the training batch; by its exact gradient through that step, with an AdamW of its own
    (`fusion_lr`, `fusion_decay`). Inner: the student takes its own step, with the new w. `judges`
    names another set of the task instead, such as one of clean labels beside noisy ones, and then
    nothing is held out. `through` names a module of the student to which theta' is limited, which
    is cheaper: its head, say. outer = 0 leaves f_w as it was drawn. Judges whose labels are wrong
    as often as the others' speak for those labels: give clean ones where there are some.

    Trained: the student, f_w. Frozen: the teacher, its class means. Stopped: the state.
    Raises: UsageError where y is not one class number for each sample, too few samples are there,
    or the judges are what the score is of; Missing where `judges` or `through` names nothing.
    Source: Hu et al., ICLR 2024, arXiv 2312.15112, section 3; state, layers and `hold` from the
    authors' code.
    Relatives: `kd` has one fixed ratio; `dkd` weighs by the teacher's confidence alone.

    Example:
        >>> import torch
        >>> p = torch.eye(3)
        >>> s = state_of(p, p, p, p)
        >>> s.shape, float(s[:, 12:].abs().sum())
        (torch.Size([3, 27]), 0.0)
    """

    label: float = number(1.0, least=0)
    kd: float = number(1.0, least=0)
    outer: float = number(1.0, least=0)
    tau: float = number(4.0, above=0)
    hold: float = number(0.1, above=0, below=1)
    judges: str = ""
    state: State = "points+sides"
    hidden: tuple[int, ...] = (32, 16)
    fusion_lr: float = number(0.001, above=0)
    fusion_decay: float = number(0.0, least=0)
    virtual: float = number(0.1, above=0)
    through: str = ""
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width < 1 for width in self.hidden):
            raise UsageError(f"TGeoKD.hidden is {self.hidden}; each width must be at least 1")

    def run(self, task: Task) -> Result:
        """The split, the class means, and the fit."""
        rows, batches = self.batches(task)
        means = stage("means", lambda: means_of(task, rows))
        student, teacher = current().student(task), task.the_teacher()
        fitted = fit(Fused(self, means), student, teacher, batches, name="fit", task=task)
        return Result(model=fitted.student, log=fitted.log)

    def batches(self, task: Task) -> tuple[Tensor, Batches]:
        """The numbers of the samples that train the student, and their batches beside judges."""
        samples, workers = task.batches().samples, task.budget.workers
        rows, source = torch.arange(samples), task.train
        if self.judges:
            if self.judges == task.judged:
                raise UsageError(
                    f"tgeo_kd would learn from '{self.judges}', which the score is reported on; "
                    "name another set as judges, or none"
                )
            source = task.set(self.judges)
            own = torch.arange(len(Table(source, self.judges)))
        else:
            some = max(1, round(self.hold * samples))
            if some >= samples:
                raise UsageError(
                    f"tgeo_kd holds {some} of {samples} samples out, which leaves none to train "
                    "on; give more samples, or a smaller hold"
                )
            order = torch.randperm(samples, generator=current().rng("judges"))
            own, rows = order[:some].sort().values, order[some:].sort().values
        others = Judges(source, own, self.judges or "train", workers)
        return rows, Beside(Rows(task.train, rows, workers=workers), judges=others)


def means_of(task: Task, rows: Tensor) -> Tensor:
    """The teacher's mean probabilities (C, C) of each class over some `rows` of a `task`'s set."""
    with torch.no_grad():
        means = class_means(
            (t.logits.double().softmax(1), class_numbers(batch, _NEEDS))
            for batch, t in look_over(task, rows=rows)
        )
    return F.pad(means, (0, 0, 0, means.shape[1] - len(means)))  # classes without samples: zeros
