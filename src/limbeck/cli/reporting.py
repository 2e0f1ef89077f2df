"""The command `report`: the page of a run that is finished."""

from __future__ import annotations

from pathlib import Path

from limbeck.cli._parser import Parser
from limbeck.errors import Missing, UsageError

__all__ = ["report"]


def report(argv: list[str]) -> int:
    """Write the page of a run, of several seeds, or of a demo, and say where it is."""
    parser = Parser(
        "report",
        "Write the page of a finished run, or of a run with several seeds: one file that a\n"
        "browser shows without a network.",
        ("limbeck report runs/kd-digits-s0", "limbeck report runs/kd-digits --out kd.html"),
    )
    parser.add_argument("folder", metavar="DIR", help="the run's folder, or that of its seeds")
    parser.add_argument("--out", metavar="FILE", help="the page (DIR/report.html)")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    if folder.is_file():
        raise UsageError(f"{folder} is a file; name the folder of a run")
    if (folder / "demo.json").exists():
        raise Missing(
            f"{folder} holds a demo, which writes its own page: limbeck demo --out {folder}"
        )
    from limbeck.report.run import write

    print(write(folder, Path(args.out) if args.out else None))
    return 0
