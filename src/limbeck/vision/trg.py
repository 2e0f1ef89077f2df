"""TRG - the patch tokens of a batch make a graph, and the student's follows the teacher's."""

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
from limbeck.core.objectives import ramp
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.patches import leading

CARD = Card(
    key="trg",
    title="Knowledge Distillation via Token-level Relationship Graph",
    year=2023,
    arxiv="2306.12442",
    code="",
    kinds=("relation", "contrast", "feature", "response", "schedule"),
    needs=("feature", "logits", "y", "index"),
    gives="model",
    world="shapes",
    stages=("fit",),
    tiny={},
    departs="There is no code of the authors, and these constants are not theirs: all weights, "
    "`neighbours`, `sampled`, `sharpness`, the ends and form of the contrast's temperature, and "
    "tau. The kernel's width is the mean squared distance of neighbours, so that it fits features "
    "of any scale. Losses are means over nodes, where the paper writes sums. Whether a patch of a "
    "convolution's map is pooled or flattened, and which side comes first in the local divergence, "
    "are fields. Long-tailed versions of the data sets are the task's.",
)
EXEMPT = {
    "accumulate": "it relates the tokens of a micro-batch; pairs across two are not seen",
    "doubled": "a token's nearest neighbours are then its own copies",
}


def as_map(x: Tensor) -> Tensor:
    """A map x (B, C, H, W) stays; tokens (B, P + R * R, D), patches last -> (B, D, R, R)."""
    if x.dim() == 4:
        return x
    lead = leading(x.shape[1]) if x.dim() == 3 else None
    if lead is not None:
        side = math.isqrt(x.shape[1] - lead)
        return x[:, lead:].mT.reshape(len(x), -1, side, side)
    raise UsageError(
        f"trg relates patches, but a `feature` of shape {tuple(x.shape)} is no map (B, C, H, W) "
        "and no square of tokens (B, T, D); tap another module"
    )


def tokens_of(x: Tensor, grid: int, pixels: int = 0) -> Tensor:
    """The tokens of grid * grid patches, in the order of reading.

    A patch is the mean of its places; with `pixels`, the map is first resized to as many a side of
    each patch, and a token is all its numbers.
    Shapes: x (B, C, H, W) -> (B, grid^2, C), or (B, grid^2, C pixels^2).
    """
    if pixels == 0:
        return F.adaptive_avg_pool2d(x, grid).flatten(2).mT
    x = F.interpolate(x, (grid * pixels,) * 2, mode="bilinear", align_corners=False)
    return F.unfold(x, pixels, stride=pixels).mT


def graph(x: Tensor, k: int, sigma: float = 0.0) -> Tensor:
    """A_ij = exp(-|x_i - x_j|^2 / (2 sigma)) where i is one of the k nearest of j, or j; else 0.

    sigma 0 stands for the mean of |x_i - x_j|^2 over such pairs i != j, a constant.
    Shapes: x (N, D) -> (N, N).
    """
    n, x = len(x), x - x.mean(0)
    square = x.square().sum(1)
    d = (square + square[:, None] - 2 * x @ x.T).clamp_min(0)
    own = torch.eye(n, dtype=torch.bool, device=x.device)
    order = d.detach().masked_fill(own, torch.inf).topk(min(k, n - 1), 0, largest=False).indices
    near = torch.zeros_like(own).scatter_(0, order, True)
    width = torch.as_tensor(sigma, dtype=d.dtype, device=d.device)
    if not sigma:
        width = (d.detach() * near).sum() / near.sum().clamp_min(1)
    weights = (-d / (2 * width).where(width > 0, torch.inf)).exp()
    return weights.masked_fill(own, 1.0) * (near | own)


def local_loss(s: Tensor, t: Tensor, first: str = "student", sharpness: float = 1.0) -> Tensor:
    """KL between softmaxes of the rows of two graphs times `sharpness`, the mean over nodes.

    `first` is whose distribution comes first, as p in KL(p || q). Shapes: s, t (N, N) -> ().
    """
    s, t = sharpness * s, sharpness * t
    return (kl(t, s) if first == "student" else kl(s, t)).mean()


