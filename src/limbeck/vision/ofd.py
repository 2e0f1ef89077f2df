"""OFD - features before ReLU, of which only what matters to the teacher counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.looking import look_over
from limbeck.core.method import Clock, Facts, Method, Objective, Result, number
from limbeck.core.run import current, rng, stage
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.views import Side
from limbeck.vision._kit.maps import alike, spatial, wide
from limbeck.vision._kit.prerelu import before_relu
from limbeck.vision._kit.stages import connector, depths, paired, shares

CARD = Card(
    key="ofd",
    title="A Comprehensive Overhaul of Feature Distillation",
    year=2019,
    arxiv="1904.01866",
    code="https://github.com/clovaai/overhaul-distillation",
    kinds=("feature",),
    needs=("blocks", "student:logits", "y"),
    gives="model",
    world="digits",
    stages=("margins", "fit"),
    tiny={},
    departs="The authors run the whole teacher in train mode, where its BatchNorm has the batch's "
    "statistics and its running ones move; here it is in eval mode, and statistics='batch' gives "
    "the tapped features those of the batch, which makes a micro-batch's loss depend on its "
    "samples. Of a block whose ReLU follows a sum they take the margin from its last BatchNorm; "
    "here from what the sum gives on the training set. Taps are moved before the ReLU that a stage "
    "ends in where that works neither in place nor twice; elsewhere they are read as given. Grids "
    "of unlike size are averaged down.",
)
DOES = "ofd compares maps"
LOOKS = 2048  # training samples from which margins are measured, at most
RARE = 0.001  # as rarely negative a channel has the margin -3 s


def bn_margin(scale: Tensor, shift: Tensor) -> Tensor:
    """E[t | t < 0] for t from N(shift, scale^2): shift - s phi(z) / Phi(-z), z = shift / s.

    -3 s where Phi(-z), the share of negative ones, is 0.001 or less; s = |scale|.
    Shapes: scale, shift (C,) -> (C,).
    """
    s = scale.detach().double().abs()
    z = shift.detach().double() / s.clamp(min=1e-30)
    negative = torch.special.ndtr(-z)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    mean = shift.detach().double() - s * density / negative.clamp(min=RARE)
    return torch.where(negative > RARE, mean, -3 * s).to(scale.dtype)


def measured_margin(maps: Iterable[Tensor]) -> Tensor:
    """The mean of each channel's negative values; 0 where it has none. Maps (B, C, H, W) -> (C,).

    Args:
        maps: chunks of them.
    """
    total, count = torch.zeros(()).double(), torch.zeros(())
    for x in maps:
        total = total + x.detach().double().clamp(max=0).sum((0, 2, 3)).cpu()
        count = count + (x < 0).sum((0, 2, 3)).cpu()
    return (total / count.clamp(min=1)).float()


def partial_loss(s: Tensor, t: Tensor, margin: Tensor) -> Tensor:
    """The sum of (s - T)^2 but where s <= T <= 0, with T = max(t, margin), by sample.

    Shapes: s, t (B, C, H, W) before ReLU, margin (C,), none above 0 -> (B,).
    """
    target = torch.maximum(t, margin[:, None, None])
    counts = (s > target) | (target > 0)
    return ((s - target).square() * counts).flatten(1).sum(1)


def renormalised(x: Tensor, scale: Tensor, shift: Tensor, floor: Tensor) -> Tensor:
    """What a BatchNorm gives in train mode, from what it gives in eval mode.

    Shapes: x (B, C, H, W), scale and shift (C,) the BatchNorm's, floor (C,) its eps as a variance
    of x -> (B, C, H, W).
    """
    centred = x - x.mean((0, 2, 3), keepdim=True)
    deviation = (centred.square().mean((0, 2, 3)) + floor).sqrt()
    factor = scale.abs() / deviation.where(deviation > 0, torch.inf)
    return centred * factor[:, None, None] + shift[:, None, None]


class Target(nn.Module):
    """What a stage of the teacher is compared by: its margin, and its BatchNorm's numbers if any.

    Args:
        margin: (C,).
        norm: the BatchNorm whose batch statistics are to be taken, or None.
    """

    margin: Tensor
    norm: Tensor

    def __init__(self, margin: Tensor, norm: nn.Module | None) -> None:
        super().__init__()
        self.register_buffer("margin", margin.detach().clone())
        self.register_buffer("norm", torch.zeros(0) if norm is None else torch.stack(facts(norm)))

    def forward(self, t: Tensor) -> Tensor:
        """The stage's maps before the margin's ReLU, as the loss is to see them."""
        return renormalised(t, *self.norm) if len(self.norm) else t


def facts(norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift of a BatchNorm `norm`, and its eps as a variance of what it gives."""
    var: Tensor = norm.running_var
    scale = torch.ones_like(var) if norm.weight is None else norm.weight.detach()
    shift = torch.zeros_like(var) if norm.bias is None else norm.bias.detach()
    return scale, shift, norm.eps * scale.square() / (var + norm.eps)


