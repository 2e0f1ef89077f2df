"""Embeddings that a small network makes of embeddings, while they are trained."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, skip_init

__all__ = ["Hyper", "put", "taken"]

STD = 0.02  # of the network's weights at the beginning


class Hyper(nn.Module):
    """E + last(LN(x + MLP(x))), x = (E - mean) / deviation + place, each row by itself.

    It is one layer of a transformer without attention. `last` begins at zero, and so E as it is.

    Args:
        rows: E (V, H) at the beginning, of which mean and deviation are taken, by column.
        generator: for the weights.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, rows: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        width = rows.shape[1]
        self.place = nn.Parameter(torch.zeros(width))
        self.inner, self.outer, self.last = (
            skip_init(nn.Linear, *sizes)  # type: ignore[no-untyped-call]
            for sizes in ((width, 2 * width), (2 * width, width), (width, width))
        )
        self.norm = nn.LayerNorm(width, eps=1e-12)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=STD, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        known = rows.detach().cpu()
        self.register_buffer("mean", known.mean(0))
        self.register_buffer("deviation", known.std(0, correction=0) + 1e-8)
        self.to(rows.device)

    def forward(self, rows: Tensor) -> Tensor:
        """The embeddings (V, H) that are used."""
        x = (rows - self.mean) / self.deviation + self.place
        made: Tensor = self.last(self.norm(x + self.outer(F.gelu(self.inner(x)))))
        return rows + made * self.deviation


def _layers(student: Any) -> list[nn.Module]:
    """The layers whose weights are embeddings: of the input, and of the output where it has any."""
    both = (student.get_input_embeddings(), student.get_output_embeddings())
    return [layer for layer in both if layer is not None]


def put(student: nn.Module, generator: torch.Generator) -> None:
    """Have a network make a student's embeddings, in place; tied ones share it."""
    found: dict[int, Hyper] = {}
    for layer in _layers(student):
        weight: Any = layer.weight
        if id(weight) not in found:
            found[id(weight)] = Hyper(weight, generator)
        parametrize.register_parametrization(layer, "weight", found[id(weight)])


@torch.no_grad()
def taken(student: nn.Module) -> None:
    """Take the network away and leave what it made, in place."""
    layers = _layers(student)
    made: list[Any] = [layer.weight.detach().clone() for layer in layers]  # type: ignore[operator]
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    for layer, rows in zip(layers, made, strict=True):
        layer.weight.copy_(rows)  # type: ignore[operator]
