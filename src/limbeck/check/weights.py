"""Whether each term has a weight of its name, grows with it, and is not computed at zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from limbeck.check.desk import Desk, NothingToSee
from limbeck.check.look import close, value
from limbeck.core.method import Method
from limbeck.errors import UsageError
from limbeck.registry import make

__all__ = ["weights"]

ENDS = ("", "_start", "_end")
"""A weight that is a schedule is several fields: kd, kd_end."""


def weights(desk: Desk) -> Iterator[str]:
    """Each term has a weight field of its name, grows with it, and is not computed at zero.

    The field is one of the objective, or of a method that it holds or wraps. Where terms cannot do
    without one, they say so in a sentence with its name.
    """
    terms = {n: value(t) for n, t in desk.ask().items() if "." not in n}  # a Sum's have dots
    if not terms:
        raise NothingToSee("its terms are those of a sum")
    named = {n: t for n, t in terms.items() if scaled(desk.objective, n, 1.0) is not None}
    yield from (f"the term '{n}' has no weight field of its name" for n in terms if n not in named)
    needed = False
    for name, term in named.items():
        off = _off(desk.objective, name)
        if off is None:
            yield f"the weight '{name}' may not be zero"
            needed = True
            continue
        try:
            if len(terms) > 1 and name in desk.ask(objective=off):
                yield f"the term '{name}' is computed though its weight is zero"
        except UsageError as error:
            needed = True
            if name not in str(error):
                yield f"without the term '{name}' it says only: {error}"
        yield from _grows(desk, name, term, list(named))
    if len(named) == len(terms) > 1 and not needed:
        yield from _asks(desk, list(named))


def _off(objective: Any, name: str) -> Any:
    """The objective with a weight of zero; None if that is out of range."""
    try:
        return scaled(objective, name, 0.0)
    except UsageError:
        return None


def scaled(objective: Any, name: str, factor: float) -> Any:
    """The objective with a weight times a factor, wherever it is a field; None if it is nowhere."""
    if not dataclasses.is_dataclass(objective):
        return None
    held: dict[str, Any] = {
        f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)
    }
    if isinstance(held.get(name), int | float):
        mine = [name + end for end in ENDS if name + end in held]
        changed: Any = dataclasses.replace(objective, **{n: held[n] * factor for n in mine})  # type: ignore[type-var]
        return changed
    for field, inner in held.items():
        wraps = field == "of" and isinstance(inner, str)
        found = scaled(make(inner) if wraps else inner, name, factor)
        if found is not None:
            told = _text(found) if wraps else found
            return dataclasses.replace(objective, **{field: told})  # type: ignore[type-var]
    return None


def _text(method: Method) -> str:
    """A method as the field `of` has it: kd(tau=4.0)."""
    declared: Any = method
    values = (f"{f.name}={getattr(method, f.name)!r}" for f in dataclasses.fields(declared))
    return f"{method.card.key}({', '.join(values)})"


def _grows(desk: Desk, name: str, term: Tensor, names: list[str]) -> Iterator[str]:
    """Half the weight is half the term; or, where weights share in a choice, half of all."""
    alone = desk.ask(objective=scaled(desk.objective, name, 0.5)).get(name)
    if alone is not None and close(value(alone), term / 2):
        return
    together: Any = desk.objective
    for each in names:
        together = scaled(together, each, 0.5)
    half = desk.ask(objective=together).get(name)
    unmoved = alone is None or close(value(alone), term)
    if unmoved or half is None or not close(value(half), term / 2):
        yield f"the term '{name}' does not grow with its weight"


def _asks(desk: Desk, names: list[str]) -> Iterator[str]:
    """What only a term of weight zero needs is not asked."""
    try:
        views = desk.views()
    except NothingToSee:
        return

    def asked(*on: str) -> set[str]:
        objective: Any = desk.objective
        for name in names:
            objective = objective if name in on else scaled(objective, name, 0.0)
        _, student, teacher, batch = desk.ask_fixed(views, objective)
        return {f"student:{n}" for n in student} | {f"teacher:{n}" for n in teacher} | batch

    alone = {name: asked(name) for name in names}
    for name in names:
        others = [n for n in names if n != name]
        vain = asked(*others) - set().union(*(alone[n] for n in others))
        yield from (f"'{n}' is asked for though the weight '{name}' is zero" for n in sorted(vain))
    for need in sorted(alone.get("label", set())):
        if need.startswith("teacher:"):
            yield f"'{need}' is asked for though only the weight 'label' is not zero"
