"""Tf-KD - no stronger teacher: the student's own first training, or a distribution made by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Method, Objective, Result, number
from limbeck.core.objectives import Labels
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen, Nobody
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="tfkd",
    title="Revisiting Knowledge Distillation via Label Smoothing Regularization",
    year=2020,
    arxiv="1909.11723",
    code="https://github.com/yuanli2333/Teacher-free-Knowledge-Distillation",
    kinds=("self", "teacher_free", "response", "regulariser", "stagewise"),
    needs=("student:logits", "y"),
    gives="model",
    world="digits(teacher='none')",
    stages=("alone", "student"),
    tiny={},
    departs="The KL divergence is summed over classes, as the paper's is; the authors' code "
    "averages over them and multiplies by a number for each network, which here is in `tfkd`. The "
    "softening of the made teacher, and the student's temperature beside it, are the code's; the "
    "paper's formula divides the student's logits too, which is both=True, times tau^2. A teacher "
    "that the user gives is taken for the trained student.",
)


def made(y: Tensor, classes: int, a: float = 0.99) -> Tensor:
    """Log of p^d, which is a for the true class and (1 - a) / (C - 1) for each other one.

    Shapes: y (B,) classes -> (B, C), C = classes.
    """
    others = torch.full((len(y), classes), (1 - a) / max(1, classes - 1), device=y.device)
    return others.scatter(1, y[:, None], a).log()


def reg_loss(
    s: Tensor,
    y: Tensor,
    a: float = 0.99,
    tau: float = 20.0,
    soften: str = "probabilities",
    both: bool = False,
) -> Tensor:
    """KL(p^d_tau || softmax(s)), the mean over samples; p^d is `made` with a for the true class.

    p^d_tau is softmax(p^d / tau) for soften = "probabilities", p^d^(1 / tau) over its sum for
    "logits". both: s is divided by tau too, and the divergence multiplied by tau^2.
    Shapes: s (B, C) logits, y (B,) classes -> ().
    """
    log = made(y, s.shape[1], a)
    target = log.exp() if soften == "probabilities" else log
    return (kl(s, target, tau) if both else kl(s, target / tau)).mean()


@dataclass(frozen=True)
class Taught(Objective):
    """What the student minimises: labels, and the teacher's or the made distribution."""

    m: TfKD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m, out = self.m, {}
        if m.label:
            out["label"] = m.label * F.cross_entropy(s.logits.float(), batch.y)
        if m.tfkd and m.machine == "self":
            out["tfkd"] = m.tfkd * kl(s.logits, t.logits, m.tau).mean()
        elif m.tfkd:
            if batch.y.dim() != 1 or batch.y.is_floating_point():
                raise UsageError(
                    "tfkd's machine='reg' makes a teacher for one true class a sample, but the "
                    f"labels are {tuple(batch.y.shape)} of {batch.y.dtype}; give machine='self'"
                )
            soft = reg_loss(s.logits, batch.y, m.a, m.tau, m.soften, m.both)
            out["tfkd"] = m.tfkd * soft
        return out


@dataclass(frozen=True)
class TfKD(Method):
    """A student without a stronger teacher is taught by itself, or by a label smoothing by hand.

    `machine` "self": a student is trained on labels ("alone"), and then teaches a fresh one of its
    kind: label * CE(y, s) + tfkd * tau^2 KL(softmax(t / tau) || softmax(s / tau)). A teacher that
    is given is taken for the first student.
    "reg": label * CE(y, s) + tfkd * KL(p^d_tau || softmax(s)), where p^d is `a` for the true class
    and (1 - a) / (C - 1) for the others, and p^d_tau is softer: softmax(p^d / tau) for `soften`
    "probabilities", p^d^(1 / tau) over its sum for "logits", the usual temperature. `both` divides
    the student's logits by tau as well and multiplies by tau^2. Give label=0.9, tfkd=0.1 with it:
    at tau 20 p^d_tau is nearly uniform, and a large weight keeps the student there.

    Trained: the student, in "self" twice, each with the task's budget. Frozen: the first student.
    Raises: UsageError for "reg" where labels are not one class a sample.
    Source: Yuan et al., CVPR 2020, arXiv 1909.11723, section 5; alpha 0.9 and tau 20 are the
    authors' for ResNeXt29, alpha 0.1 and tau 20 in "reg" for ResNet18 on CIFAR-100, a their code's.
    Relatives: `ban` goes on for generations, from soft targets alone; `kd` has a larger teacher.

    Example:
        >>> import torch
        >>> round(float(reg_loss(torch.zeros(1, 3), torch.tensor([0]), 0.9, 1.0, "logits")), 6)
        0.704215
    """

    machine: Literal["self", "reg"] = "self"
    label: float = number(0.1, least=0)
    tfkd: float = number(0.9, least=0)
    tau: float = number(20.0, above=0)
    a: float = number(0.99, above=0, below=1)
    soften: Literal["probabilities", "logits"] = "probabilities"
    both: bool = False
    card = CARD

    def run(self, task: Task) -> Result:
        """The first student where one is needed, and the one that is delivered."""
        run, teacher, log = current(), task.the_teacher(), list[dict[str, Any]]()
        own = replace(task, taps={})
        if self.machine == "reg" or not self.tfkd:
            teacher = Nobody()
        elif isinstance(teacher, Nobody):
            first = run.student(task, "alone")
            alone = fit(Labels(), first, teacher, task.batches(), name="alone", task=own)
            teacher, log = Frozen(alone.student), alone.log
            mine = task.readers.get("student")
            own = replace(own, readers={"teacher": mine, "student": mine} if mine else {})
        taught = fit(
            Taught(self), run.student(task), teacher, task.batches(), name="student", task=own
        )
        return Result(model=taught.student, log=log + taught.log)
