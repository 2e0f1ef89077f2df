"""The pages on methods, from what their cards and trials say, and pieces of Markdown."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from mkdocs.exceptions import PluginError

from limbeck.cli import main
from limbeck.registry import STATUSES
from limbeck.registry import cards as entries
from limbeck.report.claims import Code
from limbeck.report.leaderboard import caption, leaderboard_table, left_out, standings
from limbeck.report.methods import Piece, head, sections
from limbeck.report.page import Html
from limbeck.report.table import methods_table, overview
from limbeck.report.trials import all_told


def told(*words: str) -> str:
    """What a command prints."""
    out = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(out):
            code = main(words)
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    if code:
        raise PluginError(f"limbeck {' '.join(words)} ended with exit code {code}")
    return out.getvalue()


def methods() -> Iterator[str]:
    """The page of all methods."""
    every, known = entries(), all_told()
    yield "---\nhide: [toc]\n---\n\n# Methods\n"
    yield (
        f"{len(every)} methods, each one paper in one file, and what [trials](../bench.md) on "
        "small tasks say of their claims. `limbeck list` prints this table and filters it too; "
        "`limbeck show KEY` prints a method's page.\n"
    )
    yield _raw(overview(every, known))
    yield _raw(methods_table(every, known))
    yield '<script src="../assets/methods.js"></script>\n'
    yield "## What the status means\n"
    yield from table(["status", ""], ([name, plain(said)] for name, said in STATUSES.items()))


def leaderboard() -> Iterator[str]:
    """The page of the grid."""
    found = standings()
    yield "---\nhide: [toc]\n---\n\n# Leaderboard\n"
    if not found:
        yield "The grid has not run; `limbeck leaderboard --run` runs it.\n"
        return
    yield f"{caption(found)}\n"
    yield _raw(leaderboard_table(found, entries()))
    yield '<script src="../assets/methods.js"></script>\n'
    yield "## The tasks\n"
    rows = ([f"**{c['name']}**", f"`{c['world']}`", plain(c["pair"]), f"{c['steps']:,}"]
            for c in found["cells"])  # fmt: skip
    yield from table(["", "world", "pair", "steps of a fit"], rows)
    yield "\n## A row again\n"
    first = found["cells"][0]["name"]
    yield f"```bash\nlimbeck leaderboard kd --again {found['seeds'][0]} --cell '{first}'\n```\n"
    yield f"Not in it: {left_out(found)}.\n"


def each_method() -> Iterator[tuple[str, str]]:
    """Key and text of each method's page."""
    every, known = entries(), all_told()
    keys = [entry.card.key for entry in every]
    for entry in every:
        key = entry.card.key
        text = [f"# {key}\n", _raw(head(entry))]
        for title, pieces in sections(entry, keys, known.get(key, ())):
            text += [f"## {title}\n"] if title else []
            text += map(_markdown, pieces)
        yield key, "\n".join(text)


def _markdown(piece: Piece) -> str:
    if isinstance(piece, Code):
        return f"```{piece.language}\n{piece.text}\n```\n"
    return _raw(piece)


def _raw(piece: Html) -> str:
    """A piece that Markdown leaves as it is."""
    return f'<div class="told">\n{piece}\n</div>\n'


# --- Markdown ------------------------------------------------------------------------------------


def plain(text: object) -> str:
    """Text in which nothing is markup."""
    marked = re.sub(r"([\\`*_{}\[\]#])", r"\\\1", escape(str(text), quote=False))
    return marked.replace("|", "&#124;")


def prose(text: str) -> str:
    """Text on one line in which only backticks are markup."""
    pieces = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(p if p.startswith("`") and len(p) > 1 else plain(p) for p in pieces)


def table(head: list[str], rows: Iterable[list[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
