"""SLA - labels joined with the number of an input transformation, and what they agree on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Objective, Rng, number
from limbeck.core.run import current
from limbeck.core.taps import UpTo
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="sla",
    title="Self-supervised Label Augmentation via Input Transformations",
    year=2020,
    arxiv="1910.05872",
    code="https://github.com/hankook/SLA",
    kinds=("self", "teacher_free", "response", "augmentation", "self_supervised"),
    needs=("student:logits", "student:embedding", "y"),
    gives="model",
    world="digits(teacher='none')",
    stages=("fit",),
    tiny={},
    departs="The single classifier of the self-distillation is the student's own head, where the "
    "paper adds one beside the joint head: the same network. Its weight beta is named `label`.",
)


def views(x: Tensor, rotations: int = 4, colours: int = 1) -> Iterator[Tensor]:
    """The M = rotations * colours transformed versions of pictures, the pictures themselves first.

    Rotations by 0, 90, 180, 270 degrees (4), 0 and 180 (2) or none (1); of each all permutations of
    the three channels in the order of the alphabet (6), the cyclic ones (3) or none (1).
    Shapes: x (B, C, H, W) -> M times (B, C, H, W).
    """
    if x.dim() != 4:
        raise UsageError(
            f"sla turns pictures (B, C, H, W), but was given inputs of shape {tuple(x.shape)}"
        )
    if rotations == 4 and x.shape[2] != x.shape[3]:
        raise UsageError(
            f"pictures of {x.shape[2]} x {x.shape[3]} change their shape when they are turned by "
            "90 degrees; give square ones, or rotations=2"
        )
    if colours > 1 and x.shape[1] != 3:
        raise UsageError(
            f"sla permutes three channels, but the pictures have {x.shape[1]}; give colours=1"
        )
    every = list(permutations(range(3)))
    orders = every if colours == 6 else [every[0], every[3], every[4]][:colours]
    for quarter in range(0, 4, 4 // rotations):
        turned = torch.rot90(x, quarter, (2, 3))
        for order in orders:
            yield turned[:, list(order)] if order != every[0] else turned


def joint_loss(u: Tensor, y: Tensor) -> Tensor:
    """CE(u(x_j), y M + j), the mean over samples and transformations j.

    Shapes: u (B M, N M), row b M + j for version j of sample b; y (B,) -> ().
    """
    m = len(u) // len(y)
    joint = y[:, None] * m + torch.arange(m, device=y.device)
    return F.cross_entropy(u.float(), joint.flatten())


def aggregated(u: Tensor, m: int) -> Tensor:
    """agg_i = mean over j of u(x_j)[i m + j]: each version's logits for being itself, averaged.

    Shapes: u (B m, N m), row b m + j for version j of the m of sample b -> (B, N).
    """
    return u.reshape(-1, m, u.shape[1] // m, m).diagonal(dim1=1, dim2=3).mean(-1)


class Joint(nn.Module):
    """A student with a joint head as a classifier of N classes.

    Args:
        encoder: gives {"embedding": (B, D)}.
        head: from (B, D) to (B, N M).
        rotations, colours: see `views`.
        single: look at the picture itself only, instead of averaging over all M versions.
    """

    def __init__(
        self, encoder: nn.Module, head: nn.Module, rotations: int, colours: int, single: bool
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.rotations, self.colours, self.single = rotations, colours, single

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N)."""
        m = self.rotations * self.colours
        seen = [x] if self.single else views(x, self.rotations, self.colours)
        logits = [self.head(self.encoder(v)["embedding"])[:, j::m] for j, v in enumerate(seen)]
        return torch.stack(logits).mean(0)


@dataclass(frozen=True)
class SLA(Objective):
    """A student learns class and transformation as one label, and from its own average over them.

    sla * CE(u(x_j), y M + j) over the M = `rotations` * `colours` versions x_j of each picture (for
    `reduction` their mean, or for large sets their sum), u the joint head; and for infer="sd"
    + label * CE(s, y) + distil * tau^2 KL(softmax(agg / tau) || softmax(s / tau)) on the picture
    itself, agg_i = mean over j of u(x_j)[i M + j], s the student's own logits.

    `infer` says what is delivered: "sd" the student, one pass; "ag" the joint head's average over M
    passes; "si" its logits (i, 0) of one pass. The last two learn from the joint labels alone.
    Trained: the student and the joint head. Stopped: agg.
    Every step sees M times the batch. Versions are made of the inputs as the data gives them, in
    "ag" of those that the student takes: a reader should treat rotations and channels alike.

    Raises:
        UsageError: inputs are no pictures, or not square or of three channels where they must be;
            more classes than the student has logits; no tap of its embedding for "ag" and "si".

    Source: Lee, Hwang and Shin, ICML 2020, arXiv 1910.05872, section 2; tau, beta (here `label`)
        and the sum for large sets from the authors' code.
    Relatives: `kd` has a teacher for what `agg` is here.

    Example:
        >>> import torch
        >>> u = torch.zeros(8, 12)  # two pictures, four rotations, three classes
        >>> round(float(joint_loss(u, torch.tensor([0, 2])).exp()), 3)
        12.0
    """

    sla: float = number(1.0, least=0)
    label: float = number(1.0, least=0)
    distil: float = number(1.0, least=0)
    tau: float = number(1.0, above=0)
    rotations: Literal[1, 2, 4] = 4
    colours: Literal[1, 3, 6] = 1
    reduction: Literal["mean", "sum"] = "mean"
    infer: Literal["sd", "ag", "si"] = "sd"
    card = CARD

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The joint head, on what the student's own head takes."""
        classes = s.logits.shape[1]
        if facts.classes is not None and facts.classes > classes:
            raise UsageError(
                f"the labels are of {facts.classes} classes, but the student has {classes} logits; "
                "give a student with one logit a class"
            )
        outputs = classes * self.rotations * self.colours
        return nn.ModuleDict({"head": nn.Linear(s.embedding.shape[1], outputs)})

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        """All versions of each picture, in rows b M + j, for both sides."""
        x = torch.stack(list(views(batch.x, self.rotations, self.colours)), 1)
        seen = batch.replace(x=x.flatten(0, 1))
        return seen, seen

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `sla`, and for infer="sd" `label` and `distil`."""
        m, both = self.rotations * self.colours, self.infer == "sd"
        out = {}
        if self.sla or (both and self.distil):
            u = parts.head(s.embedding).float()
        if self.sla:
            weight = self.sla * (m if self.reduction == "sum" else 1)
            out["sla"] = weight * joint_loss(u, batch.y)
        if both and self.label:
            out["label"] = self.label * F.cross_entropy(s.logits[::m].float(), batch.y)
        if both and self.distil:
            soft = kl(s.logits[::m], aggregated(u, m).detach(), self.tau)
            out["distil"] = self.distil * soft.mean()
        return out

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        """The student, or it with the joint head."""
        if self.infer == "sd":
            return student
        task = current().task
        path = task.taps.get("embedding", (None, None))[1] if task else None
        if not isinstance(path, str):
            raise UsageError(
                f"sla's infer='{self.infer}' delivers the joint head on the student's embedding; "
                "name it, as in taps={'embedding': (None, 'head:in')}"
            )
        encoder = UpTo(student, path, "embedding")
        single = self.infer == "si"
        return Joint(encoder, parts.head, self.rotations, self.colours, single)
