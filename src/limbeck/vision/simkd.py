"""SimKD - the student's last map is made the teacher's, whose classifier then answers for it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Objective, number
from limbeck.core.run import current
from limbeck.core.taps import UpTo, module_at
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.maps import alike, spatial

CARD = Card(
    key="simkd",
    title="Knowledge Distillation with the Reused Teacher Classifier",
    year=2022,
    arxiv="2203.14001",
    code="https://github.com/DefangChen/SimKD",
    kinds=("feature", "sharing"),
    needs=("feature", "teacher:embedding", "teacher:logits", "teacher_weights"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="Where the teacher's classifier does not take the mean of its map (a class token, a "
    "flattened map), the error is taken after pooling, which no code of the authors does. The "
    "projector ends in ReLU only where what it is to match has no negative values. With weights "
    "on labels or soft targets these see what is delivered; in the code they see the student's own "
    "classifier, which is not. Sides are pooled to the smaller one each, where the code compares "
    "heights. The depthwise convolution that the code has commented out is not there.",
)


class Projector(nn.Sequential):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm, ReLU between: a bottleneck between widths.

    (B, here, H, W) -> (B, out, H, W).

    Args:
        here: channels that come in.
        out: channels that go out.
        factor: inside there are out / factor channels, at least one.
        relu: whether it ends in ReLU.
    """

    def __init__(self, here: int, out: int, factor: int = 2, relu: bool = True) -> None:
        inside = max(1, out // factor)
        layers: list[nn.Module] = []
        for a, b, k in ((here, inside, 1), (inside, inside, 3), (inside, out, 1)):
            conv = nn.Conv2d(a, b, k, padding=k // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(b), nn.ReLU()]
        super().__init__(*(layers if relu else layers[:-1]))


class Reuse(nn.Module):
    """What goes on top of a student: pooling to a grid, the projector, the teacher's classifier.

    Args:
        project: from the student's map to the teacher's channels.
        classifier: from (B, D) to (B, C).
        grid: places that the student's map is averaged down to before; None leaves it.
        pooled: whether the error is taken after pooling.
    """

    def __init__(
        self,
        project: nn.Module,
        classifier: nn.Module,
        grid: tuple[int, int] | None,
        pooled: bool,
    ) -> None:
        super().__init__()
        self.project, self.classifier = project, classifier
        self.grid, self.pooled = grid, pooled

    def forward(self, x: Tensor) -> Tensor:
        """The student's last map, tokens or vector -> the projected map (B, D, h, w)."""
        x = spatial(x, "simkd projects the last map of the student")
        projected: Tensor = self.project(F.adaptive_avg_pool2d(x, self.grid) if self.grid else x)
        return projected

    def logits(self, projected: Tensor) -> Tensor:
        """The projected map (B, D, h, w) -> the teacher's classifier's logits (B, C)."""
        found: Tensor = self.classifier(projected.mean((2, 3)))
        return found


class Reused(nn.Module):
    """A student that answers by the teacher's classifier.

    Args:
        encoder: gives {"feature": its last map, tokens or vector}.
        top: what goes on it.
    """

    def __init__(self, encoder: nn.Module, top: Reuse) -> None:
        super().__init__()
        self.encoder, self.top = encoder, top

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """From what the student takes -> (B, C)."""
        return self.top.logits(self.top(self.encoder(*args, **kwargs)["feature"]))


@dataclass(frozen=True)
class SimKD(Objective):
    """A student is taught to show what the teacher's own classifier takes, and gets that one.

    align * mean squared error of P(f_s) and f_t, the maps before pooling (the larger one averaged
    down to the other's places), P three convolutions with a bottleneck of D / factor channels.
    Delivered: student, P, the mean over places, the teacher's classifier; the student's own is left
    as it was. Labels and soft targets are not needed: label * CE(y, z) + kd * tau^2
    KL(softmax(t / tau) || softmax(z / tau)) are there for comparison, z the delivered logits.

    at: "map", or "pooled", the squared error of the mean of P(f_s) and what the teacher's
    classifier takes; "auto" is "map" where that is the mean of the teacher's map.

    Trained: the student up to its map, and P. Frozen: the teacher and its classifier.
    Raises: UsageError where no tap says which module the teacher's classifier is, the teacher's
    map is not what it takes (at = "map"), or a feature is no map, tokens or vector.
    Source: Chen et al., CVPR 2022, arXiv 2203.14001, section 3; the projector and factor 2 also
    stand in the authors' code, where 4 and 8 make it smaller.
    Relatives: `fitnets` regresses a map in the middle and keeps the student's classifier; `srd`
    compares embeddings.

    Example:
        >>> sum(w.numel() for w in Projector(16, 64).parameters() if w.dim() == 4)
        11776
    """

    align: float = number(1.0, least=0)
    label: float = number(0.0, least=0)
    kd: float = number(0.0, least=0)
    tau: float = number(4.0, above=0)
    factor: int = number(2, least=1)
    at: Literal["auto", "map", "pooled"] = "auto"
    card = CARD

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The projector, and a frozen copy of the teacher's classifier."""
        classifier, pooled = self._classifier(t), self.at == "pooled" or not _pools(t)
        if pooled and self.at == "map":
            raise UsageError(
                "simkd's at='map' needs a teacher whose classifier takes the mean of its map, and "
                f"of the feature {tuple(t.feature.shape)} it does not; tap what is pooled before "
                "it as 'feature', or give at='pooled'"
            )
        here = spatial(s.feature, "simkd projects the last map of the student")
        there = spatial(t.embedding if pooled else t.feature, "simkd matches the teacher's map")
        small, _ = alike(here, there)
        grid = None if pooled or small.shape == here.shape else (small.shape[2], small.shape[3])
        project = Projector(here.shape[1], there.shape[1], self.factor, float(there.min()) >= 0)
        return Reuse(project, classifier, grid, pooled)

    def _classifier(self, t: Side) -> nn.Module:
        """A copy of the module that takes the teacher's embedding."""
        task = current().task
        path = task.taps.get("embedding", (None, None))[0] if task else None
        name, _, end = str(path).partition(":")
        if end != "in":
            raise UsageError(
                "simkd reuses the module that takes the teacher's embedding, but the tap of that "
                f"is {path!r}; name its input, as in taps={{'embedding': ('head:in', 'head:in')}}"
            )
        found = copy.deepcopy(module_at(t.model, name, "teacher")).requires_grad_(False)
        for module in found.modules():  # the hooks of taps came along
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        like = next(found.parameters(), t.embedding)
        logits = found(t.embedding.to(like.dtype))
        if logits.shape != t.logits.shape or not _same(logits, t.logits):
            raise UsageError(
                f"simkd reuses the teacher's module '{name}' as its classifier, but what that "
                "gives are not the teacher's logits; tap the input of its last layer as 'embedding'"
            )
        return found

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `align`, `label` and `kd`."""
        out, projected = {}, parts(s.feature)
        wide = torch.promote_types(projected.dtype, torch.float32)
        if self.align and parts.pooled:
            error = F.mse_loss(projected.to(wide).mean((2, 3)), t.embedding.to(wide))
            out["align"] = self.align * error
        elif self.align:
            _, there = alike(projected, spatial(t.feature, "simkd matches the teacher's map"))
            out["align"] = self.align * F.mse_loss(projected.to(wide), there.to(wide))
        if self.label or self.kd:
            z = parts.logits(projected)
        if self.label:
            out["label"] = self.label * F.cross_entropy(z.float(), batch.y)
        if self.kd:
            out["kd"] = self.kd * kl(z, t.logits, self.tau).mean()
        return out

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        """The student up to its map, the projector, and the teacher's classifier."""
        task = current().task
        path = task.taps.get("feature", (None, None))[1] if task else None
        if not isinstance(path, str):
            raise UsageError(
                "simkd delivers the teacher's classifier on the student's last map; name that, as "
                "in taps={'feature': ('body', 'body')}"
            )
        return Reused(UpTo(student, path, "feature"), parts).train(student.training)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to half precision's rounding."""
    gap = (one.float() - other.float()).abs().max()
    return bool(gap <= 1e-2 * other.float().abs().max().clamp_min(1e-6))


def _pools(t: Side) -> bool:
    """Whether what the teacher's classifier takes is the mean of its map."""
    x = t.feature
    mean = spatial(x, "").mean((2, 3)) if x.dim() in (2, 4) else None
    return mean is not None and mean.shape == t.embedding.shape and _same(mean, t.embedding)
