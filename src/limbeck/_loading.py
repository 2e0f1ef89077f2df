"""Imports the one file of a method, and makes a method from field values."""

from __future__ import annotations

import hashlib
import importlib
import sys
from dataclasses import MISSING, fields, is_dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast, get_args, get_origin, get_type_hints

from limbeck._source import say_path
from limbeck.errors import Missing, UsageError, nearest

if TYPE_CHECKING:
    from limbeck.core.method import Method

__all__ = ["build", "field_types", "load_method"]

_PACKAGE = Path(__file__).resolve().parent


def load_method(path: Path) -> type[Method]:
    """Import a method's file and give its class.

    Raises:
        UsageError: if the file does not hold exactly one class with `card = CARD`, that class is
            not a frozen dataclass with `run`, or the file does not read as Python.
    """
    inside = vars(_module(path.resolve()))
    card = inside.get("CARD")
    classes = list(dict.fromkeys(item for item in inside.values() if isinstance(item, type)))
    owners = [c for c in classes if card is not None and vars(c).get("card") is card]
    if len(owners) != 1:
        told = ", ".join(c.__name__ for c in owners) or "none"
        raise UsageError(
            f"{say_path(path)}: exactly one class must have 'card = CARD'; here: {told}"
        )
    method = owners[0]
    if not is_dataclass(method) or not method.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UsageError(f"{say_path(path)}: {method.__name__} must be a frozen dataclass")
    if not callable(getattr(method, "run", None)):
        raise UsageError(f"{say_path(path)}: {method.__name__} must be an Objective or a Method")
    return cast("type[Method]", method)


def _module(path: Path) -> ModuleType:
    """Import the library's files under their own names, others under a name of their path."""
    if path.is_relative_to(_PACKAGE):
        parts = path.relative_to(_PACKAGE).with_suffix("").parts
        return importlib.import_module(".".join(("limbeck", *parts)).removesuffix(".__init__"))
    folder = path.name == "__init__.py"
    mark = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    name = f"limbeck_own_{path.parent.name if folder else path.stem}_{mark}"
    if name in sys.modules:
        return sys.modules[name]
    inner = [str(path.parent)] if folder else None
    spec = spec_from_file_location(name, path, submodule_search_locations=inner)
    if spec is None or spec.loader is None:
        raise UsageError(f"{say_path(path)} cannot be imported; a method file ends in .py")
    module = module_from_spec(spec)
    sys.modules[name] = module  # before it runs: a dataclass looks its module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError):
            raise UsageError(f"{say_path(path)}, line {error.lineno}: {error.msg}") from error
        if isinstance(error, ModuleNotFoundError):
            raise UsageError(
                f"{say_path(path)} imports {error.name!r}, which is not installed here"
            ) from error
        raise
    return module


def build(method: type[Method], name: str, values: dict[str, Any]) -> Method:
    """Make a method from its class and field values.

    Args:
        method: the class.
        name: what messages call it.
        values: field values; a field without one keeps its default.

    Raises:
        Missing: if there is no such field.
        UsageError: if a value is of the wrong type or out of range, or a field lacks one.
    """
    types = field_types(method)
    for field in values:
        if field not in types:
            raise Missing(f"{name} has no field {field!r}{nearest(field, types)}")
    for f in fields(cast("Any", method)):
        if f.init and f.default is f.default_factory is MISSING and f.name not in values:
            raise UsageError(f"{name} needs a value for its field {f.name!r}")
    try:
        return method(**{field: _shaped(value, types[field]) for field, value in values.items()})
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def field_types(method: type) -> dict[str, Any]:
    """Give the type of each field of a method's class, in order."""
    written = {f.name: f.type for f in fields(method) if f.init}
    # Only the fields are resolved: a base class may name types that are not there at run time.
    holder = type("Fields", (), {"__annotations__": written})
    return get_type_hints(holder, vars(sys.modules[method.__module__]))


def _shaped(value: Any, wanted: Any) -> Any:
    """Give 4 as 4.0 for a float and a list as a tuple, so that equal methods print alike.

    Whether the value is right is for the method to say.
    """
    inner = get_args(wanted)
    if wanted is float or (float in inner and int not in inner and get_origin(wanted) is not tuple):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if whole and abs(value) < 2**1000 else value
    if isinstance(value, list):
        value = tuple(value)
    if get_origin(wanted) is tuple and isinstance(value, tuple):
        each = inner[:1] * len(value) if inner[-1:] == (...,) else inner
        if len(each) == len(value):
            return tuple(_shaped(item, one) for item, one in zip(value, each, strict=True))
    return value
