"""AB - the student's neurons are first to turn on and off where the teacher's do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Method, Objective, Result, number
from limbeck.core.run import current, rng
from limbeck.core.task import Task
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.maps import alike, wide
from limbeck.vision._kit.prerelu import before_relu
from limbeck.vision._kit.stages import connector, paired, shares

CARD = Card(
    key="ab",
    title="Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    year=2019,
    arxiv="1811.03233",
    code="https://github.com/bhheo/AB_distillation",
    kinds=("feature", "initialisation", "stagewise"),
    needs=("blocks", "student:logits", "y"),
    gives="model",
    world="digits",
    stages=("init", "train"),
    tiny={},
    departs="The authors' CIFAR-10 code trains its second stage by KL at tau 3 alone, without "
    "tau^2 (label=0, kd=1/9); here by labels, as the field's comparisons do, of which the first "
    "stage's length is too. The teacher is in eval mode, where that code lets its BatchNorm move. "
    "A connector is left out stage by stage where widths agree, in that code only where all do. "
    "Taps are moved before the ReLU that a stage ends in where that works neither in place nor "
    "twice; elsewhere they are read as given. Grids of unlike size are averaged down.",
)
DOES = "ab compares where neurons are on"


def boundary_loss(s: Tensor, t: Tensor, margin: float = 1.0) -> Tensor:
    """The sum of relu(margin - s)^2 where t > 0 and relu(margin + s)^2 elsewhere, by sample.

    Only the signs of t count. With a margin of 1 it is no less than the number of neurons that
    are on in one and off in the other. Shapes: s, t (B, ...) before ReLU -> (B,).
    """
    short = torch.where(t > 0, margin - s, margin + s).relu()
    return short.square().flatten(1).sum(1)


def centred_loss(u: Tensor, z: Tensor) -> Tensor:
    """The mean square of u - z, both without their mean over classes. (B, C) twice -> ()."""
    d = wide(u) - wide(z)
    return (d - d.mean(1, keepdim=True)).square().mean()


@dataclass(frozen=True)
class Stage(Objective):
    """What one fit minimises: the stage "init", or "train" with the head that the first left."""

    name: Literal["init", "train"]
    m: AB
    head: nn.Module | None = None

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        parts = nn.ModuleDict()
        if self.m.transfer:
            width = s.embedding.flatten(1).shape[1]
            parts["head"] = self.head or nn.Linear(width, t.logits.shape[1])
        if self.name == "init" and self.m.ab:
            draws, made = rng("connectors"), []
            for a, b in paired(s.blocks, t.blocks, DOES):
                here, out = a.shape[1], b.shape[1]
                made.append(nn.Identity() if here == out else connector(here, out, draws))
            parts["connectors"] = nn.ModuleList(made)
        return parts

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m, out = self.m, {}
        if self.name == "init" and m.ab:
            pairs = [alike(a, b) for a, b in paired(s.blocks, t.blocks, DOES)]
            each = zip(parts["connectors"], pairs, shares(len(pairs)), strict=True)
            losses = [w * boundary_loss(wide(c(a)), b, m.margin).mean() for c, (a, b), w in each]
            out["ab"] = m.ab * torch.stack(losses).sum()
        if self.name == "train" and m.label:
            out["label"] = m.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.name == "train" and m.kd:
            out["kd"] = m.kd * kl(s.logits, t.logits, m.tau).mean()
        if m.transfer:
            u = parts["head"](s.embedding.flatten(1))
            out["transfer"] = m.transfer * centred_loss(u, t.logits)
        return out


@dataclass(frozen=True)
class AB(Method):
    """A student starts from the teacher's activation boundaries, and then learns its task.

    Stage "init", without labels: ab * sum_k 2^(k - K) B(r_k(s_k), t_k) over the K stages `blocks`,
    read before their ReLU, B the squared hinge by which s is to be above `margin` where t is, and
    below -margin where t is not above 0 (`boundary_loss`), summed over channels and places. r_k is
    a 1x1 convolution with BatchNorm, or nothing where widths agree.
    Stage "train": label * CE(y, s) + kd * tau^2 KL(t || s) (0).
    Both: + transfer * mean square of centred teacher's logits - centred u (0; the paper's transfer
    to other classes has 10), u a linear layer on the student's embedding.
    ab = 0 leaves the first stage out. It has `share` of the budget's length, beside the budget.

    Trained: the student, in "init" with r_k, which are then dropped, but for what lies above the
    last stage. Frozen: the teacher.
    Raises: UsageError for stages that are no maps, squares of tokens or vectors.
    Source: Heo, Lee, Yun and Choi, AAAI 2019, arXiv 1811.03233, section 3; weights and margin from
    the authors' code for CIFAR-10; for transfer it has ab=0.001, share=1.5.
    Relatives: `fitnets` starts from values instead of signs; `ofd` compares values before ReLU, in
    one stage.

    Example:
        >>> import torch
        >>> t, s = torch.tensor([[2.0, -1.0, 0.0, 3.0]]), torch.tensor([[0.5, 0.5, -2.0, 1.5]])
        >>> boundary_loss(s, t).tolist()
        [2.5]
    """

    ab: float = number(0.003, least=0)
    margin: float = number(1.0, above=0)
    share: float = number(0.125, above=0)
    label: float = number(1.0, least=0)
    kd: float = number(0.0, least=0)
    tau: float = number(3.0, above=0)
    transfer: float = number(0.0, least=0)
    card = CARD

    def run(self, task: Task) -> Result:
        """Both stages."""
        if not (self.label or self.kd or self.transfer):
            raise UsageError("AB's second stage has no term; give label, kd or transfer above 0")
        student, teacher, log, head = current().student(task), task.the_teacher(), [], None
        if self.ab:
            before, _ = before_relu(task, student)
            first = replace(before, budget=task.budget.part(self.share).unwatched())
            fitted = fit(
                Stage("init", self), student, teacher, task.batches(), name="init", task=first
            )
            log, head = fitted.log, dict(fitted.parts.named_children()).get("head")
        second = Stage("train", self, head)
        fitted = fit(second, student, teacher, task.batches(), name="train")
        return Result(model=fitted.student, log=log + fitted.log)
