"""WCoRD - embeddings brought together by both forms of a Wasserstein distance, wide and near."""

from __future__ import annotations

from collections.abc import Mapping
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
from limbeck.vision._kit.banks import Heads, moved, outside
from limbeck.vision.wcord.distance import Critic, dual_loss, primal_loss

CARD = Card(
    key="wcord",
    title="Wasserstein Contrastive Representation Distillation",
    year=2021,
    arxiv="2012.08674",
    code="",
    kinds=("feature", "contrast", "transport", "queue", "adversarial"),
    needs=("embedding", "student:logits", "y", "index"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={"negatives": 64, "dim": 16, "hidden": 16, "eps": 0.001},
    departs="There is no official code. Product pairs are averaged where the paper has their sum "
    "times M: otherwise a constant added to the critic would lower the loss without end. The "
    "paper's text does not settle the critic's shape (two layers of 128 on both embeddings), "
    "lckt = 0.05, eps and rounds, nor that pairs go both ways with their other end in crd's banks "
    "(a live end would be told from a bank's rows by its age, and all embeddings fall together); "
    "gckt = 0.8 is crd's. Negatives are drawn with replacement and are at most as many as there "
    "are samples. The plan is held fixed, as the envelope theorem allows at its optimum. "
    "The transfer between quantised colour channels is a task of its own.",
)
EXEMPT = {"accumulate": "the plan matches all samples of a micro-batch; it sees none of another"}


class Memory(Heads):
    """The two heads, and for the dual term the critic, both banks and who may be a negative.

    Buffers: `student`, `teacher` (N, D) embeddings of length 1; `ring` (2 N,) sample numbers by
    label, twice over; `span` (N, 2) where in it a sample's own lie.
    """

    def remember(self, labels: Tensor, dim: int, hidden: int, draw: torch.Generator) -> None:
        """Make the critic and random banks; labels (N,) say which samples are no negatives."""
        self.critic = Critic(dim, hidden)
        for side in ("student", "teacher"):
            bank = torch.randn(len(labels), dim, generator=draw)
            self.register_buffer(side, F.normalize(bank, dim=1))
        order = labels.argsort(stable=True)
        ends = [torch.searchsorted(labels[order], labels, right=right) for right in (False, True)]
        self.register_buffer("ring", order.repeat(2))
        self.register_buffer("span", torch.stack(ends, 1))


@dataclass(frozen=True)
class WCoRD(Objective):
    """A student's embedding is tied to the teacher's, over the whole set and within a batch.

    label * CE(y, s) + gckt * (pairs both ways of `dual_loss`) + lckt * `primal_loss`
    + kd * kd_tau^2 KL at kd_tau (0; WCoRD+KD has it). h_s and h_t are both embeddings through
    linear heads to `dim` numbers, at length 1. The dual, global term: a critic with layers of width
    `hidden`, 1-Lipschitz by spectral normalisation, is raised on joint pairs, an anchor and its own
    sample's row in the other side's bank of past embeddings, and lowered on product pairs, with the
    rows of `negatives` others. Critic, heads and student want the same; nobody plays against
    anyone. The primal, local term: the cost of an entropic transport plan between the h_t
    and the h_s of a micro-batch, `eps` its smoothness and `rounds` those of Sinkhorn.
    `policy`: negatives are of other "classes", or any other "samples" (without labels).

    For privileged information or another modality give the two sides readers of their own.
    Trained: the student, both heads, the critic. Frozen: the teacher. Stopped: banks and plan.
    Moved after the step: this step's rows, to normalise(momentum * row + (1 - momentum) * h).
    Raises: UsageError, where `policy` is "classes" and the classes are not known beforehand.
    Source: Liqun Chen et al., CVPR 2021, arXiv 2012.08674, sections 3.2 to 3.4; see `departs`.
    Relatives: `crd` tells pairs apart by their odds, with the same banks; `rkd` relates the
    samples of a batch.

    Example:
        >>> import torch
        >>> h = torch.eye(3)
        >>> round(float(primal_loss(h, h[[2, 0, 1]], 0.01, 20)), 5)  # sets match, in any order
        0.0
    """

    label: float = number(1.0, least=0)
    gckt: float = number(0.8, least=0)
    lckt: float = number(0.05, least=0)
    kd: float = number(0.0, least=0)
    negatives: int = number(16384, least=1)
    dim: int = number(128, least=1)
    hidden: int = number(128, least=1)
    momentum: float = number(0.5, least=0, below=1)
    policy: Literal["classes", "samples"] = "classes"
    eps: float = number(0.05, above=0)
    rounds: int = number(50, least=1)
    kd_tau: float = number(4.0, above=0)
    card = CARD

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """Heads, critic and random banks."""
        if not (self.gckt or self.lckt):
            return nn.Module()
        widths = s.embedding.flatten(1).shape[1], t.embedding.flatten(1).shape[1]
        parts, labels = Memory(widths, self.dim), torch.arange(facts.samples)
        if not self.gckt:
            return parts
        if self.policy == "classes":
            y = facts.labels
            if y is None or y.dim() != 1 or y.is_floating_point():
                told = "not in memory" if y is None else f"{tuple(y.shape)} {y.dtype}"
                raise UsageError(
                    f"wcord draws negatives of other classes, but the labels are {told}; give one "
                    "class number for each sample, as a tensor, or policy='samples'"
                )
            labels = y.long().cpu()
        parts.remember(labels, self.dim, self.hidden, rng("banks"))
        return parts

    def _dual(self, parts: Any, h_s: Tensor, h_t: Tensor, batch: Batch, clock: Clock) -> Tensor:
        """Joint pairs against product pairs, the anchor on either side."""
        n, (start, end) = len(parts.span), parts.span[batch.index].unbind(1)
        bits = clock.rng("negatives", batch.index).randint(2**31, min(self.negatives, n))
        rows = torch.cat((batch.index[:, None], outside(parts.ring, start, end, bits)), 1)
        with torch.autocast(h_s.device.type, enabled=False):
            one, two = parts.critic(rows, h_t, parts.student, parts.teacher, h_s)
        return dual_loss(one[:, 0], one[:, 1:]) + dual_loss(two[:, 0], two[:, 1:])

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `gckt`, `lckt` and `kd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.gckt or self.lckt:
            h_s, h_t = parts.embed(s, t)
        if self.gckt:
            out["gckt"] = self.gckt * self._dual(parts, h_s, h_t, batch, clock)
        if self.lckt:
            with torch.autocast(h_s.device.type, enabled=False):
                out["lckt"] = self.lckt * primal_loss(h_t, h_s, self.eps, self.rounds)
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.kd_tau).mean()
        return out

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> dict[str, Tensor]:
        """Number and both embeddings of each sample."""
        if not self.gckt:
            return {}
        with torch.no_grad():
            student, teacher = parts.embed(s, t)
        return {"index": batch.index, "student": student, "teacher": teacher}

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        """Move the rows of this step's samples; of a sample that came twice the last one counts."""
        if not seen:
            return
        banks = {"student": parts.student, "teacher": parts.teacher}
        moved(banks, seen, self.momentum)
