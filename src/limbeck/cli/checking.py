"""The command `check`: the common suite on methods of the library and on files of one's own."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from limbeck.cli._parser import Parser
from limbeck.errors import UsageError
from limbeck.registry import cards, find

if TYPE_CHECKING:
    from limbeck.check.suite import Finding

__all__ = ["check"]

_STYLES = {"ok": "green", "failed": "bold red", "exempt": "yellow", "not applicable": "dim"}


def check(argv: list[str]) -> int:
    """Run the common suite; the exit code is 1 when a check failed."""
    parser = Parser(
        "check",
        "Test methods with the common suite: purity, gradients, needs, exact resume and more.",
        (
            "limbeck check kd                    one method",
            "limbeck check my_method.py          a file of your own",
            "limbeck check --all --json          every method, as JSON",
            "limbeck check --list                what the checks are",
        ),
        more="A method's file may exempt it from a check, EXEMPT = {'order': 'a reason'}, for as"
        " long as the check would fail.",
        usage="KEY ...|--all|--list [options]",
    )
    parser.add_argument("methods", metavar="KEY", nargs="*", help="a key, or a FILE.py with a card")
    parser.add_argument("--all", action="store_true", help="every method of the library")
    parser.add_argument("--only", metavar="CHECK", help="only this check of --list (all)")
    parser.add_argument("--list", action="store_true", help="print the checks, run none")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    args = parser.parse_args(argv)
    if args.list:
        return _list(args.json)
    if args.all == bool(args.methods):
        raise UsageError(
            "'limbeck check' takes either methods or --all; see 'limbeck check --help'"
        )
    methods = [entry.card.key for entry in cards()] if args.all else args.methods
    for method in methods:  # a misspelt one is refused before the first is run
        find(method)
    found: list[Finding] = []
    show = _nothing if args.json else _show
    for method in methods:
        found += show(_findings(method, args.only))
    if args.json:
        _print_json([dataclasses.asdict(finding) for finding in found])
    else:
        _sum_up(found, len(methods))
    return int(any(finding.verdict == "failed" for finding in found))


def _list(as_json: bool) -> int:
    from limbeck.check.suite import CHECKS

    told = {name: (f.__doc__ or "").strip().splitlines()[0] for name, f in CHECKS.items()}
    if as_json:
        _print_json(told)
    else:
        width = max(map(len, told))
        print("\n".join(f"{name:<{width}}  {about}" for name, about in told.items()))
    return 0


def _findings(method: str, only: str | None) -> Iterator[Finding]:
    """What the suite finds, each as soon as it is found."""
    from limbeck.check.case import Case
    from limbeck.check.suite import CHECKS, Suite
    from limbeck.errors import Missing, nearest

    if only is not None and only not in CHECKS:
        raise Missing(f"there is no check {only!r}{nearest(only, CHECKS)}")
    suite = Suite(Case(method))
    for name in CHECKS if only is None else (only,):
        yield suite.find(name)


def _nothing(findings: Iterable[Finding]) -> list[Finding]:
    return list(findings)


def _show(findings: Iterable[Finding]) -> list[Finding]:
    """Print a line for each finding: method, check, verdict, and what is said."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    seen = []
    for finding in findings:
        line = Text(f"{finding.key}  {finding.check:<11}  ")
        line.append(f"{finding.verdict:<14}", _STYLES[finding.verdict])
        line.append(f"  {' '.join(finding.said.split())}")
        line.rstrip()
        console.print(line)
        sys.stdout.flush()
        seen.append(finding)
    return seen


def _sum_up(found: Sequence[Finding], methods: int) -> None:
    count = Counter[str](finding.verdict for finding in found)
    told = ", ".join(f"{count[verdict]} {verdict}" for verdict in _STYLES if count[verdict])
    seconds = sum(finding.seconds for finding in found)
    print(f"{methods} method{'s' * (methods != 1)}: {told}; {seconds:.1f} s")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
