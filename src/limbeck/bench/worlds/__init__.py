"""Worlds: small ready-made tasks, each with data, trained teachers, students and a budget.

`make("digits")` gives a `Task`; `make("digits(teacher='cnn+mlp', student='vit')")` sets a world's
options. Each other file here whose name has no underscore before it is one world.
"""

import inspect
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, cast

from limbeck.core.card import call
from limbeck.errors import Missing, nearest

if TYPE_CHECKING:  # naming the worlds imports no torch
    from limbeck.core.task import Task


def names() -> tuple[str, ...]:
    """Give the names of all worlds."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")))


def make(spec: str, *, seed: int = 0, tiny: bool = False) -> "Task":
    """Make the task of a world.

    Args:
        spec: a name, or a name with options: "digits(student='mlp')".
        seed: of the run. The worlds here have fixed data and teachers, whatever it is; to draw
            other data, give the option `data_seed`.
        tiny: cut the world down to what runs in a second or two.

    Raises:
        Missing: no such world, option or model family.
        UsageError: an option's value cannot be.
    """
    name, options = call(spec)
    if name not in names():
        raise Missing(f"no world is called {name!r}{nearest(name, names())}")
    task = import_module(f"limbeck.bench.worlds.{name}").task
    known = inspect.signature(task).parameters
    for option in options:
        if option not in known:
            raise Missing(f"the world {name!r} has no option {option!r}{nearest(option, known)}")
    return cast("Task", task(**{"seed": seed, "tiny": tiny, **options}))
