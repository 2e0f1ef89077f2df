"""What the grid's rows say of each method, in one file that is packaged: `leaderboard.json`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from limbeck import registry
from limbeck.bench import leaderboard, sources
from limbeck.bench.leaderboard import CELLS, SEEDS, Cell
from limbeck.bench.store import Row, Store
from limbeck.core.files import write_atomic
from limbeck.report.advice import measured
from limbeck.report.verdicts import interval, of_groups

__all__ = ["PLACE", "standings", "write"]

PLACE = registry.PACKAGE / "leaderboard.json"


def standings(store: Store) -> dict[str, Any]:
    """The grid and the methods that have run on all of it, the best first.

    {"cells": [...], "seeds", "best": key, "labels": row, "methods": [row, ...]}; a row has, for
    each cell that its method runs on, values, setting and the difference to KD with its interval,
    and over these cells the mean difference; see `_row`.
    """
    every = {arm: _reported(store, arm) for arm in (*leaderboard.contenders(), "labels")}
    whole = {arm: rows for arm, rows in every.items() if rows is not None}
    if "kd" not in whole:
        return {}
    told = {arm: _row(arm, rows, whole["kd"], store) for arm, rows in whole.items()}
    alone = told.pop("labels", None)
    ranked = sorted(told.values(), key=lambda row: -row["mean"][0])
    everywhere = [row for row in ranked if len(row["cells"]) == len(CELLS)]
    low = everywhere[0]["mean"][1]
    for row in ranked:
        row["near"] = row in everywhere and row["mean"][2] >= low
    return {
        "cells": [_cell(cell, whole["kd"]) for cell in CELLS],
        "seeds": [SEEDS[0], len(SEEDS)],
        "core": sorted({r["core"] for rows in whole.values() for r in _flat(rows)}),
        "versions": _flat(whole["kd"])[-1]["versions"],
        "seconds": round(sum(_spent(store, arm) for arm in every), 0),
        "advice": measured(ranked, [cell.name for cell in CELLS]),
        "labels": alone,
        "methods": ranked,
        "left_out": leaderboard.LEFT_OUT,
    }


Rows = dict[str, list[Row]]


def _reported(store: Store, arm: str) -> Rows | None:
    """The reported rows of each cell, one a seed; None while some have not run."""
    found: Rows = {}
    for cell in CELLS:
        rows = [r for r in store.rows(arm) if r["world"] == cell.world and r["on"] == "test"
                and r["budget"] == {"epochs": cell.epochs}]  # fmt: skip
        for last in reversed(rows):
            same = {r["seed"]: r for r in rows if (r["setting"], r["source"]) ==
                    (last["setting"], last["source"])}  # fmt: skip
            if set(same) >= set(SEEDS):
                found[cell.name] = [same[seed] for seed in SEEDS]
                break
        else:
            return None
    return found


def _flat(rows: Rows) -> list[Row]:
    return [row for some in rows.values() for row in some]


def _spent(store: Store, arm: str) -> float:
    return float(sum(row["seconds"] for row in store.rows(arm)))


def _cell(cell: Cell, kd: Rows) -> dict[str, Any]:
    seconds = median(row["seconds"] for row in kd[cell.name])
    return {
        "name": cell.name,
        "world": cell.world,
        "pair": cell.pair,
        "epochs": cell.epochs,
        "steps": kd[cell.name][0]["steps"],
        "seconds": round(seconds, 2),
    }


def _row(arm: str, rows: Rows, kd: Rows, store: Store) -> dict[str, Any]:
    """One method.

    Returns:
        {"key", "mean": [difference to KD over its cells, low, high], "cells": {name: {"setting",
        "values", "difference": [mean, low, high]}}, "refused": {name: sentence}, "time" and
        "memory" of a step and "steps" of a run, over KD's, "parts": parameters beside the
        student, "live": whether it asked the teacher itself, "stale"}.
    """
    cells: dict[str, Any] = {}
    refused: dict[str, str] = {}
    groups, times, steps = [], [], []
    for name, some in rows.items():
        failed = [row for row in some if row["value"] is None]
        if failed:
            refused[name] = failed[0]["refused"]
            continue
        apart = [a["value"] - b["value"] for a, b in zip(some, kd[name], strict=True)]
        groups.append(apart)
        one = interval(apart)
        cells[name] = {
            "setting": some[0]["setting"],
            "values": [round(row["value"], 6) for row in some],
            "difference": [round(x, 6) for x in (one.mean, one.low, one.high)],
        }
        pace = [
            median(r["seconds"] / max(1, r["steps"]) for r in part) for part in (some, kd[name])
        ]
        times.append(pace[0] / pace[1])
        steps.append(some[0]["steps"] / kd[name][0]["steps"])
    mean = of_groups(groups) if groups else None
    flat = _flat(rows)
    return {
        "key": arm,
        "mean": [round(x, 6) for x in (mean.mean, mean.low, mean.high)] if mean else [-1, -1, -1],
        "cells": cells,
        "refused": refused,
        "time": round(median(times), 3) if times else None,
        "steps": round(median(steps), 3) if steps else None,
        "memory": _memory(store, arm),
        "parts": max(row["parts"] for row in flat),
        "live": flat[0]["live"],
        "stale": any(sources.of_arm(row["setting"], row["world"]) != row["source"] for row in flat),
    }


def _memory(store: Store, arm: str) -> float | None:
    """What a step keeps for its backward pass, over what KD's does."""
    kept = [[r["value"] for r in store.rows(one) if r["measure"] == "memory"]
            for one in (arm, "kd")]  # fmt: skip
    if not all(kept) or None in (kept[0][-1], kept[1][-1]):
        return None
    return round(float(kept[0][-1] / kept[1][-1]), 3)


def write(store: Store, place: Path = PLACE) -> dict[str, Any]:
    """Write the packaged digest, and give it."""
    found = standings(store)
    head = {k: v for k, v in found.items() if k != "methods"}
    lines = ",\n".join(json.dumps(r, separators=(",", ":")) for r in found.get("methods", ()))
    text = json.dumps({**head, "methods": []}, separators=(",", ":"))
    write_atomic(place, f"{text[:-2]}\n{lines}\n]}}\n".encode())
    return found
