"""Asks the objective of a fit on rows and views of choice, and leaves the fit as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.check.look import value
from limbeck.core.data import Batch
from limbeck.core.method import Given, Objective, Term
from limbeck.core.passes import Passes
from limbeck.core.step import marked
from limbeck.core.views import Fixed

__all__ = ["Desk", "NothingToSee", "Views"]

LOOKS = {"again", "weights"}  # what is asked of a side that is no entry


class NothingToSee(Exception):
    """There is nothing in this fit that a check could look at; the message says why."""


class Views:
    """The entries that an objective asks of both sides, as tensors that can be changed."""

    def __init__(self, student: dict[str, Any], teacher: dict[str, Any]) -> None:
        self.student, self.teacher = student, teacher

    def changed(self, f: Callable[[str, Tensor], Tensor]) -> Views:
        """Each floating-point tensor replaced by f(entry's name, tensor)."""
        return Views(_mapped(f, self.student), _mapped(f, self.teacher))


def _mapped(f: Callable[[str, Tensor], Tensor], thing: Any, name: str = "") -> Any:
    if isinstance(thing, dict):
        return {k: _mapped(f, v, k) for k, v in thing.items()}
    if isinstance(thing, list | tuple):
        return [_mapped(f, v, name) for v in thing]
    if isinstance(thing, Tensor) and thing.is_floating_point():
        return f(name, thing)
    return thing


class Desk:
    """The middle step of a fit, with student and parts in eval mode.

    Args:
        passes: the fit.
        phase: the phase whose terms are asked.
    """

    def __init__(self, passes: Passes, phase: str) -> None:
        self.passes, self.objective = passes, passes.objective
        step = passes.steps // 2
        self.clock = passes.clock(step, phase, draw=step * passes.draws)
        self.batch = passes.batches(passes.student, passes.teacher, self.clock)
        self.prepared = self.objective.prepare(self.batch, self.clock.rng)

    def __enter__(self) -> Desk:
        self._modes = [(m, m.training) for m in self.passes.step.modules()]
        self.passes.step.eval()
        return self

    def __exit__(self, *error: object) -> None:
        for module, training in self._modes:
            module.training = training

    def seen(self, rows: Any = None) -> tuple[Batch, tuple[Batch, Batch]]:
        """Some rows of the batch, and what the sides see of them.

        What was prepared for the batch is cut where it has a row for each sample, else made anew.
        """
        if rows is None:
            return self.batch, self.prepared
        batch = self.batch.select(rows)
        if all(len(p) == len(self.batch) for p in self.prepared):
            one, two = self.prepared
            return batch, (one.select(rows), two.select(rows))
        return batch, self.objective.prepare(batch, self.clock.rng)

    def ask(self, rows: Any = None, objective: Objective | None = None) -> dict[str, Term]:
        """The terms on the models' own views of some rows."""
        batch, (for_student, for_teacher) = self.seen(rows)
        passes = self.passes
        s = passes.look.side_of(for_student)
        t = passes.teacher.side(marked(batch, for_teacher), self.clock)
        asked = objective or self.objective
        return dict(asked.terms(passes.parts, s, t, batch, self.clock))

    def views(self) -> Views:
        """What both sides show of the batch, detached.

        Raises:
            NothingToSee: the objective asks for more than entries.
        """
        passes = self.passes
        if not passes.look.asked:
            self.ask()
        asked, of_teacher = passes.look.asked, passes.teacher.asked
        if (asked | of_teacher) & LOOKS:
            raise NothingToSee("it looks at models, not at what they show")
        s = passes.look.side_of(self.prepared[0])
        t = passes.teacher.side(marked(self.batch, self.prepared[1]), self.clock)
        with torch.no_grad():
            return Views(
                {n: _copied(getattr(s, n)) for n in sorted(asked)},
                _shown(t, of_teacher),
            )

    def ask_fixed(
        self, views: Views, objective: Objective | None = None
    ) -> tuple[dict[str, Term], set[str], set[str], set[str]]:
        """The terms on given views; and what was asked of student, teacher and batch."""
        of_student, of_teacher = set[str](), set[str]()
        batch = Batch(**self.batch.columns)
        s = _fixed("student", views.student, self.prepared[0], of_student)
        t = _fixed("teacher", views.teacher, self.prepared[1], of_teacher)
        terms = (objective or self.objective).terms(self.passes.parts, s, t, batch, self.clock)
        return dict(terms), of_student, of_teacher, batch.asked

    def gradient(self, terms: Mapping[str, Term]) -> Tensor:
        """The gradient of the sum of terms, over all trainable parameters in a row."""
        named = {n: p for n, p in self.passes.step.named_parameters() if p.requires_grad}
        live = [v for v in map(value, terms.values()) if v.requires_grad]
        grads: list[Tensor | None] = [None] * len(named)
        if live:
            total = sum(live, torch.zeros(()))
            grads = list(torch.autograd.grad(total, list(named.values()), allow_unused=True))
        rows = []
        for (name, p), g in zip(named.items(), grads, strict=True):
            row = torch.zeros_like(p) if g is None else g
            for term in terms.values():
                if isinstance(term, Given) and name in term.gradient:
                    row = row + term.gradient[name]
            rows.append(row.flatten())
        return torch.cat(rows)


def _copied(thing: Any) -> Any:
    return _mapped(lambda _, x: x.detach().clone(), thing)


def _shown(t: Any, asked: set[str]) -> dict[str, Any]:
    """The entries of a teacher's side; a crowd's members each with theirs."""
    if "members" not in asked:
        return {n: _copied(getattr(t, n)) for n in sorted(asked)}
    inner = sorted(asked - {"members"})
    members = [{n: _copied(getattr(m, n)) for n in inner} for m in t.members]
    mixed = {"logits": _copied(t.logits)} if "logits" in asked else {}
    return {"members": members, **mixed}


def _fixed(side: str, entries: dict[str, Any], batch: Batch, asked: set[str]) -> Any:
    def made() -> dict[str, Any]:
        members = entries.get("members")
        if members is None:
            return entries
        return {**entries, "members": [_fixed(side, m, batch, asked) for m in members]}

    return Fixed(side, made, batch, asked, "the check gives what was asked for before")
