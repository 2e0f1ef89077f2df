"""KD-SVD - how the singular vectors of a student's layers lie to each other is the teacher's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Objective, number
from limbeck.core.updates import Gradients, Join, Phase, all_added
from limbeck.core.views import Side
from limbeck.vision._kit.layers import Fitted, Layers, layers, same_channels
from limbeck.vision._kit.maps import wide

CARD = Card(
    key="kdsvd",
    title="Self-supervised Knowledge Distillation Using Singular Value Decomposition",
    year=2018,
    arxiv="1807.06819",
    code="https://github.com/sseung0703/SSKD_SVD",
    kinds=("feature", "relation"),
    needs=("blocks", "student:logits", "y"),
    gives="model",
    world="digits(teacher='resnet', student='cnn')",
    stages=("fit",),
    tiny={},
    departs="The loss is a mean over samples, where the authors' code takes half of the sum times "
    "the root of k; the clip sets its size. Each of the teacher's vectors is turned so that its "
    "largest entry is positive, where the code has whichever sign its decomposition gives; as in "
    "its later version, the student's are turned to them. Where singular values are equal or zero "
    "a direction has no gradient, which that code cuts out as not finite. Of unequal numbers of "
    "blocks the side with more is thinned evenly. `project` and `kd`, both off, are this one's.",
)
DOES = "kdsvd relates the singular vectors of neighbouring layers"


def vectors(m: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The first n right singular vectors of each matrix, with gradient, and their singular values.

    The vectors' first-order change by dm is added to them, which is 0 in value: for v_j it is
    (v_i . dA v_j) / (s_j^2 - s_i^2) along each other v_i, A = m^T m, and beyond these what is left
    of dm^T u_j / s_j. Where a divisor is 0, up to rounding, there is no such part.
    Shapes: m (B, P, D) -> (B, D, n), (B, n), no more than P and D of them, in float32 or wider.
    """
    m = wide(m)
    u, s, vh = torch.linalg.svd(m.detach(), full_matrices=False)
    n = min(n, s.shape[1])
    first, values = vh[:, :n].mT, s[:, :n]
    if not m.requires_grad:
        return first, values
    least = max(m.shape[1:]) * torch.finfo(m.dtype).eps * s[:, :1]
    gaps = values.square()[:, None] - s.square()[:, :, None]
    by_gap = 1 / gaps.where(gaps.abs() > (least * s[:, :1])[:, None], torch.inf)
    change = m - m.detach()
    out = (u[:, :, :n].mT @ change).mT  # column j: dm^T u_j
    along = s[:, :, None] * (u.mT @ (change @ first)) + (vh @ out) * values[:, None]
    beyond = (out - vh.mT @ (vh @ out)) / values.where(values > least, torch.inf)[:, None]
    return first + vh.mT @ (by_gap * along) + beyond, values


def aligned(s: Tensor, t: Tensor) -> Tensor:
    """For each of the teacher's vectors the student's of largest |cosine|, with its sign.

    Shapes: s (B, D, N), t (B, D, K) -> (B, D, K).
    """
    cosine = s.detach().mT @ t
    best = cosine.abs().argmax(1, keepdim=True)
    sign = torch.where(cosine.gather(1, best) < 0, -1.0, 1.0).to(s.dtype)
    return s.gather(2, best.expand(-1, s.shape[1], -1)) * sign


def upright(v: Tensor) -> Tensor:
    """Vectors v, each turned if need be so that its largest entry is positive: (B, D, K) twice."""
    largest = v.gather(1, v.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -v, v)


def compressed(s: Tensor, t: Tensor, k: int, extra: int) -> tuple[Tensor, Tensor]:
    """The k weighted vectors of one layer on both sides, of k + `extra` of the student's.

    The teacher's are `upright`, the student's `aligned` to them. The weights are the teacher's
    singular values over their length.
    Shapes: maps s (B, D, H, W), t (B, D, I, J) -> (B, D, k) twice.
    """
    with torch.autocast(s.device.type, enabled=False):
        theirs, values = vectors(t.detach().flatten(2).mT, k)
        theirs = upright(theirs)
        ours, _ = vectors(s.flatten(2).mT, k + extra)
        weights = F.normalize(values, dim=1)[:, None]
        return aligned(ours, theirs) * weights, theirs * weights


