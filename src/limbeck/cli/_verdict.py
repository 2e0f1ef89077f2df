"""How a diagnosis stands on the terminal, and what is to be done next."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.doctor import Diagnosis, Finding

__all__ = ["following", "show"]

_STYLES = {
    "bad": "bold red",
    "watch": "yellow",
    "follows": "dim",
    "unknown": "dim",
    "good": "green",
}
_NAME = 14  # letters of the longest finding's name, and some space


def following(found: Diagnosis, command: Sequence[str], after: bool) -> str:
    """What to do now: the worst finding's command or advice, then whatever teaches more.

    Of a healthy task that is the run; of a run that leaves no question it is nothing.
    """
    faults = [f for f in found.findings if f.state in ("bad", "watch")]
    if faults:
        causes = [f for f in faults if f.name != "run" and f.state == "bad"]
        first = (causes or faults)[0]  # before what it led to
        return first.command or first.advice
    more = next((f for f in found.findings if f.command), None)
    more = more or next((f for f in found.findings if f.advice), None)
    if more is not None:
        return more.command or more.advice
    if after:
        return "nothing need be done"
    from limbeck.doctor.words import again

    return again(command, {})


def show(found: Diagnosis, after: str, which: str) -> None:
    """The verdict on the terminal, in colours where it has them; first which run it is of."""
    from rich.console import Console
    from rich.text import Text

    from limbeck.doctor.words import grouped

    console = Console(highlight=False, soft_wrap=True)
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    doubted = any(f.name == "run" and f.state == "unknown" for f in found.findings)
    worst = found.findings[0].state if doubted or not found.healthy else "good"
    if which:
        console.print(Text(which))
    console.print(Text(found.verdict, style=_STYLES[worst]))
    console.print()
    for finding in grouped(found.findings):
        lines = _lines(finding, width)
        console.print(Text.assemble((f"{finding.state:<8} ", _STYLES[finding.state]), lines[0]))
        for line in lines[1:]:
            console.print(Text(line))
    if after:
        console.print()
        console.print(Text.assemble(("try next: ", "bold"), after))


def _lines(finding: Finding, width: int) -> list[str]:
    """A finding's sentence and advice in lines; the first begins after the state."""
    left = " " * (9 + _NAME)
    lines = textwrap.wrap(f"{finding.name:<{_NAME}}{finding.says}", width - 9,
                          subsequent_indent=" " * _NAME)  # fmt: skip
    out = [lines[0], *(" " * 9 + line for line in lines[1:])]
    if finding.advice:
        out += textwrap.wrap(f"> {finding.advice}", width, initial_indent=left,
                             subsequent_indent=f"{left}  ")  # fmt: skip
    return out
