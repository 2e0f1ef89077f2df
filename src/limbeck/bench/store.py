"""The stored rows of trials: JSON lines in `results/trials`, a file for a method or shared arm.

A row is appended once its run has ended, and forced to the disk; a line that a kill cut short is
left out when the file is read, and cut off before the next row is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck.bench.arms import Job
from limbeck.core.files import Lock, refusal
from limbeck.errors import UsageError

__all__ = ["Store"]

_PLACE = ("arm", "setting", "world", "budget", "seed", "measure", "on")

Row = dict[str, Any]


class Store:
    """The rows of a folder, which is `results/trials` of a clone as a rule."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, list[Row]] = {}
        self._lock: Lock | None = None

    def open(self) -> Store:
        """Take the right to write, which one process has."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refusal(self.folder, error) from error
        self._lock = Lock(self.folder / ".lock")
        return self

    def close(self) -> None:
        """Give the right back."""
        if self._lock is not None:
            self._lock.close()

    def rows(self, home: str) -> list[Row]:
        """All rows of a file, in the order in which they were written.

        Raises:
            UsageError: a line that is not the last is damaged.
        """
        if home not in self._files:
            self._files[home] = list(self._read(self.folder / f"{home}.jsonl"))
        return self._files[home]

    def _read(self, path: Path) -> Iterator[Row]:
        if not path.is_file():
            return
        lines = path.read_text("utf-8").split("\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line's end is cut off
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or any(name not in row for name in _PLACE):
                    raise ValueError
            except ValueError:
                raise UsageError(f"{path}, line {number} is no row of a trial") from None
            yield row

    def find(self, home: str, job: Job, source: str | None = None) -> Row | None:
        """The newest row of a job; with `source` only one that was measured with that code."""
        place = job.place
        for row in reversed(self.rows(home)):
            if all(row[name] == place[name] for name in _PLACE) and source in (None, row["source"]):
                return row
        return None

    def add(self, home: str, row: Row) -> None:
        """Append a row."""
        path = self.folder / f"{home}.jsonl"
        text = json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"
        self.rows(home)
        try:
            with open(path, "r+b" if path.exists() else "w+b") as file:
                whole = file.read()
                file.seek(whole.rfind(b"\n") + 1)
                file.truncate()
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise refusal(path, error) from error
        self._files[home].append(json.loads(text))
