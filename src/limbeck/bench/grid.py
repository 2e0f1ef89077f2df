"""Runs the grid of the leaderboard, and measures what each method's step keeps in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from limbeck import registry
from limbeck.bench import arms, leaderboard, sources
from limbeck.bench.arms import Job
from limbeck.bench.leaderboard import CELLS, Cell
from limbeck.bench.runner import Pool, as_committed, versions
from limbeck.bench.store import Row, Store
from limbeck.core.card import parse_needs
from limbeck.core.files import cache_folder
from limbeck.errors import UsageError

__all__ = ["again", "chosen", "measure", "memory", "memory_job", "perform"]

_CACHED = ("logits", "mid", "feature", "embedding", "blocks")
_LIVE = ("again", "teacher_graph", "teacher_weights", "members")  # needs that no cache meets

Say = Callable[[str], None]


def perform(job: Job) -> dict[str, Any]:
    """Run a job as `arms.perform` does; of one that is refused, the sentence with no value."""
    try:
        return arms.perform(job)
    except UsageError as error:
        return {"value": None, "steps": 0, "seconds": 0.0, "parts": 0, "refused": str(error)}


def measure(arm: str, store: Store, pool: Pool, epoch: int, say: Say) -> None:
    """Run what is missing of a method's row of the grid, and keep it.

    Args:
        arm: a method, or "labels".
        store: opened.
        pool: where the runs happen.
        epoch: the core's, see `sentinels`.
        say: told of each run.

    Raises:
        UsageError: the grid's definition, or what the method tries, is not committed.
    """
    files = [Path(str(leaderboard.__file__)), registry.PACKAGE / "bench" / "trials" / "_shared.py"]
    stamp = {
        "definition": leaderboard.definition(arm),
        "core": epoch,
        "versions": versions(),
        "commit": as_committed(files, "the leaderboard's definition"),
    }
    cells = [replace(job, cache=_cache(cell, arm)) for cell in CELLS for job in _tuning(cell, arm)]
    _run(arm, cells, perform, store, pool, stamp, say)
    reported = [
        replace(job, cache=_cache(cell, arm))
        for cell in CELLS
        for job in leaderboard.jobs_of(cell, arm, chosen(cell, arm, store), "test")
    ]
    _run(arm, reported, perform, store, pool, stamp, say)
    _run(arm, [memory_job(arm)], memory, store, pool, stamp, say)


def _tuning(cell: Cell, arm: str) -> list[Job]:
    tried = leaderboard.settings(arm)
    if len(tried) == 1:
        return []
    return [job for setting in tried for job in leaderboard.jobs_of(cell, arm, setting, "valid")]


def chosen(cell: Cell, arm: str, store: Store) -> str:
    """The setting that is best on `valid` in a cell; of equals, or where all fail, the first.

    Raises:
        UsageError: some of the tuning has yet to run.
    """
    best, best_value = leaderboard.settings(arm)[0], float("-inf")
    for job in _tuning(cell, arm):
        row = store.find(arm, job, sources.of_arm(job.setting, job.world))
        if row is None:
            raise UsageError(f"the tuning of {arm!r} on {cell.name} is not done")
        if row["value"] is not None and row["value"] > best_value:
            best, best_value = job.setting, row["value"]
    return best


def _run(
    arm: str,
    jobs: list[Job],
    work: Callable[[Job], dict[str, Any]],
    store: Store,
    pool: Pool,
    stamp: dict[str, Any],
    say: Say,
) -> None:
    left = [j for j in jobs if store.find(arm, j, sources.of_arm(j.setting, j.world)) is None]
    for done, (job, value) in enumerate(pool.each(work, left), 1):
        if isinstance(value, BaseException):
            raise UsageError(
                f"{job.setting} on {job.world} with seed {job.seed} failed: {value}; rows that "
                "were measured are kept"
            ) from value
        source = sources.of_arm(job.setting, job.world)
        live = {"live": job.cache is None and arm != "labels"}
        store.add(arm, {**job.place, **value, **live, "source": source, **stamp})
        told = value.get("refused") or f"{value['value']:.4f} {job.measure} on {job.on}"
        say(f"{arm} {done}/{len(left)}: {job.setting}, {job.world}, seed {job.seed}: {told}")


def again(arm: str, cell: Cell, store: Store, pool: Pool, seed: int) -> tuple[Row, float | None]:
    """Run a stored row once more: the row, and the new value.

    Raises:
        UsageError: no such row is stored.
    """
    rows = [
        row
        for row in store.rows(arm)
        if row["world"] == cell.world and row["seed"] == seed and row["on"] == "test"
    ]
    if not rows:
        raise UsageError(
            f"no row of {arm!r} on '{cell.name}' with seed {seed} is stored; the seeds are "
            f"{leaderboard.SEEDS[0]} to {leaderboard.SEEDS[-1]}"
        )
    jobs = leaderboard.jobs_of(cell, arm, rows[-1]["setting"], "test")
    job = next(replace(j, cache=_cache(cell, arm)) for j in jobs if j.seed == seed)
    ((_, value),) = pool.each(perform, [job])
    if isinstance(value, BaseException):
        raise value
    return rows[-1], value["value"]


def _cache(cell: Cell, arm: str) -> str | None:
    """Where a method reads what the cell's teacher shows; None: it asks the teacher itself.

    It does where it changes inputs, looks again or reads what a cache does not hold.
    """
    return _table(cell) if arm != "labels" and cacheable(arm) else None


@cache
def _table(cell: Cell) -> str:
    """A folder with what a cell's teacher shows, which is written if need be."""
    from limbeck.bench import worlds
    from limbeck.core.caching import cache_teacher

    where = f"{cell.name.replace(', ', '-')}-{sources.of_arm('labels', cell.world)}"
    folder = cache_folder() / "leaderboard" / where
    cache_teacher(worlds.make(cell.world), folder, _CACHED)
    return str(folder)


