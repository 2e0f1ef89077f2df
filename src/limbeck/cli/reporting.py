"""The command `report`: the page of a run that is finished, or those of all methods."""

from __future__ import annotations

from pathlib import Path

from limbeck.cli._parser import Parser
from limbeck.errors import Missing, UsageError

__all__ = ["report"]


def report(argv: list[str]) -> int:
    """Write the page of a run or of several seeds, or of all methods, and say where it is."""
    parser = Parser(
        "report",
        "Write the page of a finished run, or of a run with several seeds: one file that a\n"
        "browser shows without a network. With --all write a page for each method.",
        (
            "limbeck report runs/kd-digits-s0",
            "limbeck report runs/kd-digits --out kd.html",
            "limbeck report --all methods/",
        ),
        usage="DIR|--all DIR [--out FILE]",
    )
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", help="the run's folder, or that of its seeds"
    )
    parser.add_argument("--out", metavar="FILE", help="the page (DIR/report.html)")
    parser.add_argument(
        "--all",
        metavar="DIR",
        help="write index.html and a page for each method, with what its trial showed, into this "
        "folder (none)",
    )
    args = parser.parse_args(argv)
    if (args.folder is None) == (args.all is None):
        parser.error("name the folder of a run, or one for the pages of all methods with --all")
    if args.all is not None:
        if args.out:
            parser.error("--out is for the page of a run; --all names its folder itself")
        from limbeck.report.every import write_all

        print(write_all(Path(args.all)))
        return 0
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
