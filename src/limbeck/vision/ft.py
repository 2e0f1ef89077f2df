"""FT - a paraphraser puts the teacher's last map in other words, a translator the student's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.vision._kit.maps import alike, spatial, unit, wide

CARD = Card(
    key="ft",
    title="Paraphrasing Complex Network: Network Compression via Factor Transfer",
    year=2018,
    arxiv="1802.04977",
    code="https://github.com/Jangho-Kim/Factor-Transfer-pytorch",
    kinds=("feature", "stagewise"),
    needs=("feature", "student:logits", "y"),
    gives="model",
    world="digits",
    stages=("paraphraser", "student"),
    tiny={},
    departs="The distance is a mean over a factor's elements, to which the weight 500 belongs, and "
    "the paraphraser's error is an absolute one, as in the authors' code; the paper writes a "
    "p-norm, which mean=False is, and a squared error, which is l2. The paraphraser has the task's "
    "budget and schedule, where the authors train it for 5 epochs of 164. Factors of unequal size "
    "are averaged to the smaller grid. A factor that is zero has no direction and no gradient. The "
    "attention that `compare` names is RepDistiller's, `kd` this library's; both are off.",
)


DOES = "ft paraphrases maps"


def convolutions(
    widths: Sequence[int], back: bool = False, slope: float = 0.1, norm: bool = False
) -> list[nn.Module]:
    """3x3 convolutions of stride 1 with padding, through all `widths`, each with LeakyReLU.

    With `back` they are transposed ones. `slope` is LeakyReLU's below 0; with `norm` BatchNorm
    comes before it.
    """
    kind, made = nn.ConvTranspose2d if back else nn.Conv2d, list[nn.Module]()
    for here, out in pairwise(widths):
        made += [kind(here, out, 3, padding=1), *([nn.BatchNorm2d(out)] if norm else [])]
        made.append(nn.LeakyReLU(slope))
    return made


class Encoder(nn.Sequential):
    """From a teacher's map to its factor; after `freeze` it stays as it is, in eval mode."""

    still = False

    def freeze(self) -> Encoder:
        """Give itself, from now on still."""
        self.still = True
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Encoder:
        """Change the mode, unless it is still."""
        return super().train(mode and not self.still)


