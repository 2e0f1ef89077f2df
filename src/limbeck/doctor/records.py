"""What a run's folder tells of it, finished or not; no model is read."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.core.seeds import asked_for, name_of, resume, whole
from limbeck.errors import Missing, UsageError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """A run's own words.

    Attributes:
        folder: where it is.
        told: run.json.
        rows: of metrics.jsonl.
        result: result.json; empty where the run is not finished.
        appraisal: appraisal.json; empty where there is none.
    """

    folder: Path
    told: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    result: Mapping[str, Any] = field(default_factory=dict)
    appraisal: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The method's key, or the file of one's own."""
        request = self.told.get("request") or {}
        return str(request.get("method") or self.result.get("method") or self.told.get("method"))

    @property
    def fields(self) -> dict[str, Any]:
        """The method's fields as they were."""
        found = self.result.get("fields") or self.told.get("fields")
        return dict(found or (self.told.get("request") or {}).get("given") or {})

    @property
    def command(self) -> list[str] | None:
        """The words of the command that began it, if one did."""
        request = self.told.get("request") or {}
        text = request.get("command") or self.told.get("command")
        return shlex.split(text) if text else None

    @property
    def seeds(self) -> list[int]:
        """The seeds that were asked for together, this one among them."""
        return asked_for(self.told)

    @property
    def whole(self) -> Path:
        """What `limbeck resume` takes: the folder of all seeds, where this is one of several."""
        return whole(self.folder, self.told)

    @property
    def resume(self) -> str:
        """The command that goes on with it."""
        return resume(self.folder, self.told)

    @property
    def open(self) -> list[int]:
        """The other seeds that are not finished, or not begun."""
        if self.whole == self.folder:
            return []
        left = (s for s in self.seeds if not (self.whole / name_of(s) / "result.json").exists())
        return [s for s in left if name_of(s) != self.folder.resolve().name]

    @property
    def teacher(self) -> Path:
        """Where the teacher lies, if it was trained in this run."""
        return self.folder / "teacher.safetensors"

    def own_scores(self) -> tuple[dict[str, float], dict[str, float]]:
        """Scores that are no accuracies, by side, and their standard errors where they are told."""
        found: dict[str, float] = {}
        errors: dict[str, float] = {}
        name = str(self.result.get("score_name") or "accuracy")
        if name == "accuracy":
            return found, errors
        for theirs, ours in (("teacher", "teacher"), ("score", "student"), ("baseline", "alone")):
            value = self.result.get(theirs)
            if isinstance(value, int | float) and math.isfinite(value):
                found[ours] = float(value)
                side = self.appraisal.get("sides", {}).get({"score": "student"}.get(theirs, theirs))
                error = (side or {}).get(f"{name.replace(' ', '_')}_se")
                errors |= {ours: float(error)} if isinstance(error, int | float) else {}
        return found, errors

    def scores(self) -> dict[tuple[str, str], float]:
        """Accuracies by side (teacher, student, alone) and set (train, held), as appraised."""
        found: dict[tuple[str, str], float] = {}
        if self.appraisal.get("score_name", self.result.get("score_name")) != "accuracy":
            return found
        sides = self.appraisal.get("sides", {})
        train = self.appraisal.get("train") or {}
        for theirs, ours in (("teacher", "teacher"), ("student", "student"), ("baseline", "alone")):
            plain = "score" if theirs == "student" else theirs
            held = sides.get(theirs, {}).get("score", self.result.get(plain))
            for where, value in (("held", held), ("train", train.get(theirs))):
                if isinstance(value, int | float) and math.isfinite(value):
                    found[ours, where] = float(value)
        return found


def chosen(folder: str | Path) -> tuple[Path, str]:
    """The run to look at, and a sentence on which it is where a folder holds several seeds.

    It is the first seed that is finished, else the first.
    """
    place = Path(folder)
    seeds = sorted(
        (path.parent for path in place.glob("seed-*/run.json")),
        key=lambda path: (len(path.name), path.name),
    )
    if not seeds or (place / "run.json").exists():
        return place, ""
    done = [path for path in seeds if (path / "result.json").exists()]
    first = (done or seeds)[0]
    records = read(first)
    asked = max(len(seeds), len(records.seeds))
    if not done:
        return first, f"what is said is of {first}, the first of {asked} seeds; none is finished"
    told = f"what is said is of {first}, the first finished of {asked} seeds"
    if names := ", ".join(map(name_of, records.open)):
        told += f" (not finished: {names}; go on with: {records.resume})"
    return first, told


def read(folder: str | Path) -> Records:
    """Read the records of a run; of several seeds those of the one that is `chosen`.

    Raises:
        Missing: there is no run.
        UsageError: a file cannot be read.
    """
    place, _ = chosen(folder)
    told = _json(place / "run.json")
    if told is None:
        raise Missing(f"there is no run in {place} (no run.json)")
    try:
        lines = (place / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # it stopped before its first step, or its method trains nothing
        lines = []
    return Records(
        place,
        told,
        [row for row in map(_row, lines) if row is not None],
        _json(place / "result.json") or {},
        _json(place / "appraisal.json") or {},
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not limbeck's: it holds no object")
    return value


def _row(line: str) -> Row | None:
    """A row; None for one that a kill cut short."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "stage" in row else None
