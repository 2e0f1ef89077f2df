"""The flags that say what a command works on, the same for every command, and what they ask for.

No torch. What was asked is the plain object `request` that run.json keeps.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from limbeck._source import outline
from limbeck.cli import _records as records
from limbeck.core.card import call
from limbeck.core.sources import specs
from limbeck.errors import UsageError
from limbeck.registry import Entry

__all__ = ["BUDGET", "add_budget", "add_fields", "add_task", "asked", "load_torch", "name_of"]

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
}
_SHORT = {"int": "N", "float": "X", "bool": "B"}
_AUGMENT = ("none", "flip", "crop", "crop,flip", "flip,crop")


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add the flags for models and data of one's own, a ready-made world, or a task file."""
    own = parser.add_argument_group("your own models and data")
    add = own.add_argument
    models = "timm:NAME, torchvision:NAME, hf:ID, FILE.py:NAME or a run's folder"
    also = "also timm:NAME@FILE.safetensors, a URL, or none for no teacher"
    add("--teacher", metavar="T", help=f"{models}; {also}")
    add("--student", metavar="S", help=models)
    add(
        "--data",
        metavar="D",
        help="a folder of pictures, a .csv or .npz file, hf:ID, sklearn:digits or FILE.py:NAME",
    )
    add("--test", metavar="D", help="data for the reported score (held out of --data)")
    add("--target", metavar="COLUMN", help="a table's column of class names (the last one)")
    rooms = ", ".join(specs.ROOMS)
    add("--room", metavar="R", help=f"who makes the task: {rooms} (by models and data)")
    fetched = "whether the teacher has trained weights, fetched where need be: yes or no (yes)"
    add("--pretrained", choices=("yes", "no"), default="yes", metavar="Y", help=fetched)
    add("--augment", metavar="A", default="none", help="none, flip, crop or crop,flip (none)")
    spent = "the command stops, all answers are kept, and a further call may make as many again"
    about = f"requests to a teacher behind a URL, at most; when they are spent {spent} (no limit)"
    add("--requests", type=int, metavar="N", help=about)
    other = parser.add_argument_group("or a ready-made task")
    add = other.add_argument
    worlds = "such as digits or \"digits(teacher='cnn', student='mlp')\""
    add(
        "--world", metavar="W", help=f"{worlds} (of `run` the method's own, unless a task is named)"
    )
    add("--task", metavar="FILE.py:FUNCTION", help="a function that gives a limbeck.Task")
    add = parser.add_argument_group("any task").add_argument
    add(
        "--taps",
        metavar="NAME=T,S",
        nargs="+",
        action="extend",
        help="where a method reads inside teacher and student: mid=layer3,features.7 (the task's, "
        "or a guess that is told)",
    )
    add("--device", metavar="D", help="cpu, cuda, ... (a GPU where there is one)")


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change the task's budget."""
    told = "the budget, instead of the task's (for your own models the values in brackets)"
    add = parser.add_argument_group(told).add_argument
    passes = "passes over the training set (10; of tables more where those are under 1,500 steps)"
    add("--epochs", type=float, metavar="X", help=passes)
    add("--steps", type=int, metavar="N", help="optimiser steps, instead of --epochs")
    add("--batch", type=int, metavar="N", help="samples in a step (64, of small sets fewer)")
    add("--lr", type=float, metavar="X", help="the optimiser's highest learning rate (0.001)")
    kinds = ("fp32", "bf16", "fp16")
    add("--precision", choices=kinds, metavar="P", help=f"{', '.join(kinds)} (fp32)")
    add("--accumulate", type=int, metavar="N", help="micro-batches in a step, to save memory (1)")
    add("--workers", type=int, metavar="N", help="processes that read ahead (0)")


def add_fields(parser: argparse.ArgumentParser, entry: Entry) -> None:
    """Add a method's fields as options, each kept as `field_NAME`."""
    add = parser.add_argument_group(f"the fields of {entry.card.key}").add_argument
    for field in outline(entry.path).fields:
        words = re.findall(r"[^,'\"\s\[\]]+", field.type.partition("Literal[")[2])
        short = "|".join(words) if len("".join(words)) <= 14 else ""
        usual = "V,..." if field.type.startswith("tuple[") else "V"
        told = [field.help.rstrip("; "), field.range, "" if short else ", ".join(words)]
        default = f"({field.default.strip(chr(39)) or 'needed'})"
        about = " ".join(filter(None, ("; ".join(filter(None, told)), default)))
        flag = f"--{field.name.replace('_', '-')}"
        add(
            flag,
            dest=f"field_{field.name}",
            metavar=_SHORT.get(field.type, short or usual),
            help=about.replace("%", "%%"),
        )


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


def load_torch() -> None:
    """Import torch, and tell a terminal of the seconds that this takes."""
    if "RANK" in os.environ:  # several processes: a remark of torch's, on a setting that is right
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    told = sys.stderr.isatty()
    if told:
        print("loading torch ...", end="\r", file=sys.stderr, flush=True)
    importlib.import_module("torch")
    if told:
        print("                 ", end="\r", file=sys.stderr, flush=True)


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
    if args.requests is not None and teacher.kind != "url":
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


def _taps(words: Iterable[str]) -> dict[str, list[str]]:
    taps = {}
    for word in words:
        name, eq, paths = word.partition("=")
        both = paths.split(",")
        if not eq or not name or len(both) != 2 or not all(both):
            raise UsageError(
                f"--taps has '{word}'; write NAME=PATH,PATH: the place in the teacher, then in the "
                "student, as mid=layer3,features.7"
            )
        taps[name] = both
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
