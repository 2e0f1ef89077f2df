"""What a run is: the record in run.json, and refusing what does not belong together."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import __version__
from limbeck.core import processes
from limbeck.core.data import Table
from limbeck.core.files import digest_tensors, read_json, write_json
from limbeck.core.first_look import check_models
from limbeck.core.method import Method
from limbeck.core.task import Task
from limbeck.core.text.facts import check_text
from limbeck.errors import Missing, UsageError


def source_digest(method: Method) -> str:
    """A digest of the text of the method's file."""
    file = getattr(sys.modules.get(type(method).__module__), "__file__", None)
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=8).hexdigest() if file else "none"


def _plain(value: Any) -> Any:
    """A digestible form of what identifies a task."""
    if isinstance(value, nn.Module):
        return digest_tensors(value.state_dict())
    if isinstance(value, Tensor):
        return digest_tensors({"": value})
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return getattr(value, "__qualname__", None) or repr(type(value))


def _data_digest(source: Any) -> str:
    """Length and sixteen fixed samples of a set."""
    if source is None:
        return "none"
    table = Table(source)
    rows = table.rows(torch.linspace(0, len(table) - 1, min(16, len(table))).long(), "fingerprint")
    return f"{len(table)} samples {digest_tensors(_flat_tensors(rows.columns))}"


def _flat_tensors(columns: Mapping[str, Any], head: str = "") -> dict[str, Tensor]:
    """All tensors of a batch by name, those within columns too."""
    out: dict[str, Tensor] = {}
    for name, value in columns.items():
        if isinstance(value, Tensor):
            out[head + name] = value
        elif isinstance(value, Mapping):
            out |= _flat_tensors(value, f"{head}{name}.")
    return out


def task_digests(task: Task) -> dict[str, str]:
    """Named parts of a task's identity."""
    budget = dataclasses.asdict(task.budget)
    return {
        "teacher": task.the_teacher().identity(),
        "student": str(_plain(task.student)),
        "train": _data_digest(task.train),
        "valid": _data_digest(task.valid),
        "test": _data_digest(task.test),
        "budget": repr(sorted(budget.items())),
        "taps": repr(sorted(task.taps.items())),
        "score": task.score.name,
    }


def record(method: Method, task: Task, seed: int, command: str | None) -> dict[str, Any]:
    """What a run is: run.json says it, together with the task's digests."""
    card = getattr(type(method), "card", None)
    plain: list[Any] = list(dataclasses.fields(method)) if dataclasses.is_dataclass(method) else []
    return {
        "method": card.key if card else type(method).__name__,
        "fields": {f.name: getattr(method, f.name) for f in plain},
        "world": task.name,
        "about": dict(task.about),
        "seed": seed,
        "command": command,
        "source": source_digest(method),
        "threads": torch.get_num_threads(),
        "processes": processes.world(),
        "versions": {
            "limbeck": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def open_folder(folder: Path, told: dict[str, Any], task: Task) -> None:
    """Make the run's folder, or go on in it if it holds the same run; the first process does it.

    Raises:
        UsageError: another run lies there, or this one with another task or code, which is named.
    """
    processes.by_the_first(lambda: _open(folder, told, task))


def compare(folder: Path, told: dict[str, Any], task: Task) -> None:
    """Refuse a folder that holds another run than this one.

    Raises:
        Missing: it holds none.
        UsageError: it holds another.
    """
    _compare(folder, read_json(folder / "run.json"), _json({**told, "task": task_digests(task)}))


def _open(folder: Path, told: dict[str, Any], task: Task) -> None:
    told = _json({**told, "task": task_digests(task)})
    path = folder / "run.json"
    if path.exists():
        there = read_json(path)
        _compare(folder, there, told)
        told = {**told, **there}
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} is not empty and holds no run; name another folder with {_out(told)}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder {folder} cannot be made ({error.strerror}); name another with {_out(told)}"
        ) from None
    write_json(path, told)


