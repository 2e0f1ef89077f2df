"""What a person sees of a run while it goes on."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from limbeck.core import processes
from limbeck.errors import UsageError, nearest

KINDS = ("none", "text", "bar", "json")
Tick = Callable[[int, Mapping[str, Any] | None], None]


class Progress:
    """What is shown.

    "none" is silent; "text" says sentences only; "bar" draws a line for each stage on a terminal;
    "json" prints an object for each logged step to stderr.
    """

    def __init__(self, kind: str) -> None:
        if kind not in KINDS:
            raise UsageError(f"there is no progress '{kind}'{nearest(kind, KINDS)}")
        self.kind = kind

    @contextlib.contextmanager
    def __call__(self, stage: str, steps: int, start: int) -> Iterator[Tick]:
        """A stage's progress; call what it gives with (steps done, values of the terms or None)."""
        if self.kind in ("none", "text") or processes.rank():
            yield lambda done, row: None
        elif self.kind == "json":
            yield lambda done, row: self._print(stage, steps, done, row)
        else:
            yield from self._bar(stage, steps, start)

    def say(self, sentence: str) -> None:
        """A sentence for whoever watches, on stderr; as JSON where the progress is."""
        if self.kind == "none" or processes.rank():
            return
        told = json.dumps({"note": sentence}) if self.kind == "json" else sentence
        print(told, file=sys.stderr, flush=True)

    @staticmethod
    def _print(stage: str, steps: int, done: int, row: Mapping[str, Any] | None) -> None:
        if row is not None:
            told = {
                "stage": stage,
                "step": done,
                "steps": steps,
                "terms": {k: float(v) for k, v in row.items()},
            }
            print(json.dumps(told), file=sys.stderr, flush=True)

    @staticmethod
    def _bar(stage: str, steps: int, start: int) -> Iterator[Tick]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} {task.fields[terms]}"),
        )
        with Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
        ) as bar:
            task = bar.add_task(stage, total=steps, completed=start, rate="", terms="")
            began = time.monotonic()
            shown = 0.0

            def tick(done: int, row: Mapping[str, Any] | None) -> None:
                nonlocal shown
                now = time.monotonic()
                if now - shown < 0.1 and done < steps:
                    return
                shown = now
                fields: dict[str, Any] = {
                    "rate": f"{(done - start) / max(now - began, 1e-9):.0f}/s"
                }
                if row is not None:
                    fields["terms"] = " ".join(f"{k} {float(v):.3g}" for k, v in row.items())
                bar.update(task, completed=done, **fields)
                bar.refresh()

            yield tick
