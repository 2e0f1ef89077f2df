"""Checks on whole runs: they repeat, resume, learn, and leave everything else as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from limbeck.check.case import SEED, Case, NotApplicable
from limbeck.check.look import digest_of, scrambled
from limbeck.core import checkpoints, identity
from limbeck.core.data import reader_of
from limbeck.core.evaluate import measure
from limbeck.core.method import Result
from limbeck.core.rng import globals_kept
from limbeck.core.run import Run
from limbeck.core.tables import Table
from limbeck.core.task import Task, build_model
from limbeck.registry import PACKAGE, make
from limbeck.runs.door import run

__all__ = ["RUNS", "stops"]


def runs(case: Case) -> Iterator[str]:
    """It runs on its world with its tiny fields, in memory and with a folder.

    The engine itself refuses terms that are no scalars, not finite or narrower than float32, and a
    loss that changes parameters or buffers when it is asked for.
    """
    if case.failure is not None:
        yield case.tell(case.failure)
        return
    try:
        case.plain  # noqa: B018
    except Exception as error:
        yield f"with a folder: {case.tell(error)}"


def stages(case: Case) -> Iterator[str]:
    """Its fits and stages are those that its card names."""
    seen = [name.partition("/")[0] for name in case.watched.stages]
    named = case.card.stages
    unknown = [n for n in dict.fromkeys(seen) if not any(_named(n, stage) for stage in named)]
    yield from (f"it runs the stage '{n}', which its card does not name" for n in unknown)
    for stage in named:
        if not any(_named(n, stage) for n in seen):
            yield f"its card names the stage '{stage}', which does not run"


def _named(name: str, stage: str) -> bool:
    """Whether a stage has the name that a card gives, or that and a number."""
    return name == stage or name.rstrip("0123456789").rstrip("_-.") == stage


def repeats(case: Case) -> Iterator[str]:
    """The same seed gives the same result to the bit, whatever the global generators held."""
    if digest_of(case.watched.result) != case.plain[1]:
        yield "two runs with the same seed give different results"


def seeds(case: Case) -> Iterator[str]:
    """Another seed gives another result."""
    if case.watched.fits:
        one, two = case.start.after, case.first(seed=SEED + 1).after
        equal = all(torch.equal(tensor, two[name]) for name, tensor in one.items() if name in two)
    else:
        with globals_kept():
            other = run(case.method, case.task(), seed=SEED + 1, device="cpu")
        equal = digest_of(other) == case.plain[1]
    if equal:
        yield "another seed gives the same result"


def generators(case: Case) -> Iterator[str]:
    """It draws nothing from the global generators of torch, numpy and Python."""
    if case.watched.drew:
        yield "it draws from a global generator, which is the caller's"


def inputs(case: Case) -> Iterator[str]:
    """Data, given student, working directory, environment and torch's settings stay as they are."""
    yield from case.watched.inputs


def warnings(case: Case) -> Iterator[str]:
    """No module of limbeck, nor the method's own file, warns."""
    for each in case.watched.warned:
        if Path(each.filename).is_relative_to(PACKAGE) or case.owns(each.filename):
            yield f"{Path(each.filename).name}, line {each.lineno}: {each.message}"


# -- resuming --------------------------------------------------------------------------------------


class _Stopped(BaseException):
    """Stops a run as if it were killed; no method may catch it."""


class _Fragile(Run):
    """A run that stops after so many steps and stored results."""

    def __init__(self, left: int, task: Task, folder: Path) -> None:
        super().__init__(task, SEED, folder, "cpu")
        self.after_step = lambda stage, done: self._count()
        self._left = left

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise _Stopped

    def write(self, name: str, tensors: Mapping[str, Any], meta: Any, finished: bool) -> None:
        super().write(name, tensors, meta, finished)
        if finished:
            self._count()