def _compare(folder: Path, there: dict[str, Any], told: dict[str, Any]) -> None:
    out = _out(told)
    for name in ("method", "fields", "seed"):
        if there.get(name, told[name]) != told[name]:
            raise UsageError(
                f"{folder} holds another run ({name}: {_apart(there[name], told[name])}); name "
                f"another folder with {out}, or remove it"
            )
    for name, now in told["task"].items():
        then = there.get("task", {}).get(name, now)
        if then != now:
            raise UsageError(
                f"the run in {folder} was begun with another {name} ({_apart(then, now)}); "
                f"give it as it was, or name another folder with {out}"
            )
    if there.get("source", told["source"]) != told["source"]:
        raise UsageError(
            f"the method's file has changed since the run in {folder} began; "
            f"put it back, or name another folder with {out}"
        )
    for name in ("threads", "processes", "versions"):
        if there.get(name, told[name]) != told[name]:
            print(
                f"note: the run in {folder} began with {name} {there[name]}, now {told[name]}: "
                "the same bits are not promised",
                file=sys.stderr,
            )


def _out(told: dict[str, Any]) -> str:
    """How whoever began the run names its folder."""
    return "out=" if told["command"] is None else "--out"


def _apart(then: Any, now: Any) -> str:
    """What differs between two values, or two texts of a task's digests, and nothing else."""
    one, two = _flat(then), _flat(now)
    names = [k for k in {**one, **two} if one.get(k) != two.get(k)]
    told = (f"{k} {_short(one.get(k))} there, {_short(two.get(k))} asked" for k in names)
    return ", ".join(each.lstrip() for each in told)


def _short(value: Any) -> str:
    """A value in a sentence; of digests the beginning."""
    if value is None:
        return "none"
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{24}\b", r"\1", str(value))


def _flat(value: Any) -> dict[str, Any]:
    """The plain values in nested ones, by their names."""
    if isinstance(value, str):
        try:
            value = dict(ast.literal_eval(value))  # the digest of a budget, or of taps
        except (ValueError, TypeError, SyntaxError):
            return {"": value}
    if not isinstance(value, dict):
        return {"": value}
    inner = ((k, _flat(v) if isinstance(v, dict) else {"": v}) for k, v in value.items())
    return {end or k: v for k, each in inner for end, v in each.items()}


def _json(value: Any) -> Any:
    """Tuples as JSON has them."""
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    return [_json(v) for v in value] if isinstance(value, tuple | list) else value


def check_task(task: Task, method: Method) -> None:
    """Refuse, before anything is trained, what cannot be trained on.

    Raises:
        UsageError: an empty set, labels out of range, inputs that are not finite, a named set that
            is missing, a method that reads texts as something else.
    """
    card, needs = getattr(type(method), "card", None), method.asks()
    for need in needs:
        if need.startswith("data:") and need[5:] not in task.data:
            name = card.key if card else type(method).__name__
            raise Missing(
                f"{name} needs a set '{need[5:]}'; give it as Task(..., data={{'{need[5:]}': "
                "...}), at the command line in a task file: --task FILE.py:FUNCTION"
            )
    classes = task.count_classes()
    for name in ("train", "valid", "test"):
        source = task.set_or_none(name)
        if source is None:
            continue
        table = Table(source, name)
        x = (table.tensors or {}).get("x")
        if isinstance(x, Tensor) and x.is_floating_point() and not bool(torch.isfinite(x).all()):
            row = int((~torch.isfinite(x.flatten(1)).all(1)).nonzero()[0])
            raise UsageError(
                f"'{name}' holds inputs that are not finite (the first in sample {row}); clean "
                "the data"
            )
        y = table.labels()
        if (
            y is not None
            and classes is not None
            and y.dim() == 1
            and not y.is_floating_point()
            and (int(y.min()) < 0 or int(y.max()) >= classes)
        ):
            raise UsageError(
                f"'{name}' has labels from {int(y.min())} to {int(y.max())}, but there are "
                f"{classes} classes: labels go from 0 to {classes - 1}"
            )
    check_text(task, card)
    check_models(task, needs)
