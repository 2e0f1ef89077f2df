"""FSP - a student starts from how the teacher's layers turn into one another."""

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
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.layers import Fitted, Layers, layers, same_channels
from limbeck.vision._kit.maps import wide

CARD = Card(
    key="fsp",
    title="A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and "
    "Transfer Learning",
    year=2017,
    arxiv="",
    code="",
    kinds=("feature", "relation", "stagewise"),
    needs=("blocks", "student:logits", "y"),
    gives="model",
    world="digits(teacher='resnet', student='cnn')",
    stages=("fsp", "label"),
    tiny={},
    departs="Layers are those that are tapped, neighbours by default, where the paper takes the "
    "first and the last map of three sections of equal size. Of unequal numbers of blocks the side "
    "with more is thinned evenly. The first stage has the task's budget and schedule, at a "
    "hundredth of the rate. `project`, `also`, `kd`, `mean` and average pooling, all off, are "
    "other libraries' or this one's.",
)


DOES = "fsp relates neighbouring layers"


def flow(a: Tensor, b: Tensor, pooling: Literal["max", "avg"] = "max") -> Tensor:
    """The FSP matrix G_ij = sum_p a_ip b_jp / places, the larger map pooled to the other's grid.

    `pooling` is "max", as in the paper, or "avg".
    Shapes: a (B, M, H, W), b (B, N, I, J) maps -> (B, M, N), in float32 or wider.
    """
    a, b = wide(a), wide(b)
    grid = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    pool = F.adaptive_max_pool2d if pooling == "max" else F.adaptive_avg_pool2d
    first, second = (x if x.shape[2:] == grid else pool(x, grid) for x in (a, b))
    with torch.autocast(a.device.type, enabled=False):
        return first.flatten(2) @ second.flatten(2).mT / (grid[0] * grid[1])


def fsp_loss(s: Tensor, t: Tensor, mean: bool = False) -> Tensor:
    """The squared error of two matrices, summed over entries, or averaged; the mean over samples.

    Shapes: s, t (B, M, N) -> ().
    """
    error = (s - t).square().flatten(1)
    return (error.mean(1) if mean else error.sum(1)).mean()


@dataclass(frozen=True)
class Stage(Objective):
    """What one fit minimises: the stage "fsp" or "label"."""

    name: Literal["fsp", "label"]
    m: FSP
    made: nn.Module | None = None  # the projections of the first stage, for the second

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        if not (self.m.fsp if self.name == "fsp" else self.m.also):
            return nn.Module()
        ours, theirs = self.m.layers(s, t)
        if self.m.project:
            return self.made or nn.ModuleDict({"project": Fitted(ours, theirs)})
        same_channels(ours, theirs, DOES)
        return nn.Module()

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m = self.m
        if self.name == "fsp":
            return {"fsp": m.fsp * m.flows(parts, s, t)}
        out = {}
        if m.label:
            out["label"] = m.label * F.cross_entropy(s.logits.float(), batch.y)
        if m.also:
            out["also"] = m.also * m.flows(parts, s, t)
        if m.kd:
            out["kd"] = m.kd * kl(s.logits, t.logits, m.tau).mean()
        return out


@dataclass(frozen=True)
class FSP(Method):
    """A student learns first how the teacher goes from layer to layer, and then the labels.

    G(a, b) = a^T b / places holds the products of all channels of two layers a and b, summed over
    places (`flow`); the larger of the two is brought to the other's grid first, by `pooling`.
    Two stages: "fsp": fsp * the sum over pairs of layers of |G_s - G_t|^2 (with `mean`, by entry),
    at `rate` times the learning rate; then "label": label * CE(y, s) + also * the same sum
    + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)), both 0.
    Pairs of the tapped `blocks` are "chain": 1-2, 2-3, ..., or "two": 1-2, 3-4, ...
    fsp = 0 leaves the first stage out; then also > 0 is all in one stage.

    Trained: the student, without its classifier in the first stage. Frozen: the teacher. With
    `project` a 1x1 convolution brings each of the student's maps to the teacher's channels first;
    it is trained along, and dropped. Each stage has the task's budget, the first `share` of its
    length, without evaluation on the way.
    Raises: UsageError for fewer than two blocks of a side, or other channels than the teacher's.
    Source: Yim et al., CVPR 2017, sections 3 and 4; the hundredth of the rate is that of its
    CIFAR-10 runs (0.001 before 0.1). With mean = True a rate of 1 is other libraries' way.
    Relatives: `fitnets` starts from a layer itself; `kdsvd` relates layers by singular vectors;
    `rkd` relates samples.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 1.0]], [[0.0, 4.0]]]])
        >>> flow(a, b).tolist()
        [[[2.5, 4.0]]]
    """

    label: float = number(1.0, least=0)
    fsp: float = number(1.0, least=0)
    also: float = number(0.0, least=0)
    kd: float = number(0.0, least=0)
    tau: float = number(4.0, above=0)
    pairs: Literal["chain", "two"] = "chain"
    pooling: Literal["max", "avg"] = "max"
    mean: bool = False
    project: bool = False
    rate: float = number(0.01, above=0)
    share: float = number(1.0, above=0)
    card = CARD

    def layers(self, s: Side, t: Side) -> tuple[Layers, Layers]:
        """The maps of both sides, as many of each."""
        ours, theirs = layers(s, t, DOES, least=2)
        if self.pairs == "two" and len(ours) % 2:
            raise UsageError(
                f"fsp takes blocks two by two, but there are {len(ours)}; tap an even number, or "
                "set pairs='chain'"
            )
        return ours, theirs

    def flows(self, parts: Any, s: Side, t: Side) -> Tensor:
        """The unweighted loss, summed over pairs of layers."""
        ours, theirs = self.layers(s, t)
        if self.project:
            ours = parts["project"](ours)
        each = []
        for k in range(0, len(ours) - 1, 1 if self.pairs == "chain" else 2):
            g_s, g_t = (flow(x[k], x[k + 1], self.pooling) for x in (ours, theirs))
            each.append(fsp_loss(g_s, g_t, self.mean))
        return torch.stack(each).sum()

    def run(self, task: Task) -> Result:
        """Both stages, or the second alone."""
        student, teacher, made = current().student(task), task.the_teacher(), None
        log: list[dict[str, Any]] = []
        if self.fsp:
            budget = task.budget.part(self.share).unwatched()
            slow = replace(budget.optimiser, lr=self.rate * budget.optimiser.lr)
            first = fit(
                Stage("fsp", self),
                student,
                teacher,
                task.batches(),
                name="fsp",
                budget=replace(budget, optimiser=slow),
            )
            log, made = first.log, first.parts
        second = fit(Stage("label", self, made), student, teacher, task.batches(), name="label")
        return Result(model=second.student, log=log + second.log)
