"""Models of two modalities, for the worlds whose inputs are {"a": ..., "b": ...}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bench.worlds._models import Taps


@dataclass(frozen=True)
class Only:
    """A reader: one modality of x."""

    name: str

    def __call__(self, x: Mapping[str, Any]) -> Any:
        """{"a": ..., "b": ...} -> the one."""
        return x[self.name]


class Wave(nn.Module):
    """A classifier of waveforms: convolutions over time, each halving it, then two linear layers.

    Args:
        length: of a waveform, a multiple of 2 ** len(widths).
        classes: number of logits.
        widths: channels, one number a convolution.
    """

    def __init__(self, length: int, classes: int, widths: Sequence[int] = (16, 32)) -> None:
        super().__init__()
        here, stages = 1, []
        for width in widths:
            stages.append(nn.Sequential(nn.Conv1d(here, width, 5, 2, 2), nn.ReLU()))
            here = width
        self.body = nn.Sequential(*stages)
        flat = here * (length >> len(widths))
        self.hidden = nn.Sequential(nn.Linear(flat, here), nn.ReLU(), nn.Linear(here, here))
        self.head = nn.Linear(here, classes)
        self.taps: Taps = {"mid": "hidden.0", "feature": "hidden.2", "embedding": "head:in"}

    def forward(self, b: Tensor) -> Tensor:
        """(B, T) -> (B, classes)."""
        return self.head(self.hidden(self.body(b[:, None]).flatten(1)).relu())  # type: ignore[no-any-return]


class Alone(nn.Module):
    """A model of one modality that is called with both.

    Args:
        name: of the modality that it looks at.
        model: takes this one.
    """

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.name, self.model = name, model

    def forward(self, **x: Tensor) -> Tensor:
        """What the model gives of its modality."""
        return self.model(x[self.name])  # type: ignore[no-any-return]


class Both(nn.Module):
    """A classifier of both modalities: a branch for each, and layers on what they say together.

    Args:
        a, b: branches with a `head`, whose inputs are joined; the heads themselves are dropped.
        classes: number of logits.
        width: hidden units on top.
    """

    def __init__(self, a: nn.Module, b: nn.Module, classes: int, width: int = 64) -> None:
        super().__init__()
        here = 0
        for branch in (a, b):
            assert isinstance(branch.head, nn.Linear)
            here += branch.head.in_features
            branch.head = nn.Identity()
        self.a, self.b = a, b
        self.fuse = nn.Sequential(nn.Linear(here, width), nn.ReLU(), nn.Linear(width, width))
        self.head = nn.Linear(width, classes)
        self.taps: Taps = {"mid": "fuse.0", "feature": "fuse.2", "embedding": "head:in"}

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """A batch of each -> (B, classes)."""
        joined = torch.cat((self.a(a), self.b(b)), 1)
        return self.head(self.fuse(joined).relu())  # type: ignore[no-any-return]
