"""One method made ready for the checks: class, tiny fields, world, and the runs that checks share.

Each run gets a copy of the world of its own, so that a method that spoils what it is given spoils
no other run.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import os
import shutil
import sys
import tempfile
import traceback
import weakref
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from limbeck.check.asked import is_given, noted
from limbeck.check.look import digest_of, scrambled
from limbeck.check.seen import Asker, Seen
from limbeck.check.short import Enough, First, Short
from limbeck.check.watch import Watch
from limbeck.core.card import Card
from limbeck.core.method import Method, Result
from limbeck.core.passes import Passes
from limbeck.core.rng import globals_kept
from limbeck.core.run import Run
from limbeck.core.task import Task
from limbeck.registry import OWN, find, get, make
from limbeck.runs.door import run

__all__ = ["NO_FIT", "SEED", "Case", "NotApplicable", "world"]

SEED = 7
NO_FIT = "it trains nothing through fit"


class NotApplicable(Exception):
    """A check has nothing to look at in this method; the message says why."""


@lru_cache(maxsize=8)
def world(text: str) -> Task:
    """The tiny world of a card, made once in a process."""
    from limbeck.bench import worlds

    task: Task = worlds.make(text, tiny=True)
    return task


class Case:
    """One method and what the checks look at.

    Args:
        key_or_file: a method's key, or the path of a FILE.py with a card.

    Raises:
        UsageError: there is no such method, or its file cannot be read.
    """

    def __init__(self, key_or_file: str | os.PathLike[str]) -> None:
        self.entry = find(key_or_file)
        own = self.entry.room == OWN
        self.name = str(self.entry.path) if own else self.entry.card.key
        self.card: Card = self.entry.card
        self.seconds = 0.0  # what all other checks took, for the check `time`
        self.folder = Path(tempfile.mkdtemp(prefix="limbeck-check-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @cached_property
    def cls(self) -> type[Method]:
        """The method's class."""
        return get(self.name)

    @property
    def fields(self) -> dict[str, dataclasses.Field[Any]]:
        """The hyper-parameters by name."""
        declared: Any = self.cls
        return {f.name: f for f in dataclasses.fields(declared)}

    @cached_property
    def method(self) -> Method:
        """The method with its card's tiny fields."""
        return self.changed()

    def changed(self, **values: Any) -> Method:
        """The method with tiny fields, of which some have other values."""
        return make(self.name, **{**self.card.tiny, **values})

    @cached_property
    def module(self) -> ModuleType:
        """The module of the method's file."""
        return sys.modules[self.cls.__module__]

    @cached_property
    def tree(self) -> ast.Module:
        """The method's file, parsed."""
        return ast.parse(self.entry.path.read_text(encoding="utf-8"))

    @cached_property
    def exempt(self) -> dict[str, Any]:
        """The literal EXEMPT of the method's file; {} if there is none, or none that reads."""
        for node in self.tree.body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "EXEMPT":
                try:
                    value = ast.literal_eval(node.value)
                except ValueError:
                    value = None
                return value if isinstance(value, dict) else {"EXEMPT": "no literal dict"}
        return {}

    def owns(self, file: str) -> bool:
        """Whether a file is the method's, or lies in its folder."""
        path, mine = Path(file).resolve(), self.entry.path
        return mine in (path, path.parent / "__init__.py")

    def tell(self, error: BaseException) -> str:
        """An error in a line, with the place where the method's own file had a part in it."""
        told = f"{type(error).__name__}: {error}"
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if self.owns(f.filename)]
        last = (own or frames)[-1:]
        return told + "".join(f" ({Path(f.filename).name}, line {f.lineno})" for f in last)

    def task(self, **changes: Any) -> Task:
        """A copy of the world of its own, with only those named sets that the card asks for.

        What a text is goes with its samples.
        """
        task = copy.deepcopy(world(self.card.world))
        asked = {n.partition(":")[2] for n in self.card.needs if n.startswith("data:")}
        data = {n: v for n, v in task.data.items() if n in asked or n == "text"}
        return dataclasses.replace(task, **{"data": data, **changes})

    # -- runs ----------------------------------------------------------------------------------

    @cached_property
    def _watched(self) -> Watch | Exception:
        task, method = self.task(), self.method
        watch = Watch(task, self.folder / "cwd", self.tell)
        with globals_kept():
            scrambled(1)
            try:
                watch.run(method, SEED)
            except Exception as error:  # whatever a method raises is said by the check `runs`
                return error
        return watch

    @property
    def watched(self) -> Watch:
        """The run in memory that most checks look at.

        Raises:
            NotApplicable: the method does not run.
        """
        seen = self._watched
        if isinstance(seen, Exception):
            raise NotApplicable("it does not run") from seen
        return seen

    @property
    def failure(self) -> Exception | None:
        """What the method raised instead of running."""
        return self._watched if isinstance(self._watched, Exception) else None

    @cached_property
    def plain(self) -> tuple[Result, str, Path]:
        """The same run by the front door, with a folder: its result, digest and folder."""
        self.watched  # noqa: B018 - what does not run is not run again
        folder = self.folder / "plain"
        with globals_kept():
            scrambled(2)
            result = run(self.method, self.task(), seed=SEED, out=folder, device="cpu")
        return result, digest_of(result), folder

    def first(
        self,
        method: Method | None = None,
        task: Task | None = None,
        seed: int = SEED,
        taught: bool = False,
    ) -> First:
        """One step of the first fit, of the method or of another, on the world or on another.

        Args:
            method: instead of the case's.
            task: instead of the world.
            seed: of the run.
            taught: of the first fit that the task's own teacher teaches.

        Raises:
            NotApplicable: it runs without such a fit.
        """
        task = task or self.task()
        short = Short(task, seed, taught)
        with globals_kept(), short:
            try:
                (method or self.method).run(task)
            except Enough:
                return short.first
        raise NotApplicable("it trains nothing by the teacher" if taught else NO_FIT)

    @cached_property
    def start(self) -> First:
        """The first step of the method as it is."""
        self.watched  # noqa: B018
        return self.first()

    def brief(self, method: Method | None = None, task: Task | None = None) -> set[str]:
        """Run with two steps in each fit, and say what is asked for, in the words of a card."""
        task = task or self.task()
        budget = dataclasses.replace(task.budget, steps=2, epochs=None)
        task = dataclasses.replace(task, budget=budget)
        fits: list[Seen] = []

        def begin(passes: Passes) -> None:
            fits.append(Seen(passes, passes.objective, is_given(passes.teacher, task)))
            passes.wrapped = Asker(fits[-1], [])

        with globals_kept(), Run(task, SEED, device="cpu", on_fit=begin), noted(task) as found:
            (method or self.method).run(task)
        return found.union(*(fit.needs for fit in fits))
