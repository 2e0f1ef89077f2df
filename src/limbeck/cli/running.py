"""The commands `run` and `resume`. A run's folder knows what it is before torch is imported."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from limbeck.cli import _flags as flags
from limbeck.cli import _records as records
from limbeck.cli import _tasks as tasks
from limbeck.cli._parser import Parser
from limbeck.core.seeds import resume as way_on
from limbeck.errors import UsageError
from limbeck.registry import Entry, find

__all__ = ["resume", "run"]

_ABOUT = """\
Teach a student with a method. The run's folder keeps the student, the scores, the log and a report;
a run that was stopped goes on with `limbeck resume DIR`, to the same bits."""
_OUT = "the run's folder; an unfinished run of the same kind in it goes on (runs/KEY-TASK-sSEED)"


def _parser(entry: Entry | None) -> Parser:
    key = entry.card.key if entry else ""
    fields = f"`limbeck show {key}` tells what they do" if key else "`limbeck run KEY --help`"
    parser = Parser(
        "run",
        _ABOUT,
        (
            "limbeck run kd --teacher timm:resnet50 --student timm:resnet18 --data photos/ --tau 2",
            "limbeck run kd --teacher nets.py:Big --student nets.py:Small --data x.csv --baseline",
            "limbeck run dkd --teacher runs/big --student nets.py:Small --data x.csv --nckd 2",
            "limbeck run ban --teacher none --student nets.py:Small --data x.csv",
            "limbeck run fitnets --world digits --seeds 3",
            "limbeck run kd --task my_task.py:make --tau 2 --dry",
        ),
        more=f"The method's fields are options too: {fields}.",
        usage="KEY [options]",
    )
    add = parser.add_argument
    add("method", metavar="KEY", help="a method's key, or a FILE.py with a card")
    add("--seed", type=int, default=0, metavar="N", help="all randomness comes from it (0)")
    add("--seeds", type=int, default=1, metavar="N", help="N seeds, from --seed on (1)")
    add("--baseline", action="store_true", help="train the student without a teacher as well")
    add(
        "--cache",
        metavar="DIR",
        help="read the teacher's outputs where `limbeck cache` wrote them (no)",
    )
    add("--out", metavar="DIR", help=_OUT)
    add("--dry", action="store_true", help="say shapes, parts and seconds a step; train nothing")
    add("--quiet", action="store_true", help="no progress")
    add("--json", action="store_true", help="progress as JSON on stderr, the result on stdout")
    flags.add_task(parser)
    flags.add_budget(parser)
    if entry is not None:
        flags.add_fields(parser, entry)
    return parser


def run(argv: list[str]) -> int:
    """Run a method on a world or on a task of one's own."""
    named = next(iter(argv), None)
    if named is not None and named.startswith("-") and not {"-h", "--help"} & set(argv):
        raise UsageError(
            f"a method must be named first, as in: limbeck run kd {named} ...; `limbeck list` "
            "shows the methods"
        )
    entry = None if named is None or named.startswith("-") else find(named)
    args = _parser(entry).parse_args(argv)
    assert entry is not None  # the parser asks for it
    request = _request(entry, args, argv)
    if args.dry:
        return _dry(request, args.seed)
    many = args.seeds > 1
    seed = None if many else args.seed
    name = f"{entry.card.key}-{flags.name_of(request)}" + ("" if seed is None else f"-s{seed}")
    base = Path(args.out) if args.out else _free_folder(name, args.device)
    first = records.is_first()
    facts = []
    for seed in range(args.seed, args.seed + args.seeds):
        folder = base / f"seed-{seed}" if many else base
        facts.append(_execute({**request, "seed": seed}, folder, _progress(args)))
        if first and not args.json:
            print(records.sentence(facts[-1], folder))
    if not first:
        return 0
    told = _together(facts, base) if many else facts[0]
    if args.json:
        print(json.dumps(told))
    elif many and "score" in told:
        print(records.of_seeds(told))
    return 0


def _together(facts: list[dict[str, Any]], base: Path) -> dict[str, Any]:
    """The results of several seeds as one, with their page."""
    told = records.summary(facts)
    records.write(base / "result.json", told)
    from limbeck.report import run as page

    page.write(base)
    return told


