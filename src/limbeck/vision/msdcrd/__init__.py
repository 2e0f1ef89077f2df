"""MSDCRD - local features of several sizes find their teacher's among those of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Objective, number
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision.msdcrd.windows import (
    Local,
    as_map,
    feature_wise,
    head_of,
    local,
    on_one_grid,
    sample_wise,
)

CARD = Card(
    key="msdcrd",
    title="Contrastive Representation Distillation via Multi-Scale Feature Decoupling",
    year=2025,
    arxiv="2502.05835",
    code="",
    kinds=("feature", "contrast", "cross_architecture"),
    needs=("feature", "student:logits", "y", "index", "teacher_weights"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={"cap": 64},
    departs="There is no official code, and the open text gives no formulas: the three steps and "
    "both losses are the paper's, their form here is this project's. Windows are those of adaptive "
    "averages; a grid with more cells than the map has places is left out. Local features are "
    "sorted by what the teacher's last linear layer says of them. Windows of one picture are no "
    "negatives of each other. The temperature, both weights, the cap and the projector (a 1x1 "
    "convolution and BatchNorm, where widths differ; the abstract's method has no parameters) are "
    "not the paper's figures. Detectors, to whose features the paper applies it as well, are "
    "another task.",
)
EXEMPT = {
    "accumulate": "negatives are the other pictures of a micro-batch; it sees none of another",
    "doubled": "a picture and its copy are negatives of each other",
}


@dataclass(frozen=True)
class MSDCRD(Objective):
    """A student is taught the teacher's features of parts of a picture, told from other pictures'.

    label * CE(y, s) + the sum over two groups of sample_wise * L_s + feature_wise * L_f + kd *
    kd_tau^2 KL at kd_tau (0). Both sides' maps, on the smaller grid, are averaged over the windows
    of a k x k grid for each k in `scales`, 1 being the whole. A window whose class by the teacher's
    classifier is that of the whole is in one group, all others in a second one, which are content
    of another kind (one group, with categorise=False); student windows go with the teacher's.
    L_s contrasts windows (rows) and L_f channels (columns) within a group, both at `tau`, see
    `sample_wise` and `feature_wise`. Windows of one picture are no negatives, but for
    keep_same_image. Of a group with more than `cap` windows as many are drawn.

    The tap `feature` is the last map, patch tokens (those before them are dropped) or a vector;
    the teacher's just as its head takes it, after its last norm.

    Trained: the student, and where widths differ a projector, which is then dropped. Frozen: the
    teacher. Stopped: its features and the groups.
    Raises: UsageError for features of unknown shape, scales that all exceed the grid, or a teacher
    without a linear layer for its features where categorise is on.
    Source: Wang and Wang, arXiv 2502.05835, by its abstracts; CIFAR-100 recipe of `crd`.
    Relatives: `crd` contrasts whole pictures with banks; with scales=(1,), feature_wise=0 this is
    its form within a batch.

    Example:
        >>> import torch
        >>> s = t = torch.eye(4)
        >>> round(float(sample_wise(s, t, tau=1.0)), 6), round(float(feature_wise(s, t, 1.0)), 6)
        (0.743668, 0.743668)
    """

    label: float = number(1.0, least=0)
    sample_wise: float = number(1.0, least=0)
    feature_wise: float = number(1.0, least=0)
    kd: float = number(0.0, least=0)
    tau: float = number(0.1, above=0)
    scales: tuple[int, ...] = (1, 2, 4)  # each once, from 1
    categorise: bool = True
    keep_same_image: bool = False
    cap: int = number(1024, least=2)
    kd_tau: float = number(4.0, above=0)
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        once = len(set(self.scales)) == len(self.scales)
        if not self.scales or not once or min(self.scales) < 1:
            raise UsageError(f"MSDCRD.scales is {self.scales}; name scales from 1, each once")

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The projector, and the teacher's classifier."""
        if not (self.sample_wise or self.feature_wise):
            return nn.Module()
        here, there = as_map(s.feature), as_map(t.feature)
        local(on_one_grid(here, there)[0], self.scales)  # refuses scales that do not fit
        width = there.shape[1]
        head = head_of(t.model, width) if self.categorise else None
        return Local((here.shape[1], width), head)

    def groups(
        self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each group the student's and teacher's vectors (N, D), and their pictures (N,)."""
        maps = parts.project(as_map(s.feature)).float(), as_map(t.feature).detach().float()
        u_s, u_t = (local(x, self.scales) for x in on_one_grid(*maps))
        b, m = u_t.shape[:2]
        image = torch.arange(b, device=u_t.device).repeat_interleave(m)
        there = torch.ones(b, m, dtype=torch.bool, device=u_t.device)
        sorted_ = [there]
        if self.categorise:
            same = parts.agree(u_t, maps[1].mean((2, 3)))
            sorted_ = [same, ~same]
        found = []
        for group in sorted_:
            rows = group.flatten().nonzero()[:, 0]
            if len(rows) > self.cap:
                draws = clock.rng("windows", batch.index).rand(m).flatten()
                rows = rows[draws[rows].argsort()[: self.cap]]
            found.append((u_s.flatten(0, 1)[rows], u_t.flatten(0, 1)[rows], image[rows]))
        return found

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `sample_wise`, `feature_wise` and `kd`."""
        out: dict[str, Tensor] = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        contrasts = self.sample_wise or self.feature_wise
        groups = self.groups(parts, s, t, batch, clock) if contrasts else []
        if self.sample_wise:
            each = [
                sample_wise(a, b, None if self.keep_same_image else image, self.tau)
                for a, b, image in groups
            ]
            out["sample_wise"] = self.sample_wise * torch.stack(each).sum()
        if self.feature_wise:
            columns = [feature_wise(a, b, self.tau) for a, b, _ in groups]
            out["feature_wise"] = self.feature_wise * torch.stack(columns).sum()
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.kd_tau).mean()
        return out
