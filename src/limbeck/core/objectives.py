"""The small change that many methods share: true labels, weighted sums, ramps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts, Given, Mean, Objective, Rng, Term, number
from limbeck.core.text.places import count, cross_entropy
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.errors import UsageError


@dataclass(frozen=True)
class Labels(Objective):
    """Cross-entropy on true labels: s.logits (B, C), batch.y (B,); no teacher is asked.

    Whole numbers y (B, C) of 0 and 1 are several labels of a sample, and it is the sum of their
    binary cross-entropies; floats (B, C) are probabilities of classes.

    Raises: UsageError for floats that do not sum to 1.
    """

    label: float = number(1.0, least=0)
    smoothing: float = number(0.0, least=0, below=1)

    def asks(self) -> tuple[str, ...]:
        return ("student:logits", "y") if self.label else ()

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        y = batch.columns.get("y")
        if self.label and isinstance(y, Tensor) and y.dim() > 1 and y.is_floating_point():
            total = y.sum(1)
            if bool((total - 1).abs().max() > 1e-3):
                raise UsageError(
                    f"labels y {tuple(y.shape)} {y.dtype} are probabilities of classes, but a row "
                    f"sums to {float(total.flatten()[0]):g}; give several labels as whole numbers, "
                    "0 and 1; other numbers are not learned from labels alone"
                )
        return nn.Module()

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Term]:
        if not self.label:
            return {}
        z, y = s.logits.float(), batch.y
        if y.dim() == 2 and not y.is_floating_point():
            y = y.float() * (1 - self.smoothing) + self.smoothing / 2
            each = F.binary_cross_entropy_with_logits(z, y, reduction="none")
            return {"label": self.label * each.sum(1).mean()}
        loss = F.cross_entropy(z, y, label_smoothing=self.smoothing)
        return {"label": self.label * loss}


@dataclass(frozen=True)
class NextTokens(Objective):
    """Cross-entropy of the next token, over tokens that are trained on; no teacher is asked."""

    label: float = number(1.0, above=0)

    def asks(self) -> tuple[str, ...]:
        return ("student:signal", "y")

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"label": count(batch)}

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Term]:
        return {"label": cross_entropy(s.signal, batch, weight=self.label)}


@dataclass(frozen=True)
class Sum(Objective):
    """Several objectives at once.

    Each is (name, weight, objective); the name prefixes its terms, parts and observations. At most
    one of them may change what the sides see (`prepare`) or what is delivered. Objectives with
    phases of their own are refused: their steps are not one sum.
    """

    of: tuple[tuple[str, float, Objective], ...]

    def __post_init__(self) -> None:
        names = [name for name, _, _ in self.of]
        if len(set(names)) < len(names) or not names or any("." in n or not n for n in names):
            raise UsageError(
                f"the names of a Sum are {names}; give each objective a name of its own, without "
                "dots"
            )
        taken = next((n for n in names if hasattr(nn.ModuleDict, n)), None)
        if taken is not None:
            raise UsageError(
                f"a Sum cannot call an objective '{taken}', as torch's modules do; "
                "give it another name"
            )
        for name, _, each in self.of:
            if type(each).update is not Objective.update:
                raise UsageError(
                    f"'{name}' brings phases or a join of its own, which a Sum cannot add to "
                    "others; run it alone, or wrap the Sum in it"
                )
        for hook in ("prepare", "deliver"):
            bring = [
                n for n, _, o in self.of if getattr(type(o), hook) is not getattr(Objective, hook)
            ]
            if len(bring) > 1:
                raise UsageError(
                    f"{' and '.join(bring)} each bring a {hook} of their own; a Sum takes one"
                )

    def _one(self, hook: str) -> tuple[str, Objective] | None:
        return next(
            (
                (n, o)
                for n, _, o in self.of
                if getattr(type(o), hook) is not getattr(Objective, hook)
            ),
            None,
        )

    def asks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(need for _, _, o in self.of for need in o.asks()))

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        return nn.ModuleDict({name: o.build(s, t, batch, facts) for name, _, o in self.of})

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        one = self._one("prepare")
        return one[1].prepare(batch, rng) if one else (batch, batch)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Term]:
        out: dict[str, Term] = {}
        for name, weight, o in self.of:
            if weight:
                out |= {
                    f"{name}.{k}": _scaled(v, weight, name)
                    for k, v in o.terms(parts[name], s, t, batch, clock).items()
                }
        return out

    def counts(self, batch: Batch) -> dict[str, Tensor | float]:
        return {
            f"{name}.{k}": v
            for name, weight, o in self.of
            if weight
            for k, v in o.counts(batch).items()
        }

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> dict[str, Tensor]:
        return {
            f"{name}.{k}": v
            for name, weight, o in self.of
            if weight
            for k, v in o.observe(parts[name], s, t, batch).items()
        }

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        for name, weight, o in self.of:
            if not weight:
                continue
            mine = {k[len(name) + 1 :]: v for k, v in seen.items() if k.startswith(name + ".")}
            o.after_step(parts[name], mine, clock)

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        one = self._one("deliver")
        return one[1].deliver(student, parts[one[0]]) if one else student


def _scaled(term: Term, weight: float, name: str) -> Term:
    if isinstance(term, Mean):
        return Mean(weight * term.sum, term.count)
    if isinstance(term, Given):
        inner = {
            k.replace("parts.", f"parts.{name}.", 1) if k.startswith("parts.") else k: weight * g
            for k, g in term.gradient.items()
        }
        return Given(inner, None if term.value is None else weight * term.value)
    return weight * term


def ramp(
    fraction: float, start: float, end: float, begin: float = 0.0, until: float = 1.0
) -> float:
    """Linear from `start` to `end` while the fraction of the run goes from `begin` to `until`.

    Constant outside.
    """
    f = min(max((fraction - begin) / max(until - begin, 1e-12), 0.0), 1.0)
    return start + (end - start) * f


__all__ = ["Labels", "Phase", "Sum", "ramp"]