def _free_folder(name: str, device: str | None) -> Path:
    """A folder that is not there yet; of several processes the first one chooses it."""
    folder = records.free_folder(name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return folder
    flags.load_torch()
    from limbeck.core.devices import Devices
    from limbeck.core.processes import as_the_first

    Devices(device)  # joins the processes
    return as_the_first(folder)


def _request(entry: Entry, args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """What was asked for, as run.json keeps it."""
    if not 0 < args.seeds <= 10_000:
        told = "it must be above 0" if args.seeds < 1 else "give at most 10,000"
        raise UsageError(f"--seeds is {args.seeds}; {told}")
    if args.seeds > 1 and args.dry:
        raise UsageError("--dry looks at one seed; leave --seeds out")
    given = {k[6:]: v for k, v in vars(args).items() if k.startswith("field_")}
    return {
        "method": str(entry.path.resolve()) if entry.room == "own" else entry.card.key,
        "given": {k: tasks.value(v) for k, v in given.items() if v is not None},
        "baseline": args.baseline,
        "seeds": list(range(args.seed, args.seed + args.seeds)),
        "cache": str(Path(args.cache).resolve()) if args.cache else None,
        **flags.asked(args, entry.card.world),
        "command": records.masked(["limbeck", "run", *argv]),
    }


def _progress(args: argparse.Namespace) -> str:
    if args.quiet:
        return "none"
    if getattr(args, "json", False):
        return "json"
    return "bar" if sys.stderr.isatty() else "text"


def resume(argv: list[str]) -> int:
    """Go on with a run that was stopped."""
    parser = Parser(
        "resume",
        "Go on with a run that was stopped; it ends with the same bits as if it never had been.",
        ("limbeck resume runs/kd-digits-s0",),
        usage="DIR [options]",
    )
    parser.add_argument("folder", metavar="DIR", help="the run's folder")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    seeds = sorted(folder.glob("seed-*/run.json"), key=lambda p: records.seed_of(p.parent))
    if not seeds:
        _resume_one(folder, _progress(args))
        return 0
    facts = [_resume_one(path.parent, _progress(args)) for path in seeds]
    request = records.read(seeds[0]).get("request") or {}
    done = {records.seed_of(path.parent) for path in seeds}
    for seed in [s for s in request.get("seeds", ()) if s not in done]:  # that had not begun
        request = records.request_of(seeds[0].parent, "run the other seeds there")
        facts.append(_execute({**request, "seed": seed}, folder / f"seed-{seed}", _progress(args)))
        if records.is_first():
            print(records.sentence(facts[-1], folder / f"seed-{seed}"))
    if records.is_first() and len(facts) > 1:
        told = _together(facts, folder)
        if "score" in told:
            print(records.of_seeds(told))
    return 0


def _resume_one(folder: Path, progress: str) -> dict[str, Any]:
    """Go on with a run, and tell what came out; gives what result.json says."""
    told = records.read(folder / "run.json")
    if (folder / "result.json").exists():
        facts = records.read(folder / "result.json")
        if records.is_first():
            print(f"the run in {folder} is finished. {records.sentence(facts, folder)}")
        return facts
    request = records.request_of(folder, f"go on with limbeck.run(..., out='{folder}')")
    facts = _execute(request, folder, progress, told.get("threads"))
    if records.is_first():
        print(records.sentence(facts, folder))
    return facts


def _execute(
    request: dict[str, Any], folder: Path, progress: str, threads: int | None = None
) -> dict[str, Any]:
    """Write what the run is, then import torch and run it; gives what result.json says."""
    path = folder / "run.json"
    if records.is_first() and not records.there(path):
        records.make_folder(folder)
        records.write(path, {"request": request})
    flags.load_torch()
    import torch

    from limbeck.runs.door import run as run_method

    if threads and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    try:
        return run_method(
            request["method"],
            tasks.task_of(request),
            seed=request["seed"],
            out=folder,
            baseline=request["baseline"],
            cache=request["cache"],
            device=request["device"],
            progress=progress,
            command=request["command"],
            **tasks.tuples(request["given"]),
        ).facts
    except KeyboardInterrupt:
        raise KeyboardInterrupt(way_on(folder, {"request": request})) from None
    except UsageError:
        never = {"run.json", "teacher.safetensors"}
        if records.is_first() and {p.name for p in folder.iterdir()} <= never:
            shutil.rmtree(folder)  # it never began
        raise


def _dry(request: dict[str, Any], seed: int) -> int:
    flags.load_torch()
    from limbeck.core.dry import look
    from limbeck.runs.teaching import kept

    task, first = kept(tasks.task_of({**request, "seed": seed})), records.is_first()
    for note in task.notes if first else ():
        print(note, file=sys.stderr)
    given = tasks.tuples(request["given"])
    for line in look(request["method"], task, seed, request["device"], given):
        if first:  # the others look as well: a step is taken by all
            print(line)
    return 0
