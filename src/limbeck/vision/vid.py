"""VID - a student's layers tell the teacher's, each channel with a variance that is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Objective, number
from limbeck.core.views import Side
from limbeck.vision._kit.layers import layers
from limbeck.vision._kit.maps import alike, wide

CARD = Card(
    key="vid",
    title="Variational Information Distillation for Knowledge Transfer",
    year=2019,
    arxiv="1904.05835",
    code="",
    kinds=("feature",),
    needs=("blocks", "student:logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The term is a mean over channels and places, as in all public versions, where the "
    "paper writes a sum, which mean=False is. The authors' own code is gone; the variance at the "
    "start, its floor and the mean's layers are RepDistiller's, which names it as its source. "
    "Weight decay reaches the variance, as there. Of unequal numbers of blocks the side with more "
    "is thinned evenly.",
)


DOES = "vid tells layers"


def variance(a: Tensor, eps: float = 1e-5) -> Tensor:
    """softplus(a) + eps, the variance of each channel. (D,) -> (D,)."""
    return F.softplus(wide(a)) + eps


def start(v: float, eps: float = 1e-5) -> float:
    """The a whose `variance` is v, which must be above eps."""
    return v - eps + math.log(-math.expm1(eps - v))


def surprise(mu: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """- log N(t; mu, v) but for log(2 pi) / 2: 0.5 (log v_c + (t_cp - mu_cp)^2 / v_c).

    Shapes: mu, t (B, D, H, W), v (D,) a variance for each channel -> (B, D, H, W).
    """
    v = wide(v)[:, None, None]
    return 0.5 * (v.log() + (wide(t) - wide(mu)).square() / v)


class Told(nn.Module):
    """q(t | s) of one layer: the mean from the student's map, and `a` for each channel's variance.

    Args:
        here: channels of the student's map.
        out: channels of the teacher's.
        hidden: channels between.
        a: of the variance at the start.
        linear: the mean is one linear map of each place's channels, else three with ReLU between.
        norm: BatchNorm before each ReLU.
    """

    def __init__(
        self, here: int, out: int, hidden: int, a: float, linear: bool, norm: bool
    ) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.full((out,), a))
        self.mu = nn.Sequential(nn.Conv2d(here, out, 1))
        if not linear:
            widths = ((here, hidden), (hidden, hidden), (hidden, out))
            made: list[nn.Module] = []
            for k, (m, n) in enumerate(widths):
                made.append(nn.Conv2d(m, n, 1, bias=False))
                if k < 2:
                    made += [nn.BatchNorm2d(n), nn.ReLU()] if norm else [nn.ReLU()]
            self.mu = nn.Sequential(*made)


@dataclass(frozen=True)
class VID(Objective):
    """A student's layers are to hold what tells the teacher's, as far as they can.

    label * CE(y, s) + vid * sum over layers of the mean of 0.5 (log v_c + (t_cp - mu_cp)^2 / v_c)
    + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)) (0), a bound on the mutual information of
    the layers: mu is a small network of the student's map, and v_c = softplus(a_c) + eps
    a variance for each of the teacher's channels c, the same at all places p of all samples. What
    cannot be told counts less. The mean is over samples, channels and places; `mean` = False sums
    the latter two.
    mu is "conv", three 1x1 convolutions by way of `hidden` times the teacher's channels, with ReLU
    between and no bias (with `norm`, BatchNorm before each ReLU), or "linear", one with bias, which
    vectors always have. Of two maps of unequal size the larger is averaged down first. Variances
    start at `variance`; where they are `fixed` they stay there.

    Trained: the student, mu and a, which are then dropped. Frozen: the teacher.
    Raises: UsageError for a block that is no map, no tokens and no vector.
    Source: Ahn et al., CVPR 2019, arXiv 1904.05835, section 3; constants, mu and the mean from
    RepDistiller's version, which names the authors' code as its source.
    Relatives: with variances fixed at 1 it is half `fitnets`' squared error, of several layers;
    `crd` bounds the same information by contrast.

    Example:
        >>> import torch
        >>> mu, t = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
        >>> round(float(surprise(mu, t, torch.tensor([5.0]))), 6)
        1.204719
    """

    label: float = number(1.0, least=0)
    vid: float = number(1.0, least=0)
    kd: float = number(0.0, least=0)
    tau: float = number(4.0, above=0)
    mean: bool = True
    mu: Literal["conv", "linear"] = "conv"
    hidden: float = number(1.0, above=0)
    norm: bool = False
    variance: float = number(5.0, above=0)
    eps: float = number(1e-5, above=0)
    fixed: bool = False
    card = CARD

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """What tells each layer."""
        if not self.vid:
            return nn.Module()
        a, told = start(self.variance, self.eps), nn.ModuleList()
        for x, y in zip(*layers(s, t, DOES), strict=True):
            here, out = x.shape[1], y.shape[1]
            linear = self.mu == "linear" or x.shape[2:] == y.shape[2:] == (1, 1)
            told.append(Told(here, out, max(1, round(self.hidden * out)), a, linear, self.norm))
            told[-1].a.requires_grad_(not self.fixed)
        return nn.ModuleDict({"told": told})

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `vid` and `kd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.vid:
            ours, theirs = layers(s, t, DOES)
            each = [self._told(*one) for one in zip(parts["told"], ours, theirs, strict=True)]
            out["vid"] = self.vid * torch.stack(each).sum()
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        return out

    def _told(self, told: Any, s: Tensor, t: Tensor) -> Tensor:
        """One layer's part, unweighted."""
        s, t = alike(s, t)
        each = surprise(told.mu(s), t, variance(told.a, self.eps)).flatten(1)
        return (each.mean(1) if self.mean else each.sum(1)).mean()
