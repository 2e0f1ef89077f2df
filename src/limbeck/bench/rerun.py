"""Runs what is stored once more: to see that it is so, or that a change of code changed nothing."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.bench import runner
from limbeck.bench.arms import Job, perform
from limbeck.bench.store import Row, Store
from limbeck.bench.trial import Defined
from limbeck.errors import UsageError

__all__ = ["again", "confirm"]


def again(
    trial: Defined, store: Store, pool: runner.Pool, seed: int
) -> Iterator[tuple[Row, float]]:
    """Run one reported seed of every arm once more: each stored row with its new value.

    Raises:
        UsageError: no such row is stored.
    """
    jobs: dict[Job, Row] = {}
    for arm in trial.arms:
        stored = [
            row
            for home in {trial.key, arm}
            for row in store.rows(home)
            if row["arm"] == arm and row["seed"] == seed and row["on"] == "test"
            and row["world"] == trial.trial.world and row["measure"] == trial.trial.measure
            and row["budget"] == dict(trial.trial.budget)
        ]  # fmt: skip
        if not stored:
            raise UsageError(
                f"no row of {arm!r} with seed {seed} is stored for the trial of {trial.key!r}; its "
                f"seeds are {trial.seeds[0]} to {trial.seeds[-1]}"
            )
        jobs[runner.jobs_of(trial, arm, stored[-1]["setting"], [seed], "test")[0]] = stored[-1]
    for job, value in pool.each(perform, list(jobs)):
        if isinstance(value, BaseException):
            raise value
        yield jobs[job], value["value"]


def confirm(trial: Defined, store: Store, pool: runner.Pool) -> tuple[int, ...]:
    """Take stored rows for those of the code as it is, where two seeds of each arm say so.

    For a change of code that is meant to change no number: the first and the last reported seed of
    each arm are run again; if all give what is stored, to the last bit, the arm's rows are kept
    once more, as measured with this code, and say by which seeds.

    Returns:
        The seeds.

    Raises:
        UsageError: a seed gives another number, or none is stored.
    """
    seeds = (trial.seeds[0], trial.seeds[-1])
    for seed in seeds:
        for row, value in again(trial, store, pool, seed):
            if value != row["value"]:
                raise UsageError(
                    f"{row['setting']} gives {value!r} with seed {seed}, where {row['value']!r} is "
                    "stored: the change of code changed the number; run "
                    f"`limbeck bench {trial.key}`"
                )
    commit = runner.committed(trial)
    for arm in trial.arms:
        every = [
            j for s in trial.trial.tried(arm) for j in runner.jobs_of(trial, arm, s, [0], "test")
        ]
        home = runner.home_of(trial, every[0])
        now = {job.setting: runner.source_of(job) for job in every}
        stored = {
            (row["setting"], row["seed"], row["on"]): row
            for row in store.rows(home)
            if row["arm"] == arm
            and row["world"] == trial.trial.world
            and row["budget"] == dict(trial.trial.budget)
            and row["measure"] == trial.trial.measure
            and row["setting"] in now
        }
        for (setting, _, _), row in stored.items():
            if row["source"] != now[setting]:
                told = {"source": now[setting], "commit": commit, "confirmed": list(seeds)}
                store.add(home, {**row, **told})
    return seeds
