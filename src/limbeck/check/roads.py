"""Checks that several roads lead to the same numbers: a cache, a sum, another precision."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from limbeck.check.case import Case, NotApplicable
from limbeck.check.look import close
from limbeck.check.objectives import fits_of
from limbeck.core.cache import CacheWriter
from limbeck.core.data import reader_of
from limbeck.core.looking import asking
from limbeck.core.method import Objective
from limbeck.core.objectives import Labels, NextTokens, Sum
from limbeck.core.tables import Table
from limbeck.core.task import Optimiser, Task
from limbeck.core.teacher import Setting
from limbeck.core.teachers import Cached, Frozen, fingerprint_of
from limbeck.errors import UsageError

__all__ = ["ROADS"]


def cached(case: Case) -> Iterator[str]:
    """One step with a teacher read from a cache equals the step with the live teacher."""
    task = case.task()
    given = task.the_teacher()
    taught = [fit for fit in fits_of(case) if fit.of_task and fit.needs_of_teacher]
    if not taught or not isinstance(given, Frozen):
        raise NotApplicable("it asks nothing of one frozen teacher")
    seen = taught[0]
    asked = seen.needs_of_teacher
    if seen.passes.teacher.asked - asked or seen.changed:
        raise NotApplicable("it shows the teacher other inputs, or looks at it as a module")
    folder = case.folder / "cache"
    _write(task, given, sorted(asked), folder)
    live = case.first(taught=True)
    try:
        other = case.first(task=case.task(teacher=Cached(folder, given.module)), taught=True)
    except UsageError as error:
        if not case.owns(traceback.extract_tb(error.__traceback__)[-1].filename):
            raise
        raise NotApplicable(f"it refuses a cached teacher: {error}") from None
    for name, there in live.terms.items():
        if not close(other.terms.get(name, float("nan")), there, 1e-5):
            here = other.terms.get(name)
            yield f"with a cached teacher the term '{name}' is {here}, with a live one {there}"
    for name, tensor in live.after.items():
        if not close(other.after[name], tensor, 1e-3):
            yield f"after a step with a cached teacher, '{name}' is another"


def _write(task: Task, given: Frozen, names: list[str], folder: Path) -> None:
    table, reader = Table(task.train), reader_of(task.readers, "teacher")
    paths = {n: p[0] for n, p in task.taps.items()}
    made = fingerprint_of(given.module, table, reader)
    with (
        asking(given, Setting(paths, reader), table) as view,
        CacheWriter(folder, made, len(table)) as writer,
        torch.no_grad(),
    ):
        for batch in table.chunks(64):
            side = view(batch)
            entries = {n: getattr(side, n) for n in names}
            lists = [n for n, v in entries.items() if not isinstance(v, torch.Tensor)]
            if lists:
                raise NotApplicable(f"a cache holds tensors, and '{lists[0]}' is a list")
            writer.write(batch.index, entries)


def _shown(of: Objective, text: bool) -> Objective:
    """True labels, for a student that sees what another objective prepares."""
    kind: type[Objective] = NextTokens if text else Labels
    truth: Objective = type("Shown", (kind,), {})()
    object.__setattr__(truth, "prepare", of.prepare)
    return truth


def sum_(case: Case) -> Iterator[str]:
    """A `Sum` of it and true labels has the terms of both, and the sum of their gradients."""
    method = case.method
    if not isinstance(method, Objective) or type(method).run is not Objective.run:
        raise NotApplicable("it is no single fit")
    if any(fit.rows for fit in fits_of(case)):
        raise NotApplicable("it shows the student other samples than those that labels are of")
    text = case.task().score.each is not None
    truth = NextTokens() if text else Labels()
    labels, of = _shown(method, text), (("it", 1.0, method), ("labels", 0.5, truth))
    if type(method).update is not Objective.update:
        try:
            Sum(of)
        except UsageError:
            raise NotApplicable("it brings phases of its own, which a Sum refuses") from None
        yield "it brings phases of its own, and a Sum takes it all the same"
        return
    budget = dataclasses.replace(case.task().budget, optimiser=Optimiser("sgd", 0.1), clip=None)
    one, two, both = (
        case.first(each, case.task(budget=budget)) for each in (method, labels, Sum(of))
    )
    wanted = {f"it.{n}": v for n, v in one.terms.items()}
    wanted["labels.label"] = 0.5 * two.terms["label"]
    for name, there in wanted.items():
        if not close(both.terms.get(name, float("nan")), there, 1e-5):
            yield f"in a Sum the term '{name}' is {both.terms.get(name)}, alone {there}"
    for name, start in one.before.items():
        if name.startswith("student.") and start.is_floating_point() and name in two.before:
            steps = [f.after[name] - f.before[name] for f in (one, two, both)]
            if "running" not in name and not close(steps[0] + 0.5 * steps[1], steps[2], 1e-2):
                yield f"in a Sum, '{name}' takes another step than by the sum of the gradients"


def precision(case: Case) -> Iterator[str]:
    """In bfloat16 the terms stay float32 and near what they are in float32."""
    fits_of(case)
    budget = dataclasses.replace(case.task().budget, precision="bf16")
    other = case.first(task=case.task(budget=budget))
    for name, there in case.start.terms.items():
        here = other.terms.get(name, float("nan"))
        if not abs(here - there) <= 0.1 * abs(there) + 0.05:
            yield f"in bfloat16 the term '{name}' is {here:.4g}, in float32 {there:.4g}"


sum_.__name__ = "sum"
ROADS = (cached, sum_, precision)
