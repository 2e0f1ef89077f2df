"""What the folder of a run, or of several seeds, says of itself."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.core.seeds import resume
from limbeck.errors import Missing, UsageError
from limbeck.report.words import Measure

__all__ = ["SIDES", "Seed", "Told", "read_run"]

SIDES = ("teacher", "student", "baseline")


@dataclass(frozen=True)
class Seed:
    """One run: what the files of these names say; {} of an appraisal or time that is missing."""

    folder: Path
    run: Mapping[str, Any]
    result: Mapping[str, Any]
    appraisal: Mapping[str, Any]
    time: Mapping[str, Any] = field(default_factory=dict)

    def at(self, *path: str) -> Any:
        """A value of the appraisal by the names that lead to it, or None."""
        found: Any = self.appraisal
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


@dataclass(frozen=True)
class Told:
    """A run, or the same run with several seeds (`many`, in a folder of their own)."""

    folder: Path
    seeds: tuple[Seed, ...]
    many: bool

    @property
    def first(self) -> Seed:
        """The run of the first seed."""
        return self.seeds[0]

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.first.result.get("method", "a method"))

    @property
    def measure(self) -> Measure:
        """The task's score."""
        name = self.first.result.get("score_name", "score")
        return Measure(str(name), self.first.at("score_higher") is not False)

    def scores(self, side: str) -> list[float]:
        """The score of a side in each seed, where all have it; [] otherwise."""
        name = "score" if side == "student" else side
        found = [seed.result.get(name) for seed in self.seeds]
        if None in found:  # a black box has no module, but may have answered afterwards
            found = [seed.at("sides", side, "score") for seed in self.seeds]
        return [float(v) for v in found if v is not None] if None not in found else []

    def each(self, *path: str) -> list[float]:
        """A number of the appraisal in each seed that has it."""
        found = [seed.at(*path) for seed in self.seeds]
        return [float(v) for v in found if isinstance(v, int | float)]

    def mean(self, *path: str) -> float | None:
        """The mean of a number of the appraisal."""
        found = self.each(*path)
        return statistics.fmean(found) if found else None

    def names(self) -> list[str]:
        """The classes' names."""
        return [str(name) for name in self.first.at("classes") or ()]

    def inputs(self) -> Mapping[str, Any]:
        """What run.json says of the student's inputs; {} where it says nothing."""
        about = self.first.run.get("about")
        inputs = about.get("inputs") if isinstance(about, Mapping) else None
        return inputs if isinstance(inputs, Mapping) else {}

    def columns(self) -> int:
        """How many numbers a sample of a table or of rows has; 0 where that is not known."""
        inputs = self.inputs()
        return len(inputs.get("columns") or ()) or math.prod(inputs.get("shape") or (0,))

    def asked(self, name: str) -> str | None:
        """What the command line that began the run gave for a flag, if it was a text.

        Of a path its last part, which is what a reader knows it by.
        """
        request = self.first.run.get("request")
        request = request if isinstance(request, Mapping) else {}
        own = request.get("own")
        value = own.get(name) if isinstance(own, Mapping) else request.get(name)
        if not isinstance(value, str):
            return None
        return value.rstrip("/").rpartition("/")[2] if value.startswith("/") else value


def read_run(folder: Path) -> Told:
    """Read a finished run, or a folder of seed-*/ with one each.

    Raises:
        Missing: there is no run in it.
        UsageError: it is not finished, not limbeck's, or damaged.
    """
    inner = sorted(
        (path.parent for path in folder.glob("seed-*/run.json")),
        key=lambda path: (len(path.name), path.name),
    )
    if inner:
        return Told(folder, tuple(_seed(path) for path in inner), True)
    if not (folder / "run.json").exists():
        what = "there is no such folder" if not folder.exists() else "it has no run.json"
        raise Missing(f"there is no run in {folder} ({what}); name the folder of a run")
    return Told(folder, (_seed(folder),), False)


def _seed(folder: Path) -> Seed:
    run = _read(folder / "run.json")
    if "method" not in run and isinstance(run.get("request"), dict):
        raise UsageError(
            f"the run in {folder} was stopped before its first step; go on with: "
            f"{resume(folder, run)}"
        )
    if "method" not in run:
        raise UsageError(f"{folder / 'run.json'} is not of a run of limbeck: it names no method")
    if not (folder / "result.json").exists():
        raise UsageError(f"the run in {folder} is not finished; go on with: {resume(folder, run)}")
    result = _read(folder / "result.json")
    if "method" not in result:
        raise UsageError(f"{folder / 'result.json'} is not limbeck's: it names no method")
    more = (folder / name for name in ("appraisal.json", "time.json"))
    return Seed(folder, run, result, *(_read(path) if path.exists() else {} for path in more))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is damaged: it holds no JSON object")
    return value
