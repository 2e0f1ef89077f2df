"""A student after a step that is not made, and the samples that judge it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from limbeck.core.data import Batch, Epochs
from limbeck.core.method import Clock
from limbeck.core.rng import generator
from limbeck.core.updates import under
from limbeck.core.views import entries_of, shown
from limbeck.errors import Missing, nearest

__all__ = ["Judges", "Rows", "Twin", "stepped"]


class Rows(Epochs):
    """Some samples of a set in epochs; they keep their numbers in the whole set."""

    def __init__(self, source: Any, rows: Tensor, name: str = "train", workers: int = 0) -> None:
        super().__init__(source, name, workers)
        self.own, self.samples = rows, len(rows)

    def first(self) -> Batch:
        return self.table.rows(self.own[:4], "first")

    def labels(self) -> Tensor | None:
        y = super().labels()
        return None if y is None else y[self.own]

    def numbers(self, clock: Clock, draw: int, n: int) -> tuple[int, Tensor]:
        epoch, places = super().numbers(clock, draw, n)
        return epoch, self.own[places]


class Judges(Rows):
    """The same without end: one permutation follows another, so that few fill a large batch."""

    def numbers(self, clock: Clock, draw: int, n: int) -> tuple[int, Tensor]:
        size = clock.batch // clock.of
        places = torch.arange(size) + draw * clock.batch + n * size
        rounds = places // self.samples
        first, last = int(rounds[0]), int(rounds[-1])
        orders = torch.stack(
            [
                torch.randperm(self.samples, generator=generator(clock.seed, k, "order"))
                for k in range(first, last + 1)
            ]
        )
        return first, self.own[orders[rounds - first, places % self.samples]]


class Twin(nn.Module):
    """A model's logits under weights that are not its own; what its layers move is left as it is.

    Args:
        model: the student.
        reader: from raw inputs to what it takes; None for nothing.
    """

    def __init__(self, model: nn.Module, reader: Any = None) -> None:
        super().__init__()
        self.model, self.reader = model, reader

    def forward(self, x: Any) -> Tensor:
        logits: Tensor = entries_of(shown(self.model, x, self.reader))["logits"]
        return logits

    def weights(self, through: str = "") -> tuple[dict[str, Tensor], list[str]]:
        """All weights, cut off from the model's graph, and the names of those that may step.

        Args:
            through: the module of which; "" for the whole model.
        """
        own = dict(self.model.named_parameters())
        moving = [
            n for n, p in own.items() if p.requires_grad and (not through or under(n, through))
        ]
        if not moving:
            raise Missing(
                f"the virtual step goes through '{through}', but no weights that are trained lie "
                f"there{nearest(through, own)}"
            )
        cut = {n: p.detach().clone().requires_grad_(n in moving) for n, p in own.items()}
        return cut, moving

    def logits(self, weights: Mapping[str, Tensor], x: Any) -> Tensor:
        """The logits (B, C) of inputs, such that gradients have gradients: by plain attention."""
        state = {f"model.{n}": w for n, w in weights.items()}
        state |= {f"model.{n}": b.clone() for n, b in self.model.named_buffers()}
        with sdpa_kernel(SDPBackend.MATH):
            out: Tensor = functional_call(self, state, (x,))
        return out


def stepped(
    loss: Tensor, weights: Mapping[str, Tensor], moving: list[str], lr: float
) -> dict[str, Tensor]:
    """Weights after one step of gradient descent on a loss, as functions of all that it holds."""
    grads = torch.autograd.grad(
        loss, [weights[n] for n in moving], create_graph=True, allow_unused=True
    )
    made = {n: weights[n] - lr * g for n, g in zip(moving, grads, strict=True) if g is not None}
    return {**weights, **made}
