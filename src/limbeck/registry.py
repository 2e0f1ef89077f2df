"""Finds methods by key or file: lists them from the text of their cards, imports one when asked.

Listing runs no method and imports no torch: of each file only the `CARD = Card(` ... `)` literal
is read. A method file is a `.py` (or a folder with `__init__.py`) in a room, not starting with
"_", that holds such a card and exactly one class with `card = CARD`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck._shelf import (
    OWN,
    ROOMS,
    STATUSES,
    Entry,
    files_of,
    name_of,
    read_entry,
    verdicts_of,
)
from limbeck._source import has_card, say_path
from limbeck.core.card import GIVES, KINDS, Card, call, parse_needs
from limbeck.errors import Missing, UsageError, nearest

if TYPE_CHECKING:
    from limbeck.core.method import Method

__all__ = ["OWN", "ROOMS", "STATUSES", "Entry", "cards", "find", "get", "make"]

PACKAGE = Path(__file__).resolve().parent


def cards(
    room: str | None = None,
    kind: str | None = None,
    needs: str | None = None,
    gives: str | None = None,
    status: str | None = None,
    *,
    roots: Sequence[Path] | None = None,
) -> list[Entry]:
    """List the methods, by room and key, without importing any.

    Args:
        room: only those of this room.
        kind: only those with this kind among theirs.
        needs: only those that may ask for this: as on a card ("teacher:logits", "y"), or just
            the name, whichever side it is asked of ("logits"), or "data" for any named set.
        gives: only those that give this.
        status: only those of this status.
        roots: the folders that hold the rooms; the package itself unless given.

    Raises:
        UsageError: if a filter is not in its vocabulary, a card cannot be read, or two methods
            have the same key.
    """
    asked = (("room", room, ROOMS), ("kind", kind, KINDS), ("gives", gives, GIVES))
    for name, value, known in (*asked, ("status", status, STATUSES)):
        if value is not None and value not in known:
            raise Missing(f"the {name} {value!r} is not known{nearest(value, known)}")
    if needs is not None and needs != "data":
        parse_needs((needs,))

    def wanted(entry: Entry) -> bool:
        card = entry.card
        return (
            room in (None, entry.room)
            and (kind is None or kind in card.kinds)
            and (needs is None or _may_need(card, needs))
            and gives in (None, card.gives)
            and status in (None, entry.status)
        )

    return [entry for entry in _all(roots) if wanted(entry)]


def find(key_or_file: str | os.PathLike[str], *, roots: Sequence[Path] | None = None) -> Entry:
    """Find one method without importing it.

    Args:
        key_or_file: a method's key, or the path of a `FILE.py` (or folder) with a card.
        roots: the folders that hold the rooms; the package itself unless given.

    Raises:
        Missing: if there is none; the sentence gives the nearest names.
        UsageError: if its card cannot be read.
    """
    if not isinstance(key_or_file, (str, os.PathLike)):
        raise UsageError(f"a method was asked for by {key_or_file!r}; give its key or file")
    text = os.fspath(key_or_file)
    if not isinstance(key_or_file, str) or text.endswith(".py") or "/" in text or os.sep in text:
        return _own(text)
    found = []
    for root in _roots(roots):
        for room, path in files_of(root):
            if name_of(path) == text and (entry := read_entry(room, path, verdicts_of(root))):
                found.append(entry)
    if len(found) == 1:
        return found[0]
    if found:
        places = " and ".join(say_path(e.path) for e in found)
        raise UsageError(f"the key {text!r} stands in {places}; give one of them another key")
    if Path(f"{text}.py").is_file():
        raise Missing(f"no method is called {text!r}; for the file here, write '{text}.py'")
    names = [
        name_of(path) for root in _roots(roots) for _, path in files_of(root) if has_card(path)
    ]
    raise Missing(f"no method is called {text!r}{nearest(text, names)}")


def get(
    key_or_file: str | os.PathLike[str], *, roots: Sequence[Path] | None = None
) -> type[Method]:
    """Import one method's file and give its class.

    Args:
        key_or_file: a method's key, or the path of a `FILE.py` (or folder) with a card.
        roots: the folders that hold the rooms; the package itself unless given.

    Raises:
        Missing: if there is none.
        UsageError: if the file does not hold exactly one class with `card = CARD`.
    """
    from limbeck._loading import load_method

    entry = find(key_or_file, roots=roots)
    return load_method(entry.path)


def make(text: str | os.PathLike[str], /, **values: Any) -> Method:
    """Make a method from its key and field values.

    Args:
        text: a key or the path of a file, and field values in brackets if wanted.
        **values: further field values; they go before those in brackets.

    Raises:
        Missing: if there is no such method, or it has no such field.
        UsageError: if a value is of the wrong type, or the method refuses it.

    Example:
        >>> make("kd(tau=2)").tau
        2.0
    """
    name, written = call(text) if isinstance(text, str) and text.endswith(")") else (text, {})
    from limbeck._loading import build

    return build(get(name), os.fspath(name), {**written, **values})


def _roots(roots: Sequence[Path] | None) -> Sequence[Path]:
    return (PACKAGE,) if roots is None else roots


def _all(roots: Sequence[Path] | None) -> list[Entry]:
    entries: dict[str, Entry] = {}
    broken: list[str] = []
    for root in _roots(roots):
        digest = verdicts_of(root)
        for room, path in files_of(root):
            try:
                entry = read_entry(room, path, digest)
            except UsageError as error:
                broken.append(str(error))
                continue
            if entry is None:
                continue
            other = entries.setdefault(entry.card.key, entry)
            if other is not entry:
                places = f"{say_path(other.path)} and {say_path(path)}"
                broken.append(f"{places} both have the key {entry.card.key!r}")
    if broken:
        raise UsageError("\n".join(broken))
    return list(entries.values())


def _may_need(card: Card, word: str) -> bool:
    needs = [one for need in parse_needs(card.needs) for some in need for one in some]
    return any(word in (str(one), one.name) or word == one.side == "data" for one in needs)


def _own(text: str) -> Entry:
    path = Path(text).expanduser().resolve()
    if path.is_dir():
        path = path / "__init__.py"
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise Missing(f"there is no file {text!r}{nearest(path.name, near)}")
    folder = path.parent.parent if path.name == "__init__.py" else path.parent
    if folder.parent == PACKAGE and folder.name in ROOMS:
        entry = read_entry(folder.name, path, verdicts_of(PACKAGE))
    else:
        entry = read_entry(OWN, path, {})
    if entry is None:
        raise Missing(f"{say_path(path)} holds no card; a method file has 'CARD = Card(' ... ')'")
    return entry
