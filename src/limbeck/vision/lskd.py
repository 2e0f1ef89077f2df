"""LSKD - each sample's logits are standardised over its classes before they are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts, Objective, Rng, Term
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.registry import make

CARD = Card(
    key="lskd",
    title="Logit Standardization in Knowledge Distillation",
    year=2024,
    arxiv="2403.01427",
    code="https://github.com/sunshangquan/logit-standardization-KD",
    kinds=("response",),
    needs=("logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The deviation is the paper's, whose divisor is the number of classes C; the authors' "
    "code has C - 1, which is deviation='sample'. Logits that are all equal pass no gradient, "
    "where that code multiplies theirs by 1e7. Before mlkd with masks='each', the instance level's "
    "mask is taken of Z-scores.",
    lacks=("CTKD, the one of the paper's four methods that is not in this library",),
)
EPS = 1e-7  # beside the deviation
Deviation = Literal["population", "sample"]


def standardised(z: Tensor, deviation: Deviation = "population", eps: float = EPS) -> Tensor:
    """(z - mean z) / (sigma + eps), mean and sigma over the last dimension: a Z-score.

    sigma^2 = sum (z - mean z)^2 / C, or over C - 1 for the deviation of a "sample". The gradient
    passes through both; logits that are all equal become 0 without one.
    Shapes: z (..., C) logits -> (..., C), at least float32.
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    centred = z - z.mean(-1, keepdim=True)
    n = z.shape[-1] - (deviation == "sample")
    sigma: Tensor = centred.norm(dim=-1, keepdim=True) / math.sqrt(max(n, 1))
    varies = sigma > 0
    return centred.where(varies, 0) / (sigma + eps).where(varies, 1)


class Seen(Side):
    """A side whose logits go through a step, if there is one.

    Another on the same `looks` gets the same looks again, by their order, without new passes.
    """

    def __init__(
        self, side: Side, step: Callable[[Tensor], Tensor] | None, looks: list[Any]
    ) -> None:
        self._side, self._step, self._looks, self._at = side, step, looks, 0
        self._made: Tensor | None = None

    def __call__(self, batch: Batch | Any) -> Side:
        if self._at == len(self._looks):
            self._looks.append((self._side(batch), []))
        side, looks = self._looks[self._at]
        self._at += 1
        return Seen(side, self._step, looks)

    @property
    def model(self) -> nn.Module:
        """The module itself."""
        return self._side.model

    @property
    def batch(self) -> Batch:
        """The batch as this side sees it."""
        return self._side.batch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name != "logits" or self._step is None:
            return getattr(self._side, name)
        if self._made is None:
            self._made = self._step(self._side.logits)
        return self._made


@dataclass(frozen=True)
class LSKD(Objective):
    """A student is taught by another method on logits, each sample's standardised on both sides.

    The terms are those of `of`; all but those named in `plain` see Z(z) = (z - mean z) / sigma in
    the place of logits, mean and `deviation` sigma over the classes of a sample. By default
    label * CE(y, s) + kd * tau^2 KL(softmax(Z(t) / tau) || softmax(Z(s) / tau)):
    each sample and side has a temperature of its own, tau * sigma, so that the student need not
    have the teacher's spread of logits. The true labels see plain logits, which are what ships, and
    so do the levels of `mlkd` over samples and classes.

    With two classes Z is 1 and -1, and no gradient is left.

    Trained, frozen, stopped and moved after the step: what `of` says.
    Raises: UsageError where `of` is no single fit with named terms.
    Source: Sun et al., CVPR 2024, arXiv 2403.01427, algorithm 1; weights and tau of CIFAR-100 are
    the authors' code's. It has 9 times dkd's weights, of='dkd(tckd=9, nckd=72, tau=2)', and 10
    times mlkd's at a base temperature of 2 for 4.
    Relatives: `kd`, `dkd`, `mlkd`, which it is put before; `luminet` standardises a class over the
    batch; `dist` takes correlations of probabilities, which it tends to at high tau.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0, 0.0, 3.0]])
        >>> [round(v, 4) for v in standardised(z)[0].tolist()]
        [-0.7071, -0.7071, 1.4142]
        >>> torch.allclose(standardised(5 * z + 7), standardised(z))
        True
    """

    of: str = "kd(label=0.1, kd=9.0, tau=2.0)"
    deviation: Deviation = "population"
    plain: tuple[str, ...] = ("label", "samples", "classes")  # terms that see logits as they are
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.inner  # a wrong `of` is refused here

    @cached_property
    def inner(self) -> Objective:
        """The method that gives the terms."""
        made = make(self.of)
        if not isinstance(made, Objective) or type(made).run is not Objective.run:
            raise UsageError(
                f"'{self.of}' is not one fit with named terms; lskd takes a method that is, as 'kd'"
            )
        return made

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The terms of `of`, of standardised logits but for those named in `plain`."""
        step, of_s, of_t = partial(standardised, deviation=self.deviation), list[Any](), list[Any]()
        scores = Seen(s, step, of_s), Seen(t, step, of_t)
        out = dict(self.inner.terms(parts, *scores, batch, clock))
        if kept := [name for name in out if name in self.plain]:
            logits = Seen(s, None, of_s), Seen(t, None, of_t)
            as_they_are = self.inner.terms(parts, *logits, batch, clock)
            out.update({name: as_they_are[name] for name in kept})
        return out

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

    def update(self) -> tuple[Phase, ...]:
        return self.inner.update()

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        return self.inner.deliver(student, parts)
