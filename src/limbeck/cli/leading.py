"""The command `leaderboard`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.cli._parser import Parser
from limbeck.errors import UsageError, nearest

if TYPE_CHECKING:
    from limbeck.bench.leaderboard import Cell
    from limbeck.bench.store import Store

__all__ = ["leaderboard"]


def leaderboard(argv: list[str]) -> int:
    """Show the leaderboard, run its grid, or run one of its rows again."""
    parser = Parser(
        "leaderboard",
        "The classification methods on one grid of small tasks, each beside KD: paired\n"
        "differences with their 95 % interval, time and memory. Without options the table\n"
        "that was measured is shown; --run measures what is missing of it.",
        (
            "limbeck leaderboard",
            "limbeck leaderboard --cell 'digits, across'",
            "limbeck leaderboard --kind relation",
            "limbeck leaderboard rkd --again 4000 --cell 'digits, thinner'",
            "limbeck leaderboard --run --jobs 2",
        ),
        usage="[KEY ...] [options]",
    )
    add = parser.add_argument
    add("keys", metavar="KEY", nargs="*", help="methods, or labels (all that are in it)")
    add("--cell", metavar="NAME", help="order by this task of the grid (by the mean)")
    add("--kind", metavar="WORD", help="only methods of this kind (all)")
    add("--run", action="store_true", help="run what is missing, and keep each row")
    add("--jobs", type=int, metavar="N", help="processes of one thread each (one a core)")
    add("--ray", metavar="ADDRESS", help="send the runs to this Ray cluster (none)")
    add("--again", type=int, metavar="SEED", help="run a row of a method again, and compare (none)")
    add("--digest", action="store_true", help="run nothing: write the packaged digest anew")
    add("--results", metavar="DIR", default="results", help="where rows are kept (results)")
    args = parser.parse_args(argv)
    if args.jobs is not None and not 1 <= args.jobs <= 1024:
        raise UsageError(f"--jobs is {args.jobs}; give a number from 1 to 1024")
    if args.again is not None and len(args.keys) != 1:
        raise UsageError(f"--again runs a row of one method; {len(args.keys)} are named")
    if not (args.run or args.digest or args.again is not None):
        return _show(args.keys, args.cell, args.kind)

    from limbeck.bench import standings
    from limbeck.bench.store import Store

    store = Store(Path(args.results) / "grid")
    if args.digest:
        found = standings.write(store)
        print(f"{len(found.get('methods', []))} methods are written to {standings.PLACE}")
        return 0
    from limbeck.bench.pool import Here, OnRay

    arms = _arms(args.keys)
    pool = OnRay(args.ray) if args.ray else Here(args.jobs or os.cpu_count() or 1)
    try:
        if args.again is not None:
            return _again(arms[0], args.cell, store, pool, args.again)
        return _run(arms, store.open(), pool, Path(args.results))
    finally:
        pool.close()
        store.close()


def _show(keys: list[str], cell: str | None, kind: str | None) -> int:
    from limbeck.core.vocabulary import KINDS
    from limbeck.registry import cards
    from limbeck.report.leaderboard import caption, left_out, lines, standings

    if kind is not None and kind not in KINDS:
        raise UsageError(f"no kind is called {kind!r}{nearest(kind, KINDS)}")
    told = standings()
    if not told:
        raise UsageError("the grid has not run; run it with: limbeck leaderboard --run")
    known = [row["key"] for row in told["methods"]]
    for key in keys:
        if key not in known:
            raise UsageError(f"the leaderboard does not hold {key!r}{nearest(key, known)}")
    of_kind = [e.card.key for e in cards() if kind in e.card.kinds]
    shown = [k for k in keys or known if kind is None or k in of_kind] if keys or kind else []
    if kind and not shown:
        raise UsageError(f"the leaderboard holds no method of the kind {kind!r}")
    print("\n".join(lines(told, cell, shown)))
    print(f"\n{caption(told)}\n\nNot in it: {left_out(told)}.")
    return 0


def _arms(keys: list[str]) -> list[str]:
    """The methods that are asked for: KD first, since all are compared with it."""
    from limbeck.bench.leaderboard import LEFT_OUT, contenders

    every = ["kd", "labels", *(key for key in contenders() if key != "kd")]
    for key in keys:
        if key in LEFT_OUT:
            raise UsageError(f"the grid does not hold {key!r}: {LEFT_OUT[key]}")
        if key not in every:
            raise UsageError(f"the grid does not hold {key!r}{nearest(key, every)}")
    return keys or every


def _cell(name: str | None) -> Cell:
    from limbeck.bench.leaderboard import CELLS

    names = [cell.name for cell in CELLS]
    if name is None:
        return CELLS[0]
    if name not in names:
        raise UsageError(f"there is no cell {name!r}; there are: {'; '.join(names)}")
    return CELLS[names.index(name)]


def _again(arm: str, cell: str | None, store: Store, pool: Any, seed: int) -> int:
    from limbeck.bench.grid import again

    row, value = again(arm, _cell(cell), store, pool, seed)
    same = value == row["value"]
    word = "the same" if same else f"stored was {row['value']!r}"
    print(f"{row['setting']} on {row['world']}, seed {seed}: {value!r}, {word}")
    return 0 if same else 1


def _run(arms: list[str], store: Store, pool: Any, results: Path) -> int:
    """Run what is missing; a method that fails is told at the end."""
    from limbeck.bench import standings
    from limbeck.bench.grid import measure
    from limbeck.bench.sentinels import epoch_now

    epoch = epoch_now(pool, results)
    failed = False
    for arm in arms:
        try:
            measure(arm, store, pool, epoch, lambda text: print(text, file=sys.stderr))
        except UsageError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    if results.resolve() == standings.PLACE.parents[2] / "results":
        standings.write(store)
    return 2 if failed else 0
