"""What is seen of a fit while it goes on: what is asked, and what changes that must not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.check.desk import LOOKS
from limbeck.check.look import Kept, generators, leaves, modules_of, same, value
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Mean, Objective, Rng, Term
from limbeck.core.passes import Passes
from limbeck.core.rng import globals_kept
from limbeck.core.step import Step, moving
from limbeck.core.teacher import Teacher

__all__ = ["TEACHER", "Asker", "Seen", "Shell", "hooks_of", "modes_of", "put_back"]

TEACHER = {"weights": "teacher_weights", "again": "again", "members": "members"}
Answer = tuple[Mapping[str, Term], Mapping[str, Tensor]]


@dataclass
class Seen:
    """What was seen of one fit."""

    passes: Passes
    objective: Objective
    of_task: bool  # whether its teacher is the task's
    names: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)  # phase -> terms, by step
    asked: set[str] = field(default_factory=set)  # of the batch
    reached: set[str] = field(default_factory=set)  # parameters with a gradient
    counts: list[str] = field(default_factory=list)  # complaints
    impure: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    after: list[int] = field(default_factory=list)  # steps of which after_step was called
    changed: bool = False  # whether the teacher was shown other inputs than the data's
    means: bool = False  # whether a term is a `Mean`
    rows: bool = False  # whether the student is shown other samples than those of the batch
    closely: tuple[int, ...] = ()  # steps that are looked at closely

    @property
    def trainable(self) -> list[str]:
        """Names of all parameters that require a gradient."""
        return [n for n, p in self.passes.step.named_parameters() if p.requires_grad]

    @property
    def needs_of_teacher(self) -> set[str]:
        """The entries that it asked of the task's teacher."""
        return {n.partition(":")[2] for n in self.needs if n.startswith("teacher:")}

    @property
    def needs(self) -> set[str]:
        """What it asked for, in the words of a card: "student:logits", "y", "again"."""
        student, teacher = self.passes.look.asked, self.passes.teacher.asked
        found = {n if n in LOOKS else f"student:{n}" for n in student} | self.asked & {"y", "index"}
        for name in teacher if self.of_task else ():
            found.add(TEACHER.get(name, f"teacher:{name}"))
        return found


def put_back(kept: Kept) -> None:
    """Give tensors the values again that were kept of them."""
    now = dict(leaves(kept.things))
    with torch.no_grad():
        for name, tensor in kept.then.items():
            if name in now and not same(now[name], tensor):
                now[name].copy_(tensor)


def modes_of(module: nn.Module) -> list[Any]:
    """Which parts are in train mode, which parameters require a gradient, and the hooks."""
    required = [p.requires_grad for p in module.parameters()]
    return [[m.training for m in module.modules()], required, hooks_of(module)]


def hooks_of(module: nn.Module) -> int:
    """How many hooks are on a module."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class Shell(Objective):
    """Stands where the engine calls the hooks of an objective, and looks at two of them."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._left = 2  # how often `prepare` is looked at
        for hook in dir(Objective):
            if not hook.startswith("_") and hook not in vars(Shell):
                setattr(self, hook, getattr(seen.objective, hook))

    def terms(self, parts: Any, s: Any, t: Any, batch: Batch, clock: Clock) -> Mapping[str, Term]:
        """The objective's own."""
        return self._seen.objective.terms(parts, s, t, batch, clock)

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        """The objective's own, which changes nothing and gives the same when it is asked again."""
        mine = self._seen
        if self._left == 0:
            return mine.objective.prepare(batch, rng)
        self._left -= 1
        kept, drawn = Kept(batch=batch), generators()
        first = dict(leaves(mine.objective.prepare(batch, rng)))
        found = mine.objective.prepare(batch, rng)
        mine.impure += [f"prepare changed '{name}'" for name in kept.changed()]
        again = dict(leaves(found))
        if {*first} != {*again} or any(not same(t, again[n]) for n, t in first.items()):
            mine.impure.append("prepare gives something else when it is asked again")
        if generators() != drawn:
            mine.impure.append("prepare draws from a global generator")
        return found

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        mine, passes = self._seen, self._seen.passes
        if not clock.phase:  # a look's is not the step's
            mine.after.append(clock.step)
        if clock.step not in mine.closely:
            return mine.objective.after_step(parts, seen, clock)
        teachers = dict(enumerate(modules_of(passes.teacher)))
        kept = Kept(student=passes.student, teacher=teachers)
        drawn = generators()
        mine.objective.after_step(parts, seen, clock)
        mine.moved += [f"it changed '{name}'" for name in kept.changed()]
        if generators() != drawn:
            mine.moved.append("it drew from a global generator")


