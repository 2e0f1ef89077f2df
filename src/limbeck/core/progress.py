"""What a person, or a program, sees of a run while it goes on; the live view is `_live.py`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from limbeck.core import processes
from limbeck.core.times import seconds_said
from limbeck.errors import UsageError, nearest

KINDS = ("none", "text", "bar", "json")
Tick = Callable[[int, Mapping[str, float] | None], None]

TOLD = 20
"""So many fits of a group ("rounds" of "rounds/3/client") are told each; more are only counted."""


class Watched:
    """One fit as it is watched: how far it is, how fast, and what was measured.

    `rows` are the values of the terms at each logged step; `valid` is the score's name, its last
    value and its best one. Seconds are those of `time.monotonic`.
    """

    def __init__(self, name: str, steps: int, start: int) -> None:
        self.name, self.steps, self.start, self.done = name, steps, start, start
        self.began = time.monotonic()
        self.rows: list[Mapping[str, float]] = []
        self.valid: tuple[str, float, float] | None = None
        self._marks = deque([(self.began, start)], maxlen=50)

    @property
    def before(self) -> bool:
        """Whether an earlier process had finished it."""
        return self.start == self.steps

    def rate(self, now: float) -> float:
        """Steps a second, over the last fifty times that this was asked."""
        at, done = self._marks[0]
        self._marks.append((now, self.done))
        return (self.done - done) / max(now - at, 1e-9)

    def left(self, rate: float) -> float | None:
        """Seconds to go at a rate, if there is one."""
        return (self.steps - self.done) / rate if rate else None

    def steps_said(self) -> str:
        """The steps that were taken, in words; of all, where it ended early."""
        if self.before:
            return "done before"
        of = f" of {self.steps:,}" if self.done < self.steps else ""
        return f"{self.done:,}{of} steps"

    def from_said(self) -> str:
        """Where it went on, in words; "" of a fit from its beginning."""
        return f" from step {self.start:,} on" if self.start else ""

    def terms_said(self) -> list[str]:
        """The last value of each term."""
        return [f"{k} {v:.4g}" for k, v in self.rows[-1].items()] if self.rows else []

    def best_said(self) -> list[str]:
        """The best score on valid, where it was measured."""
        return [f"best {self.valid[0]} {self.valid[2]:.4g} on valid"] if self.valid else []


class Groups:
    """The fits that ended, by group: which are told one by one, and what is told of the others."""

    def __init__(self) -> None:
        self.name, self.fits, self.seconds = "", 0, 0.0

    @property
    def many(self) -> bool:
        """Whether the group's further fits are only counted."""
        return bool(self.name) and self.fits >= TOLD

    def enter(self, fit: str) -> str | None:
        """A fit begins; gives what is to be said of the group before, if it was cut short."""
        group = fit.partition("/")[0] if "/" in fit else ""
        if group == self.name:
            return None
        said = self.said() if self.name and self.fits > TOLD else None
        self.name, self.fits, self.seconds = group, 0, 0.0
        return said

    def leave(self, fit: Watched, now: float) -> bool:
        """A fit ended; whether to tell it."""
        told = not self.many
        self.fits, self.seconds = self.fits + 1, self.seconds + now - fit.began
        return told

    def said(self) -> str:
        """The group in words."""
        return f"{self.name}: {self.fits:,} fits in {seconds_said(self.seconds)}"


class Shown(Protocol):
    """One way to show a run."""

    def begin(self, fit: Watched) -> Tick: ...

    def end(self, fit: Watched, whole: bool) -> None: ...

    def score(self, fit: Watched) -> None: ...

    def say(self, sentence: str) -> None: ...

    def close(self) -> None: ...


