"""SSKD - what a teacher makes of turned pictures, and which picture it finds each of them like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Method, Objective, Result, Rng, number
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="sskd",
    title="Knowledge Distillation Meets Self-Supervision",
    year=2020,
    arxiv="2006.07114",
    code="https://github.com/xuguodong03/SSKD",
    kinds=("response", "relation", "contrast", "self_supervised", "augmentation", "stagewise"),
    needs=("logits", "embedding", "y"),
    gives="model",
    world="digits",
    stages=("head", "student"),
    tiny={},
    departs="The views are the three turns of the authors' code; the paper also names colour "
    "dropping, crops and colour distortion. The code crops each view by itself after the turn; "
    "here the task's augmentation comes first. Of views of one rank the earlier ones are kept, "
    "where the code's sort leaves it open, and where none is kept the term is 0.",
)
EXEMPT = {
    "accumulate": "a view is compared with all pictures of a micro-batch",
    "doubled": "a view then has its own picture twice among those that it is compared with",
}


def turned(x: Tensor) -> Tensor:
    """Each picture, and it turned by 90, 180 and 270 degrees: rows 4 b, ..., 4 b + 3.

    Shapes: x (B, C, H, H) -> (4 B, C, H, H).
    """
    if x.dim() != 4 or x.shape[2] != x.shape[3]:
        raise UsageError(
            "sskd turns square pictures (B, C, H, H) by 90 degrees, but was given inputs of shape "
            f"{tuple(x.shape)}; crop or pad them to squares"
        )
    return torch.stack([torch.rot90(x, k, (2, 3)) for k in range(4)], 1).flatten(0, 1)


def views_of(x: Tensor) -> Tensor:
    """The rows of x that belong to turned pictures: (4 B, ...) -> (3 B, ...)."""
    return x.reshape(-1, 4, *x.shape[1:])[:, 1:].flatten(0, 1)


def likeness(z: Tensor) -> Tensor:
    """cos(z_i, z_j) of each view i with each picture j, rows in z as `turned` gives them.

    Shapes: z (4 B, D) -> (3 B, B).
    """
    unit = F.normalize(z.float() if z.dtype != torch.float64 else z, dim=1, eps=1e-8)
    return views_of(unit) @ unit[::4].T


def own(a: Tensor) -> Tensor:
    """The number of the picture that each view is of. Shapes: a (3 B, B) -> (3 B,)."""
    return torch.arange(a.shape[1], device=a.device).repeat_interleave(3)


def head_loss(a: Tensor, tau: float = 1.0) -> Tensor:
    """CE of softmax(a / tau) at each view's own picture, the mean. Shapes: a (3 B, B) -> ()."""
    return F.cross_entropy(a / tau, own(a))


def ranks(t: Tensor, right: Tensor) -> Tensor:
    """How many entries of each row of t are above the right one: 0 where the teacher is right.

    Shapes: t (N, C), right (N,) -> (N,).
    """
    return (t > t.gather(1, right[:, None])).sum(1)


def chosen(rank: Tensor, keep: float) -> Tensor:
    """Which views are kept: all of rank 0, and of the n others floor(keep n) of lowest rank.

    Of equal ranks the earlier ones. Shapes: rank (N,) -> (N,) bool.
    """
    order = rank.argsort(stable=True)
    wrong = int((rank > 0).sum())
    kept = torch.zeros_like(rank, dtype=torch.bool)
    kept[order[: len(rank) - wrong + int(keep * wrong)]] = True
    return kept


def kept_kl(s: Tensor, t: Tensor, right: Tensor, tau: float, keep: float) -> Tensor:
    """tau^2 KL(softmax(t / tau) || softmax(s / tau)), the mean over rows that `chosen` keeps.

    Which those are say t, the right entry of each row, and keep; 0 where there is none.
    Shapes: s, t (N, C), right (N,) -> ().
    """
    rows = chosen(ranks(t, right), keep)
    return (kl(s, t, tau) * rows).sum() / rows.sum().clamp_min(1)


def head_of(embedding: Tensor, whose: str) -> nn.Sequential:
    """The self-supervision module on an embedding (B, D): an MLP D - D - D with ReLU.

    whose: the side, for a sentence.
    """
    if embedding.dim() != 2:
        raise UsageError(
            f"sskd's heads take embeddings (B, D), but the {whose}'s is {tuple(embedding.shape)}; "
            "tap the input of its classifier, as 'head:in'"
        )
    d = embedding.shape[1]
    return nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))


