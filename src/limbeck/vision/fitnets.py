"""FitNets - a hint from inside the teacher starts a thin, deep student; then soft targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import Fitted, fit
from limbeck.core.losses.divergences import soft_cross_entropy
from limbeck.core.method import Clock, Facts, Method, Objective, Result, number
from limbeck.core.objectives import ramp
from limbeck.core.run import current
from limbeck.core.score import Score
from limbeck.core.taps import UpTo
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.views import Side
from limbeck.errors import Missing, UsageError

CARD = Card(
    key="fitnets",
    title="FitNets: Hints for Thin Deep Nets",
    year=2015,
    arxiv="1412.6550",
    code="https://github.com/adri-romsor/FitNets",
    kinds=("feature", "response", "stagewise", "schedule"),
    needs=("mid", "logits", "y"),
    gives="model",
    world="digits(student='deep-thin')",
    stages=("hint", "kd"),
    tiny={},
    departs="The hint's squared error is averaged over a sample's elements, since their sum breaks "
    "plain SGD (the paper writes the sum, which mean=False is; the authors' code sums one axis and "
    "averages the others). That code also compares tanh and sigmoid hints by cross-entropy, leaves "
    "the regressor out between maps of one shape and bounds its kernel's norm, and lowers lambda "
    "from epoch 5 to 400; here the paper's formulas hold: squared error, always a free regressor, "
    "all epochs. A guided map smaller than the hint gets the kernel rule with padding. Vectors and "
    "tokens count as maps of width 1, for which the regressor is linear; in the one stage it ends "
    "in ReLU only where the hint has no negative values. The hint's early stop is the budget's "
    "patience, off unless the task asks for it.",
)


def activate(x: Tensor, kind: str) -> Tensor:
    """A nonlinearity of x by its kind; "maxout" is (B, 2 C, ...) -> (B, C, ...), else the same."""
    if kind == "maxout":
        return torch.maximum(x[:, ::2], x[:, 1::2])
    kinds = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
    return x if kind == "linear" else kinds[kind](x)


def as_map(x: Tensor) -> Tensor:
    """A map x (B, C, H, W) stays; tokens (B, T, D) -> (B, D, T, 1); (B, D) -> (B, D, 1, 1)."""
    if x.dim() not in (2, 3, 4):
        raise UsageError(
            f"a hint of shape {tuple(x.shape)} is no map (B, C, H, W), no tokens (B, T, D) and "
            "no vector (B, D); tap another module"
        )
    return x if x.dim() == 4 else (x.transpose(1, 2) if x.dim() == 3 else x[:, :, None])[..., None]


def hint_loss(r: Tensor, h: Tensor, mean: bool = False) -> Tensor:
    """0.5 |h - r|^2 of each sample; with `mean` divided by its size. (B, ...) twice -> (B,)."""
    error = 0.5 * (h.float() - r.float()).square().flatten(1)
    return error.mean(1) if mean else error.sum(1)


def kernel_rule(guided: int, hint: int) -> tuple[int, int]:
    """Kernel k and padding p of one side: guided + 2 p - k + 1 = hint, p = 0 if guided >= hint."""
    k = abs(guided - hint) + 1
    return k, 0 if guided >= hint else k - 1


class Regressor(nn.Module):
    """r: one convolution from the guided layer's shape to the hint's, with its nonlinearity.

    Args:
        g: the guided layer's output, of which only the shape counts.
        h: the hint.
        activation: as in `activate`; "auto" is "relu" for a hint without negative values, else
            "linear".
        strided: the one stage's: stride 2 where g has twice h's sides, transposed where it has
            half of them; then BatchNorm.
    """

    def __init__(
        self, g: Tensor, h: Tensor, activation: str = "auto", strided: bool = False
    ) -> None:
        super().__init__()
        if {g.dim(), h.dim()} == {3, 4}:
            raise UsageError(
                f"the student's hint is {tuple(g.shape)}, the teacher's {tuple(h.shape)}; "
                "tap maps on both sides, or tokens"
            )
        g, h = as_map(g), as_map(h)
        auto = "relu" if float(h.min()) >= 0 else "linear"
        self.kind = auto if activation == "auto" else activation
        here, out = g.shape[1], h.shape[1] * (2 if self.kind == "maxout" else 1)
        sides = list(zip(g.shape[2:], h.shape[2:], strict=True))
        self.conv: nn.Module
        if strided and all(a == 2 * b for a, b in sides):
            self.conv = nn.Conv2d(here, out, 3, stride=2, padding=1)
        elif strided and all(2 * a == b for a, b in sides):
            self.conv = nn.ConvTranspose2d(here, out, 4, stride=2, padding=1)
        else:
            (k0, p0), (k1, p1) = (kernel_rule(a, b) for a, b in sides)
            self.conv = nn.Conv2d(here, out, (k0, k1), padding=(p0, p1))
        self.norm = nn.BatchNorm2d(out) if strided else nn.Identity()

    def forward(self, g: Tensor) -> Tensor:
        """The guided layer's output -> the hint as a map (B, C, H, W)."""
        return activate(self.norm(self.conv(as_map(g))), self.kind)


