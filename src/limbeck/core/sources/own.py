"""What a user's own file holds: FILE.py:NAME, with its mistakes told in one sentence."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from limbeck.errors import Missing, UsageError, nearest

__all__ = ["file_of", "running", "value_of"]

_PREFIX = "limbeck_own_"


def value_of(where: str) -> Any:
    """What FILE.py:NAME names; a name may have dots, as in nets.py:zoo.small.

    A file is executed once in a process, until its text changes.

    Raises:
        Missing: there is no such file or name.
        UsageError: executing the file fails.
    """
    file, _, name = where.rpartition(":")
    value: Any = _module(file)
    for part in name.split("."):
        if not hasattr(value, part):
            there = [n for n in vars(value) if not n.startswith("_")]
            raise Missing(f"{file} has no '{part}'{nearest(part, there)}")
        value = getattr(value, part)
    return value


def file_of(kind: type) -> Path | None:
    """The file that a class came from by `value_of`; None for a class of a package."""
    module = sys.modules.get(kind.__module__)
    if module is None or not module.__name__.startswith(_PREFIX):
        return None
    return Path(str(module.__file__))


@contextmanager
def running(file: str) -> Iterator[None]:
    """Run what a user's file brings: its neighbours can be imported, its errors are sentences.

    Raises:
        UsageError: naming file, line and what went wrong there.
    """
    folder = str(Path(file).resolve().parent)
    sys.path.append(folder)  # last, so that no file of theirs hides a package
    try:
        yield
    except UsageError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        whole = str(Path(file).resolve())
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if str(Path(f.filename).resolve()) == whole]
        place = f", line {lines[-1]}" if lines else ""
        told = " ".join(str(error).split()) or "no message"
        raise UsageError(f"{file}{place}: {type(error).__name__}: {told}") from error
    finally:
        with suppress(ValueError):  # the file may have tidied up itself
            sys.path.remove(folder)


def _module(file: str) -> ModuleType:
    path = Path(file)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Missing(f"the file {file} cannot be read ({error.strerror})") from None
    mark = hashlib.sha256(str(path.resolve()).encode() + b"\0" + text).hexdigest()[:16]
    name = f"{_PREFIX}{path.stem}_{mark}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: a dataclass looks its module up by name
    try:
        with running(file):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
