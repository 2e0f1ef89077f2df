"""The fits, each as what it minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts, Objective, Rng
from limbeck.core.views import Side
from limbeck.multimodal.av_emotion_kd.losses import (
    balanced_loss,
    ccc_loss,
    class_weights,
    distil_loss,
    triplet_loss,
)
from limbeck.multimodal.av_emotion_kd.networks import augmented


class Heads(nn.Module):
    """The weights of the classes, and the head for valence and arousal, where it is trained."""

    weights: Tensor

    def __init__(self, weights: Tensor, dim: int, values: int) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.affect: nn.Module = nn.Linear(dim, values) if values else nn.Identity()


@dataclass(frozen=True)
class Visual(Objective):
    """The teacher of faces, or one that is taught by it.

    A batch is one of labelled faces with, beside it, `triplets` (B, 3, C, H, W) and, for who is
    taught, `unlabelled` faces. Both sides see them all in a row.
    """

    m: Any  # the method
    taught: bool

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        values = batch.affect.shape[1] if self.m.affect else 0
        weights = class_weights(facts.labels, s.logits.shape[1])
        return Heads(weights, s.embedding.shape[1], values)

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        """All faces in a row: labelled, triplets, unlabelled; changed for who is taught."""
        sets = [("labelled", batch.x, batch.index)]
        three = batch.triplets.x
        at = 3 * batch.triplets.index[:, None] + torch.arange(3, device=three.device)
        sets.append(("triplets", three.flatten(0, 1), at.flatten()))
        if self.taught:
            sets.append(("unlabelled", batch.unlabelled.x, batch.unlabelled.index))
        plain = torch.cat([x for _, x, _ in sets])
        if not self.taught:
            return batch.replace(x=plain), batch

        def own(name: str) -> Rng:
            return lambda what, index: rng(f"{name} {what}", index)

        changed = torch.cat([augmented(x, own(name), at, self.m) for name, x, at in sets])
        return batch.replace(x=changed), batch.replace(x=plain)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m, n, out = self.m, len(batch), {}
        if m.triplet:
            three = s.embedding[n : n + 3 * len(batch.triplets)].view(len(batch.triplets), 3, -1)
            margin = three.new_full((len(three),), m.margin)
            if "one_class" in batch.triplets:
                margin = torch.where(batch.triplets.one_class, m.margin_one, margin)
            out["triplet"] = m.triplet * triplet_loss(three, margin)
        if m.label:
            out["label"] = m.label * balanced_loss(s.logits[:n], batch.y, parts.weights)
        if m.affect:
            out["affect"] = m.affect * ccc_loss(parts.affect(s.embedding[:n]), batch.affect)
        if self.taught and m.kd:
            each = distil_loss(s.embedding, t.embedding, s.logits, t.logits, m.tau, m.match)
            sizes = [n, 3 * len(batch.triplets), len(batch.unlabelled)]
            means = [rows.mean() for rows in torch.split(each, sizes)]
            out["kd"] = m.kd * torch.stack(means).mean()
        return out


@dataclass(frozen=True)
class Audio(Objective):
    """What is followed, from sounds alone."""

    m: Any

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        y = batch.y.view_as(s.logits)
        return {"audio": self.m.audio * F.mse_loss(s.logits.float(), y.float())}


@dataclass(frozen=True)
class Follow(Objective):
    """The last stage, on whole sequences."""

    m: Any

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        if not self.m.ccc:
            return {}
        p, y = s.logits, batch.y
        if y.dim() == 2:
            p, y = p[..., None], y[..., None]
        return {"ccc": self.m.ccc * ccc_loss(p, y)}
