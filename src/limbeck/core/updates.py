"""The update seam: the phases of a step, and the optimisers of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.joins import (
    Gradients,
    Join,
    PerTerm,
    Routed,
    Surgery,
    TermSGD,
    Total,
    added,
    all_added,
    pcgrad,
    under,
)
from limbeck.core.task import Optimiser
from limbeck.errors import Missing, UsageError, nearest

__all__ = [
    "Gradients",
    "Join",
    "Moves",
    "PerTerm",
    "Phase",
    "Routed",
    "Surgery",
    "TermSGD",
    "Total",
    "added",
    "all_added",
    "check_phases",
    "pcgrad",
    "under",
]


@dataclass(frozen=True)
class Phase:
    """One part of a step: which parameters it trains, how often, on which batch, by which rules.

    A phase that trains nothing, `train=()`, looks: student and parts are in eval mode, without
    gradient; no terms are asked, but `observe` is, and `after_step` gets what it saw (over the
    whole step, `clock.phase` is the look's name) before the next phase begins. In an update with
    looks nothing is observed elsewhere.

    Args:
        name: `clock.phase` while its terms are computed.
        train: prefixes of the parameters it moves ("student", "parts.critic").
        repeat: so many optimiser steps, each with fresh terms.
        fresh: a new batch for each repeat.
        optimisers: prefix -> Optimiser; what no prefix names uses the budget's.
        join: how the terms' gradients become one.
    """

    name: str = ""
    train: tuple[str, ...] = ("student", "parts")
    repeat: int = 1
    fresh: bool = False
    optimisers: Mapping[str, Optimiser] = field(default_factory=dict)
    join: Join = field(default_factory=Total)

    def pick(self, named: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """The parameters it trains, by name."""
        out = {
            n: p
            for n, p in named.items()
            if p.requires_grad and any(under(n, t) for t in self.train)
        }
        missing = [
            t
            for t in self.train
            if t not in ("student", "parts") and not any(under(n, t) for n in named)
        ]
        if self.train and not out:
            missing = list(self.train)
        if missing:
            heads = sorted({".".join(n.split(".")[:2]) for n in named})
            raise Missing(
                f"the phase '{self.name}' trains '{missing[0]}', but no parameter that requires a "
                f"gradient lies there{nearest(missing[0], heads)}"
            )
        return out


def check_phases(phases: Sequence[Phase]) -> None:
    """Refuse an update whose phases could not be told apart, or whose last one trains nothing.

    Raises:
        UsageError: which phase, and why.
    """
    names = [p.name for p in phases]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UsageError(
            f"two phases are called '{twice}'; a phase's name is the place of its draws, so give "
            "each its own"
        )
    if not phases or not phases[-1].train:
        raise UsageError("the last phase of a step must train something; a look comes before it")
    for p in phases:
        if p.repeat < 1 or (p.repeat > 1 and not p.train):
            raise UsageError(
                f"the phase '{p.name}' has repeat={p.repeat}; give 1 or more, a look 1"
            )


class Moves:
    """A phase's optimisers over its parameters, each with the rate of its place on the schedule."""

    def __init__(self, phase: Phase, named: Mapping[str, nn.Parameter], default: Optimiser) -> None:
        self.phase = phase
        self.params = phase.pick(named)
        self.names = list(self.params)
        by_spec: dict[str, list[str]] = {}
        for name in self.names:
            fits = [p for p in phase.optimisers if under(name, p)]
            by_spec.setdefault(max(fits, key=len) if fits else "", []).append(name)
        unused = set(phase.optimisers) - set(by_spec)
        if unused:
            raise Missing(
                f"the phase '{phase.name}' has optimisers for {sorted(unused)}, where no parameter "
                "that it trains lies"
            )
        self.groups: list[tuple[list[str], Optimiser, Any]] = []
        for prefix, names in by_spec.items():
            spec = phase.optimisers.get(prefix, default)
            params = [self.params[n] for n in names]
            self.groups.append((names, spec, phase.join.optimiser(spec, params)))

    def rate(self, factor: Callable[[str | None], float]) -> None:
        """Set each optimiser's rate: its own times `factor(schedule)`."""
        for _, spec, optimiser in self.groups:
            for group in optimiser.param_groups:
                group["lr"] = spec.lr * factor(spec.schedule)

    def zero(self) -> None:
        """Forget all gradients."""
        for p in self.params.values():
            p.grad = None

    def step(self, split: Mapping[str, Gradients] | None) -> None:
        """One step of each optimiser, from `.grad` or, for `PerTerm`, each group's gradients."""
        for names, _, optimiser in self.groups:
            if split is None:
                optimiser.step()
            else:
                rows = [self.names.index(n) for n in names]
                optimiser.step_groups({g: [each[i] for i in rows] for g, each in split.items()})

    def state(self, key: str) -> dict[str, Tensor]:
        """All optimiser state by parameter name; what is None is left out."""
        out: dict[str, Tensor] = {}
        for names, _, optimiser in self.groups:
            for name in names:
                for entry, value in optimiser.state.get(self.params[name], {}).items():
                    if value is not None:
                        out[f"{key}|{name}|{entry}"] = torch.as_tensor(value)
        return out

    def load(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        mine: dict[str, dict[str, Tensor]] = {}
        for full, value in state.items():
            phase, name, entry = full.split("|")
            if phase == key:
                mine.setdefault(name, {})[entry] = value
        for names, _, optimiser in self.groups:
            for name in names:
                if name in mine:
                    device = self.params[name].device
                    optimiser.state[self.params[name]] = {
                        k: v.to(v.device if k == "step" else device, copy=True)
                        for k, v in mine[name].items()
                    }
