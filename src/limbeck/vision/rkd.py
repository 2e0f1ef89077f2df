"""RKD - distances and angles between the samples of a batch are the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="rkd",
    title="Relational Knowledge Distillation",
    year=2019,
    arxiv="1904.05068",
    code="https://github.com/lenscloth/RKD",
    kinds=("relation", "feature"),
    needs=("embedding", "student:logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The paper writes sums over pairs and triples of different samples; here, as in the "
    "authors' code, losses are means over all B^2 pairs and B^3 triples, to which the weights "
    "belong. Samples that coincide have no direction and pass no gradient, where that code "
    "multiplies theirs by 1e12. Distances come from differences, so that such a pair is at zero "
    "and does not count for the mean distance; that code bounds it from below by 1e-6. Batches are "
    "drawn as for any task, where its metric learning takes five pictures of each of some classes. "
    "Few-shot learning by prototypical networks is another task.",
)
EXEMPT = {"accumulate": "it relates the samples of a micro-batch; pairs across two are not seen"}


def unit(x: Tensor) -> Tensor:
    """X / |x| along the last dimension; zero, without gradient, where x is zero. (..., D)."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length.where(length > 0, torch.inf)


def distances(e: Tensor) -> Tensor:
    """|e_i - e_j| / mu, with mu the mean of those that are not zero.

    Shapes: e (B, D) -> (B, B). The gradient passes through mu.
    """
    length: Tensor = (e[None] - e[:, None]).norm(dim=2)
    mu = length.sum() / (length > 0).sum().clamp(min=1)
    return length / mu.where(mu > 0, torch.inf)


def angles(e: Tensor) -> Tensor:
    """The cosine at j between the directions to i and to k; zero where i or k coincides with j.

    Shapes: e (B, D) -> (B, B, B) by j, i, k; no tensor is larger than this and (B, B, D).
    """
    to = unit(e[None] - e[:, None])  # j, i: from j to i
    return to @ to.mT


def relational(s: Tensor, t: Tensor, relation: Literal["distance", "angle"]) -> Tensor:
    """The mean of huber(psi(s) - psi(t)), huber(d) = d^2 / 2 for |d| <= 1, else |d| - 1 / 2.

    psi is the relation: `distances` or `angles`. Shapes: s (B, D), t (B, E) -> ().
    """
    psi = distances if relation == "distance" else angles
    return F.smooth_l1_loss(psi(s), psi(t))


def negatives(e: Tensor, y: Tensor, u: Tensor) -> Tensor:
    """Samples of other classes, drawn so that all distances are about equally likely.

    For sample a, n of another class has a weight of D^(2 - d) (1 - D^2 / 4)^((3 - d) / 2), the
    inverse of how many points of the unit sphere lie at D = |e_a - e_n|, which counts as 1/2 at
    least; from 1.4 on it has none, and where all lie beyond, all are equally likely. Without
    samples of other classes any sample is drawn.
    Shapes: e (B, d), y (B,) classes, u (B, N) uniform draws -> (B, N) sample numbers, N for each.
    """
    e = e.detach().double()
    far, d = (e[None] - e[:, None]).norm(dim=2).clamp(min=0.5), e.shape[1]
    other = y[:, None] != y
    near = other & (far < 1.4)
    log = (2 - d) * far.log() + (3 - d) / 2 * (1 - far.clamp(max=1.4).square() / 4).log()
    log, near = log * near.any(1, keepdim=True), torch.where(near.any(1, keepdim=True), near, other)
    up_to = log.masked_fill(~near, -torch.inf).softmax(1).nan_to_num(1).cumsum(1)
    return torch.searchsorted(up_to, u.double() * up_to[:, -1:], right=True)


def triplet_loss(e: Tensor, y: Tensor, n: Tensor, margin: float) -> Tensor:
    """The mean of max(|e_a - e_p| - |e_a - e_n| + margin, 0) over pairs a, p of one class.

    0 where there are no such pairs. Shapes: e (B, D), y (B,), n (B, B) sample numbers, of each
    pair the `negatives` -> ().
    """
    far: Tensor = (e[None] - e[:, None]).norm(dim=2)
    alike = y[:, None] == y
    pairs = alike & ~alike.all() & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    each = (far - far.gather(1, n) + margin).relu()
    return (each * pairs).sum() / pairs.sum().clamp(min=1)


