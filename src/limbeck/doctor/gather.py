"""Measures what the questions are answered from: what the sides say, short fits, records."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from limbeck.core import checkpoints, identity
from limbeck.core.crowd import Crowd
from limbeck.core.data import Table, reader_of
from limbeck.core.evaluate import measure, score_teacher
from limbeck.core.method import Method
from limbeck.core.run import Run
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.untrained import Untrained
from limbeck.doctor import asking, limits, probe, rates
from limbeck.doctor.records import Records
from limbeck.doctor.seen import Seen
from limbeck.doctor.sides import few_of, looked_at
from limbeck.errors import UsageError
from limbeck.runs import teaching


def gather(
    task: Task | None,
    method: Method | None,
    key: str,
    *,
    records: Records | None,
    student: nn.Module | None,
    seed: int,
    device: str | None,
    steps: int | None,
    say: Callable[[str], None],
) -> Seen:
    """Measure what can be measured; nothing is written."""
    raised = task is not None and isinstance(task.the_teacher(), Untrained)
    task = _with_its_teacher(task, records, say)
    seen = Seen(key, method, task, records, steps=steps or limits.STEPS)
    seen.trained_by_run = raised and records is None
    if records is not None:
        _recorded(seen, records)
    if task is None or task.train is None:
        seen.faults["task"] = seen.faults.get("task", "the task is not at hand")
        return seen
    tables = _tables(seen, task)
    seen.samples = {name: len(table) for name, table in tables.items()}
    where = Run(task, seed, device=device).device
    seen.classes = task.count_classes() or _width(task, tables["train"], where)
    answer = asking.ask_teacher(seen, task, tables, where)
    if steps is None:
        seen.steps = _steps(task, seed, device, answer, say)
    _fit(seen, task, student, seed, device, say)
    if student is None and seen.tried is not None:
        student = seen.tried.model
    models = {"student": student, "alone": seen.alone.model if seen.alone else None}
    for side, model in models.items():
        if model is not None:
            asking.ask_student(seen, side, model, task, tables, where)
    if student is not None and not seen.scored and "held" in tables:
        _score(seen, task, student, tables["held"], where)
    _tell_few(seen, say)
    model = student if student is not None else models["alone"]
    if model is not None and isinstance(task.the_teacher(), Frozen | Crowd):
        asking.look_inside(seen, model, task, tables["train"], where)
    return seen


def _recorded(seen: Seen, records: Records) -> None:
    """What a run's records tell."""
    seen.rows = [r for r in records.rows if r["stage"] not in ("teacher", "baseline")]
    seen.told = records.scores()
    samples = records.appraisal.get("samples")
    seen.samples = {"held": int(samples)} if samples else {}
    seen.held = str(records.appraisal.get("set") or "")
    seen.scored, seen.errors = records.own_scores()
    seen.score_name = str(records.result.get("score_name") or "")
    seen.score_higher = bool(records.appraisal.get("score_higher", True))


def _tables(seen: Seen, task: Task) -> dict[str, Table]:
    """The training set, and the held-out one that scores are of, if there is one."""
    seen.held = "test" if task.valid is None else "valid"
    if seen.told or seen.scored:  # what is known of a run's baseline is of the judged set
        seen.held = task.judged
    sets = {"train": ("train", task.train), "held": (seen.held, task.set_or_none(seen.held))}
    return {k: Table(source, name) for k, (name, source) in sets.items() if source is not None}


def _score(seen: Seen, task: Task, student: nn.Module, table: Table, where: torch.device) -> None:
    """The task's own score of both sides, where it is counted place by place and not by classes."""
    if task.score.each is None:
        return
    few = few_of(table, limits.FEWEST)
    seen.score_name, seen.score_higher = task.score.name, task.score.higher
    with seen.noting("score"):
        reader = reader_of(task.readers, "student")
        found = {
            "teacher": score_teacher(task, few, where),
            "student": measure(student.to(where), few, task.score, reader, where),
        }
        seen.scored = {k: v for k, v in found.items() if v is not None and math.isfinite(v)}


def _tell_few(seen: Seen, say: Callable[[str], None]) -> None:
    """Say on how many samples a slow side was asked, which what is said of it rests on."""
    for side in dict.fromkeys(side for side, _ in seen.answers):
        asked = {where: len(a) for (who, where), a in seen.answers.items() if who == side}
        if any(n < min(limits.SAMPLES, seen.samples[where]) for where, n in asked.items()):
            name = {"train": "train", "held": seen.held}
            told = ", ".join(f"{n} of {seen.samples[w]} of '{name[w]}'" for w, n in asked.items())
            say(f"what is said of the {side} rests on {told} (it is slow, or asked by request)")


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


def _with_its_teacher(
    task: Task | None, records: Records | None, say: Callable[[str], None]
) -> Task | None:
    """The task with the teacher that was trained for it.

    That of a run lies in its folder; before a run there may be one that an earlier run has kept.
    """
    teacher = None if task is None else task.the_teacher()
    if task is None or not isinstance(teacher, Untrained):
        return task
    if records is None or not records.teacher.exists():
        found = teaching.kept(task)
        for note in found.notes[len(task.notes) :]:
            say(note)
        return found
    try:
        module = teacher.new()
        checkpoints.into(module, checkpoints.load(records.teacher)[0])
    except (UsageError, RuntimeError, OSError) as error:
        say(f"the teacher of the run's folder cannot be read ({error})")
        return task
    return replace(task, teacher=Frozen(module.eval()))


def _steps(
    task: Task, seed: int, device: str | None, answer: float, say: Callable[[str], None]
) -> int:
    """The steps of a short fit: fewer where they are slow."""
    try:
        steps = rates.paced(task, seed, device, answer)
    except (ValueError, RuntimeError, LookupError, ArithmeticError):  # the fits will say why
        return limits.STEPS
    if steps < limits.STEPS:
        say(f"steps are slow here, so the short fits have {steps} (--probe-steps N for others)")
    return steps


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
            slow = seen.steps <= limits.LEAST  # then what is asked less often is not asked
            beside = seen.classes and not slow  # it is read beside the student alone
            if seen.tried.error is None and seen.tried.rows and beside:
                say(f"trying {seen.key} at a tenth of the rate")
                seen.slower = probe.tried(seen.method, task, seen.steps, seed, device, share=0.1)
        else:
            seen.tried = probe.Tried([], error=error)
        seen.rows = seen.tried.rows
    if not seen.classes:
        return
    say("trying the student alone, at several rates")
    with seen.noting("alone"):
        seen.alone = rates.alone(task, seen.steps, seed, device)
    with seen.noting("student"):
        seen.heart = probe.by_heart(task, seen.steps, seed, device)
