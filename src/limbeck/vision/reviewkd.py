"""ReviewKD - the student's deep stages help to match the teacher's shallow ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Objective, number
from limbeck.core.run import rng
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.maps import spatial
from limbeck.vision._kit.stages import paired

CARD = Card(
    key="reviewkd",
    title="Distilling Knowledge via Knowledge Review",
    year=2021,
    arxiv="2104.09044",
    code="https://github.com/dvlab-research/ReviewKD",
    kinds=("feature", "schedule"),
    needs=("blocks", "embedding", "student:logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="Epochs of the warm-up are counted from 1, as in mdistiller; the authors' code has the "
    "weight 0 in the first. Stages are what the taps give, most often after ReLU; the code "
    "takes the teacher's before it. The weight is that of ResNet32x4 to ResNet8x4. Where one side "
    "has more stages, those at the same share of its depth are taken. Levels of the pyramid are "
    "compared with the smaller side of a map, in the code with its height. Detection and instance "
    "segmentation are other tasks.",
)


def hcl(o: Tensor, t: Tensor, levels: Sequence[int] = (4, 2, 1)) -> Tensor:
    """The mean of squared errors at full size and of averages over l x l, l in levels.

    The first weighs 1 and each further one half of the one before; levels that are no smaller
    than the maps are left out.
    Shapes: o, t (B, D, H, W) -> ().
    """
    total, weight, weights = F.mse_loss(o, t), 1.0, 1.0
    for level in levels:
        if level < min(o.shape[2:]):
            weight /= 2
            one, two = (F.adaptive_avg_pool2d(x, level) for x in (o, t))
            total = total + weight * F.mse_loss(one, two)
            weights += weight
    return total / weights


class ABF(nn.Module):
    """Attention-based fusion of a stage with what comes from the deeper ones.

    Args:
        here: channels of the stage.
        width: channels inside.
        out: channels of the teacher's stage.
        fuse: whether there are deeper stages.
        draws: for the weights of the first and the last convolution.
    """

    def __init__(
        self, here: int, width: int, out: int, fuse: bool, draws: torch.Generator | None = None
    ) -> None:
        super().__init__()
        enter, leave = (
            nn.Conv2d(here, width, 1, bias=False),
            nn.Conv2d(width, out, 3, padding=1, bias=False),
        )
        for conv in (enter, leave):
            nn.init.kaiming_uniform_(conv.weight, a=1, generator=draws)
        self.enter = nn.Sequential(enter, nn.BatchNorm2d(width))
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(out))
        self.attend = nn.Conv2d(2 * width, 2, 1) if fuse else None

    def forward(
        self, x: Tensor, deeper: Tensor | None, places: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """From a stage and what the deeper one passed on to what is compared and is passed on.

        Shapes: x (B, here, H, W), deeper (B, width, I, J), places of the teacher's stage (h, w) ->
        (B, out, h, w), (B, width, h, w).
        """
        x = self.enter(x)
        if self.attend is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            g = self.attend(torch.cat((x, deeper), 1)).sigmoid()
            x = x * g[:, :1] + deeper * g[:, 1:]
        if tuple(x.shape[2:]) != tuple(places):
            x = F.interpolate(x, tuple(places), mode="nearest")
        return self.leave(x), x


def reviewed(abfs: Sequence[nn.Module], s: Sequence[Tensor], t: Sequence[Tensor]) -> list[Tensor]:
    """What is compared with each of the teacher's maps t: the student's maps s through abfs."""
    deeper, found = None, []
    for abf, x, y in zip(reversed(list(abfs)), reversed(s), reversed(t), strict=True):
        out, deeper = abf(x, deeper, y.shape[2:])
        found.append(out)
    return found[::-1]


@dataclass(frozen=True)
class ReviewKD(Objective):
    """A student's stages, each fused with its deeper ones, are taught the teacher's, maps as maps.

    label * CE(y, s) + review * w * (the sum of HCL(o_k, t_k) over stages k)
    + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)), w = min(epoch / warmup, 1) with epochs
    from 1 (warmup = 0: w = 1). From deep to shallow, r_k = g a_k + h up(r_{k+1}) with a_k the
    stage in `width` channels at most, by a 1x1 convolution and BatchNorm, and g, h sigmoids of a
    1x1 convolution of both; o_k is r_k through a 3x3 convolution and BatchNorm. HCL is the squared
    error at full size and of averages over `levels`, the mean with weights 1, 1/2, 1/4, ...
    The stages are both sides' `blocks` and, as the deepest, their embeddings (`pooled`).
    fuse="none" has r_k = a_k: no review.

    Trained: the student, convolutions and BatchNorms, which are then dropped. Frozen: the teacher,
    whose maps are compared as they are.
    Raises: UsageError for a stage that is no map, no square of tokens and no vector.
    Source: Chen, Liu, Zhao and Jia, CVPR 2021, arXiv 2104.09044, section 3; constants from the
    authors' code: review is 0.6 to 8 by pair, 1 without warm-up on ImageNet.
    Relatives: `fitnets` matches one map; `ofa_kd` puts classifiers on stages; `simkd` matches the
    last map alone.

    Example:
        >>> import torch
        >>> o = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
        >>> float(hcl(o, torch.zeros(1, 1, 2, 2)))
        0.1875
    """

    label: float = number(1.0, least=0)
    review: float = number(5.0, least=0)
    kd: float = number(0.0, least=0)
    tau: float = number(4.0, above=0)
    warmup: int = number(20, least=0)
    width: int = number(512, least=1)  # channels inside, at most
    levels: tuple[int, ...] = (4, 2, 1)
    fuse: Literal["attention", "none"] = "attention"
    pooled: bool = True
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(level >= 1 for level in self.levels):
            raise UsageError(f"ReviewKD.levels is {self.levels}; each must be at least 1")

    def _stages(self, s: Side, t: Side) -> tuple[list[Tensor], list[Tensor]]:
        """Both sides' stages as maps."""
        pairs = paired(s.blocks, t.blocks, "reviewkd fuses maps")
        one, two = [a for a, _ in pairs], [b for _, b in pairs]
        if self.pooled:
            one.append(spatial(s.embedding, "reviewkd fuses maps"))
            two.append(spatial(t.embedding, "reviewkd fuses maps"))
        return one, two

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """A fusion for each stage."""
        if not self.review:
            return nn.Module()
        one, two = self._stages(s, t)
        width, last, draws = min(self.width, one[-1].shape[1]), len(one) - 1, rng("fusions")
        return nn.ModuleList(
            ABF(x.shape[1], width, y.shape[1], self.fuse == "attention" and k < last, draws)
            for k, (x, y) in enumerate(zip(one, two, strict=True))
        )

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `review` and `kd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.review:
            one, two = self._stages(s, t)
            total = torch.zeros((), device=one[0].device)
            for o, y in zip(reviewed(parts, one, two), two, strict=True):
                wide = torch.promote_types(o.dtype, torch.float32)
                total = total + hcl(o.to(wide), y.to(wide), self.levels)
            warm = min((clock.epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0
            out["review"] = self.review * warm * total
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        return out
