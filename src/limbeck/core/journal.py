"""What a run remembers: names, finished and begun stages, rounds, and the rows of its log."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limbeck.core import checkpoints, processes
from limbeck.core.files import read_json, refusal, write_atomic, write_json
from limbeck.errors import Missing, UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class _Sittings:
    """The seconds that a run takes, over all sittings (processes that went on with it).

    time.json keeps them with each checkpoint: what a kill took away is done, and counted, again.
    """

    def __init__(self, folder: Path | None) -> None:
        self._began, self._kept = time.monotonic(), False
        self._path = folder / "time.json" if folder else None
        self._before: dict[str, Any] = {}
        if self._path is not None:
            with contextlib.suppress(UsageError):  # it is no part of what the run gives
                told = read_json(self._path)
                self._before = told if isinstance(told, dict) else {}

    def keep(self, still: bool = False) -> None:
        """Write it; with `still` not where an earlier sitting had done all."""
        if self._path is None or (still and self._before and not self._kept):
            return
        self._kept = True
        seconds = float(self._before.get("seconds", 0)) + time.monotonic() - self._began
        sittings = int(self._before.get("sittings", 0)) + 1
        write_json(self._path, {"seconds": round(seconds, 2), "sittings": sittings})


class Journal:
    """The memory of a run, in a folder; without one nothing is kept and everything is done."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._scope: list[str] = []
        self._used: set[str] = set()
        self._saved = time.monotonic()
        self.stages: list[dict[str, Any]] = []  # each fit, with its steps and sizes
        self.time = _Sittings(folder)
        self._told: dict[str, int] | None = None  # stage -> last step that metrics.jsonl tells of

    # -- names ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[str]:
        """Claim a name in the present scope; gives the full one, "rounds/3/client"."""
        if not all(_NAME.fullmatch(part) for part in name.split("/")):
            raise UsageError(
                f"the stage name '{name}' has other signs than letters, digits, '_', '-' and '.'"
            )
        full = "/".join([*self._scope, name])
        if full in self._used:
            raise UsageError(
                f"the stage '{full}' was already run in this run; give each fit, stage and loop a "
                "name of its own"
            )
        self._used.add(full)
        self._scope.append(name)
        try:
            yield full
        finally:
            self._scope.pop()

    # -- stages and rounds ------------------------------------------------------------------------

    def path(self, name: str, end: str = "now") -> Path:
        """A stage's checkpoint file: `now` while it runs, `done` when it is finished."""
        if self.folder is None:
            raise Missing("this run has no folder; give out=DIR")
        return self.folder / "checkpoints" / f"{name.replace('/', '@')}.{end}.safetensors"

    def finished(self, name: str) -> bool:
        """Whether a stage's result is stored."""
        return self.folder is not None and self.path(name, "done").exists()

    def begun(self, name: str) -> bool:
        """Whether a stage has a checkpoint to go on from."""
        return self.folder is not None and self.path(name).exists()

    def write(self, name: str, tensors: Mapping[str, Tensor], meta: Any, finished: bool) -> None:
        """Store a stage's state; only the first process writes."""
        if self.folder is None:
            return

        def store() -> None:
            checkpoints.save(self.path(name, "done" if finished else "now"), tensors, meta)
            if finished:
                self.path(name).unlink(missing_ok=True)
            self.time.keep()

        processes.by_the_first(store)
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether a minute has gone by since the last checkpoint.

        Several processes, whose clocks may differ, keep to whole epochs.
        """
        return processes.world() == 1 and time.monotonic() - self._saved > 60

    def last_good(self, name: str) -> str:
        """A half-sentence on the last checkpoint of a stage."""
        if not self.begun(name):
            return "there is no checkpoint yet"
        path = self.path(name)
        return f"the last good checkpoint is step {checkpoints.load(path)[1]['step']} in {path}"

    def stage(self, name: str, f: Callable[[], Any]) -> Any:
        """See `limbeck.stage`."""
        with self.scope(name) as full:
            if self.finished(full):
                tensors, meta = checkpoints.load(self.path(full, "done"))
                return checkpoints.unpack(meta, tensors)
            value = f()
            stored: dict[str, Tensor] = {}
            meta = checkpoints.pack(value, stored)
            self.write(full, stored, meta, finished=True)
            return value

    def loop(self, name: str, state: dict[str, Any], total: int) -> Iterator[int]:
        """See `limbeck.loop`."""
        with self.scope(name) as full:
            end = "done" if self.finished(full) else "now"
            start = 0
            if end == "done" or self.begun(full):
                tensors, meta = checkpoints.load(self.path(full, end))
                start = meta["round"]
                for key in meta["modules"]:
                    checkpoints.into(state[key], tensors, f"{key}/")
                state.update(checkpoints.unpack(meta["plain"], tensors))
                self.stages += meta["stages"]  # of the rounds that are not run again
            for i in range(start, total):
                with self.scope(str(i)):
                    yield i
                self._keep_round(full, i, total, state)

    def _keep_round(self, full: str, i: int, total: int, state: Mapping[str, Any]) -> None:
        modules = sorted(k for k, v in state.items() if isinstance(v, nn.Module))
        tensors = {
            n: t for k in modules for n, t in checkpoints.of_module(state[k], f"{k}/").items()
        }
        others = {k: v for k, v in state.items() if k not in modules}
        plain = checkpoints.pack(others, tensors, "plain")
        fits = [fit for fit in self.stages if fit["stage"].startswith(f"{full}/")]
        meta = {"round": i + 1, "modules": modules, "plain": plain, "stages": fits}
        self.write(full, tensors, meta, finished=i + 1 == total)
        if self.folder is not None and processes.rank() == 0:  # the stages of a finished round
            for path in (self.folder / "checkpoints").glob(f"{full.replace('/', '@')}@{i}@*"):
                path.unlink()

    # -- the log ----------------------------------------------------------------------------------

    @property
    def metrics(self) -> Path | None:
        """The file of rows, where this process writes one."""
        return None if self.folder is None or processes.rank() else self.folder / "metrics.jsonl"

    def tell(self, row: Mapping[str, Any]) -> None:
        """A row for metrics.jsonl."""
        if self.metrics is not None:
            if self._told is None:
                self.rewind()
            try:
                with self.metrics.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            except OSError as error:  # a full disk: what is stored stays, and the run can go on
                raise refusal(self.metrics, error) from None

    def rewind(self, name: str = "", step: int = 0) -> None:
        """Take back what an earlier process wrote of a stage from a step on; it will come again.

        A line that a kill cut short is dropped.
        """
        path = self.metrics
        first, self._told = self._told is None, self._told or {}
        if path is not None and first:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path is None or (self._told.get(name, -1) < step and not first) or not path.exists():
            return
        kept = []
        text = path.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if row.get("stage") != name or row.get("step", -1) < step:
                    kept.append(line + "\n")
                    at = row.get("stage", "")
                    self._told[at] = max(self._told.get(at, -1), row.get("step", -1))
        self._told.pop(name, None)
        if "".join(kept) != text:
            write_atomic(path, "".join(kept).encode())