class Text:
    """Sentences on stderr, one for each fit that ended; the latter not where `CI` is set."""

    def __init__(self) -> None:
        self.groups = Groups()
        self.quiet = os.environ.get("CI", "").lower() not in ("", "0", "false")

    def begin(self, fit: Watched) -> Tick:
        self._tell(self.groups.enter(fit.name))

        def tick(done: int, row: Mapping[str, float] | None) -> None:
            fit.done = done
            if row is not None:
                fit.rows.append(row)

        return tick

    def end(self, fit: Watched, whole: bool) -> None:
        now = time.monotonic()
        if not whole or not self.groups.leave(fit, now):
            return
        took = "" if fit.before else f" in {seconds_said(now - fit.began)}{fit.from_said()}"
        values = filter(None, (", ".join(fit.terms_said()), *fit.best_said()))
        self._tell("; ".join((f"{fit.name}: {fit.steps_said()}{took}", *values)))

    def score(self, fit: Watched) -> None: ...

    def say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._tell(self.groups.enter(""))

    def _tell(self, line: str | None) -> None:
        if line and not self.quiet:
            self.say(line)


class Lines:
    """One JSON object on stderr for each logged step, each score on valid, and each sentence."""

    def begin(self, fit: Watched) -> Tick:
        def tick(done: int, row: Mapping[str, float] | None) -> None:
            fit.done = done
            if row is not None:
                rate = fit.rate(time.monotonic())
                left = fit.left(rate)
                self._print(
                    {
                        "stage": fit.name,
                        "step": done,
                        "steps": fit.steps,
                        "terms": {k: _finite(v) for k, v in row.items()},
                        "rate": round(rate, 3),
                        "seconds_left": None if left is None else round(left, 1),
                    }
                )

        return tick

    def end(self, fit: Watched, whole: bool) -> None: ...

    def score(self, fit: Watched) -> None:
        if fit.valid:
            name, value, best = fit.valid
            told = {"valid": {name: _finite(value)}, "best": _finite(best)}
            self._print({"stage": fit.name, "step": fit.done, "steps": fit.steps, **told})

    def say(self, sentence: str) -> None:
        self._print({"note": sentence})

    def close(self) -> None: ...

    @staticmethod
    def _print(told: Mapping[str, Any]) -> None:
        print(json.dumps(told), file=sys.stderr, flush=True)


class Progress:
    """What is shown of a run, by its first process.

    "none" is silent; "text" says sentences, one for each fit that ended; "bar" draws the fits as
    they go on, where stderr is a terminal (elsewhere it is "text"); "json" prints an object for
    each logged step.

    Raises:
        UsageError: there is no such kind.
    """

    def __init__(self, kind: str) -> None:
        if kind not in KINDS:
            raise UsageError(f"there is no progress '{kind}'{nearest(kind, KINDS)}")
        self.kind = kind
        self._fits: dict[str, Watched] = {}  # that go on
        self._made: Shown | None = None

    @contextlib.contextmanager
    def __call__(self, stage: str, steps: int, start: int) -> Iterator[Tick]:
        """A fit's progress; call what it gives with (steps done, values of the terms or None).

        A fit whose `start` is `steps` was finished before.
        """
        if (shown := self._shown()) is None:
            yield _nothing
            return
        fit = self._fits[stage] = Watched(stage, steps, start)
        tick, whole = shown.begin(fit), False
        try:
            yield tick
            whole = True
        finally:
            del self._fits[stage]
            shown.end(fit, whole)

    def score(self, stage: str, name: str, value: float, best: float) -> None:
        """A score that a running fit has on `valid`, and its best so far."""
        if (shown := self._shown()) is not None and stage in self._fits:
            self._fits[stage].valid = (name, value, best)
            shown.score(self._fits[stage])

    def say(self, sentence: str) -> None:
        """A sentence for whoever watches, on stderr; as JSON where the progress is."""
        if (shown := self._shown()) is not None:
            shown.say(sentence)

    def close(self) -> None:
        """The run is over: say what is left to say."""
        if self._made is not None:
            self._made.close()

    def _shown(self) -> Shown | None:
        """Who shows, made when first needed: only then is it known which process this is."""
        if self.kind == "none" or processes.rank():
            return None
        if self._made is None:
            self._made = Lines() if self.kind == "json" else _drawn(self.kind == "bar")
        return self._made


def _drawn(bar: bool) -> Shown:
    if bar:
        from limbeck.core._live import View, terminal

        if (console := terminal()) is not None:
            return View(console)
    return Text()


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _nothing(done: int, row: Mapping[str, float] | None) -> None:
    """Shows nothing."""