@dataclass(frozen=True)
class Fit(Objective):
    """What the fit minimises, against a target for each stage of the teacher."""

    m: OFD
    targets: tuple[Target, ...] = ()

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        if not self.m.ofd:
            return nn.Module()
        draws, pairs = rng("connectors"), paired(s.blocks, t.blocks, DOES)
        made = [connector(a.shape[1], b.shape[1], draws) for a, b in pairs]
        taken = [self.targets[k] for k in depths(len(self.targets), len(pairs))]
        return nn.ModuleDict(
            {"connectors": nn.ModuleList(made), "targets": nn.ModuleList(taken)},
        )

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        out = {}
        if self.m.label:
            out["label"] = self.m.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.m.ofd:
            pairs, losses = paired(s.blocks, t.blocks, DOES), []
            each = zip(
                parts["connectors"], parts["targets"], pairs, shares(len(pairs)), strict=True
            )
            for connect, target, (mine, theirs), share in each:
                a, b = alike(mine, target(theirs))
                loss = partial_loss(wide(connect(a)), b, target.margin.to(b))
                losses.append(share * loss.mean())
            out["ofd"] = self.m.ofd * torch.stack(losses).sum()
        return out


@dataclass(frozen=True)
class OFD(Method):
    """A student is taught the teacher's features before ReLU, as far as they get through it.

    label * CE(y, s) + ofd * sum_k 2^(k - K) d(r_k(s_k), max(t_k, m_k)) over the K stages `blocks`,
    read before their ReLU; r_k is a 1x1 convolution with BatchNorm; d(s, T) sums (s - T)^2 over
    channels and places, but for those where s <= T <= 0 (`partial_loss`), and is a mean over
    samples. m_k is the expected negative value of each channel: by `margin` "auto" that of its
    BatchNorm (`bn_margin`) where the stage's ReLU follows one, else that of the training set
    (stage "margins"); "data" always the latter; "none" 0, a plain ReLU.
    With `statistics` "batch" features after a BatchNorm are those it gives in train mode.

    Trained: the student and r_k, which are then dropped. Frozen: the teacher.
    Raises: UsageError for stages that are no maps, squares of tokens or vectors.
    Source: Heo, Kim, Yun, Park, Kwak and Choi, ICCV 2019, arXiv 1904.01866, section 3; the weight
    is the authors' code's for CIFAR-100; for ImageNet it has 0.0001.
    Relatives: `ab` compares signs before ReLU, as a start; `fitnets` one stage, with all of L2.

    Example:
        >>> import torch
        >>> scale, shift = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
        >>> [round(m, 6) for m in bn_margin(scale, shift).tolist()]
        [-0.797885, -1.282156]
    """

    label: float = number(1.0, least=0)
    ofd: float = number(0.001, least=0)
    margin: Literal["auto", "data", "none"] = "auto"
    statistics: Literal["running", "batch"] = "running"
    card = CARD

    def run(self, task: Task) -> Result:
        """The margins, and one fit."""
        student, targets = current().student(task), tuple[Target, ...]()
        teacher = task.the_teacher()
        if self.ofd:
            task, paths = before_relu(task, student)
            inside = teacher.module if isinstance(teacher, Frozen) else nn.Module()
            norms = [inside.get_submodule(path) if path else None for path in paths]
            margins = stage("margins", lambda: self.margins(task, norms))
            norms = norms or [None] * len(margins)
            batch = self.statistics == "batch"
            targets = tuple(
                Target(m, n if batch else None) for m, n in zip(margins, norms, strict=True)
            )
        fitted = fit(Fit(self, targets), student, teacher, task.batches(), name="fit", task=task)
        return Result(model=fitted.student, log=fitted.log)

    def margins(self, task: Task, norms: Sequence[nn.Module | None]) -> list[Tensor]:
        """Of each stage of the teacher, (C,); norms: the BatchNorms that they come from."""
        known = [bn_margin(*facts(n)[:2]).cpu() if n is not None else None for n in norms]
        if self.margin == "auto" and known and all(m is not None for m in known):
            return [m for m in known if m is not None]
        samples, seen = len(task.batches().table), list[list[Tensor]]()
        every = max(1, samples // LOOKS) if self.margin != "none" else samples
        with torch.no_grad():
            for _, t in look_over(task, rows=torch.arange(0, samples, every)):
                blocks = [t.blocks] if isinstance(t.blocks, Tensor) else t.blocks
                seen.append([wide(spatial(x, DOES)) for x in blocks])
        measured = [measured_margin(x) for x in zip(*seen, strict=True)]
        if self.margin == "none":
            return [0 * m for m in measured]
        if self.margin == "data" or not known:
            return measured
        return [m if k is None else k for m, k in zip(measured, known, strict=True)]
