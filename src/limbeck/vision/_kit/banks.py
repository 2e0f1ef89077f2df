"""Banks of past embeddings of both sides: heads, who is compared with whom, and how rows move."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.views import Side

__all__ = ["Heads", "moved", "outside"]


class Heads(nn.Module):
    """A linear head for each side's embedding, whose results have length 1.

    Args:
        widths: of the student's and the teacher's embeddings.
        dim: of what the heads give.
    """

    def __init__(self, widths: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.head_s, self.head_t = (nn.Linear(width, dim) for width in widths)

    def embed(self, s: Side, t: Side) -> tuple[Tensor, Tensor]:
        """Both sides' embeddings through the heads: student, teacher (B, D)."""
        pairs = (self.head_s, s.embedding), (self.head_t, t.embedding)
        first, second = (
            F.normalize(head(x.flatten(1).to(head.weight.dtype)).float(), dim=1)
            for head, x in pairs
        )
        return first, second


def outside(ring: Tensor, start: Tensor, end: Tensor, bits: Tensor) -> Tensor:
    """Sample numbers, uniform over those whose place in an order lies outside [start, end).

    Where nothing lies outside, uniform over all.
    Shapes: ring (2 N,) the order twice over; start, end (B,) places; bits (B, K) uniform in
    [0, 2^31) -> (B, K).
    """
    n = len(ring) // 2
    own = torch.where(end - start < n, end - start, 0)
    return ring[end[:, None] + (bits * (n - own)[:, None] >> 31)]


def moved(banks: Mapping[str, Tensor], seen: Mapping[str, Tensor], momentum: float) -> Tensor:
    """Move the rows of a step's samples, in place: normalise(momentum row + (1 - momentum) h).

    Args:
        banks: (N, D) each, by name.
        seen: "index" (B,), the samples' numbers, and under each bank's name their h (B, D).
        momentum: what stays of a row.

    Returns:
        Of each sample the place in the step of its last h (B,): of one that came twice that counts.
    """
    index = seen["index"]
    order = torch.arange(len(index), device=index.device)
    samples = len(next(iter(banks.values())))
    last = order.new_zeros(samples).scatter_reduce(0, index, order, "amax")[index]
    for name, bank in banks.items():
        bank[index] = F.normalize(momentum * bank[index] + (1 - momentum) * seen[name][last], dim=1)
    return last
