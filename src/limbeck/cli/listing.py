"""The commands `list` and `show`, which read method files as text and import no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from limbeck._source import Field, Outline, outline, say_path
from limbeck.cli._columns import columns, cut, fold
from limbeck.cli._parser import Parser
from limbeck.core.card import ENTRIES, GIVES, KINDS, PLAIN_NEEDS
from limbeck.registry import OWN, ROOMS, STATUSES, Entry, cards, find

__all__ = ["list_methods", "show"]

_WORDS = {"room": dict.fromkeys(ROOMS, ""), "kind": KINDS, "gives": GIVES, "status": STATUSES}
_WORDS["needs"] = {**ENTRIES, **PLAIN_NEEDS, "data": "further data sets; data:NAME for one"}
"""The words that an option of `list` takes, with what they mean."""


def list_methods(argv: list[str]) -> int:
    """List the methods, all or some."""
    parser = Parser(
        "list",
        "List the methods: a table on a terminal, plain columns in a pipe.",
        (
            "limbeck list --room vision --kind relation",
            "limbeck list --kind help",
            "limbeck list --needs hidden --status shown",
            "limbeck list --json > methods.json",
        ),
        more="Without options all are listed. The word `help` after an option that takes one lists "
        "its words with what they mean, as in `limbeck list --kind help`.",
        usage="[options]",
    )
    add = parser.add_argument
    add("--room", metavar="WORD", help="only this domain, such as vision (all)")
    add("--kind", metavar="WORD", help="only this kind, such as relation (all)")
    sides = "with student: or teacher: before it, only of that side"
    add("--needs", metavar="WORD", help=f"only what asks for this, such as hidden; {sides} (all)")
    add("--gives", metavar="WORD", help="only what gives this, such as model (all)")
    add("--status", metavar="WORD", help="only what this is known of, such as shown (all)")
    add("--json", action="store_true", help="print a list of cards as JSON")
    args = parser.parse_args(argv)
    for meanings in (words for name, words in _WORDS.items() if getattr(args, name) == "help"):
        print("\n".join(columns(list(meanings.items()))))
        return 0
    status = args.status and args.status.replace("-", " ").replace("_", " ")
    entries = cards(args.room, args.kind, args.needs, args.gives, status)
    if args.json:
        _print_json([_facts(entry) for entry in entries])
    elif not entries:
        print("no method matches", file=sys.stderr)
    elif sys.stdout.isatty():
        _table(entries)
    else:
        head = ("KEY", "ROOM", "YEAR", "KINDS", "GIVES", "STATUS", "TITLE")
        print("\n".join(columns([head, *map(_row, entries)])))
    return 0


def show(argv: list[str]) -> int:
    """Show one method, or what a model is made of."""
    parser = Parser(
        "show",
        "Show one method: facts, description, departures from the paper, and its flags.\n"
        "With --modules show the modules of a model, whose paths are what --taps takes.",
        (
            "limbeck show kd",
            "limbeck show examples/new_method.py",
            "limbeck show kd --json",
            "limbeck show --modules nets.py:Student --input 3,32,32 --classes 10",
        ),
        usage="KEY|--modules MODEL [options]",
    )
    add = parser.add_argument
    add("method", metavar="KEY", nargs="?", help="a method's key, or a FILE.py with a card")
    add("--modules", metavar="MODEL", help="a model, in the words of `limbeck run --student`")
    add("--input", metavar="SHAPE", help="of one sample, as 3,224,224: also show what each gives")
    add("--classes", type=int, metavar="N", help="the model's number of classes (its own)")
    add("--json", action="store_true", help="print it as JSON")
    args = parser.parse_args(argv)
    if args.modules is not None:
        from limbeck.cli.modules import show_modules

        return show_modules(args)
    if args.method is None:
        parser.error("name a method by its KEY, or a model with --modules")
    from limbeck.report.trials import told_of

    entry = find(args.method)
    written = outline(entry.path)
    measured = told_of(entry.card.key) if entry.room != OWN else []
    if args.json:
        fields = [
            {"flag": f.flag, **{name: getattr(f, name) for name in Field.__dataclass_fields__}}
            for f in written.fields
        ]
        facts = {"class": written.name, "doc": written.doc, "fields": fields, "trials": measured}
        _print_json(_facts(entry) | facts | {"file": str(entry.path)})
        return 0
    lines = [
        *_page(args.method, entry, written),
        *_measured(entry, measured),
        *_how_to_run(args.method, entry),
    ]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False, soft_wrap=True)
        for style, line in lines:
            console.print(Text(line, style))
    else:
        print("\n".join(line for _, line in lines))
    return 0


def _facts(entry: Entry) -> dict[str, Any]:
    card = entry.card
    return {
        "key": card.key,
        "room": entry.room,
        "title": card.title,
        "year": card.year,
        "arxiv": card.arxiv,
        "code": card.code,
        "kinds": card.kinds,
        "needs": card.needs,
        "gives": card.gives,
        "world": card.world,
        "stages": card.stages,
        "departs": card.departs,
        "lacks": card.lacks,
        "status": entry.status,
    }


def _row(entry: Entry) -> tuple[str, ...]:
    card = entry.card
    kinds = ",".join(card.kinds)
    return card.key, entry.room, str(card.year), kinds, card.gives, entry.status, card.title


def _table(entries: list[Entry]) -> None:
    """Print a line for each method, cut to the terminal's width.

    The lines are laid out here: rich's own table takes 0.2 s for 300 methods.
    """
    from rich.console import Console
    from rich.text import Text

    head = ("key", "room", "year", "kinds", "gives", "status", "title")
    rows = [head, *((*row[:3], cut(row[3], 28), *row[4:]) for row in map(_row, entries))]
    console = Console(highlight=False)
    lines = [cut(line, console.width) for line in columns(rows)]
    styled = [Text(lines[0], "bold"), Text("─" * max(map(len, lines)), "dim")]
    starts = [0, *accumulate(max(map(len, column)) + 2 for column in zip(*rows, strict=True))]
    colours = {"shown": "green", "contradicted": "red", "not shown": "yellow", "partial": "magenta"}
    for entry, line in zip(entries, lines[1:], strict=True):
        text = Text(line)
        text.stylize("bold cyan", 0, starts[1])
        text.stylize(colours.get(entry.status, ""), starts[5], starts[6])
        styled.append(text)
    styled.append(Text(f"\n{len(entries)} listed; `limbeck show KEY` says more of one", "dim"))
    console.print(Text("\n").join(styled), soft_wrap=True)


def _page(asked: str, entry: Entry, written: Outline) -> Iterable[tuple[str, str]]:
    """Give the lines of a method's page, each with its style."""
    card = entry.card
    yield "bold cyan", f"{card.key}  ({entry.room})"
    yield "bold", f"{card.title}, {card.year}"
    if card.arxiv:
        yield "", f"https://arxiv.org/abs/{card.arxiv}"
    if card.code:
        yield "", card.code
    yield "", ""
    facts = {
        "kinds": ", ".join(card.kinds),
        "needs": ", ".join(n.replace("+", " and ").replace("|", " or ") for n in card.needs),
        "gives": card.gives,
        "world": card.world,
        "stages": ", ".join(card.stages),
        "status": f"{entry.status}: {STATUSES[entry.status]}",
        "departs": card.departs,
        "lacks": "; ".join(card.lacks),
        "file": say_path(entry.path),
    }
    for name, value in facts.items():
        if value:
            yield "", fold(f"{name:<9}{value}", 9)
    yield "", ""
    yield "", written.doc or "(no description)"
    yield "", ""
    if written.fields:
        yield "bold", f"flags of `limbeck run {asked}`, which are fields in Python:"
        rows = [(f"  --{f.flag}", f.words, _default(f), _help(f)) for f in written.fields]
        for line in columns(rows):
            yield "", line
        yield "", ""


def _measured(entry: Entry, measured: list[dict[str, Any]]) -> Iterable[tuple[str, str]]:
    from limbeck.report.trials import lines

    for told in measured:
        yield "bold", f"trial, definition {told['number']}:"
        yield from (("", f"  {line}") for line in lines(entry.card.key, told))
        yield "", ""


def _how_to_run(asked: str, entry: Entry) -> Iterable[tuple[str, str]]:
    world = f'"{entry.card.world}"' if "(" in entry.card.world else entry.card.world
    yield "bold", "run it:"
    yield "", f"  limbeck run {asked} --world {world}"


def _default(field: Field) -> str:
    return field.default.strip("'") or "''" if field.default else "(required)"


def _help(field: Field) -> str:
    return "; ".join(filter(None, (field.help, field.range)))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
