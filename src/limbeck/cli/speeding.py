"""The command `speed`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

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
        ("limbeck speed", "limbeck speed --quick --json"),
        usage="[options]",
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps, looser numbers")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="torch's threads (1)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args(argv)
    if not 1 <= args.threads <= 1024:
        raise UsageError(f"--threads is {args.threads}; give a number from 1 to 1024")

    import torch

    from limbeck.bench.speed import rows

    torch.set_num_threads(args.threads)
    if args.json:
        told = [
            {
                "path": r.name,
                "seconds": dict(r.seconds),
                "ratios": r.ratios(),
                "bytes": dict(r.rises),
                "target": r.target,
            }
            for r in rows(args.quick)
        ]
        print(json.dumps(told, indent=2))
        return 0
    for row in rows(args.quick):
        print(f"{row.name}   (target: {row.target})")
        print("\n".join(_lines(row)), flush=True)
    return 0


def _lines(row: Row) -> list[str]:
    ratios = row.ratios()
    return [
        f"  {name:<26} {1000 * value:10.3f} {row.unit:<8} {ratios[name]:7.3f}x"
        + (f" {row.rises[name] / 1e6:8,.0f} MB" if name in row.rises else "")
        for name, value in row.seconds.items()
    ]
