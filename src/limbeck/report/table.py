"""The table of all methods, with its filters, and what the trials say of them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.core.card import parse_needs
from limbeck.registry import ROOMS, STATUSES, Entry
from limbeck.report.claims import badge
from limbeck.report.methods import needs_of
from limbeck.report.page import Html, join, note, text

__all__ = ["SCRIPT", "STYLE", "VERDICTS", "by_room", "chance", "methods_table", "overview"]

Known = Mapping[str, Sequence[Mapping[str, Any]]]
"""The measured definitions of each method that has some."""

VERDICTS = ("shown", "not shown", "contradicted")

SCRIPT = Path(__file__).with_name("methods.js")
"""What filters and sorts the table."""

STYLE = Path(__file__).with_name("methods.css")
"""How the pieces of a method's page and the table look, beside the page's own style."""

_ERRS = 0.025  # of the verdicts against one baseline without an effect are "shown", at most


def overview(entries: Sequence[Entry], known: Known) -> Html:
    """How many verdicts there are of each kind, and how many of them chance may have made."""
    told = [known.get(entry.card.key, []) for entry in entries]
    counts = Counter(each[-1]["verdict"] for each in told if each)
    counts |= Counter({"no trial yet": sum(not each for each in told)})
    tiles = "\n".join(
        f'<a href="#status={text(word.replace(" ", "+"))}"><b>{counts[word]}</b> {badge(word)}</a>'
        for word in (*VERDICTS, "no trial yet")
    )
    return join(
        [Html(f'<nav class="tiles" aria-label="verdicts">\n{tiles}\n</nav>'), note(chance(told))]
    )


def chance(told: Iterable[Sequence[Mapping[str, Any]]]) -> str:
    """How many of the trials may be *shown* without an effect.

    Args:
        told: for each method its measured definitions.
    """
    tried = sum(map(len, told))
    return (
        "Where there is no effect, a verdict against one baseline errs in the claimed direction at "
        f"most 2.5 % of the time. So of {tried} definitions measured, each of which was a chance, "
        f"at most {tried} x 0.025 = {tried * _ERRS:.2g} are to be expected to say shown by luck."
    )


def methods_table(entries: Sequence[Entry], known: Known) -> Html:
    """The table, a row for each method, and the controls that its script brings to life."""
    every = [(entry, known.get(entry.card.key)) for entry in entries]
    rows = "\n".join(_row(entry, told[-1]["verdict"] if told else "") for entry, told in every)
    selects = "\n".join(
        f'<label>{name}<select name="{name}"><option value="">all</option></select></label>'
        for name in ("room", "kind", "needs", "status")
    )
    head = "".join(
        f'<th scope="col"><button type="button" disabled>{name}</button></th>'
        for name in ("method", "year", "room", "kinds", "needs", "status")
    )
    return Html(
        '<form class="filters" role="search" hidden>\n<label class="wide">search<input '
        'type="search" name="search" placeholder="a word of its name, title, kinds ..." '
        f'autocomplete="off"></label>\n{selects}\n</form>\n<p class="count" aria-live="polite" '
        f'hidden></p>\n<table class="methods">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n'
        "</tbody>\n</table>"
    )


def _row(entry: Entry, verdict: str) -> str:
    card = entry.card
    needs = dict.fromkeys(
        "data" if one.side == "data" else one.name
        for need in parse_needs(card.needs)
        for some in need
        for one in sorted(some)
    )
    known = dict.fromkeys(filter(None, (verdict or "no trial yet", entry.status)))
    shown = [word for word in dict.fromkeys((entry.status, verdict)) if word]
    marked = (
        ("room", entry.room),
        ("kind", "|".join(card.kinds)),
        ("needs", "|".join(needs)),
        ("status", "|".join(known)),
    )
    data = "".join(f' data-{name}="{text(value)}"' for name, value in marked)
    return (
        f'<tr{data}><th scope="row"><a href="{text(card.key)}.html">{text(card.key)}</a>'
        f"<span>{text(card.title)}</span></th><td>{card.year}</td><td>{text(entry.room)}</td>"
        f"<td>{text(', '.join(card.kinds))}</td><td>{text(needs_of(entry))}</td>"
        f'<td data-order="{_rank(shown)}">{" ".join(map(badge, shown))}</td></tr>'
    )


def _rank(shown: Sequence[str]) -> int:
    """Where a row stands by status: verdicts in the order of `STATUSES`, the rest behind."""
    return list(STATUSES).index(shown[-1])


def by_room(entries: Sequence[Entry], known: Known) -> str:
    """A table in Markdown: for each room its methods, and how their claims fared."""
    head = ["room", "methods", *VERDICTS, "no trial yet", "which"]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * 5 + " --- |"]
    for room in ROOMS:
        keys = [entry.card.key for entry in entries if entry.room == room]
        if not keys:
            continue
        told = [known.get(key) for key in keys]
        counts = Counter(each[-1]["verdict"] if each else "no trial yet" for each in told)
        numbers = " | ".join(str(counts[word] or "") for word in (*VERDICTS, "no trial yet"))
        lines.append(f"| {room} | {len(keys)} | {numbers} | {', '.join(f'`{k}`' for k in keys)} |")
    return "\n".join(lines)
