"""Wrong: what it delivers is more than its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side

CARD = Card(
    key="record",
    title="Wrong: what it delivers is more than its tensors",
    year=2024,
    arxiv="",
    code="",
    kinds=("response",),
    needs=("logits", "y"),
    gives="model",
    world="blobs",
    stages=("fit",),
    tiny={},
    departs="none known",
)
FAILS = ("record",)


class Named(nn.Module):
    """A model that keeps a text in its state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """The model's answer."""
        return self.model(x)

    def get_extra_state(self) -> str:
        """The text."""
        return "a text"


@dataclass(frozen=True)
class Record(Objective):
    """A student is taught the teacher's class probabilities beside the true labels.

    label * CE(y, s) + soft * KL(softmax(t) || softmax(s)).

    Trained: the student. Frozen: the teacher.
    Source: none.
    Relatives: `kd`.

    Example:
        >>> Record().label
        0.5
    """

    label: float = number(0.5, least=0)
    soft: float = number(0.5, least=0)
    card = CARD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Any]:
        """The weighted `label` and `soft`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.soft:
            out["soft"] = self.soft * kl(s.logits, t.logits, 1.0).mean()
        return out

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        """The student with a text."""
        return Named(student)
