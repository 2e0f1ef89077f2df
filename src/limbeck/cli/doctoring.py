"""The command `doctor`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.cli import _flags as flags
from limbeck.cli import _records as records
from limbeck.cli import _tasks as tasks
from limbeck.cli import _verdict as verdict
from limbeck.cli._asked import without
from limbeck.cli._parser import Parser
from limbeck.core.card import call
from limbeck.errors import Missing, UsageError
from limbeck.registry import Entry, find

if TYPE_CHECKING:
    from limbeck.core.task import Task
    from limbeck.doctor import Diagnosis

__all__ = ["doctor"]

_ABOUT = """\
Say what is wrong with a distillation: of a run by its folder, or of models and data before
a run. It asks both sides, and trains for a few steps in memory (seconds for small models,
minutes for large ones without a GPU); nothing is written. The worst comes first, with what to
do about it."""
_METHOD = "before a run: the method, with values if wanted: kd, \"kd(tau=8)\" (kd)"  # fmt: skip


def _parser(entry: Entry | None) -> Parser:
    parser = Parser(
        "doctor",
        _ABOUT,
        (
            "limbeck doctor runs/kd-digits-s0",
            "limbeck doctor --world digits --method fitnets",
            "limbeck doctor --teacher nets.py:Big --student nets.py:Small --data x.csv --tau 8",
            "limbeck doctor --method ban --teacher none --student nets.py:Small --data x.csv",
        ),
        usage="[DIR] [options]",
    )
    add = parser.add_argument
    add("folder", metavar="DIR", nargs="?", help="a run's folder, finished or not, or of its seeds")
    add("--method", metavar="KEY", help=_METHOD)
    add("--seed", type=int, default=0, metavar="N", help="of the short fits, before a run (0)")
    told = "steps of each short fit (60, or fewer where steps are slow)"
    add("--probe-steps", type=int, metavar="N", help=told)
    add("--json", action="store_true", help="print the findings as JSON")
    flags.add_task(parser)
    flags.add_budget(parser)
    if entry is not None:
        flags.add_fields(parser, entry)
    return parser


def doctor(argv: list[str]) -> int:
    """Diagnose a run, or a task before one."""
    text = _method_in(argv)
    name, values = call(text) if text.endswith(")") else (text, {})
    entry = find(name)
    args = _parser(entry).parse_args(argv)
    if args.folder is not None:
        _refuse_a_method(args.folder)
        found, command, which = _after(args, argv)
    else:
        (found, command), which = _before(args, argv, entry, values), ""
    then = verdict.following(found, command, args.folder is not None)
    if args.json:
        print(json.dumps({"of": which, **found.as_dict(), "next": then}))
    else:
        verdict.show(found, then, which)
    return 0


def _refuse_a_method(folder: str) -> None:
    """Tell where a method's key goes, which is no run's folder."""
    if Path(folder).exists():
        return
    try:
        key = find(call(folder)[0] if folder.endswith(")") else folder).card.key
    except UsageError:
        return
    raise UsageError(f"'{key}' is a method; look at it before a run with --method {key}")


def _method_in(argv: Sequence[str]) -> str:
    """The words after --method, which decide what other options there are."""
    text = "kd"
    for i, word in enumerate(argv):
        option, eq, value = word.partition("=")
        if option == "--method":
            text = value if eq else "".join(argv[i + 1 : i + 2])
    return text


def _say(quiet: bool) -> Any:
    return lambda sentence: None if quiet else print(f"{sentence} ...", file=sys.stderr, flush=True)


def _before(
    args: argparse.Namespace, argv: list[str], entry: Entry, values: dict[str, Any]
) -> tuple[Diagnosis, list[str]]:
    """Models and data before a run, and the command of that run."""
    given = {k[6:]: tasks.value(v) for k, v in vars(args).items() if k[:6] == "field_" and v}
    key = str(entry.path.resolve()) if entry.room == "own" else entry.card.key
    if not any((args.world, args.task, args.teacher, args.student, args.data)):
        raise UsageError(
            "name a run's folder, or what to look at before a run: --teacher, --student and "
            "--data, --task, or --world"
        )
    request = {"method": key, "seed": args.seed, **flags.asked(args, None)}

    flags.load_torch()
    from limbeck.doctor import diagnose

    task = tasks.task_of(request)
    say = _say(args.json)
    for note in task.notes:
        say(note)
    written = [w for k, v in values.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    named = entry.card.key if entry.room != "own" else str(entry.path)
    kept = without(argv, {"--method": 1, "--probe-steps": 1, "--json": 0})
    command = ["limbeck", "run", named, *kept, *written]
    found = diagnose(
        task,
        tasks.method_of(key, {**values, **given}),
        seed=args.seed,
        device=args.device,
        probe_steps=args.probe_steps,
        command=command,
        say=say,
    )
    _tell_requests(task, say)
    return found, command


def _tell_requests(task: Task | None, say: Callable[[str], None]) -> None:
    """Say how often a served teacher was asked: requests may cost."""
    ask = getattr(None if task is None else task.the_teacher(), "ask", None)
    if asked := getattr(ask, "asked", 0):
        say(f"{asked} request{'s' * (asked != 1)} to the teacher")


def _after(args: argparse.Namespace, argv: list[str]) -> tuple[Diagnosis, list[str], str]:
    """A run by its folder, with its models where they can be had again; and which run it is."""
    known = {args.folder, "--json", "--probe-steps", str(args.probe_steps)}
    other = [w for w in argv if w.startswith("-") and w.partition("=")[0] not in known]
    if other:
        raise UsageError(f"a run's folder says what it is of; leave {' '.join(other)} out")
    folder = Path(args.folder)
    if not folder.exists():
        raise Missing(f"there is no folder {folder}; name a run's folder")

    flags.load_torch()
    from limbeck.doctor import chosen, diagnose, read

    whole, (folder, which) = folder, chosen(folder)
    told = read(folder)
    say = _say(args.json)
    request = told.told.get("request") or {}
    task = student = None
    try:
        if told.result:
            opened = tasks.reopen(folder)
            task, student = opened.task, opened.result.model
        elif request:
            task = tasks.task_of(records.request_of(folder, "only Python can open it"))
    except UsageError as error:
        say(f"the models cannot be had again, so this goes by the records alone ({error})")
    command = told.command or []
    found = diagnose(
        task,
        run=told,
        student=student,
        seed=request.get("seed", 0),
        device=request.get("device"),
        probe_steps=args.probe_steps,
        say=say,
    )
    _tell_requests(task, say)
    if which and (whole / "result.json").exists():
        which += f"\n{records.of_seeds(records.read(whole / 'result.json'))}"
    return found, command, which
