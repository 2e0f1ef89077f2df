"""PAD - the student says of each sample how far it may be from the teacher, and it counts so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.method import Clock, Facts, Method, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="pad",
    title="Prime-Aware Adaptive Distillation",
    year=2020,
    arxiv="2008.01458",
    code="",
    kinds=("feature", "weighting", "stagewise"),
    needs=("embedding", "student:logits", "y"),
    gives="model",
    world="digits",
    stages=("l2", "pad"),
    tiny={},
    departs="The authors have no public code: branch, means and settings are torchdistill's, which "
    "follows theirs. Its variance is one for each number of a sample (element); one for each "
    "sample is the field's other value. Embeddings of another width than the teacher's pass a "
    "linear layer, which that code does not have. Both stages share the task's budget, where that "
    "code gives each ten epochs. Metric learning and detection are other tasks.",
)


def pad_loss(s: Tensor, t: Tensor, v: Tensor, eps: float = 1e-6) -> Tensor:
    """(t - s)^2 / (exp(v) + eps) + v, the mean over all numbers and samples.

    Without eps twice the negative log-likelihood of t, normal about s with the log variance v.
    Shapes: s, t (B, D), v (B, D) or (B, 1) -> ().
    """
    return ((t - s).square() / (v.exp() + eps) + v).mean()


@dataclass(frozen=True)
class Stage(Objective):
    """What one fit minimises: "l2", then "pad" with the first one's parts."""

    name: Literal["l2", "pad"]
    m: PAD
    before: Any = None

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        m = self.m
        if not (m.l2 if self.name == "l2" else m.pad):
            return nn.Module()
        for name, side in (("student", s), ("teacher", t)):
            if side.embedding.dim() != 2:
                raise UsageError(
                    f"pad compares embeddings (B, D), but the {name}'s is "
                    f"{tuple(side.embedding.shape)}; tap the input of its head, as 'head:in'"
                )
        here, there = s.embedding.shape[1], t.embedding.shape[1]
        project: nn.Module = nn.Identity() if here == there else nn.Linear(here, there)
        if self.before is not None and "project" in dict(self.before.named_children()):
            project.load_state_dict(self.before.project.state_dict())
        parts = nn.ModuleDict({"project": project})
        if self.name == "pad":
            out = there if m.variance == "element" else 1
            parts["branch"] = nn.Sequential(nn.Linear(there, out), nn.BatchNorm1d(out))
        return parts

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m, out = self.m, {}
        if m.label:
            out["label"] = m.label * F.cross_entropy(s.logits.float(), batch.y)
        if m.l2 if self.name == "l2" else m.pad:
            e = parts.project(s.embedding)
            wide = torch.promote_types(e.dtype, torch.float32)
            error = (e.to(wide), t.embedding.to(wide))
            if self.name == "l2":
                out["l2"] = m.l2 * F.mse_loss(*error)
            else:
                out["pad"] = m.pad * pad_loss(*error, parts.branch(e).to(wide), m.eps)
        return out


@dataclass(frozen=True)
class PAD(Method):
    """A student mimics the teacher's embedding, where it can: samples far from it count less.

    Two stages: "l2": label * CE(y, s) + l2 * mean squared error of e_s and e_t, for the first
    `share` of the budget; then "pad": label * CE(y, s) + pad * mean of
    (e_t - e_s)^2 / (exp(v) + eps) + v, with v = BatchNorm(W e_s + b) the log variance, of each
    number of a sample or, with variance="sample", of each sample. v is least where exp(v) is the
    squared error, so that what is hard to mimic is weighted by its inverse. The loss may fall
    below 0.

    share = 0 leaves the first stage out, share = 1 the second: the plain squared error.
    Trained: the student, W, b and BatchNorm, and where widths differ a linear layer on e_s, which
    is kept from stage to stage; all but the student are dropped. Frozen: the teacher. No gradient
    is stopped: v moves the student, too.
    Raises: UsageError where an embedding is no vector.
    Source: Zhang et al., ECCV 2020, arXiv 2008.01458; both stages, their equal lengths and eps from
    torchdistill's example of ResNet34 to ResNet18 on ImageNet (SGD of rate 0.0001).
    Relatives: `srd` tempers large errors by a logarithm;
    `fitnets` has stages too.

    Example:
        >>> import torch
        >>> s, t = torch.zeros(1, 1), torch.tensor([[2.0]])
        >>> round(float(pad_loss(s, t, torch.tensor([[4.0]]).log(), eps=0.0)), 4)
        2.3863
    """

    label: float = number(1.0, least=0)
    l2: float = number(1.0, least=0)
    pad: float = number(1.0, least=0)
    share: float = number(0.5, least=0, most=1)
    variance: Literal["element", "sample"] = "element"
    eps: float = number(1e-6, above=0)
    card = CARD

    def run(self, task: Task) -> Result:
        """Both stages, one after the other on the same student."""
        student, teacher, budget = current().student(task), task.the_teacher(), task.budget
        stages: tuple[tuple[Literal["l2", "pad"], float], ...]
        stages = (("l2", self.share), ("pad", 1 - self.share))
        parts, log = None, list[dict[str, Any]]()
        for name, share in stages:
            if share:
                stage, part = Stage(name, self, parts), budget.part(share)
                fitted = fit(stage, student, teacher, task.batches(), name=name, budget=part)
                student, parts, log = fitted.student, fitted.parts, log + fitted.log
        return Result(model=student, log=log)
