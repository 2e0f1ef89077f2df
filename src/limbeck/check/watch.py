"""A run that is looked at while it goes on."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from limbeck.check.asked import is_given, noted
from limbeck.check.desk import Desk
from limbeck.check.look import Kept, generators, modules_of, process_state
from limbeck.check.numbers import EXAMINED, NothingToSee
from limbeck.check.seen import Asker, Seen, Shell, hooks_of, modes_of, put_back
from limbeck.core.devices import Devices
from limbeck.core.joins import Gradients
from limbeck.core.method import Method, Result
from limbeck.core.passes import Passes
from limbeck.core.rng import globals_kept
from limbeck.core.run import Run
from limbeck.core.task import Task
from limbeck.core.updates import Moves

__all__ = ["Watch"]


class Watch:
    """Runs a method in memory and looks on.

    Args:
        task: a task of the run's own.
        cwd: an empty working directory, made here.
        tell: an error in a line.
    """

    def __init__(self, task: Task, cwd: Path, tell: Callable[[BaseException], str]) -> None:
        self.task, self.cwd, self.tell = task, cwd, tell
        self.fits: list[Seen] = []
        self.stages: list[str] = []
        self.needs: set[str] = set()  # what was asked of views, in the words of a card
        self.said: dict[str, list[str]] = {}
        self.unseen: dict[str, list[str]] = {}  # why a check saw nothing in a fit
        self.teacher: list[str] = []
        self.inputs: list[str] = []
        self.drew = False
        self._threads = {t.name for t in threading.enumerate()}
        self.warned: list[warnings.WarningMessage] = []
        self.result = Result()

    def run(self, method: Method, seed: int) -> None:
        """Run the method, without the front door's keeping of the global generators."""
        teacher = self.task.the_teacher()
        modules = modules_of(teacher)
        before = Kept(**{f"teacher{i or ''}": m for i, m in enumerate(modules)})
        modes = [modes_of(m) for m in modules]
        given = {"train": self.task.train, "valid": self.task.valid, "test": self.task.test}
        inputs = Kept(**given, student=self.task.student, data=dict(self.task.data))
        self.cwd.mkdir(parents=True)
        with contextlib.chdir(self.cwd), warnings.catch_warnings(record=True) as self.warned:
            warnings.simplefilter("always")
            state, drawn = process_state(), generators()
            with _Run(self, seed), noted(self.task) as self.needs:
                self.result = method.run(self.task)
            self.drew = generators() != drawn
            now = process_state()
        self._compare(state, now)
        self.inputs += [f"{name} was changed" for name in inputs.changed()]
        self.teacher += [f"{name} was changed" for name in before.changed()]
        if [modes_of(m) for m in modules] != modes:
            self.teacher.append("modes, requires_grad or hooks of it were not put back")
        for name, p in (pair for m in modules for pair in m.named_parameters()):
            if p.grad is not None:
                self.teacher.append(f"a gradient reached its parameter '{name}'")

    def _compare(self, state: dict[str, Any], now: dict[str, Any]) -> None:
        names = [n for n in {**state, **now} if state.get(n) != now.get(n)]
        self.inputs += [f"{name} is not what it was" for name in names]
        for name in sorted({t.name for t in threading.enumerate()} - self._threads):
            self.inputs.append(f"the thread '{name}' is still there")
        fresh = hooks_of(self.task.new_student(0))
        if any(hooks_of(seen.passes.student) > fresh for seen in self.fits):
            self.inputs.append("a hook was left on the student")

    def begin(self, passes: Passes) -> None:
        """Look at a fit before its first step, and put oneself where its steps pass."""
        seen = Seen(passes, passes.objective, is_given(passes.teacher, self.task))
        seen.closely = (0, passes.steps // 2)
        like = [s for s in self.fits if type(s.objective) is type(seen.objective)]
        if all(s.objective != seen.objective for s in like):
            self._examine(seen)
        self.fits.append(seen)
        passes.objective = Shell(seen)
        passes.wrapped = Asker(seen, self.teacher)

    def _examine(self, seen: Seen) -> None:
        passes = seen.passes
        for phase in [phase.name for phase, _ in passes.phases if phase.train]:
            for name, examine in EXAMINED.items():
                found = self.said.setdefault(name, [])
                kept, unseen = Kept(step=passes.step), ""
                try:
                    with globals_kept(), Desk(passes, phase) as desk:
                        found += examine(desk)
                except NothingToSee as why:
                    unseen = str(why)
                except Exception as error:  # whatever it raises is what is said of it
                    found.append(f"{passes.stage}: it raised {self.tell(error)}")
                put_back(kept)
                self.unseen.setdefault(name, []).append(unseen)


class _Run(Run):
    """Notes the names of fits, stages and loops as they begin."""

    def __init__(self, watch: Watch, seed: int) -> None:
        super().__init__(watch.task, seed, device="cpu", on_fit=watch.begin)
        self.devices = _Devices(watch)
        self._watch = watch

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[str]:
        with super().scope(name) as full:
            self._watch.stages.append(full)
            yield full


class _Devices(Devices):
    """Sees which parameters a gradient reaches."""

    def __init__(self, watch: Watch) -> None:
        super().__init__("cpu")
        self._watch = watch

    def move(self, moves: Moves, clip: float | None, split: Mapping[str, Gradients] | None) -> None:
        seen = self._watch.fits[-1]
        for name, p in moves.params.items():
            if name not in seen.reached and p.grad is not None and bool(p.grad.count_nonzero()):
                seen.reached.add(name)
        super().move(moves, clip, split)
