"""A right method: every check passes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts, Mean, Objective, Rng, number
from limbeck.core.views import Side

CARD = Card(
    key="right",
    title="A right method: every check passes it",
    year=2024,
    arxiv="",
    code="",
    kinds=("response",),
    needs=("embedding", "student:logits", "y", "index"),
    gives="model",
    world="blobs",
    stages=("fit",),
    tiny={},
    departs="none known",
)
FAILS = ()


@dataclass(frozen=True)
class Right(Objective):
    """A student is taught the teacher's embedding beside the true labels.

    label * CE(y, s) + soft * |P s - t|^2 of embeddings.

    Both see inputs with noise of deviation `noise`. The mean embedding moves after the step, and
    `centre` pulls towards it; `pairs` is a mean in which a sample counts as its label says.

    Trained: the student, the projector. Frozen: the teacher.
    Source: none.
    Relatives: `kd`.

    Example:
        >>> Right().label
        0.5
    """

    label: float = number(0.5, least=0)
    soft: float = number(0.5, least=0)
    centre: float = number(0.1, least=0)
    pairs: float = number(0.1, least=0)
    noise: float = number(0.1, least=0)
    mode: Literal["plain", "half"] = "plain"  # how the centre pulls
    sizes: tuple[int, ...] = (1, 2)  # of nothing
    card = CARD

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        """Noise for each sample."""
        noise = self.noise * rng("noise", batch.index).randn(*batch.x.shape[1:])
        seen = batch.replace(x=batch.x + noise)
        return seen, seen

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The projector, and the centre."""
        parts = nn.Module()
        parts.project = nn.Linear(s.embedding.shape[1], t.embedding.shape[1])
        parts.register_buffer("centre", torch.zeros(t.embedding.shape[1]))
        return parts

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """One and the label, for each sample."""
        return {"pairs": (1 + batch.y).sum()} if self.pairs else {}

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Any]:
        """The weighted `label`, `soft`, `centre` and `pairs`."""
        out: dict[str, Any] = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.soft:
            shown = parts.project(s.embedding).float()
            out["soft"] = self.soft * F.mse_loss(shown, t.embedding.float())
        if self.centre:
            away = parts.project(s.embedding).float() - parts.centre
            scale = 0.5 if self.mode == "half" else 1.0
            out["centre"] = self.centre * scale * away.square().mean()
        if self.pairs:
            loss = (s.logits.float().square().mean(1) * (1 + batch.y)).sum()
            out["pairs"] = Mean(self.pairs * loss, (1 + batch.y).sum())
        return out

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> dict[str, Tensor]:
        """The teacher's embeddings."""
        return {"embedding": t.embedding.float()}

    def after_step(self, parts: Any, seen: Any, clock: Clock) -> None:
        """The centre moves."""
        parts.centre.mul_(0.9).add_(seen["embedding"].mean(0), alpha=0.1)
