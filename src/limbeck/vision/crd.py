"""CRD - a sample's two embeddings find each other among thousands of others'."""

from __future__ import annotations

import math
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

CARD = Card(
    key="crd",
    title="Contrastive Representation Distillation",
    year=2020,
    arxiv="1910.10699",
    code="https://github.com/HobbitLong/RepDistiller",
    kinds=("feature", "contrast", "queue"),
    needs=("embedding", "student:logits", "y", "index"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={"negatives": 64, "dim": 16},
    departs="Negatives are drawn with replacement (the code draws without, where there are "
    "enough), never number the sample itself (the code's draw without labels may), and are at most "
    "as many as there are samples. Z comes from all rows of the fresh banks and the first four "
    "samples, before the first step, not from the first batch's draws. The code's 1e-7 inside the "
    "logarithms is left out, which takes samples * 1e-7 off each direction's value.",
)
WHOLE = 32  # a bank with up to this many rows for each row asked for is multiplied as a whole


def similarities(anchor: Tensor, bank: Tensor, rows: Tensor, whole: bool | None = None) -> Tensor:
    """anchor_b . bank[rows_bk], by one of two roads to the same number.

    `whole` multiplies with all of the bank and picks: N D work for a sample, no (B, K, D) tensor.
    Otherwise rows are picked first: K D work, bound by memory. None takes the cheaper one.
    Shapes: anchor (B, D), bank (N, D) without gradient, rows (B, K) numbers -> (B, K).
    """
    if whole is None:
        whole = len(bank) <= WHOLE * rows.shape[1]
    with torch.autocast(anchor.device.type, enabled=False):
        if whole:
            return (anchor @ bank.T).gather(1, rows)
        return torch.bmm(bank[rows], anchor[:, :, None]).squeeze(2)


def nce(scores: Tensor, log_z: Tensor, samples: int, tau: float) -> Tensor:
    """-log D(positive) - sum_k log(1 - D(negative_k)), the mean over anchors; positives come first.

    D = h / (h + K / N) with h = exp(score / tau) / Z, that is D = sigmoid(u) with
    u = score / tau - log Z - log(K / N); N is `samples`.
    Shapes: scores (B, 1 + K), log_z () -> ().
    """
    u = scores / tau - log_z - math.log((scores.shape[1] - 1) / samples)
    return (F.softplus(-u[:, 0]) + F.softplus(u[:, 1:]).sum(1)).mean()


class Memory(Heads):
    """The two heads and the two banks.

    Buffers: `student`, `teacher` (N, D) embeddings; `log_z` (2,) of the student's and the teacher's
    anchors; `labels` (N,), -1 where not yet seen; `ring` (2 N,) numbers by label, twice over.
    """

    student: Tensor
    teacher: Tensor
    log_z: Tensor
    labels: Tensor
    ring: Tensor

    def __init__(
        self, widths: tuple[int, int], dim: int, labels: Tensor, generator: torch.Generator
    ) -> None:
        super().__init__(widths, dim)
        # Uniform in +-a has variance a^2 / 3, so with a^2 = 3 / D a row's expected square is 1.
        a = math.sqrt(3 / dim)
        for side in ("student", "teacher"):
            bank = (2 * torch.rand(len(labels), dim, generator=generator) - 1) * a
            self.register_buffer(side, bank)
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("labels", labels)
        self.register_buffer("ring", labels.argsort(stable=True).repeat(2))
        self.learns = bool((labels < 0).any())  # labels as they come by


@dataclass(frozen=True)
class CRD(Objective):
    """A student is taught the teacher's embedding, by telling its own sample from others in it.

    label * CE(y, s) + crd * (NCE(student anchors, teacher bank) + NCE(teacher anchors, student
    bank)) + kd * kd_tau^2 KL at kd_tau (0; the paper's CRD+KD has 1). NCE is `nce` at `tau`, among
    `negatives` samples; embeddings have `dim` numbers.

    `mode`: the positive is the same sample's row ("exact") or that of a random sample of its class
    ("relax"). `policy`: negatives are of other "classes", or any other "samples" (without labels).
    Labels that are not in memory are learnt as they come by: a row that was never moved is noise,
    whatever its class.

    Trained: the student and both heads. Frozen: the teacher, Z. Stopped: the banks. Moved after the
    step: rows of this step's samples, to normalise(momentum * row + (1 - momentum) * embedding).
    Raises: UsageError, where `policy` is "classes" and y is not one class number for each sample.

    Source: Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699, sections 3.1 and 4; constants,
    Z, banks and `mode` from the authors' code.
    Relatives: `kd` matches outputs; `wcord` bounds a Wasserstein distance with the same banks;
    `msdcrd` contrasts parts of pictures within a batch, without banks.

    Example:
        >>> import torch
        >>> bank, rows = torch.eye(4), torch.tensor([[0, 1, 2, 3]])
        >>> similarities(torch.eye(4)[:1], bank, rows).tolist()
        [[1.0, 0.0, 0.0, 0.0]]
    """

    label: float = number(1.0, least=0)
    crd: float = number(0.8, least=0)
    kd: float = number(0.0, least=0)
    negatives: int = number(16384, least=1)
    dim: int = number(128, least=1)
    tau: float = number(0.07, above=0)
    momentum: float = number(0.5, least=0, below=1)
    mode: Literal["exact", "relax"] = "exact"
    policy: Literal["classes", "samples"] = "classes"
    kd_tau: float = number(4.0, above=0)
    card = CARD

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """Heads, random banks, and Z: N times the mean of exp(score / tau) over the fresh banks."""
        if not self.crd:
            return nn.Module()
        n, labels = facts.samples, torch.arange(facts.samples)
        if self.policy == "classes":
            if batch.y.dim() != 1 or batch.y.is_floating_point():
                raise UsageError(
                    f"crd draws negatives of other classes, but y is {tuple(batch.y.shape)} "
                    f"{batch.y.dtype}; give one class number for each sample, or policy='samples'"
                )
            labels = torch.full((n,), -1) if facts.labels is None else facts.labels.long().cpu()
        widths = s.embedding.flatten(1).shape[1], t.embedding.flatten(1).shape[1]
        parts = Memory(widths, self.dim, labels, rng("banks")).to(s.embedding.device)
        for i, (anchor, bank) in enumerate(
            zip(parts.embed(s, t), (parts.teacher, parts.student), strict=True)
        ):
            parts.log_z[i] = (anchor @ bank.T / self.tau).logsumexp((0, 1)) - math.log(len(anchor))
        return parts

    def _own(self, batch: Batch) -> Tensor:
        own: Tensor = batch.y.long() if self.policy == "classes" else batch.index
        return own

    def _rows(self, parts: Any, batch: Batch, clock: Clock) -> Tensor:
        """The sample numbers that each anchor is compared with, (B, 1 + K): the positive first."""
        n, own = len(parts.labels), self._own(batch)
        places = parts.labels[parts.ring[:n]]
        start, end = torch.searchsorted(places, own), torch.searchsorted(places, own, right=True)
        positive = batch.index
        if self.mode == "relax":
            bits = clock.rng("positive", batch.index).randint(2**31)
            some = parts.ring[start + (bits * (end - start) >> 31)]
            positive = torch.where(end > start, some, positive)
        bits = clock.rng("negatives", batch.index).randint(2**31, min(self.negatives, n))
        return torch.cat((positive[:, None], outside(parts.ring, start, end, bits)), 1)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `crd` and `kd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.crd:
            rows, n = self._rows(parts, batch, clock), len(parts.labels)
            anchors, banks = parts.embed(s, t), (parts.teacher, parts.student)
            both = [
                nce(similarities(anchor, bank, rows), log_z, n, self.tau)
                for anchor, bank, log_z in zip(anchors, banks, parts.log_z, strict=True)
            ]
            out["crd"] = self.crd * (both[0] + both[1])
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.kd_tau).mean()
        return out

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> dict[str, Tensor]:
        """Number, label and both embeddings of each sample."""
        if not self.crd:
            return {}
        with torch.no_grad():
            student, teacher = parts.embed(s, t)
        return {
            "index": batch.index,
            "own": self._own(batch),
            "student": student,
            "teacher": teacher,
        }

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        """Move the rows of this step's samples; of a sample that came twice the last one counts."""
        if not seen:
            return
        banks = {"student": parts.student, "teacher": parts.teacher}
        index, last = seen["index"], moved(banks, seen, self.momentum)
        if parts.learns and not torch.equal(parts.labels[index], seen["own"][last]):
            parts.labels[index] = seen["own"][last]
            parts.ring.copy_(parts.labels.argsort(stable=True).repeat(2))
