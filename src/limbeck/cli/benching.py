"""The command `bench`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck._source import say_path
from limbeck.cli._parser import Parser
from limbeck.errors import UsageError

if TYPE_CHECKING:
    from limbeck.bench.store import Store
    from limbeck.bench.trial import Defined

__all__ = ["bench"]


def bench(argv: list[str]) -> int:
    """Run the trials of methods, or some seed of one again."""
    parser = Parser(
        "bench",
        "Measure the claims of methods. Each trial is tuned on `valid` with seeds below\n"
        "1000, then run on 12 or more other seeds beside its baselines. Every row is kept\n"
        "under results/, and what is there, measured with the code as it is, is not run again.",
        (
            "limbeck bench rkd",
            "limbeck bench --room vision --jobs 2",
            "limbeck bench rkd --again 1003",
            "limbeck bench --changed --ray ray://head:10001",
        ),
        more="A verdict is computed from the 95 % interval of the paired differences to each "
        "baseline that the claim names: *shown*, *not shown* or *contradicted*.",
        usage="[KEY ...] [options]",
    )
    add = parser.add_argument
    add("keys", metavar="KEY", nargs="*", help="methods (all that have a trial)")
    add("--room", metavar="WORD", help="only the methods of this room (all)")
    add("--changed", action="store_true", help="only trials that ran with other code than now")
    add("--jobs", type=int, metavar="N", help="processes of one thread each (one a core)")
    add(
        "--ray",
        metavar="ADDRESS",
        help="send the runs to this Ray cluster; 'local' begins one (none)",
    )
    add("--again", type=int, metavar="SEED", help="run one reported seed again, and compare (none)")
    same = "after a change that changes no number: run two seeds again, and keep the rows"
    add("--confirm", action="store_true", help=same)
    add("--digest", action="store_true", help="run nothing: write the packaged digest anew")
    add("--results", metavar="DIR", default="results", help="where rows are kept (results)")
    args = parser.parse_args(argv)
    if args.jobs is not None and not 1 <= args.jobs <= 1024:
        raise UsageError(f"--jobs is {args.jobs}; give a number from 1 to 1024")
    if args.again is not None and len(args.keys) != 1:
        raise UsageError(f"--again runs a seed of one method; {len(args.keys)} are named")

    from limbeck.bench.pool import Here, OnRay
    from limbeck.bench.store import Store

    trials = _asked(args.keys, args.room)
    store = Store(Path(args.results) / "trials")
    if args.digest:
        from limbeck.bench import digest

        found = digest.write(store)
        print(f"{len(found)} verdicts are written to {say_path(digest.PLACE)}")
        return 0
    if args.changed:
        trials = [t for t in trials if _changed(t, store)]
    if not trials:
        print("no trial is asked for that has to run", file=sys.stderr)
        return 0
    jobs = args.jobs or os.cpu_count() or 1
    pool = OnRay(args.ray) if args.ray else Here(jobs)
    try:
        if args.again is not None:
            return _again(_of_seed(args.keys[0], args.again), store, pool, args.again)
        if args.confirm:
            return _confirm(trials, store.open(), pool, Path(args.results))
        return _all(trials, store.open(), pool, Path(args.results))
    finally:
        pool.close()
        store.close()


def _asked(keys: list[str], room: str | None) -> list[Defined]:
    """The definitions in force of the methods that are asked for."""
    from limbeck import registry
    from limbeck.bench.trial import defined
    from limbeck.bench.trial import keys as every

    registry.cards(room)  # an unknown room is a sentence
    found = [defined(key)[-1] for key in keys or every(room)]
    return [trial for trial in found if room in (None, trial.room)]


def _of_seed(key: str, seed: int) -> Defined:
    """The definition that reports a seed; the one in force where none does."""
    from limbeck.bench.trial import defined

    every = defined(key)
    return next((trial for trial in every if seed in trial.seeds), every[-1])


def _changed(trial: Defined, store: Store) -> bool:
    from limbeck.bench.digest import of_trial

    told = of_trial(trial, store)
    return told is not None and told["stale"]


def _all(trials: list[Defined], store: Store, pool: Any, results: Path) -> int:
    """Run what is missing of each trial; those that fail are told at the end."""
    from limbeck.bench import digest
    from limbeck.bench.runner import measure_trial
    from limbeck.bench.sentinels import epoch_now
    from limbeck.report.trials import lines

    epoch = epoch_now(pool, results)
    failed: list[str] = []
    for trial in trials:
        try:
            measure_trial(trial, store, pool, epoch, lambda text: print(text, file=sys.stderr))
        except UsageError as error:
            failed.append(str(error))
            print(f"error: {error}", file=sys.stderr)
            continue
        told = digest.of_trial(trial, store)
        assert told is not None
        print(f"{trial.key}, {told['seconds']:.0f} s of processor time")
        print("\n".join(f"  {line}" for line in lines(trial.key, told)), flush=True)
    _packaged(store, results)
    return 2 if failed else 0


def _confirm(trials: list[Defined], store: Store, pool: Any, results: Path) -> int:
    """Keep the rows of all definitions whose code was changed and whose numbers were not."""
    from limbeck.bench.rerun import confirm
    from limbeck.bench.trial import defined

    failed = False
    every = (definition for trial in trials for definition in defined(trial.key))
    for trial in [definition for definition in every if _changed(definition, store)]:
        try:
            seeds = " and ".join(map(str, confirm(trial, store, pool)))
            print(f"{trial.key}: seeds {seeds} give what is stored; its rows are kept", flush=True)
        except UsageError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    _packaged(store, results)
    return 2 if failed else 0


def _packaged(store: Store, results: Path) -> None:
    """Write the digest that the package brings, where the results are its clone's own."""
    from limbeck.bench import digest

    if results.resolve() == digest.PLACE.parents[2] / "results":
        digest.write(store)


def _again(trial: Defined, store: Store, pool: Any, seed: int) -> int:
    """Compare each arm's stored row of a seed with a new run."""
    from limbeck.bench.rerun import again

    same = True
    for row, value in again(trial, store, pool, seed):
        equal = value == row["value"]
        same = same and equal
        word = "the same" if equal else f"stored was {row['value']!r}"
        print(f"{row['setting']} seed {seed}: {value!r}, {word}", flush=True)
    return 0 if same else 1
