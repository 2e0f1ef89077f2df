"""The command `speed`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from limbeck.cli._parser import Parser
from limbeck.errors import UsageError

if TYPE_CHECKING:
    from limbeck.bench.speed import Row

__all__ = ["speed"]


def speed(argv: list[str]) -> int:
    """Measure the hot paths beside what people use today."""
    parser = Parser(
        "speed",
        "Measure limbeck's hot paths beside what people use today: in one process, in turn, the\n"
        "best of several. Times depend on the machine; the ratios are what counts.",
        ("limbeck speed", "limbeck speed --quick --json", "limbeck speed --objectives kd,crd"),
        usage="[options]",
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps, looser numbers")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="torch's threads (1)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--objectives",
        metavar="KEY,KEY",
        help="instead, time and memory of these vision methods' objectives alone, forward and "
        "backward; all for every one (the hot paths)",
    )
    args = parser.parse_args(argv)
    if not 1 <= args.threads <= 1024:
        raise UsageError(f"--threads is {args.threads}; give a number from 1 to 1024")

    import torch

    from limbeck.bench.speed import objectives, rows

    torch.set_num_threads(args.threads)
    if args.objectives is None:
        found = rows(args.quick)
    else:
        named = [key.strip() for key in args.objectives.split(",")]
        found = objectives(() if named == ["all"] else named, args.quick)
    if args.json:
        print(json.dumps([_plain(row) for row in found], indent=2))
        return 0
    for row in found:
        told = f"target: {row.target}" if row.target else ""
        told = f"not measured: {row.why_not}" if row.why_not else told
        print(f"{row.name}   ({told})" if told else row.name)
        print("".join(f"{line}\n" for line in _lines(row)), end="", flush=True)
    return 0


def _plain(row: Row) -> dict[str, Any]:
    """A row as JSON has it."""
    told = {
        "path": row.name,
        "seconds": dict(row.seconds),
        "ratios": row.ratios(),
        "bytes": dict(row.rises),
        "target": row.target,
    }
    if row.why_not:
        return {"path": row.name, "why_not": row.why_not}
    return {**told, "ratios_of_bytes": row.ratios_of_rises()} if row.rises else told


def _lines(row: Row) -> list[str]:
    ratios, more = row.ratios(), row.ratios_of_rises()
    return [
        f"  {name:<26} {1000 * value:10.3f} {row.unit:<8} {ratios[name]:7.3f}x"
        + (f" {row.rises[name] / 1e6:8,.0f} MB" if name in row.rises else "")
        + (f" {more[name]:7.3f}x" if name in more else "")
        for name, value in row.seconds.items()
    ]
