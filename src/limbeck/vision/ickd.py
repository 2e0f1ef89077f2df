"""ICKD - what the channels of a map have in common with each other is the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Objective, number
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.grams import gram
from limbeck.vision._kit.maps import alike, spatial

CARD = Card(
    key="ickd",
    title="Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation",
    year=2021,
    arxiv="2202.03680",
    code="https://github.com/ADLab-AutoDrive/ICKD",
    kinds=("response", "feature", "relation"),
    needs=("feature", "logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The paper prints plain inner products over c^2 (norm='none'); the default is the "
    "authors' code, to which the weight belongs: rows of length 1, over c. A channel that is zero "
    "everywhere keeps a row of zeros. Patch tokens count as maps, without those of the class, and "
    "a vector as a map of one place. Segmentation, for which the paper has the grid, is another "
    "task; here its form serves classification.",
)
DOES = "ickd relates the channels of maps"


def parts_of(x: Tensor, n: int) -> Tensor:
    """A map x cut into n by n equal parts: (B, C, H, W) -> (B, n * n, C, H * W / n^2).

    Raises:
        UsageError: n does not divide its sides.
    """
    b, c, h, w = x.shape
    if h % n or w % n:
        raise UsageError(
            f"ickd cuts maps into {n} by {n} equal parts, but one has {h} by {w} places; give a "
            "grid that divides them, or tap another module"
        )
    cut = x.reshape(b, c, n, h // n, n, w // n).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(b, n * n, c, -1)


def channel_loss(
    s: Tensor, t: Tensor, norm: Literal["rows", "none"] = "rows", grid: int = 1
) -> Tensor:
    """|A_s - A_t|_F^2 / c, A = F F^T with rows of length 1; the mean over samples and parts.

    F (c, places) is a part of a sample's map, of `grid` by `grid` parts. With `norm` "none" A stays
    as it is, over c^2, and the larger map is averaged down to the other's places first.
    Shapes: s (B, c, H, W), t (B, c, I, J) -> ().
    """
    if norm == "none":
        s, t = alike(s, t)
    a, b = (gram(parts_of(x, grid), norm) for x in (s, t))
    return (a - b).square().mean() * (len(a[0, 0]) if norm == "rows" else 1)


@dataclass(frozen=True)
class ICKD(Objective):
    """A student is taught what the channels of the teacher's map have in common.

    label * CE(y, s) + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)) + ickd * the mean over
    samples of |A_s - A_t|_F^2 / c, where A = F F^T (c, c) of a map F (c, places), each row divided
    by its length (`norm` "none": as it is, over c^2). The student's map passes a connector before,
    a 1x1 convolution without bias and BatchNorm, to the teacher's c channels. Places of the two
    maps may differ. `grid` n > 1 cuts maps into n by n parts and takes the mean over them.
    Maps are `feature`, the last ones before pooling.

    Trained: the student, and the connector, which is then dropped. Frozen: the teacher.
    Raises: UsageError for features that are no maps, squares of tokens or vectors, and for a grid
    that does not divide their sides.
    Source: Liu et al., ICCV 2021, arXiv 2202.03680, section 3; rows, 2.5 and 1 from the authors'
    code for CIFAR-100 (kd = 0: its 'without KL').
    Relatives: `sp` relates samples in the same way; `fitnets` compares the maps themselves.

    Example:
        >>> import torch
        >>> s = torch.eye(2).reshape(1, 2, 1, 2)
        >>> t = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).reshape(1, 2, 2, 1)
        >>> round(float(channel_loss(s, t)), 6)
        0.398466
    """

    label: float = number(1.0, least=0)
    kd: float = number(1.0, least=0)
    tau: float = number(4.0, above=0)
    ickd: float = number(2.5, least=0)
    norm: Literal["rows", "none"] = "rows"
    grid: int = number(1, least=1)  # parts along each side of a map
    card = CARD

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The connector from the student's channels to the teacher's."""
        if not self.ickd:
            return nn.Module()
        here, out = (spatial(side.feature, DOES).shape[1] for side in (s, t))
        conv = nn.Conv2d(here, out, 1, bias=False)
        return nn.ModuleDict({"connector": nn.Sequential(conv, nn.BatchNorm2d(out))})

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `kd` and `ickd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        if self.ickd:
            mine, theirs = (spatial(side.feature, DOES) for side in (s, t))
            mine = parts["connector"](mine)
            out["ickd"] = self.ickd * channel_loss(mine, theirs, self.norm, self.grid)
        return out