def svd_loss(s: Sequence[Tensor], t: Sequence[Tensor], width: float = 8.0) -> Tensor:
    """The squared error of exp(-(a_ij - b_lj)^2 / width) for neighbouring layers a and b.

    It is summed over channels i of a, l of b and vectors j, and over pairs of layers, and averaged
    over samples. Shapes: s, t lists of (B, D, k), with a D for each layer -> ().
    """

    def kernel(side: Sequence[Tensor], a: int, j: int) -> Tensor:
        gap: Tensor = side[a][:, :, None, j] - side[a + 1][:, None, :, j]
        return (-gap.square() / width).exp()

    each = [
        (kernel(s, a, j) - kernel(t, a, j)).square().sum((1, 2)).mean()
        for a in range(len(s) - 1)
        for j in range(min(x.shape[2] for x in s[a : a + 2]))
    ]
    return torch.stack(each).sum()


@dataclass(frozen=True)
class Clipped(Join):
    """The gradient of `svd` is no longer than sigmoid(epoch) times that of all other terms.

    It holds for each parameter alone; one that only `svd` reaches has its gradient whole.
    """

    def join(self, grads: Mapping[str, Gradients], names: Sequence[str], clock: Clock) -> Gradients:
        main: Gradients | None = None
        for term, each in grads.items():
            if term != "svd":
                main = all_added(main, each)
        share = 1 / (1 + math.exp(-min(clock.epoch, 100)))
        if main is None or "svd" not in grads:
            return grads["svd"] if main is None else main
        cut = [
            g if m is None or g is None else g * shortened(g, share * m.norm())
            for g, m in zip(grads["svd"], main, strict=True)
        ]
        return all_added(main, cut)


def shortened(g: Tensor, most: Tensor) -> Tensor:
    """What g is multiplied with so that its norm is at most `most`: min(1, most / |g|)."""
    length = g.norm()
    return torch.where(length > most, most / length.clamp(min=1e-30), 1.0)


@dataclass(frozen=True)
class KDSVD(Objective):
    """A student's layers relate to each other as the teacher's do, by their singular vectors.

    A map is a matrix (places, channels), whose first `k` right singular vectors say which channels
    go together. The teacher's are turned so that their largest entry is positive; to each belongs
    the nearest of the student's first k + `extra`, with its sign. All times the teacher's singular
    values, they are compared by what they are to the next layer's:
    label * CE(y, s) + svd * sum (P_s - P_t)^2, P = exp(-(a_ij - b_lj)^2 / width), over neighbouring
    `blocks` a and b, channels i and l, vectors j (`svd_loss`)
    + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)) (0).
    With `clip` the svd term's gradient in each parameter is cut to sigmoid(epoch) times the length
    of all other terms' (epochs from 0), so that labels lead.
    Places do not count, so that grids may differ. With `project` a 1x1 convolution brings each
    of the student's maps to the teacher's channels first; it is trained along, and dropped.

    Trained: the student. Frozen: the teacher.
    Raises: UsageError for fewer than two blocks of a side, or other channels than the teacher's.
    Source: Lee, Kim and Song, ECCV 2018, arXiv 1807.06819, section 3; constants, the weights and
    the clip from the authors' code, extra 3 from its later collection.
    Relatives: `fsp` relates layers by products over places; `rkd` relates samples.

    Example:
        >>> import torch
        >>> v, s = vectors(torch.tensor([[[0.0, 5.0], [0.0, 0.0]]]), 1)
        >>> v[0].abs().flatten().tolist(), s.tolist()
        ([0.0, 1.0], [[5.0]])
    """

    label: float = number(1.0, least=0)
    svd: float = number(1.0, least=0)
    kd: float = number(0.0, least=0)
    tau: float = number(4.0, above=0)
    k: int = number(1, least=1)
    extra: int = number(3, least=0)
    width: float = number(8.0, above=0)
    clip: bool = True
    project: bool = False
    card = CARD

    def update(self) -> tuple[Phase, ...]:
        """One phase, with the clip where it is asked for."""
        return (Phase(join=Clipped()),) if self.clip and self.svd else (Phase(),)

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The projections, if any."""
        if not self.svd:
            return nn.Module()
        ours, theirs = layers(s, t, DOES, least=2)
        if self.project:
            return nn.ModuleDict({"project": Fitted(ours, theirs)})
        same_channels(ours, theirs, DOES)
        return nn.Module()

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `svd` and `kd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.svd:
            ours, theirs = layers(s, t, DOES, least=2)
            ours = parts["project"](ours) if self.project else ours
            out["svd"] = self.svd * self._loss(ours, theirs)
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        return out

    def _loss(self, ours: Layers, theirs: Layers) -> Tensor:
        pairs = zip(ours, theirs, strict=True)
        sides = [compressed(a, b, self.k, self.extra) for a, b in pairs]
        return svd_loss([a for a, _ in sides], [b for _, b in sides], self.width)
