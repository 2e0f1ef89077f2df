"""The leaderboard as lines and as a page's pieces, from the packaged digest of the grid."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from limbeck.core.card import parse_needs
from limbeck.errors import UsageError
from limbeck.registry import PACKAGE, Entry
from limbeck.report.page import Html, note, text

__all__ = ["caption", "leaderboard_table", "left_out", "lines", "standings"]

Told = Mapping[str, Any]


def standings() -> dict[str, Any]:
    """What the grid says; empty where it has not run. See `limbeck.bench.standings`."""
    path = PACKAGE / "leaderboard.json"
    if not path.is_file():
        return {}
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        return told if told["methods"] else {}
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is damaged; install limbeck again") from None


def caption(told: Told) -> str:
    """What the numbers are, and how small the tasks."""
    first, many = told["seeds"]
    return (
        f"Accuracy on test less KD's, in points: means of seeds {first} to {first + many - 1}, the "
        "same student's start and order of data for all methods of a seed, with the 95 % interval. "
        "Small tasks: 500 labelled digits of 8x8 pixels and 4,000 pictures of clothes of 14x14, "
        "students of 800 to 5,600 parameters, runs of a few seconds. In each cell up to "
        "four settings of a method were tried on valid with one other seed, those of KD and of "
        "labels alone too. A dot marks methods whose interval reaches that of the best: this grid "
        "cannot tell them apart. The best of so many is in part lucky. Time and memory are those "
        "of a step over KD's: processor time, and what is kept for the backward pass. An asterisk: "
        "it asks the teacher itself, where others read its stored outputs, and pays for that."
    )


def _points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # zero has one sign


def _setting(row: Told, name: str) -> str:
    return str(row["cells"][name]["setting"]) if name in row["cells"] else row["refused"][name]


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def lines(told: Told, cell: str | None = None, keys: Collection[str] = ()) -> Iterator[str]:
    """The table for a terminal, the best first.

    Args:
        told: the digest.
        cell: the name of one that decides the order, instead of the mean.
        keys: the methods that are shown; none for all.

    Raises:
        UsageError: no cell is called so.
    """
    names = [each["name"] for each in told["cells"]]
    if cell is not None and cell not in names:
        raise UsageError(f"there is no cell {cell!r}; there are: {'; '.join(names)}")
    rows = [row for row in told["methods"] if not keys or row["key"] in keys]
    if cell is not None:
        rows = [row for row in rows if cell in row["cells"]]
        rows.sort(key=lambda row: -row["cells"][cell]["difference"][0])
    for number, name in enumerate(names, 1):
        yield f"({number}) {name}: {told['cells'][number - 1]['pair']}"
    yield ""
    heads = [f"({n})" for n in range(1, len(names) + 1)]
    yield (
        f"{'':2}{'method':<16}{'mean':>6}  {'95 %':<14}"
        + "".join(f"{h:>6}" for h in heads)
        + f"{'time':>6}{'memory':>8}{'steps':>7}{'parts':>9}"
    )
    alone = [told["labels"]] if told["labels"] and not keys else []
    for row in [*rows, *alone]:
        yield _line(row, names)


def _line(row: Told, names: Sequence[str]) -> str:
    mark = "•" if row.get("near") else " "
    live = "*" if row["live"] else ""
    low, high = (_points(value) for value in row["mean"][1:])
    cells = "".join(
        f"{_points(row['cells'][n]['difference'][0]) if n in row['cells'] else '-':>6}"
        for n in names
    )
    costs = f"{_times(row['time']):>6}{_times(row['memory']):>8}{_times(row['steps']):>7}"
    mean = f"{_points(row['mean'][0]):>6}  {f'{low} to {high}':<14}"
    return f"{mark} {row['key'] + live:<16}{mean}{cells}{costs}{row['parts']:>9,}"


# --- a page's pieces -----------------------------------------------------------------------------


def leaderboard_table(told: Told, entries: Sequence[Entry]) -> Html:
    """The table, a row for each method, and the controls that its script brings to life."""
    kinds = {entry.card.key: entry for entry in entries}
    names = [cell["name"] for cell in told["cells"]]
    heads = ["method", "mean", "95 %", *names, "time", "memory", "steps", "parameters"]
    orders = _orders(told["methods"], names)
    rows = "\n".join(
        _row(row, names, kinds[row["key"]], orders)
        for row in told["methods"]
        if row["key"] in kinds
    )
    selects = "\n".join(
        f'<label>{name}<select name="{name}"><option value="">all</option></select></label>'
        for name in ("kind", "needs", "place", "teacher")
    )
    head = "".join(
        f'<th scope="col"><button type="button" disabled>{text(name)}</button></th>'
        for name in heads
    )
    return Html(
        '<form class="filters" role="search" hidden>\n<label class="wide">search<input '
        'type="search" name="search" placeholder="a word of its name or title" '
        f'autocomplete="off"></label>\n{selects}\n</form>\n<p class="count" aria-live="polite" '
        'hidden></p>\n<div class="scroll" role="region" tabindex="0" aria-label="leaderboard">\n'
        f'<table class="methods leaderboard">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n'
        "</tbody>\n</table>\n</div>\n" + note(_alone(told, names))
    )


def _alone(told: Told, names: Sequence[str]) -> str:
    if not told["labels"]:
        return ""
    apart = (f"{_points(told['labels']['cells'][n]['difference'][0])} on {n}" for n in names)
    mean = _points(told["labels"]["mean"][0])
    return f"Labels alone, beside KD: {mean} on average ({'; '.join(apart)})."


def _orders(rows: Sequence[Told], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """For each column with numbers the place of each method, from the smallest on."""

    def value(row: Told, name: str) -> float:
        if name in names:
            return float(row["cells"][name]["difference"][0]) if name in row["cells"] else -9.0
        place = {"mean": 0, "95 %": 1}
        found = row["mean"][place[name]] if name in place else row[name]
        return -9.0 if found is None else float(found)

    columns = ("mean", "95 %", *names, "time", "memory", "steps", "parts")
    return {
        name: {row["key"]: i for i, row in enumerate(sorted(rows, key=lambda r: value(r, name)))}
        for name in columns
    }


def _row(row: Told, names: Sequence[str], entry: Entry, orders: Told) -> str:
    key, card = row["key"], entry.card
    needs = dict.fromkeys(
        one.name for need in parse_needs(card.needs) for some in need for one in sorted(some)
    )
    marks = {
        "kind": "|".join(card.kinds),
        "needs": "|".join(needs),
        "place": "near the best" if row["near"] else "behind",
        "teacher": "live" if row["live"] else "stored outputs",
    }
    data = "".join(f' data-{name}="{text(value)}"' for name, value in marks.items())

    def cell(name: str, shown: str, title: str = "") -> str:
        told = f' title="{text(title)}"' if title else ""
        said = "parameters" if name == "parts" else name
        return (
            f'<td data-order="{orders[name][key]}" data-name="{text(said)}"{told}>'
            f"{text(shown)}</td>"
        )

    mark = "• " if row["near"] else ""
    low, high = (_points(value) for value in row["mean"][1:])
    cells = "".join(
        cell(
            name,
            _points(row["cells"][name]["difference"][0]) if name in row["cells"] else "-",
            _setting(row, name),
        )
        for name in names
    )
    costs = "".join(cell(n, _times(row[n])) for n in ("time", "memory", "steps"))
    live, parts = "*" if row["live"] else "", f"{row['parts']:,}"
    return (
        f'<tr{data}><th scope="row">{mark}<a href="{text(key)}.html">{text(key)}</a>{live}'
        f"<span>{text(card.title)}</span></th>{cell('mean', _points(row['mean'][0]))}"
        f"{cell('95 %', f'{low} to {high}')}{cells}{costs}{cell('parts', parts)}</tr>"
    )


def left_out(told: Told) -> str:
    """Which vision methods the grid does not hold, and why."""
    return "; ".join(f"{key}: {why}" for key, why in told["left_out"].items())
