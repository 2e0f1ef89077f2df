"""The page of a method: its facts, its trial, what it does, its fields, its departures."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from limbeck._source import Outline, outline
from limbeck.registry import STATUSES, Entry
from limbeck.report.claims import Code, badge, trial
from limbeck.report.page import Html, text

__all__ = ["Piece", "head", "needs_of", "prose", "sections"]

Piece = Html | Code

_FORMULA = re.compile(r"\A[a-z]|^    |^[A-Za-z]\w* = |^\w+\[", re.MULTILINE)
_INNER = re.compile(r"(?<=\. )([A-Z][a-z]+(?: [a-z]+){0,4}): ")
_LABEL = re.compile(r"(?m)^(?=[A-Z][\w ,]{2,44}: |[A-Z][a-z]+:\n    )")


def head(entry: Entry) -> Html:
    """The paper, with links, and what the method is in a sentence."""
    card = entry.card
    links = [(f"arXiv {card.arxiv}", f"https://arxiv.org/abs/{card.arxiv}")] if card.arxiv else []
    links += [("the authors' code", card.code)] if card.code else []
    ends = "".join(f' · <a href="{text(place)}">{text(name)}</a>' for name, place in links)
    first = outline(entry.path).doc.partition("\n\n")[0]
    return Html(
        f'<p class="paper"><em>{text(card.title)}</em>, {card.year}{ends}</p>\n'
        f'<p class="lead">{prose(first)}</p>'
    )


def sections(
    entry: Entry, keys: Collection[str], definitions: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, list[Piece]]]:
    """The page's sections after its head: title and pieces; the first has no title.

    Args:
        entry: the method.
        keys: the methods that have a page `KEY.html` beside this one.
        definitions: of its trial that were measured, the one in force last.
    """
    written = outline(entry.path)
    card = entry.card
    world = f'"{card.world}"' if "(" in card.world else card.world
    yield "", [_facts(entry), Code("bash", f"limbeck run {card.key} --world {world}")]
    yield "Its trial", list(trial(entry, definitions))
    yield "What it does", list(_description(written.doc, set(keys) - {card.key}))
    if written.fields:
        yield "Fields", [_fields(written)]
    departs: list[Piece] = [Html(f"<p>{prose(card.departs)}</p>")]
    if card.lacks:
        lacks = "".join(f"<li>{prose(each)}</li>" for each in card.lacks)
        departs.append(Html(f"<p>Not here yet:</p>\n<ul>{lacks}</ul>"))
    yield "Departures from the paper", departs


def needs_of(entry: Entry) -> str:
    """What a method asks for, in words."""
    return ", ".join(n.replace("+", " and ").replace("|", " or ") for n in entry.card.needs)


def prose(words: str) -> Html:
    """Words in which only backticks are markup."""
    pieces = re.split(r"`([^`]+)`", " ".join(words.split()))
    return Html(
        "".join(f"<code>{text(p)}</code>" if i % 2 else text(p) for i, p in enumerate(pieces))
    )


def _facts(entry: Entry) -> Html:
    card = entry.card
    facts = {
        "room": _room(entry),
        "kinds": text(", ".join(card.kinds)),
        "needs": text(needs_of(entry)),
        "gives": text(card.gives),
        "stages": text(", ".join(card.stages) or "none"),
        "status": f"{badge(entry.status)} {text(STATUSES[entry.status])}",
    }
    rows = "\n".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    return Html(f'<dl class="facts">\n{rows}\n</dl>')


def _room(entry: Entry) -> Html:
    """The room, as a link to the methods in it."""
    return Html(f'<a href="index.html#room={text(entry.room)}">{text(entry.room)}</a>')


def _fields(written: Outline) -> Html:
    rows = "\n".join(
        f'<tr><th scope="row"><code>--{text(field.flag)}</code></th>'
        f"<td><code>{text(field.words)}</code></td>"
        f"<td>{f'<code>{text(field.default)}</code>' if field.default else 'required'}</td>"
        f"<td>{prose('; '.join(filter(None, (field.range, field.help))))}</td></tr>"
        for field in written.fields
    )
    head = "".join(f'<th scope="col">{word}</th>' for word in ("option", "type", "default", ""))
    return Html(
        "<p>Options of the command, and arguments of the same name in Python.</p>\n"
        '<div class="scroll" role="region" tabindex="0" aria-label="fields">\n'
        f'<table class="fields">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n'
        "</table>\n</div>"
    )


def _description(doc: str, keys: Collection[str]) -> Iterator[Piece]:
    """A method's docstring after its first sentence.

    A paragraph that begins with a small letter, or has indented or defining lines, is a formula and
    keeps its lines; a line that begins as in "Trained: ..." begins a paragraph; what "Example:"
    introduces is code; keys in backticks become links.
    """
    whole, _, example = doc.partition("\n\n")[2].partition("Example:\n")
    for paragraph in re.split(r"\n\s*\n", whole.strip("\n")):
        items = [item for item in _LABEL.split(paragraph) if item.strip()]
        for item in items:
            yield Html(
                re.sub(r"<code>(\w+)</code>", lambda m: _linked(m, keys), _item(item, items))
            )
    if example.strip():
        lines = (line.removeprefix("    ") for line in example.rstrip().splitlines())
        yield Code("pycon", "\n".join(lines))


def _item(item: str, items: list[str]) -> str:
    named = re.match(r"([A-Z][\w ,]{2,44}):\s", item)
    if named and (len(items) > 1 or named.end() < len(item)):
        said = _INNER.sub(r"<strong>\1:</strong> ", prose(item[named.end() :]))
        return f"<p><strong>{text(named[1])}:</strong> {said}</p>"
    if _FORMULA.search(item):
        return f'<p class="formula">{_formula(item.rstrip())}</p>'
    return f"<p>{prose(item)}</p>"


def _formula(words: str) -> str:
    """A formula in which backticks are markup; lines stay where a clause or definition ends."""
    joined = re.sub(r"(?<![,;.:])\n(?!\w+(?:\[[^\]]*\])? = )\s*", " ", words)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(joined))


def _linked(found: re.Match[str], keys: Collection[str]) -> str:
    return f'<a href="{found[1]}.html">{found[0]}</a>' if found[1] in keys else found[0]