def contrast_loss(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """-log of softmax_j(cos(s_i, t_j) / tau) at j = i, the mean over nodes i.

    Shapes: s, t (N, D) -> ().
    """
    alike = F.normalize(s, dim=1) @ F.normalize(t, dim=1).T
    return F.cross_entropy(alike / tau, torch.arange(len(s), device=s.device))


def context(f: Tensor) -> Tensor:
    """softmax(f f^T / sqrt(D)), row by row, of each picture. Shapes: f (B, P, D) -> (B, P, P)."""
    return (f @ f.mT / math.sqrt(f.shape[2])).softmax(2)


@dataclass(frozen=True)
class TRG(Objective):
    """A student is taught how the patch tokens of a batch lie to each other in the teacher.

    label * CE(y, s) + kd * tau^2 KL at tau + inner * MSE(context(s), context(t))
    + local * KL(rows of graph(s), rows of graph(t)) + contrast * `contrast_loss` at a temperature
    that goes from `hot` to `cold` over the run, `anneal` in a "linear" or "cosine" way.
    Tokens are those of `feature`: `grid` patches a side (0: as many as the smaller map has places),
    `patch` "pooled" or "flattened". `inner` relates all tokens of a picture; the graph and the
    contrast have `sampled` tokens of each, drawn at random, at the same places of both sides.
    The graph joins each node with its `neighbours` nearest, found on each side by itself, by a
    Gaussian of width `sigma` (0: by their distances); its rows are multiplied by `sharpness` before
    the softmax, and `first` says whose comes first in the divergence.
    Large batches have more to relate: the paper's results rise up to 512.

    Trained: the student, and where tokens are of another width a linear map of the student's, for
    the contrast alone. Frozen: the teacher. Stopped: sigma.
    Raises: UsageError where a `feature` is neither a map nor a square of tokens.
    Source: Zhang, Liu and He, arXiv 2306.12442, section 3; the constants are this project's.
    Relatives: `rkd` relates whole pictures; `crd` contrasts them with a memory; `kd` is what is
    left without tokens.

    Example:
        >>> import torch
        >>> graph(torch.tensor([[0.0], [2.0], [3.0]]), k=1).gt(0).int().tolist()
        [[1, 0, 0], [1, 1, 1], [0, 1, 1]]
    """

    label: float = number(1.0, least=0)
    kd: float = number(1.0, least=0)
    inner: float = number(1.0, least=0)
    local: float = number(1.0, least=0)
    contrast: float = number(0.5, least=0)
    tau: float = number(4.0, above=0)
    grid: int = number(0, least=0)
    patch: Literal["pooled", "flattened"] = "pooled"
    sampled: int = number(6, least=1)
    neighbours: int = number(8, least=1)
    sigma: float = number(0.0, least=0)
    sharpness: float = number(1.0, above=0)
    first: Literal["student", "teacher"] = "student"
    hot: float = number(1.0, above=0)
    cold: float = number(0.1, above=0)
    anneal: Literal["linear", "cosine"] = "linear"
    card = CARD

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The map between widths, where they differ."""
        if not self.contrast:
            return nn.Module()
        here, there = (each.shape[2] for each in self.tokens(s, t))
        map_ = nn.Identity() if here == there else nn.Linear(here, there)
        return nn.ModuleDict({"map": map_})

    def tokens(self, s: Side, t: Side) -> tuple[Tensor, Tensor]:
        """Both sides' tokens (B, P, D), of the same patches."""
        mine, theirs = as_map(s.feature.float()), as_map(t.feature.float())
        least = min(*mine.shape[2:], *theirs.shape[2:])
        grid = self.grid or least
        pixels = -(-least // grid) if self.patch == "flattened" else 0
        return tokens_of(mine, grid, pixels), tokens_of(theirs, grid, pixels)

    def temperature(self, fraction: float) -> float:
        """The contrast's, at a `fraction` of the run."""
        if self.anneal == "cosine":
            fraction = (1 - math.cos(math.pi * fraction)) / 2
        return ramp(fraction, self.hot, self.cold)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `kd`, `inner`, `local` and `contrast`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        if self.inner or self.local or self.contrast:
            with torch.autocast(s.feature.device.type, enabled=False):
                out |= self._of_tokens(parts, *self.tokens(s, t), batch, clock)
        return out

    def _of_tokens(
        self, parts: Any, s: Tensor, t: Tensor, batch: Batch, clock: Clock
    ) -> dict[str, Tensor]:
        out = {}
        if self.inner:
            out["inner"] = self.inner * F.mse_loss(context(s), context(t))
        if not (self.local or self.contrast):
            return out
        drawn = clock.rng("tokens", batch.index).rand(s.shape[1]).argsort(1)[:, : self.sampled]
        s, t = (x.gather(1, drawn[..., None].expand(-1, -1, x.shape[2])) for x in (s, t))
        s, t = s.flatten(0, 1), t.flatten(0, 1)
        if self.local:
            mine, theirs = (graph(x, self.neighbours, self.sigma) for x in (s, t))
            out["local"] = self.local * local_loss(mine, theirs, self.first, self.sharpness)
        if self.contrast:
            tau = self.temperature(clock.fraction)
            out["contrast"] = self.contrast * contrast_loss(parts["map"](s), t, tau)
        return out
