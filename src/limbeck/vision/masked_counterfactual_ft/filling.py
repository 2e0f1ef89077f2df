"""Masks over patches, what fills them, and the head that a zero-shot model begins with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UsageError


def cycle(u: Tensor) -> tuple[Tensor, Tensor]:
    """The order of the draws u (B,), and the rank of each sample in it (B,)."""
    order = u.argsort(stable=True)
    return order, order.argsort()


def single(u: Tensor) -> Tensor:
    """For each sample another one, by one random cycle; shapes: u (B,) draws -> (B,)."""
    order, rank = cycle(u)
    return order[(rank + 1) % len(u)]


def several(u: Tensor, shift: Tensor) -> Tensor:
    """For each patch another sample: so many ranks on; shapes: u (B,), shift (B, P) -> (B, P)."""
    order, rank = cycle(u)
    return order[(rank[:, None] + shift) % len(u)]


def refill(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """X where the mask is 0, and the pictures `source` at the same place where it is 1.

    Shapes: x (B, C, H, W), mask (B, h, w) bool, source (B,) or (B, h, w) -> (B, C, H, W).
    """
    size = x.shape[2:]

    def pixels(patches: Tensor) -> Tensor:  # the nearest patch of each pixel
        rows, columns = (
            torch.arange(n, device=x.device) * m // n
            for n, m in zip(size, patches.shape[1:], strict=True)
        )
        return patches[:, rows][:, :, columns][:, None]

    other = x[source] if source.dim() == 1 else x.gather(0, pixels(source).expand_as(x))
    return torch.where(pixels(mask), other, x)


def hidden(u: Tensor, p: float) -> Tensor:
    """Masks that leave int(P (1 - p)) patches of each picture; shapes: u (B, P) draws -> (B, P)."""
    keep = int(u.shape[1] * (1 - p))
    return u.argsort(1).argsort(1) >= keep


def zero_shot(embeddings: Tensor, scale: float) -> Tensor:
    """Scale times the unit mean of each class's unit text embeddings.

    Shapes: embeddings (C, prompts, D) -> (C, D).
    """
    return scale * F.normalize(F.normalize(embeddings.float(), dim=-1).mean(1), dim=-1)


class ZeroShot(nn.Module):
    """An image tower and a linear head on its features at unit length, which begins with prompts.

    The tower gives features (B, D), or a dict with "image_embeds". They are shown as `embedding`,
    not normalised.
    """

    def __init__(self, tower: nn.Module, embeddings: Tensor, scale: float) -> None:
        super().__init__()
        if embeddings.dim() != 3:
            raise UsageError(
                f"the prompts are of shape {tuple(embeddings.shape)}; give text embeddings (classes"
                ", prompts of a class, D)"
            )
        self.tower = tower
        self.head = nn.Linear(embeddings.shape[2], len(embeddings))
        with torch.no_grad():
            self.head.weight.copy_(zero_shot(embeddings, scale))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pictures -> {"logits" (B, C), "embedding" (B, D)}."""
        out = self.tower(x)
        feature = out["image_embeds"] if isinstance(out, Mapping) else out
        return {"logits": self.head(F.normalize(feature, dim=-1)), "embedding": feature}


def averaged(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """(1 - share) start + share end, by name; counters are the end's."""
    return {
        n: torch.lerp(start[n].to(p), p, share) if p.is_floating_point() else p
        for n, p in end.items()
    }
