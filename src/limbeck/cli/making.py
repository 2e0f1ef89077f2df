"""The command `new`: begins a method of one's own."""

from __future__ import annotations

import datetime
import importlib.util
import json
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from limbeck._shelf import ROOMS, files_of, name_of
from limbeck._source import say_path
from limbeck.cli._method_files import METHOD, TEST
from limbeck.cli._parser import Parser
from limbeck.errors import Missing, UsageError, nearest
from limbeck.registry import PACKAGE

__all__ = ["TAKEN", "new"]

# Names that mean something in a method's file already: flags of `limbeck run` and `limbeck.run`,
# hooks of an objective, its other fields; and what runs and pages call other things.
_WORDS = """
accumulate augment baseline batch cache checkpoint command data device dry epochs fields help json
lr method out precision pretrained progress quiet requests room seed seeds steps student taps target
task teacher test trackers workers world
after_step asks build counts deliver observe prepare run terms update
label tau card any clock objective side tensor budget
limbeck own scratch tests torch
"""
TAKEN = frozenset(_WORDS.split())
_LONGEST = 24
_LINE = 100


@dataclass(frozen=True)
class Place:
    """Where the two files go, what the test imports the method from, and how to name it."""

    method: Path
    test: Path
    module: str
    asked: str


def new(argv: list[str]) -> int:
    """Write the two files of a method, complete except for its formula."""
    parser = Parser(
        "new",
        "Begin a method: write its file and its test, complete but for one formula. In a clone of\n"
        "limbeck they go where methods live, elsewhere into this folder.",
        (
            'limbeck new my_kd --title "What the Paper Is Called"',
            "limbeck new my_kd --room vision       in a clone of limbeck",
        ),
        more="The formula written, `limbeck check` puts the method through the common suite.",
        usage="KEY [options]",
    )
    parser.add_argument("key", metavar="KEY", help="its short name, in snake_case")
    parser.add_argument("--room", metavar="R", help=f"{', '.join(ROOMS)} (none; a clone needs it)")
    parser.add_argument("--title", metavar="TEXT", help="the paper's title (the key's words)")
    args = parser.parse_args(argv)
    key, clone = args.key, _clone(Path.cwd())
    _check_key(key)
    if args.room is not None and args.room not in ROOMS:
        raise Missing(f"there is no room {args.room!r}{nearest(args.room, ROOMS)}")
    _check_free(key, clone)
    place = _own(key) if clone is None else _in_clone(key, args.room, clone)
    words = key.replace("_", " ").capitalize()
    name = "".join(part.capitalize() for part in key.split("_"))
    said = {
        "key": key,
        "name": name,
        "words": words,
        "title": _literal(" ".join((args.title or "").split()) or words),
        "year": datetime.date.today().year,
        "imports": _imports(place.module, name, key, clone is not None),
    }
    _write({place.method: METHOD.substitute(said), place.test: TEST.substitute(said)})
    line = METHOD.substitute(said).partition("raise NotImplementedError")[0].count("\n") + 1
    method, test = say_path(place.method), say_path(place.test)
    print(f"{method}  write its formula in line {line}, then its facts above")
    print(f"{test}  passes once the formula is there; add what is exact of it")
    print(f"\nthen:  limbeck check {place.asked}  and  pytest {test}")
    return 0


# -- the key and the place -------------------------------------------------------------------------


def _check_key(key: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", key):
        near = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", key).lower()
        near = re.sub(r"[^a-z0-9]+", "_", near).strip("_0123456789")
        hint = f"{near!r}" if near else "'born_again'"
        raise UsageError(f"the key is {key!r}; write it in snake_case, as in {hint}")
    if keyword.iskeyword(key):
        raise UsageError(f"the key {key!r} is a word of Python's own; choose another")
    if key in TAKEN or key in ROOMS or key in sys.stdlib_module_names:
        raise UsageError(f"the key {key!r} has another meaning already; choose another")
    if not 2 <= len(key) <= _LONGEST:
        raise UsageError(f"the key {key!r} is to have from 2 to {_LONGEST} letters")


def _clone(here: Path) -> Path | None:
    """The clone of limbeck that one stands in."""
    roots = (here, *here.parents)
    return next((p for p in roots if (p / "src/limbeck/registry.py").is_file()), None)


def _check_free(key: str, clone: Path | None) -> None:
    """Refuse a key that a method of the library or of the clone has."""
    for root in {PACKAGE, clone / "src" / "limbeck" if clone else PACKAGE}:
        for _, path in files_of(root):
            if name_of(path) == key:
                raise UsageError(
                    f"there is a method called {key!r} already, in {say_path(path)}; choose "
                    "another key"
                )


def _in_clone(key: str, room: str | None, clone: Path) -> Place:
    if room is None:
        raise UsageError(f"name the method's room with --room: {', '.join(ROOMS)}")
    same = next((clone / "tests").rglob(f"test_{key}.py"), None)
    test = clone / "tests" / room / f"test_{key}.py"
    if same is not None and same != test:
        raise UsageError(
            f"its test would have the name of {say_path(same)}, and each has a name of its own; "
            "choose another key"
        )
    package = clone / "src" / "limbeck"
    method = package / room / f"{key}.py"
    asked = key if package.resolve() == PACKAGE else say_path(method)
    return Place(method, test, f"limbeck.{room}.{key}", asked)


def _own(key: str) -> Place:
    here = Path.cwd()
    spec = importlib.util.find_spec(key)
    if spec is not None and Path(spec.origin or here / key).parent != here:
        raise UsageError(f"the file {key}.py would hide the package {key!r}; choose another key")
    return Place(here / f"{key}.py", here / f"test_{key}.py", key, f"{key}.py")


# -- what is written -------------------------------------------------------------------------------


def _imports(module: str, name: str, key: str, inside: bool) -> str:
    """The test's imports in order: the method's among limbeck's own, or after them."""
    lines = [
        "from limbeck.core.data import Batch",
        "from limbeck.core.task import Budget, Task",
        "from limbeck.errors import UsageError",
    ]
    own = [f"from {module} import {name}", f"from {module} import {key}_loss as loss"]
    return "\n".join(sorted([*lines, *own]) if inside else [*lines, "", *own])


def _literal(title: str) -> str:
    """The title as Python writes it, over several lines where one is too short for it."""
    lines = [""]
    for word in re.findall(r"\S+ ?", title):
        if lines[-1] and len(_quoted(lines[-1] + word)) > _LINE - len("    title=,"):
            lines.append("")
        lines[-1] += word
    return "\n    ".join(map(_quoted, lines))


def _quoted(text: str) -> str:
    return repr(text) if '"' in text and "'" not in text else json.dumps(text, ensure_ascii=False)


def _write(files: dict[Path, str]) -> None:
    """Write files that are not there yet: all, or none."""
    for path in files:
        if path.exists():
            raise UsageError(f"{say_path(path)} is there already, and is left as it is")
    made: list[Path] = []
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                made.append(path)
                file.write(text)
    except OSError as error:
        for done in made:
            done.unlink(missing_ok=True)
        told = error.strerror or error
        raise UsageError(
            f"{say_path(path)} cannot be written ({told}); go to another folder"
        ) from None
