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
    "and does not count for the mean distance; that code bounds it from below by 1e-6.",
    lacks=(
        "the triplet loss that one row of the metric-learning experiments adds; label=0 trains on "
        "relations alone",
        "the few-shot experiments with prototypical networks",
    ),
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


@dataclass(frozen=True)
class RKD(Objective):
    """A student is taught how the teacher's embeddings of a batch lie to each other.

    label * CE(y, s) + distance * mean_ij huber(|s_i - s_j| / mu_s - |t_i - t_j| / mu_t)
        + angle * mean_ijk huber(cos(s_i, s_j, s_k) - cos(t_i, t_j, t_k))
        + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)) (0; the paper's HKD + RKD has 1).
    cos is that of the angle at j. Widths may differ, as no projector is needed: scaling, moving and
    turning all embeddings of a side changes neither relation. `normalise` says which sides'
    embeddings are brought to length 1 first: "both", only the "teacher", or "none".

    Defaults are those of classification. For metric learning label = 0, distance = 1, angle = 2,
    normalise = "teacher".

    Trained: the student. Frozen: the teacher.
    Raises: UsageError for fewer than three samples, whose relations are always the same.
    Source: Park, Kim, Lu and Cho, CVPR 2019, arXiv 1904.05068, section 3.2; weights, means and
    which sides are normalised from the authors' code (25, 50, both, and 1, 2, teacher).
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
    normalise: Literal["both", "teacher", "none"] = "both"
    card = CARD

    def _embeddings(self, s: Side, t: Side) -> tuple[Tensor, Tensor]:
        """Both sides' embeddings, (B, D) and (B, E), in float32 or wider, normalised as said."""
        first, second = (
            e.flatten(1).to(torch.promote_types(e.dtype, torch.float32))
            for e in (s.embedding, t.embedding)
        )
        if len(first) < 3:
            raise UsageError(
                f"rkd relates the samples of a micro-batch to each other, but this one has "
                f"{len(first)}; give at least 3, by a larger batch or less accumulation"
            )
        first = unit(first) if self.normalise == "both" else first
        return first, second if self.normalise == "none" else unit(second)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `distance`, `angle` and `kd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.distance or self.angle:
            both = self._embeddings(s, t)
            if self.distance:
                out["distance"] = self.distance * relational(*both, "distance")
            if self.angle:
                out["angle"] = self.angle * relational(*both, "angle")
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        return out
