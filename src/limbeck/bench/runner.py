"""Runs trials: tunes each arm on `valid`, reports the chosen setting on `test`, keeps every row.

    tuning    each arm's settings x 2 seeds below 1000, the mean on `valid` decides
    reported  the chosen settings x 12 or more seeds from 1000 up, the same for all arms

Both skip what is stored and was measured with the code as it is.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from limbeck import __version__
from limbeck.bench import sources
from limbeck.bench.arms import Job, perform
from limbeck.bench.store import Store
from limbeck.bench.trial import TUNING_SEEDS, Defined
from limbeck.bench.trials._shared import SHARED
from limbeck.errors import UsageError

__all__ = [
    "Pool",
    "as_committed",
    "committed",
    "home_of",
    "jobs_of",
    "measure_trial",
    "source_of",
    "versions",
]


class Pool(Protocol):
    """Where runs happen; see `pool.py`."""

    def each(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Iterator[tuple[Any, Any]]:
        """Each item with its value or error, as they end."""


def home_of(trial: Defined, job: Job) -> str:
    """The file of a job's row: the shared arm's, or the method's."""
    return job.arm if is_shared(job) else trial.key


def is_shared(job: Job) -> bool:
    """Whether the job is of an arm that all trials share; a measure of one's own is not shared."""
    return job.arm in SHARED and job.owner is None


def jobs_of(trial: Defined, arm: str, setting: str, seeds: Iterable[int], on: str) -> list[Job]:
    """The runs of one setting of an arm."""
    said = trial.trial
    budget = tuple(sorted(said.budget.items()))
    owner = (trial.key, trial.number) if trial.measure is not None else None
    return [Job(arm, setting, said.world, budget, seed, said.measure, on, owner) for seed in seeds]


def tuning(trial: Defined) -> list[Job]:
    """All runs of the tuning; an arm with one setting needs none."""
    return [
        job
        for arm in trial.arms
        for setting in trial.trial.tried(arm)
        for job in jobs_of(trial, arm, setting, TUNING_SEEDS, "valid")
        if len(trial.trial.tried(arm)) > 1
    ]


def chosen(trial: Defined, store: Store, arm: str) -> str:
    """The setting that is best on `valid`; of equals the first.

    Raises:
        UsageError: some of the tuning has yet to run.
    """
    best, best_value = "", 0.0
    sign = 1 if trial.trial.better == "higher" else -1
    tried = trial.trial.tried(arm)
    if len(tried) == 1:
        return tried[0]
    for setting in tried:
        total = 0.0
        for job in jobs_of(trial, arm, setting, TUNING_SEEDS, "valid"):
            row = store.find(home_of(trial, job), job, source_of(job))
            if row is None:
                raise UsageError(f"the tuning of {arm!r} in the trial of {trial.key!r} is not done")
            total += sign * row["value"]
        if not best or total > best_value:
            best, best_value = setting, total
    return best


def source_of(job: Job) -> str:
    """The digest of the code that a job's number depends on."""
    return sources.of_arm(job.setting, job.world)


def missing(trial: Defined, store: Store, jobs: Iterable[Job]) -> list[Job]:
    """The jobs that no row answers, measured with the code as it is."""
    return [j for j in jobs if store.find(home_of(trial, j), j, source_of(j)) is None]


def ready(trial: Defined, store: Store) -> list[Job] | None:
    """The reported runs that are missing; None while the tuning is not done."""
    if missing(trial, store, tuning(trial)):
        return None
    reported = [
        job
        for arm in trial.arms
        for job in jobs_of(trial, arm, chosen(trial, store, arm), trial.seeds, "test")
    ]
    return missing(trial, store, reported)


def measure_trial(
    trial: Defined, store: Store, pool: Pool, epoch: int, say: Callable[[str], None]
) -> None:
    """Run all of a trial that is missing, and keep it.

    Args:
        trial: one definition.
        store: opened.
        pool: where the runs happen.
        epoch: the core's, see `sentinels`.
        say: told of each row.

    Raises:
        UsageError: the definition is not committed, or it was changed after its seeds ran; a run
            failed.
    """
    unchanged(trial, store)
    commit = committed(trial)
    stamp = {"core": epoch, "versions": versions(), "commit": commit}
    _run(trial, store, pool, missing(trial, store, tuning(trial)), stamp, say)
    left = ready(trial, store)
    assert left is not None
    _run(trial, store, pool, left, stamp, say)


def _run(
    trial: Defined,
    store: Store,
    pool: Pool,
    jobs: list[Job],
    stamp: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    for done, (job, value) in enumerate(pool.each(perform, jobs), 1):
        if isinstance(value, BaseException):
            raise UsageError(
                f"{job.setting} on {job.world} with seed {job.seed} failed: {value}; rows that "
                "were measured are kept"
            ) from value
        own = {"definition": trial.hash, "number": trial.number}
        told = {"definition": shared(job), "number": 0} if is_shared(job) else own
        row = {**job.place, **value, **told, "source": source_of(job), **stamp}
        store.add(home_of(trial, job), row)
        name = f"{value['value']:.4f} {job.measure} on {job.on}"
        say(f"{trial.key} {done}/{len(jobs)}: {job.setting} seed {job.seed}: {name}")


def shared(job: Job) -> str:
    """A digest of what defines a shared arm: what is tried, where, and what is measured."""
    facts = (job.arm, SHARED[job.arm], job.world, job.budget, job.measure)
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def unchanged(trial: Defined, store: Store) -> None:
    """Refuse a definition that was changed after its seeds ran.

    Raises:
        UsageError: say so.
    """
    for row in store.rows(trial.key):
        own = row["number"] == trial.number and row["on"] == "test"
        if own and row["definition"] != trial.hash:
            raise UsageError(
                f"definition {trial.number} of the trial of {trial.key!r} was changed after its "
                "seeds ran; put it back, and write the new one after it in TRIALS"
            )


def committed(trial: Defined) -> str | None:
    """The commit that holds the definition; None outside a clone.

    Raises:
        UsageError: the file is not committed as it is.
    """
    files = [trial.path, trial.path.parents[1] / "_shared.py"]
    return as_committed(files, f"the trial of {trial.key!r}")


def as_committed(files: list[Path], name: str) -> str | None:
    """The commit that holds some files of a definition as they are; None outside a clone.

    Raises:
        UsageError: one of them is not committed as it is; the sentence calls them `name`.
    """
    folder = files[0].parent
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    known = _git(folder, "ls-files", "--error-unmatch", *map(str, files))
    if known is None or _git(folder, "status", "--porcelain", "--", *map(str, files)):
        raise UsageError(
            f"{name} is not committed as it stands; commit {files[0].name} before its seeds run"
        )
    return head


def _git(folder: Path, *words: str) -> str | None:
    try:
        asked = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None


def versions() -> dict[str, str]:
    """What the numbers were measured with."""
    import torch

    return {
        "limbeck": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