class Paraphraser(nn.Module):
    """An autoencoder of maps (B, M, H, W), with `out` channels in the middle."""

    def __init__(self, here: int, out: int, slope: float, norm: bool) -> None:
        super().__init__()
        self.encoder = Encoder(*convolutions((here, here, out, out), False, slope, norm))
        self.decoder = nn.Sequential(*convolutions((out, out, here, here), True, slope, norm))

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, M, H, W)."""
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]


def factor_loss(
    s: Tensor,
    t: Tensor,
    p: float = 1.0,
    mean: bool = True,
    compare: Literal["factor", "attention"] = "factor",
) -> Tensor:
    """The mean of |.|^p over elements of d = s / |s| - t / |t|, or d's p-norm; mean over samples.

    Each sample's factor is one vector; `compare` "attention" has the mean of its squared channels
    instead. `mean` False is the p-norm. Shapes: s, t (B, M, H, W) -> ().
    """
    s, t = wide(s), wide(t)
    if compare == "attention":
        s, t = s.square().mean(1), t.square().mean(1)
    d = unit(s.flatten(1)) - unit(t.flatten(1))
    each = d.abs().pow(p).mean(1) if mean else torch.linalg.vector_norm(d, p, dim=1)
    return each.mean()


@dataclass(frozen=True)
class Stage(Objective):
    """What one fit minimises: the stage "paraphraser" or "student"."""

    name: Literal["paraphraser", "student"]
    m: FT
    made: Paraphraser | None = None

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        m = self.m
        if self.name == "student" and not m.ft:
            return nn.Module()
        theirs = spatial(t.feature, DOES).shape[1]
        out = max(1, round(m.factor * theirs))
        paraphraser = self.made or Paraphraser(theirs, out, m.slope, m.norm)
        if self.name == "paraphraser":
            return nn.ModuleDict({"paraphraser": paraphraser})
        here = spatial(s.feature, DOES).shape[1]
        translator = nn.Sequential(*convolutions((here, here, out, out), False, m.slope, m.norm))
        return nn.ModuleDict(
            {"translator": translator, "encoder": paraphraser.encoder.freeze()},
        )

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m = self.m
        if self.name == "paraphraser":
            x = spatial(t.feature, DOES)
            error = F.l1_loss if m.error == "l1" else F.mse_loss
            return {"rec": m.rec * error(parts["paraphraser"](x).float(), x.float())}
        out = {}
        if m.label:
            out["label"] = m.label * F.cross_entropy(s.logits.float(), batch.y)
        if m.ft:
            ours = parts["translator"](spatial(s.feature, DOES))
            with torch.no_grad():
                theirs = parts["encoder"](spatial(t.feature, DOES))
            out["ft"] = m.ft * factor_loss(*alike(ours, theirs), m.p, m.mean, m.compare)
        if m.kd:
            out["kd"] = m.kd * kl(s.logits, t.logits, m.tau).mean()
        return out

    def update(self) -> tuple[Phase, ...]:
        return (Phase(train=("parts",)),) if self.name == "paraphraser" else (Phase(),)


@dataclass(frozen=True)
class FT(Method):
    """A student's last map is translated into what a paraphraser makes of the teacher's.

    Two stages: "paraphraser": rec * |x - P(x)|, by element, of the teacher's `feature` x, with P an
    autoencoder of three 3x3 convolutions, with `factor` times x's channels after the second and
    third, and three transposed ones; no labels, no student. Then "student": label * CE(y, s)
    + ft * |f_s / |f_s| - f_t / |f_t||_p^p / its size (`factor_loss`; with `mean` = False the
    p-norm itself) + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)) (0), f_t P's middle, and
    f_s what a translator of three such convolutions makes of the student's `feature`.
    Each convolution has LeakyReLU of `slope`, with `norm` after BatchNorm. `error` is the
    paraphraser's, "l1" or "l2", squared. `compare` "attention" has the mean of squared channels in
    place of the factor, to which ft = 200 belongs. rec = 0 leaves the first stage out: the
    paraphraser is then what its weights happen to be.

    Trained: first the paraphraser, then the student and the translator, which is then dropped.
    Frozen: the teacher; in the second stage the paraphraser. Each stage has the task's budget, the
    first `share` of its length, at `rate` times its rate and without evaluation on the way.
    Raises: UsageError for a feature that is no map, no tokens and no vector.
    Source: Kim, Park and Kwak, NeurIPS 2018, arXiv 1802.04977, section 3; constants and means from
    the authors' code; the attention from RepDistiller.
    Relatives: `fitnets` brings the student's map to the teacher's own; `ofa_kd` to its logits.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([4.0, 3.0]), torch.tensor([3.0, 4.0])
        >>> round(float(factor_loss(s.view(1, 2, 1, 1), t.view(1, 2, 1, 1))), 6)
        0.2
    """

    label: float = number(1.0, least=0)
    ft: float = number(500.0, least=0)
    rec: float = number(1.0, least=0)
    kd: float = number(0.0, least=0)
    tau: float = number(4.0, above=0)
    p: float = number(1.0, least=1)
    mean: bool = True
    compare: Literal["factor", "attention"] = "factor"
    factor: float = number(0.5, above=0)
    slope: float = number(0.1, least=0)
    norm: bool = False
    error: Literal["l1", "l2"] = "l1"
    rate: float = number(1.0, above=0)
    share: float = number(1.0, above=0)
    card = CARD

    def run(self, task: Task) -> Result:
        """Both stages, or the second alone."""
        student, teacher, made = current().student(task), task.the_teacher(), None
        log: list[dict[str, Any]] = []
        if self.rec and self.ft:
            budget = task.budget.part(self.share).unwatched()
            slow = replace(budget.optimiser, lr=self.rate * budget.optimiser.lr)
            first = fit(
                Stage("paraphraser", self),
                student,
                teacher,
                task.batches(),
                name="paraphraser",
                budget=replace(budget, optimiser=slow),
            )
            log, made = first.log, first.parts["paraphraser"]
        second = fit(Stage("student", self, made), student, teacher, task.batches(), name="student")
        return Result(model=second.student, log=log + second.log)
