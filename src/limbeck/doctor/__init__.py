"""The doctor: what ails a distillation, before it is run or after.

Example:
    >>> from limbeck.doctor import Finding
    >>> Finding("rate", "good", "the loss went from 2.3 to 0.1").state
    'good'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from limbeck import registry
from limbeck.core.method import Method
from limbeck.core.task import Task
from limbeck.doctor import (
    causes,
    on_alike,
    on_rate,
    on_run,
    on_scores,
    on_student,
    on_teacher,
    on_terms,
)
from limbeck.doctor.gather import gather
from limbeck.doctor.records import Records, chosen, read
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import Diagnosis, Finding, concluded
from limbeck.errors import UsageError

__all__ = ["Diagnosis", "Finding", "Records", "chosen", "diagnose", "read"]

_SILENT: Callable[[str], None] = lambda sentence: None  # noqa: E731


def diagnose(
    task: Task | None,
    method: str | Method = "kd",
    *,
    run: str | Path | Records | None = None,
    student: nn.Module | None = None,
    seed: int = 0,
    device: str | None = None,
    probe_steps: int | None = None,
    command: Sequence[str] | None = None,
    say: Callable[[str], None] = _SILENT,
) -> Diagnosis:
    """Say what ails a task (before a run) or a run.

    Nothing is written, and neither teacher nor task are changed. Before a run the method is tried
    for a few steps in memory; in both cases the student is tried alone, at several rates and on a
    few samples by heart.

    Args:
        task: with its teacher; None to go by a run's records alone.
        method: a key ("kd", "kd(tau=2)"), a FILE.py with a card, or a method.
        run: a run's folder, or its records; its method and fields then go before `method`. Of a
            folder of several seeds the first finished one is looked at, and `say` is told.
        student: what that run delivered.
        seed: of the short fits.
        device: "cpu", "cuda", ...; Accelerate's choice when None.
        probe_steps: steps of each short fit; None for 60, or fewer where steps are slow.
        command: the words of the command that is proposed again with a change.
        say: takes sentences on what is going on.

    Raises:
        UsageError: there is neither a task nor a run, or no such method.
    """
    if task is None and run is None:
        raise UsageError("there is nothing to look at; give a task, or the folder of a run")
    if probe_steps is not None and probe_steps < 4:
        raise UsageError(f"probe_steps is {probe_steps}; a fit says nothing in fewer than 4")
    if isinstance(run, str | Path):
        run, which = chosen(run)
        if which:
            say(which)
        run = read(run)
    records = run
    made, key = _method(method, records)
    words = command or (records.command if records else None)
    seen = gather(
        task, made, key, records=records, student=student, seed=seed, device=device,
        steps=probe_steps, say=say,
    )  # fmt: skip
    found = _findings(seen, words or ["limbeck", "run", key, "--task", "FILE.py:FUNCTION"])
    ended = records is None or bool(records.result)
    return concluded(
        found, key, records is not None, first=on_run.headline(seen, found), ended=ended
    )


def _method(method: str | Method, records: Records | None) -> tuple[Any, str]:
    """The method and its key; None and a key where a run's method is no longer to be had."""
    if records is None:
        made: Any = registry.make(method) if isinstance(method, str) else method
        card = getattr(made, "card", None)
        return made, card.key if card else type(made).__name__
    key = Path(records.method).stem
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in records.fields.items()}
    try:
        return registry.make(records.method, **fields), key
    except UsageError:
        return None, key


def _findings(seen: Seen, command: Sequence[str]) -> list[Finding]:
    """All questions, in the order in which one would ask them."""
    found = [
        on_run.outcome(seen, command) or on_scores.outcome(seen, command),
        on_teacher.inputs(seen, command),
        on_teacher.classes(seen),
        on_teacher.outputs(seen),
        on_scores.better(seen, command) or on_teacher.better(seen, command),
        on_rate.rate(seen, command),
        on_terms.balance(seen, command),
        on_terms.temperature(seen, command),
        on_terms.taps(seen, command),
        on_student.size(seen, command),
        on_student.data(seen, command),
        on_terms.soft_targets(seen, command),
        on_teacher.calibration(seen, command),
        on_alike.agreement(seen, command),
        on_alike.features(seen, command),
        on_run.progress(seen),
    ]
    return causes.sorted_out(seen, [f for f in found if f is not None])
