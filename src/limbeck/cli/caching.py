"""The command `cache`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.cli import _flags as flags
from limbeck.cli import _tasks as tasks
from limbeck.cli._parser import Parser
from limbeck.errors import UsageError

if TYPE_CHECKING:
    from limbeck.core.task import Task
    from limbeck.core.text.kept import Keep

__all__ = ["cache"]

_DTYPES = ("float32", "float16", "bfloat16")


def cache(argv: list[str]) -> int:
    """Run a teacher once over the training set, and keep what it shows."""
    parser = Parser(
        "cache",
        "Run a teacher once over the training set and keep its outputs, for any number of runs:\n"
        "limbeck run KEY ... --cache DIR. Stopped, it goes on where it was.",
        (
            "limbeck cache --teacher timm:resnet50 --student timm:resnet18 --data photos/ --out c",
            "limbeck cache --world digits --out c --entries logits,mid --dtype float16",
            "limbeck cache --teacher timm:resnet50 --student timm:resnet18 --data photos/ "
            "--augment crop,flip --keep 20 --out c",
            "limbeck cache --teacher hf:ID --student truncate:10 --data text/ --signal topk "
            "--out c",
        ),
        more="Name the same task as the run that will read it: the same data and taps, and where\n"
        "the teacher is trained first the same budget.",
        usage="--out DIR [options]",
    )
    add = parser.add_argument
    add("--out", metavar="DIR", required=True, help="the cache's folder")
    add("--entries", metavar="NAMES", default="logits", help="what is kept (logits)")
    kinds = f"how floats are stored: {', '.join(_DTYPES)} (as the teacher gives them)"
    add("--dtype", choices=_DTYPES, metavar="D", help=kinds)
    add("--keep", type=int, metavar="N", help="epochs to keep (1; must be said of augmented data)")
    add("--seed", type=int, default=0, metavar="N", help="of the run that reads augmented data (0)")
    add("--rows", type=int, metavar="N", help="samples in a forward pass (256; 8 of texts)")
    add("--quiet", action="store_true", help="no progress")
    group = parser.add_argument_group("of a language model")
    kinds = "the likeliest tokens (topk) or draws (sampled) of each place (topk)"
    group.add_argument("--signal", choices=("topk", "sampled"), metavar="K", help=kinds)
    group.add_argument("--k", type=int, metavar="N", help="how many (50; of a served one 20)")
    group.add_argument("--tau", type=float, default=1.0, metavar="X", help="temperature (1)")
    group.add_argument("--u", type=float, default=1.0, metavar="X", help="draws are from p^u (1)")
    flags.add_task(parser)
    flags.add_budget(parser)
    args = parser.parse_args(argv)
    for name in ("keep", "rows"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; it must be above 0")
    request = flags.asked(args, None)
    entries = tuple(name.strip() for name in args.entries.split(",") if name.strip())
    if not entries:
        raise UsageError(f"--entries is '{args.entries}'; name at least one, such as logits")

    flags.load_torch()
    from limbeck.core.caching import cache_teacher
    from limbeck.core.progress import Progress
    from limbeck.core.run import Run
    from limbeck.runs.teaching import taught

    task = tasks.with_taps(tasks.task_of(request), entries)
    with Run(task, progress=Progress("none" if args.quiet else "text"), device=args.device) as run:
        for note in task.notes:
            run.progress.say(note)
        task = taught(run, task)
        cache_teacher(
            task,
            args.out,
            entries,
            batch=args.rows or (256 if task.score.each is None else 8),
            dtype=args.dtype,
            device=str(run.device),
            epochs=args.keep,
            seed=args.seed,
            keep=_kept(args, task),
            told=_shown(args.quiet),
        )
    size = sum(p.stat().st_size for p in Path(args.out).iterdir())
    what = ", ".join(entries) if "text" not in task.data else "signal"
    kept = f"{what}, {_megabytes(size)}"
    print(f"{args.out} holds {kept}; read it with: limbeck run KEY ... --cache {args.out}")
    return 0


def _kept(args: argparse.Namespace, task: Task) -> Keep | None:
    """What is kept of a language model's signal; None for another task."""
    from limbeck.core.text.kept import Keep

    if task.score.each is None:
        if args.signal is not None:
            raise UsageError("--signal is for language models, and this task is another")
        return None
    k = getattr(getattr(task.the_teacher(), "ask", None), "top", 50) if args.k is None else args.k
    if k < 1 or not args.tau > 0:
        raise UsageError(f"--k {k} entries at --tau {args.tau}: both must be above 0")
    return Keep(args.signal or "topk", k, args.tau, args.u)


def _shown(quiet: bool) -> Callable[[int, int], None]:
    """What tells of the rows that are done: a line that is written over, on a terminal."""
    began, first = time.monotonic(), [-1]

    def told(done: int, rows: int) -> None:
        if first[0] < 0:
            first[0] = done
        speed = (done - first[0]) / max(time.monotonic() - began, 1e-9)
        left = f", {(rows - done) / speed:.0f} s left" if speed and done < rows else ""
        end = "\n" if done == rows else "\r"
        print(f"{done:,} of {rows:,} rows{left}   ", end=end, file=sys.stderr, flush=True)

    return told if not quiet and sys.stderr.isatty() else lambda done, rows: None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
