"""The task that a command line asks for, and the values of its flags."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.cli import _records as records
from limbeck.core.card import parse_needs
from limbeck.core.seeds import resume
from limbeck.errors import UsageError
from limbeck.registry import make

if TYPE_CHECKING:
    from limbeck.core.method import Method, Result
    from limbeck.core.task import Task

_MAKERS = {
    "vision": "limbeck.vision._kit.task",
    "language": "limbeck.language._kit.task",
    "plain": "limbeck.core.plain",
}
"""Who makes tasks of models and data: a function `task` in each."""

_TAPPED = ("mid", "feature", "embedding", "blocks")


@dataclass(frozen=True)
class Opened:
    """A finished run, as it was: its task (the teacher trained), its result, and its request."""

    task: Task
    result: Result
    request: dict[str, Any]


def task_of(request: dict[str, Any]) -> Task:
    """The task that was asked for, with the budget and taps that were asked for."""
    method = request.get("method")
    read = set() if method is None else read_by(method, request.get("given", {}))
    if request["own"]:
        task = _made(request["own"])
    elif request["task_file"]:
        task = load_task(request["task_file"])
    else:
        from limbeck.bench import worlds

        task = worlds.make(request["world"], seed=request.get("seed", 0))
    given = dict(request["budget"])
    if "lr" in given:
        given["optimiser"] = replace(task.budget.optimiser, lr=given.pop("lr"))
    if "steps" in given or "epochs" in given:
        given = {"steps": None, "epochs": None, **given}
    taps = {name: tuple(paths) for name, paths in request["taps"].items()}
    task = replace(task, budget=replace(task.budget, **given), taps={**task.taps, **taps})
    if method is None:
        return task
    names = _names(read)
    if unread := [name for name in taps if name not in names]:
        there = " and ".join(f"'{name}'" for name in _TAPPED if name in names) or "nothing"
        told = f"--taps {' '.join(unread)}: the method does not read it; inside the models it reads"
        task = replace(task, notes=(*task.notes, f"{told} {there}"))
    return with_taps(task, read) if request["own"] else task


def read_by(method: str, given: dict[str, Any]) -> set[str]:
    """What a method reads, as on a card: "mid" of both sides, "student:blocks" of one.

    What a method inside it reads is there, too.
    """
    needs = parse_needs(method_of(method, given).asks())
    return {str(n) for need in needs for some in need for n in some}


def _names(needs: Iterable[str]) -> set[str]:
    return {need.rpartition(":")[2] for need in needs}


def method_of(method: str, given: dict[str, Any]) -> Method:
    """A method with the values of its flags.

    Raises:
        UsageError: a value is wrong; the sentence calls a field that was given by its flag.
    """
    values = tuples(given)
    try:
        return make(method, **values)
    except UsageError as error:
        told = str(error)
        for name in values:
            told = re.sub(rf"\b[A-Z]\w*\.{name}\b", f"--{name.replace('_', '-')}", told)
        raise type(error)(told) from error


def _made(own: dict[str, Any]) -> Task:
    """The task that a room makes of words for models and data."""
    room = own["room"]
    if room not in _MAKERS:
        raise UsageError(
            f"the room '{room}' makes no tasks from words yet; give one as --task FILE.py:FUNCTION"
        )
    maker = importlib.import_module(_MAKERS[room])
    words = {k: v for k, v in own.items() if k not in ("room", "teacher", "student", "data")}
    try:
        task: Task = maker.task(own["teacher"], own["student"], own["data"], **words)
    except UsageError as error:
        if room == "plain" and own["data"] == "sklearn:digits" and "not take samples" in str(error):
            raise UsageError(f"{error}; to have them as pictures, add --room vision") from error
        raise
    return task


def with_taps(task: Task, entries: Iterable[str]) -> Task:
    """The task with proposed taps for those of these entries that need one and have none."""
    missing = {e for e in entries if _names([e]) <= {*_TAPPED} - {*task.taps}}
    if not missing:
        return task
    from limbeck.core.layout import propose

    taps = propose(task, missing)
    told = " ".join(f"{name}={','.join(map(_told, paths))}" for name, paths in taps.items())
    note = f"the models are read inside, at a guess that --taps can change: --taps {told}"
    notes = (*task.notes, note) if taps else task.notes
    return replace(task, taps={**task.taps, **taps}, notes=notes)


def _told(path: str | list[str] | None) -> str:
    """A path as --taps takes it."""
    return "+".join(path) if isinstance(path, list) else path or ""


def load_task(where: str) -> Task:
    """The task that FILE.py:FUNCTION makes.

    Raises:
        UsageError: there is no such file or function, or it does not give a Task.
    """
    from limbeck.core.sources import own
    from limbeck.core.task import Task

    function = own.value_of(where)
    if not callable(function):
        raise UsageError(
            f"{where} is a {type(function).__name__}; name a function without arguments"
        )
    with own.running(where.rpartition(":")[0]):
        task = function()
    if not isinstance(task, Task):
        raise UsageError(f"{where} gave a {type(task).__name__}; it must give a limbeck.Task")
    return task


def reopen(folder: Path) -> Opened:
    """A finished run that was begun from the command line, replayed from its stored stages.

    Raises:
        UsageError: it is not finished, was begun from Python, or its files have changed.
    """
    request = records.request_of(folder, "only Python can open it")
    if not (folder / "result.json").exists():
        raise UsageError(
            f"the run in {folder} is not finished; go on with: "
            f"{resume(folder, {'request': request})}"
        )
    from limbeck.runs.door import again

    task, result = again(
        request["method"],
        task_of(request),
        seed=request["seed"],
        out=folder,
        cache=request.get("cache"),
        device=request["device"],
        **tuples(request["given"]),
    )
    return Opened(task, result, request)


def value(text: str) -> Any:
    """A flag's text as the literal that it is, or as text."""
    plain = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
    try:
        return ast.literal_eval(plain)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def tuples(given: dict[str, Any]) -> dict[str, Any]:
    """Field values with tuples, where JSON had made lists of them."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