class Asker(nn.Module):
    """Stands where the wrapped step is asked for its terms; at some steps it asks twice."""

    def __init__(self, seen: Seen, teacher: list[str]) -> None:
        super().__init__()
        self.step, self.seen, self.teacher = seen.passes.step, seen, teacher

    def forward(
        self, batch: Batch, for_student: Batch, t: Any, clock: Clock, observe: bool
    ) -> tuple[dict[str, Term], Mapping[str, Tensor]]:
        """The step's own answer."""
        given = (batch, for_student, t, clock, observe)
        first = self._first(*given) if clock.step in self.seen.closely else None
        terms, looked = self.step(*given)
        self.seen.names.setdefault(clock.phase, []).append(tuple(terms))
        self.seen.asked |= batch.asked | for_student.asked
        self.seen.rows |= len(for_student) != len(batch)
        self.seen.changed |= t.batch.columns["x"] is not batch.columns["x"]
        self.seen.means |= any(isinstance(term, Mean) for term in terms.values())
        if first is not None:
            self._compare(first, (terms, looked))
            self.seen.counts += _counted(self.seen.objective, batch, terms)
        return terms, looked

    def _first(
        self, batch: Batch, for_student: Batch, t: Any, clock: Clock, observe: bool
    ) -> Answer:
        """Ask, see what changed, and put back what torch's own layers move."""
        seen = self.seen
        kept = Kept(step=self.step, batch=batch, student_sees=for_student, teacher_sees=t.batch)
        free = {id(b) for b in moving(self.step)}
        modes, draws = modes_of(self.step), generators()
        with globals_kept():
            answer: Answer = self.step(batch, for_student, t, clock, observe)
            drew = generators() != draws and not _drops(self.step, seen.passes.teacher)
        now = dict(leaves(kept.things))
        changed = [n for n in kept.changed() if n not in now or id(now[n]) not in free]
        seen.impure += [f"asking for the terms changed '{n}'" for n in changed]
        if drew:
            seen.impure.append("asking for the terms draws from a global generator")
        if modes_of(self.step) != modes:
            seen.impure.append("asking for the terms left modes, requires_grad or hooks changed")
        put_back(kept)
        if any(m.training for top in modules_of(seen.passes.teacher) for m in top.modules()):
            self.teacher.append("it is asked in train mode")
        return answer

    def _compare(self, one: Answer, two: Answer) -> None:
        """Two asks agree to the bit."""
        (terms, looked), (again, relooked) = one, two
        if list(terms) != list(again) or list(looked) != list(relooked):
            self.seen.impure.append("two asks give other terms")
            return
        for name, term in terms.items():
            if not same(value(term), value(again[name])):
                self.seen.impure.append(f"two asks for the term '{name}' differ")
        for name, tensor in looked.items():
            if not same(tensor, relooked[name]):
                self.seen.impure.append(f"two asks observe another '{name}'")


def _drops(step: Step, teacher: Teacher) -> bool:
    """Whether a model has layers that draw from torch's generator, as they may."""
    models = [step, *modules_of(teacher)]
    return any("Drop" in type(m).__name__ for top in models for m in top.modules())


def _counted(objective: Objective, batch: Batch, terms: Mapping[str, Term]) -> Iterator[str]:
    """`counts` gives for each `Mean` term its count, and nothing else."""
    told = objective.counts(batch)
    means = {n: t for n, t in terms.items() if isinstance(t, Mean)}
    for name in sorted({*told, *means}):
        if name not in means:
            yield f"counts() gives one for '{name}', which is no Mean term"
        elif name not in told:
            yield f"counts() gives none for the Mean term '{name}'"
        elif float(told[name]) != float(means[name].count):
            there = float(means[name].count)
            yield f"counts() says {float(told[name]):g} for '{name}', its Mean says {there:g}"
