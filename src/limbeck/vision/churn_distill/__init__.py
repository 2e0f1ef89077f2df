"""Churn reduction - a new model learns from its predecessor to disagree with it little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Table, reader_of
from limbeck.core.engine import Fitted, fit
from limbeck.core.evaluate import evaluating, predict
from limbeck.core.losses.divergences import soft_cross_entropy
from limbeck.core.method import Clock, Method, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.views import Side
from limbeck.errors import Missing, UsageError
from limbeck.vision.churn_distill.choice import Mixture, choose_mixture, flips

CARD = Card(
    key="churn_distill",
    title="Churn Reduction via Distillation",
    year=2022,
    arxiv="2106.02654",
    code="",
    kinds=("response", "self", "initialisation", "ensemble"),
    needs=("logits", "y"),
    gives="model",
    world="digits(teacher='cnn-small', student='cnn-small')",
    stages=("lam",),
    tiny={"lam": (0.3, 1.0)},
    departs="lam weighs the labels and 1 - lam the base model. All values of lam begin from the "
    "same weights and see the same order of samples, so that they differ by lam alone. The paper "
    "does not say how its convex problem is solved: here by expectation-maximisation for each "
    "multiplier, and bisection on the multiplier. Where no mixture keeps eps, the one that is "
    "nearest to the base model is taken. The anchor's mix, where the base model is wrong, is that "
    "of all other samples, which the paper leaves open. Of what the paper compares with, mixup and "
    "co-distillation are methods of their own.",
)


@dataclass(frozen=True)
class Mixed(Objective):
    """label * CE(y, s) + churn * CE(t, s), the weights adding up to one.

    With `anchor` all of the weight lies on the base model where that is right.
    """

    label: float
    churn: float
    smoothing: float = 0.0
    anchor: bool = False

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        out, moved = {}, torch.zeros_like(batch.y, dtype=torch.float32)
        if self.anchor:
            moved = self.label * (t.logits.argmax(1) == batch.y).float()
        if self.label:
            each = F.cross_entropy(
                s.logits.float(), batch.y, reduction="none", label_smoothing=self.smoothing
            )
            out["label"] = ((self.label - moved) * each).mean()
        if self.churn or self.anchor:
            out["churn"] = ((self.churn + moved) * soft_cross_entropy(s.logits, t.logits)).mean()
        return out


@dataclass(frozen=True)
class ChurnDistill(Method):
    """A new model is taught by labels and by the deployed one, its teacher, to change few answers.

    For each value of `lam` a student minimises the cross-entropy to lam onehot(y) + (1 - lam) g(x),
    g the base model's probabilities, at temperature 1. For some lam it is the best accuracy under
    a bound on the expected KL(g || h), the smooth form of churn, the share of changed answers.
    Of several, `choose` takes by the valid set: "cold", the one of least churn whose score is no
    worse than that of lam = 1, the cold start; or the "mixture" of all by weights of least
    cross-entropy with KL(g || h) <= eps, which asks all students that have weight.

    Students begin from warm * the base model's weights + (1 - warm) * fresh ones: 0 is cold, 1
    warm, between them lies shrink-perturb. The compared `smoothing` is of the labels; `anchor`
    learns from g alone wherever g is right. lam = 1 is no distillation.
    What changed (churn, and its good, bad and neutral share) on the judged set, and each value's
    score and churn on valid, is the run's report; of a mixture also its weights and KL there, which
    is above eps where no mixture keeps it.

    Trained: a student for each lam, each with the task's budget. Frozen: the base model.
    Raises: Missing for a choice without a valid set, UsageError for a base model that is no module
    where it must be measured, or whose weights do not fit where warm > 0, and for a lam outside
    0 to 1 or a "cold" choice without lam = 1.
    Source: Jiang et al., ICLR 2022, arXiv 2106.02654, sections 2 and 3 and the algorithm there; eps
    is the user's, and 0.1 is no value of theirs.
    Relatives: `kd` at tau 1 is one lam; `ban` has a fresh network taught by its like for accuracy.

    Example:
        >>> import torch
        >>> new, base = torch.eye(3)[[0, 1, 1]], torch.eye(3)[[0, 0, 2]]
        >>> round(flips(new, base, torch.tensor([0, 1, 2]))["churn"], 3)
        0.667
    """

    lam: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # 0 to 1, ascending
    choose: Literal["cold", "mixture"] = "cold"
    eps: float = number(0.1, above=0)
    warm: float = number(0.0, least=0, most=1)
    smoothing: float = number(0.0, least=0, below=1)
    anchor: bool = False
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = sorted(set(self.lam)) == list(self.lam)
        if not self.lam or not rising or not all(0 <= v <= 1 for v in self.lam):
            raise UsageError(f"ChurnDistill.lam is {self.lam}; give values from 0 to 1, ascending")
        if len(self.lam) > 1 and self.choose == "cold" and self.lam[-1] != 1:
            raise UsageError(
                f"ChurnDistill.lam is {self.lam}, without 1.0, whose score choose='cold' compares "
                "with; add it, or give choose='mixture'"
            )

    def run(self, task: Task) -> Result:
        """A student for each lam, the choice, and what changed."""
        if len(self.lam) > 1 and task.valid is None:
            raise Missing(
                "churn_distill chooses among values of lam on the valid set, and there is none; "
                "give one, or one value (--lam 0.5)"
            )
        fits = [self._fit(task, lam) for lam in self.lam]
        model, told = self._chosen(task, [f.student for f in fits])
        teacher = task.the_teacher()
        if isinstance(teacher, Frozen) and task.set_or_none(task.judged) is not None:
            (base, new), y = _answers(task, task.judged, (teacher.module, model))
            told |= flips(new, base, y) | {"of": task.judged}
        return Result(model=model, log=[row for f in fits for row in f.log], report=told)

    def _fit(self, task: Task, lam: float) -> Fitted:
        objective = Mixed(lam, round(1 - lam, 12), self.smoothing, self.anchor)
        student = current().student(task)
        if self.warm:
            _warm(student, task, self.warm)
        bare = replace(task, taps={})
        teacher = task.the_teacher()
        return fit(objective, student, teacher, task.batches(), name=f"lam/{lam:g}", task=bare)

    def _chosen(
        self, task: Task, students: Sequence[nn.Module]
    ) -> tuple[nn.Module, dict[str, Any]]:
        """The model that ships, and what is told of the choice."""
        if len(students) == 1:
            return students[0], {}
        teacher = task.the_teacher()
        if not isinstance(teacher, Frozen):
            raise UsageError(
                "churn_distill chooses by the base model's answers on the valid set, but this "
                "teacher is no module; give one value (--lam 0.5)"
            )
        (base, *each), y = _answers(task, "valid", (teacher.module, *students))
        score = task.score
        if score.of is None:
            raise UsageError(f"churn_distill chooses classifiers, and '{score.name}' is of texts")
        told = [{"score": score.of(z, y), **flips(z, base, y)} for z in each]
        facts: dict[str, Any] = {"valid": dict(zip(map(str, self.lam), told, strict=True))}
        if self.choose == "cold":
            able = [
                k for k, t in enumerate(told) if not score.better(told[-1]["score"], t["score"])
            ]
            best = min(able, key=lambda k: told[k]["churn"])
            return students[best], {**facts, "lam": self.lam[best]}
        p, g = torch.stack(each).softmax(2), base.softmax(1)
        alpha = choose_mixture(p, g, y, self.eps)
        alpha = torch.where(alpha < 1e-6, 0.0, alpha) / alpha.sum()
        h = torch.einsum("k,knc->nc", alpha, p.to(alpha))
        facts["kl"] = float(F.kl_div(h.log(), g.to(h), reduction="batchmean"))  # the bound is eps
        facts["weights"] = dict(zip(map(str, self.lam), alpha.tolist(), strict=True))
        members = [m for m, a in zip(students, alpha, strict=True) if a > 0]
        return Mixture(members, alpha[alpha > 0]), facts


def _answers(task: Task, name: str, models: Sequence[nn.Module]) -> tuple[list[Tensor], Tensor]:
    """Logits (N, C) of the base model and of students on a set, and its labels."""
    table, out, device = Table(task.set(name), name), [], current().device
    for k, model in enumerate(models):
        reader = reader_of(task.readers, "student" if k else "teacher")
        with evaluating(model.to(device)):
            logits, y = predict(model, table, reader, device)
        out.append(logits)
    return out, y


def _warm(student: nn.Module, task: Task, share: float) -> None:
    """Move a fresh student's weights to share * the base model's + (1 - share) * its own."""
    teacher = task.the_teacher()
    theirs: Mapping[str, Tensor] = (
        teacher.module.state_dict() if isinstance(teacher, Frozen) else {}
    )
    mine = student.state_dict()
    if {n: v.shape for n, v in mine.items()} != {n: v.shape for n, v in theirs.items()}:
        raise UsageError(
            "warm begins from the base model's weights, but the teacher is no module of the "
            "student's architecture; give one that is, or warm=0"
        )
    with torch.no_grad():
        for name, value in mine.items():
            start = theirs[name].to(value.device)
            value.copy_(value.lerp(start, share) if value.is_floating_point() else start)
