"""Checks on a method as a value: its card, its fields, its docstring. Nothing is trained."""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import doctest
import inspect
import io
import pickle
import re
import typing
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal

from limbeck._loading import field_types
from limbeck.check.case import Case, NotApplicable
from limbeck.check.look import generators
from limbeck.core.rng import globals_kept
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.runs.door import run

__all__ = ["HYPER", "others"]

SECTIONS = ("Trained", "Source", "Relatives", "Example")
# The words of `limbeck run` and of limbeck.run, which no field may take for itself.
RESERVED = {
    *("world", "task", "seeds", "epochs", "steps", "batch", "lr", "precision", "accumulate"),
    *("workers", "dry", "quiet", "json", "help", "teacher", "student", "data", "test", "target"),
    *("room", "pretrained", "augment", "requests"),
    *inspect.signature(run).parameters,
}


def card(case: Case) -> Iterator[str]:
    """The card is a literal that one frozen dataclass owns; `tiny` names fields of it."""
    cls = case.cls  # asking for it raises a sentence where there is not exactly one
    yield from (
        f"tiny names '{n}', which is no field" for n in case.card.tiny if n not in case.fields
    )
    if case.card.gives == "model" and not case.card.stages:
        yield "the card names no stages, but gives a model"
    unmet = sorted(getattr(cls, "__abstractmethods__", ()))
    if unmet:
        yield f"{cls.__name__} lacks {', '.join(unmet)}"


def default(case: Case) -> Iterator[str]:
    """It is made without arguments, drawing nothing; each field has a type and a plain default."""
    types = field_types(case.cls)
    for name, f in case.fields.items():
        if f.default is dataclasses.MISSING:
            yield f"the field '{name}' has no plain default"
        if name not in types:
            yield f"the field '{name}' cannot be given"
        elif not _plain(types[name]):
            yield f"the field '{name}' is of type {types[name]}, which is no flag's"
        if name in RESERVED:
            yield f"the field '{name}' has the name of a run's own flag"
    with globals_kept():
        before = generators()
        case.cls()
        if generators() != before:
            yield "making it draws from a global generator"