def cacheable(key: str) -> bool:
    """Whether a method needs no more of its teacher than a cache holds."""
    from limbeck.core.method import Objective

    needs = [one for need in parse_needs(registry.find(key).card.needs) for some in need
             for one in some]  # fmt: skip
    reads = [one.name for one in needs if one.side in ("both", "teacher")]
    plain = [one.name for one in needs if one.side == "plain"]
    changes = getattr(registry.get(key), "prepare", Objective.prepare) is not Objective.prepare
    return not changes and not {*plain} & {*_LIVE} and {*reads} <= {*_CACHED}


def memory_job(arm: str) -> Job:
    """The short run in which a method's memory is counted: four steps of the first cell."""
    setting = leaderboard.settings(arm)[0]
    return Job(arm, setting, CELLS[0].world, (("steps", 4),), 0, "memory", "valid")


def memory(job: Job) -> dict[str, Any]:
    """The most bytes that graphs hold at once for their backward pass; a tensor counts once."""
    import torch

    held = _Held()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.x):
        told = arms.perform(replace(job, measure="score"))
    return {**told, "value": float(held.most)}


@dataclass
class _Held:
    """The storages that graphs hold, by where they lie."""

    uses: Counter[int] = field(default_factory=Counter)
    now: int = 0
    most: int = 0

    def pack(self, x: Any) -> _Kept:
        storage = x.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not self.uses[place]:
            self.now += size
            self.most = max(self.most, self.now)
        self.uses[place] += 1
        return _Kept(self, x, place, size)


@dataclass(eq=False)
class _Kept:
    """One tensor that a graph holds, until the graph lets go of it."""

    held: _Held
    x: Any
    place: int
    size: int

    def __del__(self) -> None:
        self.held.uses[self.place] -= 1
        if not self.held.uses[self.place]:
            self.held.now -= self.size
