"""The pages of all methods as one folder that a browser shows without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.errors import UsageError
from limbeck.registry import Entry, cards
from limbeck.report.claims import Code
from limbeck.report.leaderboard import caption, leaderboard_table, left_out, standings
from limbeck.report.methods import Piece, head, sections
from limbeck.report.page import Html, code, join, lead, note, page, section
from limbeck.report.table import SCRIPT, STYLE, Known, methods_table, overview
from limbeck.report.trials import all_told

__all__ = ["write_all"]

_BACK = Html('<p class="note"><a href="index.html">All methods</a></p>')
_MADE = "<footer>limbeck "


def write_all(folder: Path) -> Path:
    """Write `index.html`, `leaderboard.html` where the grid has run, and a page for each method.

    Returns:
        The index.

    Raises:
        UsageError: the folder cannot be written, or has an `index.html` of something else.
    """
    entries, known = cards(), all_told()
    index = folder / "index.html"
    pages = {f"{entry.card.key}.html": _method(entry, entries, known) for entry in entries}
    if found := standings():
        pages["leaderboard.html"] = _leaderboard(found, entries)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if index.exists() and _MADE not in index.read_text(encoding="utf-8"):
            raise UsageError(f"{index} is not a page of limbeck; name another folder")
        for name, written in {**pages, "index.html": _index(entries, known)}.items():
            (folder / name).write_text(written, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written ({error.strerror}); name another folder"
        ) from None
    return index


def _style() -> str:
    return STYLE.read_text(encoding="utf-8")


def _index(entries: list[Entry], known: Known) -> Html:
    intro = lead(
        f"{len(entries)} methods of knowledge distillation, each one paper in one file, and what "
        "trials on small tasks say of their claims."
    )
    body = [overview(entries, known), methods_table(entries, known)]
    if standings():
        body.insert(0, Html('<p><a href="leaderboard.html">The leaderboard</a></p>'))
    return _sortable("Methods", [intro], body)


def _leaderboard(found: Mapping[str, Any], entries: list[Entry]) -> Html:
    body = [leaderboard_table(found, entries), note(f"Not in it: {left_out(found)}.")]
    return _sortable("Leaderboard", [lead(caption(found)), _BACK], body)


def _sortable(title: str, head: list[Html], body: list[Html]) -> Html:
    style = _style() + "\nbody{max-width:68rem}"
    return page("limbeck", title, head, body, style=style, script=SCRIPT.read_text("utf-8"))


def _method(entry: Entry, entries: list[Entry], known: Known) -> Html:
    keys = [each.card.key for each in entries]
    (_, first), *rest = sections(entry, keys, known.get(entry.card.key, ()))
    body = [join(map(_html, first)), *(section(name, *map(_html, part)) for name, part in rest)]
    return page("limbeck method", entry.card.key, [head(entry), _BACK], body, style=_style())


def _html(piece: Piece) -> Html:
    return code(piece.text) if isinstance(piece, Code) else piece