class Gap(nn.Module):
    """The hint loss of each sample (B,): what a score sees that may stop the first stage."""

    def __init__(self, student: nn.Module, regressor: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.regressor, self.teacher = student, regressor, teacher

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Inputs as both sides take them -> (B,)."""
        g, h = (side(*args, **kwargs)["mid"] for side in (self.student, self.teacher))
        return hint_loss(self.regressor(g), as_map(h))


@dataclass(frozen=True)
class Stage(Objective):
    """What one fit minimises: the stage "hint" or "kd", or "one" for both at once."""

    name: Literal["hint", "kd", "one"]
    m: FitNets
    teacher: nn.Module | None = None  # if given, the hint's error is what valid is measured by

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        if self.name == "kd" or (self.name == "one" and not self.m.joint):
            return nn.Module()
        r = Regressor(s.mid, t.mid, self.m.activation, strided=self.name == "one")
        return nn.ModuleDict({"regressor": r})

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m = self.m
        if self.name == "hint":
            error = hint_loss(parts.regressor(s.mid), as_map(t.mid), m.mean)
            return {"hint": m.hint * error.mean()}
        out = {}
        if m.label:
            out["label"] = m.label * F.cross_entropy(s.logits.float(), batch.y)
        weight = ramp(clock.epoch / max(1, clock.epochs - 1), m.kd, m.kd_end)
        if self.name == "kd" and weight:
            out["kd"] = weight * soft_cross_entropy(s.logits, t.logits, m.tau).mean()
        if self.name == "one" and m.joint:
            r = parts.regressor(s.mid).float()
            out["joint"] = m.joint * F.mse_loss(r, as_map(t.mid).float())
        return out

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        return student if self.teacher is None else Gap(student, parts.regressor, self.teacher)


@dataclass(frozen=True)
class FitNets(Method):
    """A deep, thin student is taught a middle layer of the teacher, and then its soft answers.

    Two stages: "hint": hint * 0.5 |h - r(g)|^2, for the student's guided layer g, a regressor r
    and the hint h, by element (or the sum, with mean = False); then "kd": label * CE(y, s) +
    lambda * H(softmax(t / tau), softmax(s / tau)), lambda going linearly from `kd` in the first
    epoch to `kd_end` in the last; no tau^2.
    One stage: label * CE(y, s) + joint * mean squared error of h and r(g).
    r ends in `activation`, "auto": as the hint does.
    hint = 0 leaves the first stage out; kd = kd_end = 0 makes the second plain cross-entropy.

    Trained: first the student up to g, and r, which is then dropped; then the whole student.
    Frozen: the teacher. Each stage has the task's budget, the first `share` of its length. With a
    patience or keep="best" in it, the first watches its hint loss on valid, if the teacher is a
    module and both sides read alike; else it runs to its end.
    Raises: Missing without a tap `mid` in the student; UsageError for a map against tokens.
    Source: Romero et al., ICLR 2015, arXiv 1412.6550, section 2; tau and lambda also stand in the
    authors' code. The one stage's weight and regressor: mdistiller's CIFAR-100 comparisons.
    Relatives: `kd` has no hint and a constant weight; `crd` contrasts embeddings.

    Example:
        >>> import torch
        >>> g, h = torch.rand(2, 4, 10, 10), torch.rand(2, 16, 6, 6)
        >>> r = Regressor(g, h)
        >>> r.conv.kernel_size, r(g).shape == h.shape
        ((5, 5), True)
    """

    stages: Literal["two", "one"] = "two"
    label: float = number(1.0, least=0)
    hint: float = number(1.0, least=0)
    kd: float = number(4.0, least=0)
    kd_end: float = number(1.0, least=0)
    tau: float = number(3.0, above=0)
    joint: float = number(100.0, least=0)
    mean: bool = True
    share: float = number(1.0, above=0)
    activation: Literal["auto", "relu", "tanh", "sigmoid", "maxout", "linear"] = "auto"
    card = CARD

    def run(self, task: Task) -> Result:
        """Both stages, or the one."""
        student, log = current().student(task), []
        if self.stages == "two" and self.hint:
            log += self.guide(task, student).log
        name: Literal["kd", "one"] = "kd" if self.stages == "two" else "one"
        teacher = task.the_teacher()
        fitted = fit(Stage(name, self), student, teacher, task.batches(), name=name)
        return Result(model=fitted.student, log=log + fitted.log)

    def guide(self, task: Task, student: nn.Module) -> Fitted:
        """The first stage, on the student in place: above the guided layer nothing runs."""
        taught, guided = task.taps.get("mid", (None, None))
        if not isinstance(guided, str):
            raise Missing(
                "fitnets trains the student up to one of its modules, but no tap names it; "
                'give taps={"mid": ("teacher path", "student path")}'
            )
        teacher, watched = task.the_teacher(), None
        alike = task.readers.get("teacher") is task.readers.get("student")
        if task.budget.watches and alike and isinstance(teacher, Frozen) and taught:
            watched = UpTo(teacher.module, taught, "mid")
        budget = task.budget.part(self.share)
        hinted = replace(
            task,
            taps={"mid": (taught, None)},
            score=Score("hint", False, lambda losses, y: float(losses.mean())),
            budget=budget if watched else budget.unwatched(),
        )
        first = Stage("hint", self, watched)
        below = UpTo(student, guided, "mid")
        return fit(first, below, teacher, task.batches(), name="hint", task=hinted)
