"""What the flags of a task ask for: the plain object `request` that run.json keeps. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from limbeck.cli import _records as records
from limbeck.core.card import call
from limbeck.core.sources import specs
from limbeck.errors import UsageError

__all__ = ["BUDGET", "asked", "name_of", "without"]

BUDGET = ("epochs", "steps", "batch", "lr", "precision", "accumulate", "workers")
"""Flags that change the task's budget."""

_OWN = ("teacher", "student", "data")
_MORE = {
    "test": None,
    "target": None,
    "room": None,
    "pretrained": "yes",
    "augment": "none",
    "requests": None,
    "context": None,
    "rank": None,
}
_TEXT = ("context", "rank")  # flags of the room language alone
_LISTS = ("blocks", "attention")  # entries of a view that are read at several places
_AUGMENT = ("none", "flip", "crop", "crop,flip", "flip,crop")


def asked(args: argparse.Namespace, world: str | None) -> dict[str, Any]:
    """What these flags ask for; paths are made absolute, so that it holds from anywhere.

    Args:
        args: parsed by a parser that `add_task` (and `add_budget`) extended.
        world: the ready-made task where none is named; None if there must be one.

    Raises:
        UsageError: flags that contradict one another, or words that cannot be read.
    """
    own = {name: getattr(args, name) for name in _OWN if getattr(args, name) is not None}
    kinds = [f"--{k}" for k in ("world", "task") if getattr(args, k)]
    if own:
        kinds.append(f"--{next(iter(own))}")
    if len(kinds) > 1:
        raise UsageError(f"both {kinds[0]} and {kinds[1]} are given; a command has one task")
    if not own and not kinds and world is None:
        raise UsageError(
            "name what to work on: --teacher, --student and --data, --task, or --world"
        )
    request: dict[str, Any] = {"world": None, "task_file": None, "own": None}
    if own:
        request["own"] = _own(args)
    elif args.task:
        file, _, name = args.task.rpartition(":")
        if not file:
            raise UsageError(f"--task is '{args.task}'; give it as FILE.py:FUNCTION")
        request["task_file"] = f"{Path(file).resolve()}:{name}"
    else:
        request["world"] = args.world or world
        call(request["world"])
    if not own:
        _refuse_own(args)
    request["hashes"] = {file: records.digest_of(file) for file in _files(request)}
    request["taps"] = _taps(args.taps or ())
    request["device"] = args.device
    request["budget"] = _budget(args)
    return request


def name_of(request: dict[str, Any]) -> str:
    """A short name of the task that was asked for, for folders."""
    if own := request["own"]:
        student = specs.model_of(own["student"], "student").short
        return f"{student}-{specs.data_of(own['data']).short}"
    if request["task_file"]:
        return Path(request["task_file"].rpartition(":")[0]).stem
    return call(request["world"])[0]


def _own(args: argparse.Namespace) -> dict[str, Any]:
    missing = [f"--{name}" for name in _OWN if getattr(args, name) is None]
    if missing:
        hint = " (--teacher none for no teacher)" if "--teacher" in missing else ""
        raise UsageError(f"{' and '.join(missing)} must be given as well{hint}")
    if args.augment not in _AUGMENT:
        raise UsageError(f"--augment is '{args.augment}'; give one of: {', '.join(_AUGMENT[:4])}")
    if args.requests is not None and args.requests < 1:
        raise UsageError(f"--requests is {args.requests}; it must be above 0")
    teacher = specs.model_of(args.teacher, "teacher")
    if args.requests is not None and teacher.kind not in ("url", "openai"):
        raise UsageError(
            f"--requests is for a teacher behind a URL, and --teacher is '{args.teacher}'; leave "
            "it out"
        )
    student = specs.model_of(args.student, "student")
    data = specs.data_of(args.data)
    own: dict[str, Any] = {
        "room": specs.room_of(teacher, student, data, args.room),
        "teacher": specs.placed(teacher),
        "student": specs.placed(student),
        "data": specs.placed(data),
        "test": specs.placed(specs.data_of(args.test, "--test")) if args.test else None,
        "target": args.target,
        "pretrained": args.pretrained == "yes",
        "augment": args.augment,
        "requests": args.requests,
    }
    for name in _TEXT:
        value = getattr(args, name)
        if value is None:
            continue
        if own["room"] != "language":
            raise UsageError(f"--{name} is for language models, and this is {own['room']}")
        if value < 1:
            raise UsageError(f"--{name} is {value}; it must be above 0")
        own[name] = value
    return own


def _refuse_own(args: argparse.Namespace) -> None:
    for name, usual in _MORE.items():
        if getattr(args, name) != usual:
            raise UsageError(f"--{name} goes with --teacher, --student and --data")


def _files(request: dict[str, Any]) -> list[str]:
    """The Python files that will be executed."""
    own = request["own"] or {}
    words = [own.get(name) for name in (*_OWN, "test")] + [request["task_file"]]
    found = (w.partition("@")[0].rpartition(":")[0] for w in words if w)
    return sorted({file for file in found if file.endswith(".py")})


def _taps(words: Iterable[str]) -> dict[str, list[list[str] | str | None]]:
    taps = {}
    for word in words:
        name, eq, paths = word.partition("=")
        both = [side.split("+") if side else [] for side in paths.split(",")]
        if not eq or not name or len(both) != 2 or not any(both) or not all(map(all, both)):
            raise UsageError(
                f"--taps has '{word}'; write NAME=PATH,PATH: the place in the teacher, then in the "
                "student, as mid=layer3,features.7; several places are joined, as in "
                "blocks=layer1+layer2,features.3+features.7, and a side that is not read is left "
                "out, as in blocks=,features.3+features.7"
            )
        if name not in _LISTS and max(map(len, both)) > 1:
            lists = " and ".join(f"'{n}'" for n in _LISTS)
            raise UsageError(
                f"--taps has '{word}', and '{name}' is read at one place of a side; of several are "
                f"{lists}"
            )
        taps[name] = [side if name in _LISTS and side else "+".join(side) or None for side in both]
    return taps


def _budget(args: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(args, name, None) for name in BUDGET}
    if given["steps"] is not None and given["epochs"] is not None:
        raise UsageError("both --steps and --epochs are given; give one of them")
    for name in ("epochs", "steps", "batch", "lr", "accumulate"):
        value = given[name]
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"--{name} is {value}; it must be above 0")
    if given["workers"] is not None and not 0 <= given["workers"] <= 256:
        raise UsageError(f"--workers is {given['workers']}; give a number from 0 to 256")
    return {name: value for name, value in given.items() if value is not None}


def without(argv: Sequence[str], options: dict[str, int]) -> list[str]:
    """The words without some options and the values that they take."""
    kept: list[str] = []
    skip = 0
    for word in argv:
        option, eq, _ = word.partition("=")
        if skip:
            skip -= 1
        elif option in options:
            skip = 0 if eq else options[option]
        else:
            kept.append(word)
    return kept
