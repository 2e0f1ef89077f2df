"""Measures what the questions are answered from: what the sides say, short fits, records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from limbeck.core import identity
from limbeck.core.crowd import Crowd
from limbeck.core.data import Table
from limbeck.core.method import Method
from limbeck.core.run import Run
from limbeck.core.task import Task
from limbeck.core.teachers import BlackBox, Cached, Frozen, Nobody
from limbeck.core.untrained import Untrained
from limbeck.doctor import limits, numbers, probe
from limbeck.doctor.feed import Order, other_inputs, other_order
from limbeck.doctor.records import Records
from limbeck.doctor.seen import Seen, Tapped, first_line
from limbeck.doctor.sides import Answers, answers, features, looked_at, taught_by
from limbeck.errors import UsageError


def gather(
    task: Task | None,
    method: Method | None,
    key: str,
    *,
    records: Records | None,
    student: nn.Module | None,
    seed: int,
    device: str | None,
    steps: int,
    say: Callable[[str], None],
) -> Seen:
    """Measure what can be measured; nothing is written."""
    seen = Seen(key, method, task, records, steps=steps)
    if records is not None:
        seen.rows = [r for r in records.rows if r["stage"] not in ("teacher", "baseline")]
        seen.told = records.scores()
        samples = records.appraisal.get("samples")
        seen.samples = {"held": int(samples)} if samples else {}
    if task is None or task.train is None:
        seen.faults["task"] = seen.faults.get("task", "the task is not at hand")
        return seen
    held = task.valid if task.valid is not None else task.test
    if records is not None and seen.told:  # what is known of the baseline is of the judged set
        held = task.set_or_none(task.judged)
    sets = {"train": task.train, "held": held}
    tables = {
        name: Table(source, _named(task, name))
        for name, source in sets.items()
        if source is not None
    }
    seen.samples = {name: len(table) for name, table in tables.items()}
    where = Run(task, seed, device=device).device
    seen.classes = task.count_classes() or _width(task, tables["train"], where)
    _ask_teacher(seen, task, tables, where)
    _fit(seen, task, student, seed, device, say)
    if student is None and seen.tried is not None:
        student = seen.tried.model
    models = {"student": student, "alone": seen.alone.model if seen.alone else None}
    for side, model in models.items():
        if model is not None:
            _ask_student(seen, side, model, task, tables, where)
    model = student if student is not None else models["alone"]
    if model is not None and isinstance(task.the_teacher(), Frozen | Crowd):
        _look_inside(seen, model, task, tables["train"], where)
    return seen


def _width(task: Task, table: Table, where: torch.device) -> int:
    """The classes that a fresh student answers for, where the samples have labels; else 0."""
    y = table.rows(torch.arange(1)).columns.get("y")
    if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point():
        return 0
    try:
        with looked_at(task.new_student(0), task, where) as side_of:
            z = side_of(table.rows(torch.arange(1), "in order").to(where)).logits
    except (UsageError, RuntimeError):  # its first fit will say why
        return 0
    return int(z.shape[1]) if z.dim() == 2 and z.shape[1] > 1 else 0


def _named(task: Task, name: str) -> str:
    return name if name == "train" else "valid" if task.valid is not None else "test"


def _is_there(seen: Seen, task: Task) -> bool:
    """Whether there is a teacher that can be asked; else why not."""
    teacher = task.the_teacher()
    if isinstance(teacher, Untrained):
        seen.faults["teacher"] = (
            f"the teacher {teacher.name} is not trained yet ({teacher.why}); limbeck run trains it "
            "first, and the doctor can look at the run's folder then"
        )
    elif isinstance(teacher, Nobody):
        seen.faults["teacher"] = "the task has no teacher"
    return not isinstance(teacher, Untrained | Nobody)


def _ask_teacher(seen: Seen, task: Task, tables: dict[str, Table], where: torch.device) -> None:
    """The teacher's answers, with its inputs and its classes set right where they are not."""
    if not _is_there(seen, task):
        return
    if not seen.classes:
        seen.faults["teacher"] = "the samples have no class labels"
        return
    if not _ask_each(seen, task, tables, where):
        return
    order = _order(seen)
    if isinstance(task.the_teacher(), Frozen | Crowd):  # others cost money, or take no inputs
        with seen.noting("inputs"):
            seen.inputs = other_inputs(task, tables["train"], where, seen.classes)
    # a teacher fed wrongly may look as if its classes were mixed up, and the other way round
    if seen.inputs is not None and order is not None and order.accuracy >= seen.inputs.accuracy:
        seen.inputs = None
    if seen.inputs is not None:
        _ask_each(seen, task, tables, where)
        order = _order(seen)
    seen.order = order
    if order is not None:
        for place in [p for p in seen.answers if p[0] == "teacher"]:
            seen.answers[place] = order.applied(seen.answers[place])


