"""The logs of runs, read for curves."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from limbeck.report.curves import Line, Point

__all__ = ["Metrics", "fell", "lines_of", "read_metrics"]

Metrics = dict[str, dict[str, list[tuple[int, float]]]]
"""Of one run: for each stage, for each term, (step, value)."""


def read_metrics(path: Path, what: str = "terms") -> Metrics:
    """Read a run's `metrics.jsonl`; a missing file or a damaged line gives nothing.

    Args:
        path: of the file.
        what: "terms", "norms" (of each weighted term's gradient in the student) or "valid".
    """
    found: Metrics = {}
    try:
        written = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in written:
        try:
            row = json.loads(line)
            terms, stage, step = row[what], str(row["stage"]), int(row["step"])
            values = {str(name): float(value) for name, value in terms.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        for name, value in values.items():
            if abs(value) < float("inf"):
                found.setdefault(stage, {}).setdefault(name, []).append((step, value))
    return found


def lines_of(runs: Sequence[Metrics], most: int = 60) -> tuple[list[Line], list[tuple[str, float]]]:
    """Join the logs of several seeds: a line for each term, its stages one after the other.

    Args:
        runs: the same run with several seeds.
        most: points of a stage's line; neighbours are averaged, but the last row stands alone.

    Returns:
        The lines, and the stages with the step at which each ends.
    """
    pieces: dict[str, list[list[Point]]] = {}
    parts: list[tuple[str, float]] = []
    begin = 0
    for stage in dict.fromkeys(name for run in runs for name in run):
        terms: dict[str, dict[int, list[float]]] = {}
        for run in runs:
            for name, values in run.get(stage, {}).items():
                for step, value in values:
                    terms.setdefault(name, {}).setdefault(step, []).append(value)
        for name, steps in terms.items():
            pieces.setdefault(name, []).append(_thinned(steps, begin, most))
        begin += 1 + max(step for steps in terms.values() for step in steps)
        parts.append((stage, begin))
    return [Line(name, found) for name, found in pieces.items()], parts


def _thinned(values: Mapping[int, Sequence[float]], begin: int, most: int) -> list[Point]:
    """The mean over seeds with the lowest and the highest, neighbouring steps averaged.

    The last row is a point of its own: a curve ends at the last value.
    """
    rows = [(begin + s, statistics.fmean(v), min(v), max(v)) for s, v in sorted(values.items())]
    size = max(1, -(-(len(rows) - 1) // (most - 1)))
    out: list[Point] = []
    for i in range(0, len(rows) - 1, size):
        some = rows[i : min(i + size, len(rows) - 1)]
        x, middle, low, high = map(statistics.fmean, zip(*some, strict=True))
        out.append((x, middle, low, high))
    return [*out, rows[-1]]


def fell(runs: Sequence[Metrics]) -> float | None:
    """By what share what is minimised fell from the third to the last quarter of the last stage.

    None where that is not clear: too few rows, terms of either sign, or less than two standard
    errors of the difference.

    Args:
        runs: terms of the same run with several seeds, without the teacher's and the baseline's.
    """
    quarters: tuple[list[float], list[float]] = ([], [])
    for run in runs:
        sums: dict[int, float] = {}
        for values in (run[list(run)[-1]] if run else {}).values():
            for step, value in values:
                sums[step] = sums.get(step, 0.0) + value
        ordered = [sums[step] for step in sorted(sums)]
        n = len(ordered)
        quarters[0].extend(ordered[n // 2 : 3 * n // 4])
        quarters[1].extend(ordered[3 * n // 4 :])
    third, last = quarters
    if min(len(third), len(last)) < 8 or min(third + last) <= 0:
        return None
    share = 1 - statistics.fmean(last) / statistics.fmean(third)
    error = sum(statistics.variance(part) / len(part) for part in quarters) ** 0.5
    return share if share * statistics.fmean(third) > 2 * error else None
