"""The command `limbeck`: finds the command that was asked for and imports only that.

A mistake of the user's ends with one sentence on stderr and exit code 2, without a traceback.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from limbeck.errors import UsageError, nearest

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "list": ("limbeck.cli.listing:list_methods", "the methods, with filters"),
    "show": ("limbeck.cli.listing:show", "one method: its facts, formula and flags"),
    "run": ("limbeck.cli.running:run", "teach a student with a method; a folder keeps the results"),
    "resume": ("limbeck.cli.running:resume", "go on with a run that was stopped"),
    "suggest": (
        "limbeck.cli.suggesting:suggest",
        "methods worth trying on your task, with the evidence",
    ),
    "check": ("limbeck.cli.checking:check", "test a method, yours too, with the common suite"),
    "cache": ("limbeck.cli.caching:cache", "run a teacher once, for any number of runs"),
    "doctor": ("limbeck.cli.doctoring:doctor", "say what is wrong with a task or a run"),
    "report": (
        "limbeck.cli.reporting:report",
        "a page on a run or on seeds of it, or on all methods",
    ),
    "export": ("limbeck.cli.exporting:export", "take the student home: safetensors, onnx, pt2"),
    "new": ("limbeck.cli.making:new", "begin a method of your own: two files"),
    "demo": ("limbeck.cli.demo:demo", "on digits: a student alone, and taught by three methods"),
    "completion": ("limbeck.cli.completing:completion", "completion of words for your shell"),
    "bench": ("limbeck.cli.benching:bench", "measure the claims of methods, in trials"),
    "leaderboard": (
        "limbeck.cli.leading:leaderboard",
        "classification methods on one grid of small tasks, beside KD",
    ),
    "speed": ("limbeck.cli.speeding:speed", "measure what limbeck adds to a bare training loop"),
}
"""Each command with its function, `f(argv) -> exit code`, and what it is for."""

_HELP = """\
usage: limbeck COMMAND [...]

Teaches small models what large models know: knowledge distillation for PyTorch.

commands:
{commands}

examples:
  limbeck demo                        see what distillation does, on real digits
  limbeck run kd --teacher timm:resnet50 --student timm:resnet18 --data photos/
  limbeck doctor runs/kd-resnet18-photos-s0
  limbeck list --kind relation        methods that match relations of samples
  limbeck show kd                     what a method does, and its flags

`limbeck COMMAND --help` says more of a command; `limbeck --version` gives the
version. A method is named by its key, or by the path of a FILE.py of your own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give the exit code: 0, 2 for a mistake, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    _never_fail_to_print()
    first = os.environ.get("RANK", "0") == "0"  # of several processes
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except UsageError as error:
        if not first:
            time.sleep(10)  # the first process says it, if it can, and then torchrun ends this one
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # a run says how it goes on
        more = f"; go on with: {stop}" if str(stop) else ""
        if first:
            print(f"interrupted{more}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read us (head, less) has left; Python's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        lines = (f"  {name:<12} {about}" for name, (_, about) in COMMANDS.items())
        print(_HELP.format(commands="\n".join(lines)))
        return 0
    if words[0] in ("-V", "--version", "version"):
        from limbeck import __version__

        print(f"limbeck {__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise UsageError(f"there is no command {words[0]!r}{nearest(words[0], COMMANDS)}")
    from importlib import import_module

    module, _, function = COMMANDS[words[0]][0].partition(":")
    try:
        return int(getattr(import_module(module), function)(words[1:]))
    except SystemExit as stop:  # argparse ends `--help` so
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _never_fail_to_print() -> None:
    """Let a terminal that lacks a letter show a question mark instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
