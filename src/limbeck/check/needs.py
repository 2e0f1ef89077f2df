"""Checks on what a method asks for: its card declares it, and names what is not there."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Literal

from limbeck._loading import field_types
from limbeck.check.case import Case, NotApplicable
from limbeck.check.hyper import others
from limbeck.check.objectives import fits_of
from limbeck.core.card import Need, parse_needs
from limbeck.core.method import Objective
from limbeck.core.task import Task
from limbeck.errors import UsageError

__all__ = ["NEEDS"]


def _asks(some: frozenset[Need]) -> set[str]:
    """What is observed when these needs are met; a bare entry is asked of both sides."""
    found: set[str] = set()
    for need in some:
        sides = ("student", "teacher") if need.side == "both" else (need.side,)
        found |= {need.name} if need.side == "plain" else {f"{side}:{need.name}" for side in sides}
    return {n for n in found if n != "teacher_graph" and not n.startswith("data:")}


def needs(case: Case) -> Iterator[str]:
    """What the card declares is what is asked for, no less and no more."""
    declared = parse_needs(case.card.needs)
    allowed = set().union(*(_asks(some) for need in declared for some in need))
    seen = case.watched.needs.union(*(fit.needs for fit in case.watched.fits))
    if not issubclass(case.cls, Objective):  # it may read modules without a view of them
        seen |= {"weights", "teacher_weights"} & allowed
    yield from (
        f"it asks for '{n}', which its card does not declare" for n in sorted(seen - allowed)
    )
    types = field_types(case.cls)
    for name, other in others(case):
        if typing.get_origin(types.get(name)) is Literal or types.get(name) is bool:
            try:
                more = case.brief(case.changed(**{name: other}))
            except UsageError:  # not for this world
                continue
            new = sorted(more - allowed - seen)
            yield from (f"with {name}={other!r} it asks for '{n}', not declared" for n in new)
            seen |= more
    for need, text in zip(declared, case.card.needs, strict=True):
        if not any(_asks(some) <= seen for some in need):
            lacks: list[list[str]] = [sorted(_asks(some) - seen) for some in need]
            lacking = min(lacks, key=len)
            yield f"its card declares '{text}', but it never asks for {', '.join(lacking)}"


def withheld(case: Case) -> Iterator[str]:
    """Where something that it needs is not there, it says which."""
    fits_of(case)
    tasks = dict(_without(case))
    if not tasks:
        raise NotApplicable("nothing that it needs can be withheld")
    data = {need.partition(":")[2] for need in case.card.needs if need.startswith("data:")}
    for name, task in tasks.items():
        try:
            case.brief(task=task)
        except UsageError as error:
            if name not in str(error):
                yield f"without '{name}' it says only: {error}"
        except Exception as error:
            if name not in data:  # the front door refuses a task without it
                yield f"without '{name}' it raises {type(error).__name__}: {error}"
        else:
            yield f"it declares '{name}', but runs without it"


def _without(case: Case) -> Iterator[tuple[str, Task]]:
    """For each need that can be withheld, the task without it."""
    whole = case.task()
    sure = [need for some in parse_needs(case.card.needs) if len(some) == 1 for need in some[0]]
    for need in sure:
        if need.name in whole.taps:
            yield need.name, case.task(taps={k: v for k, v in whole.taps.items() if k != need.name})
        elif need.side == "data":
            yield need.name, case.task(data={})
        elif need.name == "y" and isinstance(whole.train, tuple):
            yield "y", case.task(train=whole.train[:1], classes=whole.count_classes())
    if any(need.side in ("both", "teacher") for need in sure):
        yield "teacher", case.task(teacher=None)


NEEDS = (needs, withheld)