def _plain(kind: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return True
    if origin is tuple:
        return all(k is Ellipsis or _plain(k) for k in inner)
    if inner:  # optional
        return all(k is type(None) or _plain(k) for k in inner)
    return kind in (int, float, str, bool)


def frozen(case: Case) -> Iterator[str]:
    """Its fields cannot be set, and its class cannot be inherited from."""
    made = case.cls()
    for name in case.fields or ["anything"]:
        try:
            setattr(made, name, None)
        except dataclasses.FrozenInstanceError:
            continue
        yield f"the field '{name}' can be set"
    try:
        type("Child", (case.cls,), {})
    except TypeError:
        return
    yield "its class can be inherited from"


def copies(case: Case) -> Iterator[str]:
    """Equal methods are equal, hash alike, and come back from copy, pickle and their own text."""
    for value in (case.cls(), case.method):
        for way, again in WAYS.items():
            try:
                twin = again(value, case.module)
            except Exception as error:  # told below, whatever it is
                yield f"{way} raises {type(error).__name__}: {error}"
                continue
            if twin != value or hash(twin) != hash(value):
                yield f"what comes back from {way} is not equal"


WAYS: dict[str, Callable[[Any, ModuleType], Any]] = {
    "replace": lambda value, module: dataclasses.replace(value),
    "deepcopy": lambda value, module: copy.deepcopy(value),
    "pickle": lambda value, module: pickle.loads(pickle.dumps(value)),
    "repr": lambda value, module: eval(repr(value), vars(module).copy()),
}


def others(case: Case) -> Iterator[tuple[str, Any]]:
    """Other values that a field may have, by field."""
    types = field_types(case.cls)
    for name, f in case.fields.items():
        kind, now = types.get(name), getattr(case.method, name)
        tries: list[Any] = []
        if typing.get_origin(kind) is Literal:
            tries = list(typing.get_args(kind))
        elif isinstance(now, bool):
            tries = [not now]
        elif isinstance(now, int):
            tries = [now + 1, now - 1]
        elif isinstance(now, float):
            tries = [now / 2 if now else 0.5, now + 0.1]
        for other in tries:
            with contextlib.suppress(UsageError):
                if other != now:
                    case.changed(**{name: other})
                    yield f.name, other


def flags(case: Case) -> Iterator[str]:
    """A method written as text, `key(field=value)`, is read as the same method."""
    if re.search(r"[()]", case.name):
        raise NotApplicable("its path has brackets in it")
    made: Any = [case.cls(), case.method, *(case.changed(**{n: v}) for n, v in others(case))]
    for value in made:
        inner = ", ".join(f"{n}={getattr(value, n)!r}" for n in case.fields)
        text = f"{case.name}({inner})"
        if make(text) != value:
            yield f"{text} is read as another method"


def ranges(case: Case) -> Iterator[str]:
    """Values of a wrong type or out of range are refused in a sentence that names the field."""
    for name, f in case.fields.items():
        for wrong in [object(), *_outside(f)]:
            told = wrong if isinstance(wrong, int | float | str) else type(wrong).__name__
            try:
                case.cls(**{name: wrong})
            except ValueError as error:
                if name not in str(error):
                    yield f"{name}={told} is refused without naming the field: {error}"
                continue
            except Exception as error:
                yield f"{name}={told} raises {type(error).__name__} instead of ValueError"
                continue
            yield f"{name}={told} is taken"


def _outside(f: dataclasses.Field[Any]) -> Iterator[Any]:
    above, least, below, most = (f.metadata.get(k) for k in ("above", "least", "below", "most"))
    step = 1 if isinstance(f.default, int) else 1e-3
    if above is not None:
        yield above
    if least is not None:
        yield least - step
    if below is not None:
        yield below
    if most is not None:
        yield most + step
    if isinstance(f.default, str):
        yield 1
    elif isinstance(f.default, int | float):
        yield "text"
    if isinstance(f.default, bool):
        yield 2


def docs(case: Case) -> Iterator[str]:
    """The docstrings mention every field and argument, and have their sections."""
    text = inspect.cleandoc(case.cls.__doc__ or "")
    for section in SECTIONS:
        if not re.search(rf"^{section}\b[^:\n]*:", text, re.MULTILINE):
            yield f"the class's docstring has no section '{section}:'"
    written = text + "\n".join(_comments(case))
    for name in case.fields:
        if not re.search(rf"\b{re.escape(name)}\b", written):
            yield f"the class's docstring does not mention the field '{name}'"
    for node in case.tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        told = ast.get_docstring(node) or ""
        names = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
        lacking = [n for n in names if not re.search(rf"\b{re.escape(n)}\b", told)]
        if lacking:
            yield f"the docstring of {node.name} does not mention {', '.join(lacking)}"


def _comments(case: Case) -> list[str]:
    """Comments behind a field, which say what it is as well as the docstring could."""
    lines = case.entry.path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if re.match(r"    \w+: [^#]+#", line)]


def example(case: Case) -> Iterator[str]:
    """The examples in its docstrings run, and the class has one."""
    if not doctest.DocTestParser().get_examples(case.cls.__doc__ or ""):
        yield "the class's docstring has no example"
    said = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    with globals_kept():
        for test in doctest.DocTestFinder().find(case.module):
            if runner.run(test, out=said.write).failed:
                told = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
                got = told[told.index("Failed example:") + 1 :]
                yield f"an example of {test.name.rpartition('.')[2]} fails: {got[0]}: {_last(got)}"


def _last(told: list[str]) -> str:
    """How the first failing example ends, as doctest tells it."""
    stop = next((i for i, line in enumerate(told) if line.startswith("***")), len(told))
    return told[stop - 1]


HYPER = (card, default, frozen, copies, flags, ranges, docs, example)