@dataclass(frozen=True)
class RKD(Objective):
    """A student is taught how the teacher's embeddings of a batch lie to each other.

    label * CE(y, s) + distance * mean_ij huber(|s_i - s_j| / mu_s - |t_i - t_j| / mu_t)
        + angle * mean_ijk huber(cos(s_i, s_j, s_k) - cos(t_i, t_j, t_k))
        + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)) (0; the paper's HKD + RKD has 1)
        + triplet * mean_ap max(|s_a - s_p| - |s_a - s_n| + margin, 0) (0), with a and p of one
    class, and for each such pair an n of another, drawn by its distance from a (`negatives`).
    cos is that of the angle at j. Widths may differ, as no projector is needed: scaling, moving and
    turning all embeddings of a side changes neither relation. `normalise` says which sides'
    embeddings are brought to length 1 first: "both", only the "teacher", or "none".

    Defaults are those of classification. For metric learning label = 0, distance = 1, angle = 2,
    normalise = "teacher"; or with the task's own loss, which the paper compares, triplet = 1.

    Trained: the student. Frozen: the teacher.
    Raises: UsageError for fewer than three samples, whose relations are always the same, and for
    triplets of what has no class.
    Source: Park, Kim, Lu and Cho, CVPR 2019, arXiv 1904.05068, section 3.2; weights, means and
    which sides are normalised from the authors' code (25, 50, both, and 1, 2, teacher), and so are
    the triplets' margin and draw (by distance: Wu et al., ICCV 2017).
    Relatives: `crd` contrasts single embeddings; `kd` matches outputs one by one.

    Example:
        >>> import torch
        >>> line = torch.tensor([[0.0], [1.0], [3.0]])
        >>> distances(line)[0].tolist()
        [0.0, 0.5, 1.5]
        >>> float(relational(2 * line + 5, line, "distance"))
        0.0
    """

    label: float = number(1.0, least=0)
    distance: float = number(25.0, least=0)
    angle: float = number(50.0, least=0)
    kd: float = number(0.0, least=0)
    tau: float = number(4.0, above=0)
    triplet: float = number(0.0, least=0)
    margin: float = number(0.2, least=0)
    normalise: Literal["both", "teacher", "none"] = "both"
    card = CARD

    def _embedding(self, side: Side, normalised: bool) -> Tensor:
        """A side's embeddings (B, D) in float32 or wider, with length 1 where asked for."""
        e = side.embedding.flatten(1)
        e = e.to(torch.promote_types(e.dtype, torch.float32))
        if len(e) < 3:
            raise UsageError(
                f"rkd relates the samples of a micro-batch to each other, but this one has "
                f"{len(e)}; give at least 3, by a larger batch or less accumulation"
            )
        return unit(e) if normalised else e

    def _triplets(self, e: Tensor, y: Tensor, clock: Clock) -> Tensor:
        """The `triplet_loss` of the student's embeddings, with drawn negatives."""
        if y.shape != e.shape[:1] or y.is_floating_point():
            raise UsageError(
                f"rkd's triplets are of samples of one class and of others, but y is "
                f"{tuple(y.shape)} {y.dtype}; give one class number for each sample, or triplet=0"
            )
        u = torch.rand(len(y), len(y), generator=clock.rng("negatives")).to(e.device)
        return triplet_loss(e, y, negatives(e, y, u), self.margin)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `distance`, `angle`, `kd` and `triplet`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.distance or self.angle or self.triplet:
            mine = self._embedding(s, self.normalise == "both")
        if self.distance or self.angle:
            theirs = self._embedding(t, self.normalise != "none")
        if self.distance:
            out["distance"] = self.distance * relational(mine, theirs, "distance")
        if self.angle:
            out["angle"] = self.angle * relational(mine, theirs, "angle")
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        if self.triplet:
            out["triplet"] = self.triplet * self._triplets(mine, batch.y, clock)
        return out
