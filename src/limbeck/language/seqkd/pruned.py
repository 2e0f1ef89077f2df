"""Weights that are removed by their size, and stay away while the rest is trained again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.core.joins import Gradients, Join, all_added
from limbeck.core.method import Clock

__all__ = ["Masked", "masks_of", "put_out"]


def masks_of(model: nn.Module, share: float) -> dict[str, Tensor]:
    """Which weights stay, bool by name of `model`: all but a `share` with the least magnitudes.

    All trained matrices (embeddings too, and what has more axes) are ranked together, "class-blind"
    in the words of See et al. (2016); biases and gains stay. Of N weights round(share N) go, of
    equal ones the earlier; tied ones count once.
    """
    ranked = {n: p for n, p in model.named_parameters() if p.requires_grad and p.dim() > 1}
    if not ranked:
        return {}
    sizes = torch.cat([p.detach().abs().float().flatten() for p in ranked.values()])
    keep = torch.ones_like(sizes, dtype=torch.bool)
    keep[sizes.argsort(stable=True)[: round(share * len(sizes))]] = False
    parts = torch.split(keep, [p.numel() for p in ranked.values()])
    return {n: part.view_as(p) for (n, p), part in zip(ranked.items(), parts, strict=True)}


@torch.no_grad()
def put_out(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights of `model` to zero that `masks` lack."""
    named = dict(model.named_parameters())
    for name, mask in masks.items():
        named[name].masked_fill_(~mask, 0)


@dataclass(frozen=True)
class Masked(Join):
    """The sum of the terms' gradients, without those of removed weights.

    Weights that are zero and never see a gradient stay zero under every optimiser there is, with
    momentum and weight decay too.

    Attributes:
        masks: of the student's weights, by their names in it.
    """

    masks: Mapping[str, Tensor]

    def join(self, grads: Mapping[str, Gradients], names: Sequence[str], clock: Clock) -> Gradients:
        total: Gradients = [None] * len(names)
        for each in grads.values():
            total = all_added(total, each)
        return [
            g if g is None or (mask := self._mask(name)) is None else g * mask
            for name, g in zip(names, total, strict=True)
        ]

    def _mask(self, name: str) -> Tensor | None:
        return self.masks.get(name.removeprefix("student."))
