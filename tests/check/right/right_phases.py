"""A right method with a critic, ascent, a ready gradient and a fresh batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Given, Objective, number
from limbeck.core.task import Optimiser
from limbeck.core.updates import Phase
from limbeck.core.views import Side

CARD = Card(
    key="right_phases",
    title="A right method with a critic, ascent, a ready gradient and a fresh batch",
    year=2024,
    arxiv="",
    code="",
    kinds=("response",),
    needs=("logits", "y", "weights"),
    gives="model",
    world="blobs",
    stages=("fit",),
    tiny={},
    departs="none known",
)
FAILS = ()


@dataclass(frozen=True)
class RightPhases(Objective):
    """A student is taught the teacher's class probabilities beside the true labels.

    label * CE(y, s) + soft * KL(softmax(t) || softmax(s)); a critic tells student
    from teacher (tell), and the student fools it (fool); `decay` is a ready gradient.

    Trained: the critic, then the student. Frozen: the teacher.
    Source: none.
    Relatives: `kd`.

    Example:
        >>> RightPhases().label
        0.5
    """

    label: float = number(0.5, least=0)
    soft: float = number(0.5, least=0)
    tell: float = number(0.5, least=0)
    fool: float = number(0.1, least=0)
    decay: float = number(0.01, least=0)
    card = CARD

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The critic."""
        return nn.ModuleDict({"critic": nn.Linear(s.logits.shape[1], 1)})

    def update(self) -> tuple[Phase, ...]:
        """Twice the critic, upwards and each on a fresh batch; then the student."""
        up = {"parts.critic": Optimiser("sgd", 0.05, maximise=True)}
        critic = Phase("tell", ("parts.critic",), repeat=2, fresh=True, optimisers=up)
        student = Phase("fool", ("student",))
        return (critic, student) if self.tell else (student,)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Any]:
        """The weighted `tell`; or `label`, `soft`, `fool` and `decay`."""
        told = F.logsigmoid(parts.critic(s.logits).float()).mean()
        out: dict[str, Any] = {}
        if clock.phase == "tell":
            if self.tell:
                real = F.logsigmoid(-parts.critic(t.logits).float()).mean()
                out["tell"] = self.tell * (told + real)
            return out
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.soft:
            out["soft"] = self.soft * kl(s.logits, t.logits, 1.0).mean()
        if self.fool:
            out["fool"] = self.fool * told
        if self.decay:
            named = {f"student.{n}": p for n, p in s.model.named_parameters()}
            square = 0.5 * self.decay * sum(p.detach().square().sum() for p in named.values())
            gradient = {n: self.decay * p.detach() for n, p in named.items()}
            out["decay"] = Given(gradient, square)
        return out
