"""The pages on methods, from what `limbeck list` and `limbeck show` say, and pieces of Markdown."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from mkdocs.exceptions import PluginError

from limbeck.cli import main
from limbeck.cli.listing import _STATUS


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


def cards() -> dict[str, Mapping[str, Any]]:
    """What `limbeck list --json` says, by key."""
    return {card["key"]: card for card in json.loads(told("list", "--json"))}


def methods() -> Iterator[str]:
    every = cards()
    yield "# Methods\n"
    yield (
        f"{len(every)} methods, each one paper in one file. `limbeck list` prints this table and "
        "filters it, by kind, needs, gives or status; `limbeck show KEY` prints a method's page. "
        "What the status means:\n"
    )
    yield from table(["status", ""], ([name, plain(said)] for name, said in _STATUS.items()))
    for room in dict.fromkeys(card["room"] for card in every.values()):
        yield f"\n## {room}\n"
        head = ["key", "year", "title", "kinds", "gives", "needs", "status"]
        rows = (
            [
                f"[{key}]({key}.md)",
                card["year"],
                plain(card["title"]),
                ", ".join(map(plain, card["kinds"])),
                card["gives"],
                _needs(card["needs"]),
                card["status"],
            ]
            for key, card in every.items()
            if card["room"] == room
        )
        yield from table(head, rows)


def method(key: str) -> Iterator[str]:
    card = json.loads(told("show", key, "--json"))
    yield f"# {key}\n"
    links = [f"[arXiv {card['arxiv']}](https://arxiv.org/abs/{card['arxiv']})"]
    links = links if card["arxiv"] else []
    links += [f"[the authors' code]({card['code']})"] if card["code"] else []
    yield f"*{plain(card['title'])}*, {card['year']}{''.join(f' · {link}' for link in links)}\n"
    first, _, rest = card["doc"].partition("\n\n")
    yield f"{prose(first)}\n"
    facts = {
        "room": card["room"],
        "kinds": ", ".join(map(plain, card["kinds"])),
        "needs": _needs(card["needs"]),
        "gives": card["gives"],
        "stages": ", ".join(map(plain, card["stages"])) or "none",
        "status": f"{card['status']}: {plain(_STATUS[card['status']])}",
    }
    yield from table(["", ""], ([name, value] for name, value in facts.items()))
    world = f'"{card["world"]}"' if "(" in card["world"] else card["world"]
    yield f"\n```bash\nlimbeck run {key} --world {world}\n```\n"
    yield f"## What it does\n\n{_description(rest, set(cards()) - {key})}\n"
    if card["fields"]:
        yield "## Fields\n\nOptions of the command, and arguments of the same name in Python.\n"
        rows = (
            [
                f"`--{field['flag']}`",
                f"`{_type(field['type'])}`".replace("|", "\\|"),
                f"`{field['default']}`" if field["default"] else "required",
                prose("; ".join(filter(None, (field["range"], field["help"])))),
            ]
            for field in card["fields"]
        )
        yield from table(["option", "type", "default", ""], rows)
    yield f"\n## Departures from the paper\n\n{prose(card['departs'])}\n"
    if card["lacks"]:
        yield "Not here yet:\n"
        yield from (f"- {prose(each)}" for each in card["lacks"])


def _type(written: str) -> str:
    choice = re.fullmatch(r"(?:\w+\.)?Literal\[(.*)\]", written, re.DOTALL)
    return "|".join(re.findall(r"[^,'\"\s]+", choice.group(1))) if choice else written


def _needs(needs: Iterable[str]) -> str:
    return ", ".join(plain(n.replace("+", " and ").replace("|", " or ")) for n in needs)


_FORMULA = re.compile(r"\A[a-z]|^    |^[A-Za-z]\w* = |^\w+\[", re.MULTILINE)
_INNER = re.compile(r"(?<=\. )([A-Z][a-z]+(?: [a-z]+){0,4}): ")
_LABEL = re.compile(r"(?m)^(?=[A-Z][\w ,]{2,44}: |[A-Z][a-z]+:\n    )")


def _description(doc: str, keys: set[str]) -> str:
    """A method's docstring, after its first sentence, in Markdown.

    A paragraph that begins with a small letter, or has indented or defining lines, is a formula and
    keeps its lines; a line that begins as in "Trained: ..." begins a paragraph; what "Example:"
    introduces is code; keys in backticks become links.
    """
    out = []
    text, _, example = doc.partition("Example:\n")
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        items = [item for item in _LABEL.split(paragraph) if item.strip()]
        for item in items:
            label = re.match(r"([A-Z][\w ,]{2,44}):\s", item)
            if label and (len(items) > 1 or label.end() < len(item)):
                said = _INNER.sub(r"**\1:** ", prose(item[label.end() :]))
                item = f"**{plain(label[1])}:** {said}"
            elif _FORMULA.search(item):
                item = f'<p class="formula">{_code(item.rstrip())}</p>'
            else:
                item = prose(item)
            out.append(item)
    whole = "\n\n".join(out)
    whole = re.sub(r"`(\w+)`", lambda m: f"[{m[0]}]({m[1]}.md)" if m[1] in keys else m[0], whole)
    if example.strip():
        lines = (line.removeprefix("    ") for line in example.rstrip().splitlines())
        whole += "\n\n```pycon\n" + "\n".join(lines) + "\n```"
    return whole


# --- Markdown ------------------------------------------------------------------------------------


def plain(text: object) -> str:
    """Text in which nothing is markup."""
    marked = re.sub(r"([\\`*_{}\[\]#])", r"\\\1", escape(str(text), quote=False))
    return marked.replace("|", "&#124;")


def _code(text: str) -> str:
    """Text as HTML in which backticks are markup; lines stay where a clause or definition ends."""
    joined = re.sub(r"(?<![,;.:])\n(?!\w+(?:\[[^\]]*\])? = )\s*", " ", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(joined, quote=False))


def prose(text: str) -> str:
    """Text on one line in which only backticks are markup."""
    pieces = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(p if p.startswith("`") and len(p) > 1 else plain(p) for p in pieces)


def table(head: list[str], rows: Iterable[list[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