def _ask_each(seen: Seen, task: Task, tables: dict[str, Table], where: torch.device) -> bool:
    """The teacher's answers on each set; whether they are over the task's classes."""
    change = seen.inputs.change if seen.inputs else None
    for name, table in tables.items():
        if name != "train" and isinstance(task.the_teacher(), Cached):  # it has train's rows only
            continue
        with seen.noting("teacher"), taught_by(task, table, where, change=change) as side_of:
            most = limits.LOOKED if isinstance(task.the_teacher(), BlackBox) else limits.SAMPLES
            given = answers(side_of, table, most, where, seen.classes)
            if given.logits.shape[1] != seen.classes:
                seen.faults["classes"] = (
                    f"the teacher answers for {given.logits.shape[1]} classes, and the task has "
                    f"{seen.classes}"
                )
                return False
            seen.answers["teacher", name] = given
    return True


def _order(seen: Seen) -> Order | None:
    choose, judge = (seen.answers.get(("teacher", name)) for name in ("train", "held"))
    if choose is not None and judge is None:  # halves of the one set
        half = torch.arange(len(choose)) % 2 == 0
        choose, judge = (
            Answers(choose.logits[rows], choose.y[rows], choose.hard) for rows in (half, ~half)
        )
    return None if choose is None or judge is None else other_order(choose, judge)


def _fit(
    seen: Seen,
    task: Task,
    student: nn.Module | None,
    seed: int,
    device: str | None,
    say: Callable[[str], None],
) -> None:
    """The short fits: of the method before a run only, since after it there are its own rows."""
    trained = seen.records is not None and any("terms" in row for row in seen.rows)
    if seen.method is not None and not trained and not isinstance(task.the_teacher(), Untrained):
        say(f"trying {seen.key} for {seen.steps} steps")
        error: Exception | None = None
        try:
            identity.check_task(task, seen.method)
        except UsageError as refused:
            error = refused
        if error is None:
            seen.tried = probe.tried(seen.method, task, seen.steps, seed, device, say)
            if seen.tried.error is None and seen.tried.rows:
                say(f"trying {seen.key} at a tenth of the rate")
                seen.slower = probe.tried(seen.method, task, seen.steps, seed, device, share=0.1)
        else:
            seen.tried = probe.Tried([], error=error)
        seen.rows = seen.tried.rows
    if not seen.classes:
        return
    say("trying the student alone, at several rates")
    with seen.noting("alone"):
        seen.alone = probe.alone(task, seen.steps, seed, device)
    with seen.noting("student"):
        seen.heart = probe.by_heart(task, seen.steps, seed, device)


def _ask_student(
    seen: Seen,
    side: str,
    model: nn.Module,
    task: Task,
    tables: dict[str, Table],
    where: torch.device,
) -> None:
    if seen.records is not None and side == "alone":  # a short fit says nothing beside a whole run
        return
    for name, table in tables.items():
        with seen.noting(side), looked_at(model, task, where) as side_of:
            given = answers(side_of, table, limits.SAMPLES, where, seen.classes)
            seen.answers[side, name] = given


def _look_inside(
    seen: Seen, model: nn.Module, task: Task, table: Table, where: torch.device
) -> None:
    """The taps one by one, since one that cannot be read must not hide the others."""
    for name, (theirs, mine) in task.taps.items():
        if theirs is None or mine is None:
            continue
        found = Tapped(name)
        try:
            n = min(limits.LOOKED, len(table))
            with taught_by(task, table, where, {name: theirs}) as side_of:
                t = features(side_of, [name], table, n, where)[name]
            with looked_at(model, task, where, {name: mine}) as side_of:
                s = features(side_of, [name], table, n, where)[name]
            found = replace(
                found, teacher=tuple(t[0].shape[1:]), student=tuple(s[0].shape[1:]),
                cka=_likeness(t, s) if n > 3 else None,
            )  # fmt: skip
        except (UsageError, RuntimeError) as error:
            found = replace(found, error=first_line(error))
        seen.taps.append(found)


def _likeness(t: Sequence[Tensor], s: Sequence[Tensor]) -> float | None:
    """The mean over the modules of a tap, paired; None where the sides have different numbers."""
    if len(t) != len(s) or any(len(a) != len(b) for a, b in zip(t, s, strict=True)):
        return None
    each = [numbers.linear_cka(a, b) for a, b in zip(t, s, strict=True)]
    return sum(each) / len(each)
