"""What the stored rows say of each method, in one file that is packaged: `results.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limbeck import registry
from limbeck.bench import runner
from limbeck.bench.store import Row, Store
from limbeck.bench.trial import Defined, defined, keys
from limbeck.core.files import write_atomic
from limbeck.report.verdicts import interval, verdict

__all__ = ["PLACE", "digest", "of_trial", "write"]

PLACE = registry.PACKAGE / "results.json"


def digest(store: Store) -> dict[str, Any]:
    """All methods that have a verdict, by key: {"verdict", "definitions": [...]}."""
    found: dict[str, Any] = {}
    for key in keys():
        told = [d for d in (of_trial(trial, store) for trial in defined(key)) if d is not None]
        if told:
            found[key] = {"verdict": told[-1]["verdict"], "definitions": told}
    return found


def of_trial(trial: Defined, store: Store) -> dict[str, Any] | None:
    """What is known of one definition; None while some of its seeds have not run."""
    arms: dict[str, list[Row]] = {}
    for arm in trial.arms:
        rows = _reported(trial, store, arm)
        if rows is None:
            return None
        arms[arm] = rows
    own = [row["value"] for row in arms[trial.key]]
    sign = 1 if trial.trial.better == "higher" else -1
    told: dict[str, Any] = {}
    apart: dict[str, list[float]] = {}
    for arm, rows in arms.items():
        values = [row["value"] for row in rows]
        facts: dict[str, Any] = {
            "setting": rows[0]["setting"],
            "mean": round(sum(values) / len(values), 6),
            "values": [round(value, 6) for value in values],
            "steps": max(row["steps"] for row in rows),
            "seconds": round(sum(row["seconds"] for row in rows) / len(rows), 2),
        }
        if arm != trial.key:
            apart[arm] = [sign * (a - b) for a, b in zip(own, values, strict=True)]
            middle = asdict(interval(apart[arm]))
            facts["difference"] = {name: round(value, 6) for name, value in middle.items()}
        told[arm] = facts
    against = [interval(apart[arm]) for arm in trial.trial.against]
    every = [row for rows in arms.values() for row in rows]
    return {
        "verdict": verdict(against),
        "number": trial.number,
        "hash": trial.hash,
        "claim": trial.trial.claim,
        "world": trial.trial.world,
        "budget": dict(trial.trial.budget),
        "measure": trial.trial.measure,
        "better": trial.trial.better,
        "why": trial.trial.why,
        "against": list(trial.trial.against),
        "seeds": [trial.seeds[0], len(trial.seeds)],
        "arms": told,
        "seconds": round(sum(row["seconds"] for row in every) + _tuned(trial, store), 1),
        "core": sorted({row["core"] for row in every}),
        "versions": every[-1]["versions"],
        "stale": any(row["source"] != _now(trial, row) for row in every),
    }


def _now(trial: Defined, row: Row) -> str:
    return runner.source_of(runner.jobs_of(trial, row["arm"], row["setting"], [0], "test")[0])


def _reported(trial: Defined, store: Store, arm: str) -> list[Row] | None:
    """The rows of an arm, one for each seed: of the setting and code that were measured last."""
    job = runner.jobs_of(trial, arm, "", [0], "test")[0]
    home = runner.home_of(trial, job)
    place = {k: v for k, v in job.place.items() if k not in ("setting", "seed")}
    rows = [
        row
        for row in store.rows(home)
        if all(row[k] == v for k, v in place.items()) and row["seed"] in trial.seeds
    ]
    for row in reversed(rows):
        setting = (row["setting"], row["source"])
        same = {r["seed"]: r for r in rows if (r["setting"], r["source"]) == setting}
        if set(same) == set(trial.seeds):
            return [same[seed] for seed in trial.seeds]
    return None


def _tuned(trial: Defined, store: Store) -> float:
    """The seconds of the tuning of what is not shared."""
    own = [j for j in runner.tuning(trial) if runner.home_of(trial, j) == trial.key]
    rows: Iterable[Row | None] = (store.find(trial.key, job) for job in own)
    return sum((row["seconds"] for row in rows if row is not None), 0.0)


def write(store: Store, place: Path = PLACE) -> dict[str, Any]:
    """Write the digest, and give it."""
    found = digest(store)
    lines = (f"{json.dumps(key)}:{json.dumps(found[key], separators=(',', ':'))}" for key in found)
    write_atomic(place, ("{" + ",\n".join(lines) + "}\n").encode())
    return found
