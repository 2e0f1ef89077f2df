"""The classes that an earlier run was taught, beside those of other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.core.files import read_json
from limbeck.core.sources.specs import Model
from limbeck.errors import UsageError

__all__ = ["check_teacher", "names_of"]

_NAMED = (
    ("run.json", ("about", "names")),
    ("result.json", ("about", "names")),
    ("appraisal.json", ("classes",)),
)
"""Where a run's files have the names of its classes."""


def check_teacher(model: Model, names: Sequence[str]) -> None:
    """Refuse what a run has trained as the teacher of other classes.

    Classes whose names are but their numbers may be any.

    Args:
        model: a run, or one with weights (MODEL@FILE) that lie in a run's folder.
        names: of the data's classes, in their order.

    Raises:
        UsageError: the names differ, or stand in another order.
    """
    if model.kind != "run" and model.weights is None:
        return
    folder = Path(model.name) if model.weights is None else Path(model.weights).parent
    theirs, mine = names_of(folder), [str(name) for name in names]
    if theirs == mine or not theirs or len(theirs) != len(mine):  # other numbers are refused anyway
        return
    numbers = [str(i) for i in range(len(mine))]
    i = next(i for i, pair in enumerate(zip(theirs, mine, strict=True)) if pair[0] != pair[1])
    apart = f"class {i} is '{theirs[i]}' there and '{mine[i]}' in the data"
    if set(theirs) == set(mine):
        raise UsageError(
            f"the teacher of the run in {folder} has the data's classes in another order "
            f"({apart}); number the data's labels in its order (in its run.json under about)"
        )
    if numbers not in (theirs, mine):
        raise UsageError(
            f"the teacher of the run in {folder} has other classes than the data ({apart}); take a "
            "teacher of these data, or, if only the names differ, rename those of the data"
        )


def names_of(folder: str | Path) -> list[str]:
    """The names of a run's classes in their order, where its files say them; else none."""
    for file, path in _NAMED:
        if (Path(folder) / file).is_file():
            value: Any = read_json(Path(folder) / file)
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, list) and value:
                return [str(name) for name in value]
    return []
