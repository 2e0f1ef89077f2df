"""Asks both sides: the teacher with its inputs and classes set right, the student, their taps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from limbeck.core.crowd import Crowd
from limbeck.core.data import Table
from limbeck.core.task import Task
from limbeck.core.teachers import BlackBox, Cached, Frozen, Nobody
from limbeck.core.untrained import Untrained
from limbeck.doctor import limits, numbers
from limbeck.doctor.feed import Order, other_inputs, other_order
from limbeck.doctor.seen import Seen, Tapped, first_line
from limbeck.doctor.sides import answers, features, looked_at, taught_by
from limbeck.errors import UsageError


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


def ask_teacher(seen: Seen, task: Task, tables: dict[str, Table], where: torch.device) -> float:
    """The teacher's answers, with its inputs and its classes set right where they are not.

    Returns:
        Its seconds for a sample; nought where it was not asked.
    """
    if not _is_there(seen, task):
        return 0.0
    if not seen.classes:
        seen.faults["teacher"] = "the samples have no class labels"
        return 0.0
    begun = time.perf_counter()
    if not _ask_each(seen, task, tables, where):
        return 0.0
    took = time.perf_counter() - begun
    asked = sum(len(a) for (side, _), a in seen.answers.items() if side == "teacher")
    _set_right(seen, task, tables, where)
    return took / asked if asked else 0.0


def _set_right(seen: Seen, task: Task, tables: dict[str, Table], where: torch.device) -> None:
    order = _order(seen)
    if isinstance(task.the_teacher(), Frozen | Crowd):  # others cost money, or take no inputs
        with seen.noting("inputs"):
            found = other_inputs(task, tables["train"], where, seen.classes)
            seen.inputs, seen.scales = found
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
            if given.softmaxed:
                seen.softmaxed, given = True, given.logged()
            seen.answers["teacher", name] = given
    return True


def _order(seen: Seen) -> Order | None:
    choose, judge = (seen.answers.get(("teacher", name)) for name in ("train", "held"))
    if choose is not None and judge is None:  # halves of the one set
        half = torch.arange(len(choose)) % 2 == 0
        choose, judge = choose.at(half), choose.at(~half)
    return None if choose is None or judge is None else other_order(choose, judge)


def ask_student(
    seen: Seen,
    side: str,
    model: nn.Module,
    task: Task,
    tables: dict[str, Table],
    where: torch.device,
) -> None:
    """A student's answers, of the one delivered or of the short fits."""
    if seen.records is not None and side == "alone":  # a short fit says nothing beside a whole run
        return
    for name, table in tables.items():
        with seen.noting(side), looked_at(model, task, where) as side_of:
            given = answers(side_of, table, limits.SAMPLES, where, seen.classes)
            seen.answers[side, name] = given


def look_inside(
    seen: Seen, model: nn.Module, task: Task, table: Table, where: torch.device
) -> None:
    """The taps one by one, since one that cannot be read must not hide the others."""
    for name, (theirs, mine) in task.taps.items():
        if theirs is None or mine is None:
            continue
        found = Tapped(name)
        try:
            n = min(limits.INSIDE, len(table))
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
