"""DOT - the distillation terms of a method get a larger momentum than its label term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts, Objective, Rng, Term, number
from limbeck.core.updates import PerTerm, Phase, Total
from limbeck.core.views import Side
from limbeck.errors import Missing, UsageError
from limbeck.registry import make

CARD = Card(
    key="dot",
    title="DOT: A Distillation-Oriented Trainer",
    year=2023,
    arxiv="2307.08436",
    code="https://github.com/megvii-research/mdistiller",
    kinds=("optimiser", "response"),
    needs=("logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="Gradients are clipped, where the budget says so, by the norm of their sum. The "
    "weights 0.1 and 0.9 at tau 4 of `of` are mdistiller's, which the paper does not state.",
)


def momenta(mu: float, delta: float) -> PerTerm:
    """v_label <- (mu - delta) v_label + g_label + decay * w, v <- (mu + delta) v + g for the rest.

    Then w <- w - lr (v_label + v). A weight that only one of the two gradients reaches has
    momentum mu, and takes the decay with it. Buffers start as the first gradient.
    """
    return PerTerm({"label": mu - delta, "": mu + delta}, alone=mu, decay="label")


@dataclass(frozen=True)
class DOT(Objective):
    """A student is taught by another method, whose distillation terms move it with more momentum.

    The terms are those of `of`; SGD keeps a buffer with momentum mu - delta for `label`, which
    takes the weight decay, and one with mu + delta for all others (`momenta`). At a constant
    gradient that multiplies the rate by 1 / (1 - mu + delta) and 1 / (1 - mu - delta).

    Trained, frozen, stopped and moved after the step: what `of` says. The budget's optimiser must
    be SGD; mu takes the place of its momentum, and there is no Nesterov step.
    Raises: UsageError where a momentum leaves [0, 1), the budget has no SGD, or `of` is no
    objective or brings phases of its own; Missing where it has no term `label`.
    Source: Zhao et al., ICCV 2023, arXiv 2307.08436, section 3; delta 0.075 is that of CIFAR-100
    (240 epochs) and Tiny-ImageNet; 0.09 on ImageNet. The closer mu + delta is to 1, the longer the
    schedule has to be: 0.05 for short ones. delta < 0 is the reversed control.
    Relatives: `kd`, which it trains otherwise; delta = 0 is SGD on the sum of the terms.

    Example:
        >>> DOT(delta=0.05).update()[0].join.momenta
        {'label': 0.85, '': 0.9500000000000001}
    """

    of: str = "kd(label=0.1, kd=0.9, tau=4.0)"
    delta: float = 0.075  # 0 <= mu - delta and mu + delta < 1
    mu: float = number(0.9, least=0, below=1)
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        for sign, value in (("-", self.mu - self.delta), ("+", self.mu + self.delta)):
            if not 0 <= value < 1:
                raise UsageError(
                    f"DOT.mu {sign} DOT.delta is {value:g}; a momentum must be at least 0 and "
                    "below 1"
                )
        joins = [type(phase.join) for phase in self.inner.update() if phase.train]
        if joins != [Total]:
            raise UsageError(
                f"'{self.of}' trains in phases or by a join of its own; dot takes a method that "
                "trains on the sum of its terms"
            )

    @cached_property
    def inner(self) -> Objective:
        """The method that gives the terms."""
        made = make(self.of)
        if not isinstance(made, Objective):
            raise UsageError(
                f"'{self.of}' is not one fit with named terms; dot takes a method that is, as 'kd'"
            )
        return made

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> Mapping[str, Term]:
        """The terms of `of`, as they are."""
        out = self.inner.terms(parts, s, t, batch, clock)
        if "label" not in out:
            raise Missing(
                f"'{self.of}' gives the terms {', '.join(out) or 'none'}; dot needs one called "
                "'label': give it a weight above 0"
            )
        return out

    def update(self) -> tuple[Phase, ...]:
        join = momenta(self.mu, self.delta)
        return tuple(replace(p, join=join) if p.train else p for p in self.inner.update())

    def asks(self) -> tuple[str, ...]:
        return self.inner.asks()

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        return self.inner.build(s, t, batch, facts)

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        return self.inner.prepare(batch, rng)

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return self.inner.counts(batch)

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> Mapping[str, Tensor]:
        return self.inner.observe(parts, s, t, batch)

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        self.inner.after_step(parts, seen, clock)

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        return self.inner.deliver(student, parts)