@dataclass(frozen=True)
class Stage(Objective):
    """What one fit minimises: the stage "head" or "student"."""

    name: Literal["head", "student"]
    m: SSKD
    made: nn.Module | None = None  # the teacher's head, once it is trained

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        if not self.m.ss:
            return nn.Module()
        theirs = self.made or head_of(t.embedding, "teacher")
        if self.name == "head":
            return nn.ModuleDict({"teacher": theirs})
        mine = head_of(s.embedding, "student")
        return nn.ModuleDict({"teacher": theirs.requires_grad_(False), "student": mine})

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        """Pictures and views, for both sides."""
        if not (self.m.ss or self.m.tf):
            return batch, batch
        both = batch.replace(x=turned(batch.x))
        return both, both

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m, out = self.m, {}
        if self.name == "head":
            found = likeness(parts["teacher"](t.embedding))
            return {"head": m.head * head_loss(found, m.head_tau)}
        step = len(s.logits) // len(batch.y)
        if m.label:
            out["label"] = m.label * F.cross_entropy(s.logits[::step].float(), batch.y)
        if m.kd:
            out["kd"] = m.kd * kl(s.logits[::step], t.logits[::step], m.tau).mean()
        if m.ss:
            with torch.no_grad():
                theirs = likeness(parts["teacher"](t.embedding))
            mine = likeness(parts["student"](s.embedding))
            out["ss"] = m.ss * kept_kl(mine, theirs, own(theirs), m.ss_tau, m.ss_keep)
        if m.tf:
            zs, zt = views_of(s.logits), views_of(t.logits)
            y = batch.y.repeat_interleave(3)
            out["tf"] = m.tf * kept_kl(zs, zt, y, m.tf_tau, m.tf_keep)
        return out

    def update(self) -> tuple[Phase, ...]:
        return (Phase(train=("parts",)),) if self.name == "head" else (Phase(),)


@dataclass(frozen=True)
class SSKD(Method):
    """A student follows a teacher on turned pictures: in their classes, and in whose they are.

    With A = cos(z of a view, z of a picture), (3 B, B), z a head's output on the embedding:
    "head": head * CE of softmax(A / head_tau) at the own picture trains the frozen teacher's head;
    "student": label * CE(y, s) + kd * tau^2 KL at tau, on the pictures,
    + ss * ss_tau^2 KL(softmax(A_t / ss_tau) || softmax(A_s / ss_tau)) over the views, whose
    pictures the teacher finds, and the share `ss_keep` of the others, where the own picture ranks
    highest; + tf * tf_tau^2 KL(t || s) at tf_tau over the views of which it says the class, and
    the share `tf_keep` of the others. ss = 0 needs no head, and head = 0 takes the teacher's as it
    is drawn: then there is no first stage. Each step sees four times the batch.

    Trained: first the teacher's head, for the first `share` of the budget's length; then the
    student and a head of its own. Neither head is delivered. Frozen: the teacher, later its head.
    Raises: UsageError where inputs are no square pictures, or an embedding is no vector.
    Source: Xu et al., ECCV 2020, arXiv 2006.07114, section 3; all constants from the authors' code.
    Relatives: `kd` sees no views; `rkd` relates pictures without views; `sla` has labels for turns.

    Example:
        >>> import torch
        >>> round(float(head_loss(torch.eye(2).repeat_interleave(3, 0))), 6)
        0.313262
    """

    head: float = number(1.0, least=0)
    label: float = number(0.1, least=0)
    kd: float = number(0.9, least=0)
    ss: float = number(10.0, least=0)
    tf: float = number(2.7, least=0)
    tau: float = number(4.0, above=0)
    ss_tau: float = number(0.5, above=0)
    tf_tau: float = number(4.0, above=0)
    head_tau: float = number(1.0, above=0)
    ss_keep: float = number(0.75, least=0, most=1)
    tf_keep: float = number(1.0, least=0, most=1)
    share: float = number(0.25, above=0)
    card = CARD

    def run(self, task: Task) -> Result:
        """The teacher's head, then the student."""
        student, teacher, made = current().student(task), task.the_teacher(), None
        log: list[dict[str, Any]] = []
        if self.head and self.ss:
            budget = task.budget.part(self.share).unwatched()
            first = fit(
                Stage("head", self), student, teacher, task.batches(), name="head", budget=budget
            )
            log, made = first.log, first.parts["teacher"]
        second = fit(Stage("student", self, made), student, teacher, task.batches(), name="student")
        return Result(model=second.student, log=log + second.log)
