"""The words that completion offers for what an option or a place takes; no torch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["WORDS", "Choice", "names_in", "paths"]

_MODELS = ("timm:", "torchvision:", "hf:")


@dataclass(frozen=True)
class Choice:
    """What may come next: words, each with what it means, and whether files may, too."""

    words: dict[str, str]
    files: bool = False


def _methods(command: str, now: str) -> Choice:
    from limbeck._shelf import files_of, name_of
    from limbeck._source import has_card
    from limbeck.registry import PACKAGE

    keys = [name_of(path) for _, path in files_of(PACKAGE) if has_card(path)]
    if command == "demo":
        return _listed(keys, now)
    return Choice(dict.fromkeys(keys, ""), files=True)


def _rooms(command: str, now: str) -> Choice:
    from limbeck._shelf import ROOMS
    from limbeck.core.sources import specs

    return Choice(dict.fromkeys(ROOMS if command in ("list", "new") else specs.ROOMS, ""))


def _worlds(command: str, now: str) -> Choice:
    from limbeck.bench.worlds import names

    return Choice(dict.fromkeys(names(), ""))


def _kinds(command: str, now: str) -> Choice:
    from limbeck.core.vocabulary import KINDS

    return Choice(KINDS)


def _needs(command: str, now: str) -> Choice:
    from limbeck.core.vocabulary import ENTRIES, PLAIN_NEEDS

    return Choice({**ENTRIES, **PLAIN_NEEDS})


def _entries(command: str, now: str) -> Choice:
    from limbeck.core.vocabulary import ENTRIES

    return _listed(ENTRIES, now)


def _gives(command: str, now: str) -> Choice:
    from limbeck.core.vocabulary import GIVES

    return Choice(GIVES)


def _statuses(command: str, now: str) -> Choice:
    from limbeck._shelf import STATUSES

    return Choice({status.replace(" ", "-"): "" for status in STATUSES})


def _of(*words: str, files: bool = False) -> Callable[[str, str], Choice]:
    return lambda command, now: Choice(dict.fromkeys(words, ""), files)


WORDS: dict[str, Callable[[str, str], Choice]] = {
    "method": _methods,
    "methods": _methods,
    "room": _rooms,
    "world": _worlds,
    "kind": _kinds,
    "needs": _needs,
    "entries": _entries,
    "gives": _gives,
    "status": _statuses,
    "teacher": _of(*_MODELS, "none", files=True),
    "student": _of(*_MODELS, files=True),
    "modules": _of(*_MODELS, files=True),
    "data": _of("hf:", "sklearn:", files=True),
    "test": _of("hf:", "sklearn:", files=True),
    "augment": _of("none", "flip", "crop", "crop,flip"),
    "device": _of("cpu", "cuda", "mps"),
}
"""What is offered, by the name under which a parser keeps a value: f(command, unfinished word)."""


def _listed(words: Iterable[str], now: str) -> Choice:
    """Words for a list with commas: the last of its items is unfinished."""
    head = now[: now.rfind(",") + 1]
    there = head.split(",")
    return Choice({head + word: "" for word in words if word not in there})


def names_in(file: Path, functions: bool) -> list[str]:
    """The public names that a Python file gives something: functions, or classes and values too."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return []
    names = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    if not functions:
        names += [node.name for node in body if isinstance(node, ast.ClassDef)]
        plain = (t for node in body if isinstance(node, ast.Assign) for t in node.targets)
        names += [target.id for target in plain if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def paths(now: str) -> list[str]:
    """Files and folders that begin with an unfinished word, or with its value as an option."""
    name, equals, value = now.partition("=") if now.startswith("--") else ("", "", now)
    head, slash, begun = value.rpartition("/")
    folder = Path(f"{head}{slash}" or ".").expanduser()
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        hidden = path.name.startswith(".") and not begun.startswith(".")
        if path.name.startswith(begun) and path.name.isprintable() and not hidden:
            end = "/" if path.is_dir() else ""
            found.append(f"{name}{equals}{head}{slash}{path.name}{end}")
    return found
