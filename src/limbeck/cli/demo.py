"""The command `demo`: on real digits, a small student alone and the same one taught."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.cli._demo import Job, Plan, run_all
from limbeck.cli._parser import Parser
from limbeck.cli._records import read
from limbeck.cli._summary import spread, summary
from limbeck.errors import UsageError
from limbeck.registry import find

__all__ = ["demo", "make"]

FIRST = 1000
"""The first seed shown."""

METHODS = "kd,fitnets,rkd"


def demo(argv: list[str]) -> int:
    """Run the demo, or go on with it."""
    parser = Parser(
        "demo",
        "Teach a small student to read handwritten digits: alone, and by a teacher in several\n"
        "ways. Ends with a table, and writes result.json and the page report.html. A demo that\n"
        "was stopped goes on when it is called again.",
        ("limbeck demo", "limbeck demo --seeds 12 --methods kd,takd --out runs/twelve"),
        usage="[options]",
    )
    parser.add_argument(
        "--out", metavar="DIR", default="runs/demo", help="the demo's folder (runs/demo)"
    )
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="how many seeds (8)")
    parser.add_argument(
        "--methods",
        metavar="KEY,KEY",
        default=METHODS,
        help=f"methods that give a model ({METHODS})",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, only the table")
    args = parser.parse_args(argv)
    if not 1 <= args.seeds <= 1000:
        raise UsageError(f"--seeds is {args.seeds}; it must be from 1 to 1000")
    folder, command = Path(args.out), shlex.join(["limbeck", "demo", *argv])
    seeds = range(FIRST, FIRST + args.seeds)
    jobs = [Job(key, s, folder, Plan(), command) for s in seeds for key in keys_of(args.methods)]
    told = make(folder, jobs, command, args.quiet)
    print_table(told)
    print(f"\nthe page: {folder / 'report.html'}")
    return 0


def keys_of(text: str) -> list[str]:
    """Scratch and the methods that are asked for, each of which must give a model.

    Raises:
        UsageError: there is no such method, or one gives something else.
    """
    keys = list(dict.fromkeys(filter(None, (word.strip() for word in text.split(",")))))
    if not keys:
        raise UsageError("--methods names no method; give keys, as in 'kd,fitnets'")
    for key in keys:
        card = find(key).card
        if card.gives != "model":
            raise UsageError(f"{key} gives {card.gives}, not a model; the demo compares models")
    return ["scratch", *keys]


# -- the folder ------------------------------------------------------------------------------------


def make(folder: Path, jobs: Sequence[Job], command: str, quiet: bool = False) -> dict[str, Any]:
    """Make a demo in a folder, or what is missing of it; gives what its result.json says.

    Args:
        folder: where.
        jobs: its runs, all of one plan, each method with the same seeds.
        command: is written down.
        quiet: whether to show no progress.

    Raises:
        UsageError: the folder holds something else, or a method cannot run on the demo's task.
    """
    from limbeck.core.files import Lock, write_atomic, write_json
    from limbeck.report.demo import demo_page

    said = jobs[0].plan.said()
    _look(folder, said)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder {folder} cannot be made ({error.strerror}); name another with --out"
        ) from None
    lock = Lock(folder / "demo.lock")
    try:
        write_json(folder / "demo.json", said)
        told = _finished(folder, jobs)
        if told is None:
            told = _run(jobs, command, quiet)
            write_json(folder / "result.json", told)
        elif not quiet:
            print(
                f"the demo in {folder} is finished; remove it, or name another --out, for a new one"
            )
        write_atomic(folder / "report.html", demo_page(folder).encode())
    finally:
        lock.close()
    return told


def _look(folder: Path, said: Mapping[str, Any]) -> None:
    """Refuse a folder that holds anything but a demo of these settings."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder with --out")
    if not (folder / "demo.json").exists():
        if any(path.name != "demo.lock" for path in folder.iterdir()):
            raise UsageError(
                f"{folder} is not empty and holds no demo; name another folder with --out"
            )
    elif read(folder / "demo.json") != said:
        raise UsageError(
            f"{folder} holds a demo with other settings, perhaps of another version; remove it, or "
            "name another folder with --out"
        )


def _finished(folder: Path, jobs: Sequence[Job]) -> dict[str, Any] | None:
    """What result.json says, if it is of these methods and seeds."""
    if not (folder / "result.json").exists():
        return None
    told = read(folder / "result.json")
    arms = {"scratch": told.get("scratch"), **told.get("students", {})}
    there = [run for arm in arms.values() for run in arm["runs"]]
    return told if sorted(there) == sorted(job.place for job in jobs) else None


# -- the run ---------------------------------------------------------------------------------------


def _run(jobs: Sequence[Job], command: str, quiet: bool) -> dict[str, Any]:
    """Run what is not yet done; gives what result.json shall say."""
    import torch

    from limbeck.report.words import percent

    begun = time.monotonic()
    torch.set_num_threads(1)
    facts: dict[Job, dict[str, Any]] = {}
    with _progress(len(jobs), quiet) as tell:
        tell(f"the teacher, {jobs[0].plan.teacher}", 0)
        task = jobs[0].task()

        def done(job: Job, result: dict[str, Any]) -> None:
            facts[job] = result
            tell(f"{job.name}, seed {job.seed}: {percent(result['score'])}", 1)

        run_all(jobs, done)
        models = {"teacher": task.the_teacher().module}  # type: ignore[attr-defined]
        models |= {job.name: job.run()[1] for job in jobs if job.seed == jobs[0].seed}
    told = summary(jobs, facts, models, task)
    for name, several in _crowds(jobs, facts).items():
        told["students"][name]["teacher"] = several
    return {**told, "command": command, "seconds": round(time.monotonic() - begun, 1)}


def _crowds(
    jobs: Sequence[Job], facts: Mapping[Job, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The teachers of each method that had several, and how good they are together."""
    told: dict[str, dict[str, Any]] = {}
    for job in jobs:
        if job.plan.needs_crowd(job.key) and job.name not in told:
            scores = [facts[each]["teacher"] for each in jobs if each.name == job.name]
            told[job.name] = {"name": job.plan.crowd_teacher, "accuracy": spread(scores)}
    return told


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """Call what it gives with a word and how many runs were finished; shown on stderr."""
    if quiet:
        yield lambda word, more: None
    elif not sys.stderr.isatty():
        yield lambda word, more: print(word, file=sys.stderr, flush=True)
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        columns = (
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            shown = bar.add_task("", total=total)
            yield lambda word, more: bar.update(shown, description=word, advance=more)


# -- the table -------------------------------------------------------------------------------------


def print_table(told: Mapping[str, Any]) -> None:
    """Print what came out: with a rule and bold lines on a terminal, plain columns in a pipe."""
    from limbeck.report.demo import crowds_of, rows_of

    head = ("", "accuracy", "over scratch", "better in", "steps", "parameters", "one sample")
    rows = [head, *rows_of(told)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join((name.ljust(widths[0]), *padded)).rstrip())
    if not sys.stdout.isatty():
        print("\n".join([*lines, *crowds_of(told)]).replace("±", "+-"))
        return
    from rich.console import Console
    from rich.text import Text

    shown = [Text(lines[0], "dim"), Text("─" * max(map(len, lines)), "dim")]
    for row, line in zip(rows[1:], lines[1:], strict=True):
        shown.append(Text(line, "bold green" if row[2].startswith("+") else ""))
    shown += [Text(line, "dim") for line in crowds_of(told)]
    Console(highlight=False).print(Text("\n").join(shown), soft_wrap=True)