def stops(result: Result) -> tuple[int, ...]:
    """After how many events a run is stopped, each time: early, in the middle, in between."""
    steps = sum(stage["steps"] for stage in result.facts["stages"])
    return tuple(dict.fromkeys((1, max(1, steps // 3), max(1, steps // 2 + 1))))


def resume(case: Case) -> Iterator[str]:
    """Stopped at several steps and resumed, a run ends with the bits of one never stopped."""
    whole, digest, reference = case.plain
    folder = case.folder / "stopped"
    stopped = 0
    with globals_kept():
        for number, left in enumerate(stops(whole)):
            scrambled(10 + number)
            stopped += _stopped(case, folder, left)
        result = run(case.method, case.task(), seed=SEED, out=folder, device="cpu")
        scrambled(20)
        again = run(case.method, case.task(), seed=SEED, out=folder, device="cpu")
    if whole.facts["stages"] and not stopped:
        yield "no run could be stopped"
    yield from _equal("stopped and resumed", result, whole, digest)
    yield from _equal("run again when it was finished", again, whole, digest)
    for name in ("metrics.jsonl", "student.safetensors", "result.json"):
        one, two = folder / name, reference / name
        if two.exists() and (not one.exists() or one.read_bytes() != two.read_bytes()):
            yield f"{name} of a stopped run differs from that of one that was not stopped"


def _stopped(case: Case, folder: Path, left: int) -> bool:
    """Whether a run was stopped before its end."""
    task, method = case.task(), case.method
    with _Fragile(left, task, folder):
        identity.open_folder(folder, identity.record(method, task, SEED, None), task)
        try:
            method.run(task)
        except _Stopped:
            return True
    return False


def _equal(told: str, result: Result, whole: Result, digest: str) -> Iterator[str]:
    if digest_of(result) != digest:
        yield f"{told}, it gives another result"
    if result.log != whole.log:
        yield f"{told}, it has another log"


# -- learning, and what is written down ------------------------------------------------------------


def learns(case: Case) -> Iterator[str]:
    """The sum of its terms falls over a fit, or its score beats that of the untrained student."""
    result = case.plain[0]
    if case.card.gives != "model" or result.model is None:
        raise NotApplicable(f"it gives {case.card.gives}")
    task = case.task()
    table = Table(task.set(task.judged), task.judged)
    reader = reader_of(task.readers, "student")
    fresh = measure(build_model(task.student, SEED, "student"), table, task.score, reader)
    if task.score.better(result.facts["score"], fresh) or _falls(result):
        return
    told = f"its score is {result.facts['score']:.3g}, the untrained student's {fresh:.3g}"
    yield f"{told}, and its terms do not fall"


def _falls(result: Result) -> bool:
    """Whether the sum of terms of the last fit is lower in its last quarter than in its first."""
    rows = [row for row in result.log if "terms" in row]
    sums = [sum(row["terms"].values()) for row in rows if row["stage"] == rows[-1]["stage"]]
    quarter = max(1, len(sums) // 4)
    return len(sums) > 1 and sum(sums[-quarter:]) < sum(sums[:quarter])


def record(case: Case) -> Iterator[str]:
    """The run's folder says what was run, and can be read back."""
    result, _, folder = case.plain
    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if make(case.name, **told["fields"]) != case.method:
        yield "the fields in run.json are read as another method"
    facts = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if facts["method"] != case.card.key or facts["seed"] != SEED:
        yield "result.json is of another method or seed"
    for row in result.log:
        bad = [n for n, v in row.get("terms", {}).items() if not math.isfinite(v)]
        if bad:
            yield f"the log has a '{bad[0]}' that is not finite at step {row['step']}"
    path = folder / "student.safetensors"
    if result.model is not None:
        stored, _ = checkpoints.load(path)
        mine = result.model.state_dict()
        if {*stored} != {*mine} or any(not torch.equal(stored[n], mine[n].cpu()) for n in stored):
            yield "student.safetensors does not hold the model that was given"


RUNS: tuple[Callable[[Case], Iterator[str]], ...] = (
    *(runs, stages, repeats, seeds, generators, inputs, warnings, resume, learns, record),
)
