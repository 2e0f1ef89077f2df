"""The rooms, the files in them, and what one of these files says a method is; nothing is run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from limbeck._source import read_card, say_path
from limbeck.core.card import Card
from limbeck.errors import UsageError, nearest

ROOMS = (
    "vision",
    "dense",
    "selfsup",
    "language",
    "reasoning",
    "retrieval",
    "multimodal",
    "speech",
    "condense",
    "generative",
    "scene",
    "continual",
    "federated",
    "control",
    "graph",
    "compress",
)
"""The folders that hold methods, one per domain."""

OWN = "own"
"""The room of a file that lies outside the library."""

STATUSES = {
    "shown": "its claim was shown in a trial",
    "not shown": "a trial could not show its claim, nor the opposite",
    "contradicted": "a trial contradicts its claim",
    "exact": "its mathematics is tested; no trial has been run",
    "partial": "parts of the paper are missing; its page says which",
}
"""What is known of a method, each word with what it means."""


@dataclass(frozen=True)
class Entry:
    """One method as the registry lists it.

    Attributes:
        card: its facts.
        room: the room that holds it, or "own".
        path: its file.
        status: a word of `STATUSES`.
    """

    card: Card
    room: str
    path: Path
    status: str


def files_of(root: Path) -> Iterator[tuple[str, Path]]:
    """Give room and path of every file in a room that could be a method's."""
    for room in ROOMS:
        try:
            names = sorted(os.listdir(root / room))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in names:
            if name.startswith(("_", ".")):
                continue
            if name.endswith(".py"):
                yield room, root / room / name
            elif "." not in name and (inner := root / room / name / "__init__.py").is_file():
                yield room, inner


def name_of(path: Path) -> str:
    """Give the key that a file's place asks for."""
    return path.parent.name if path.name == "__init__.py" else path.stem


def read_entry(room: str, path: Path, verdicts: dict[str, str]) -> Entry | None:
    """Give the entry of a file, or None where it holds no card."""
    card = read_card(path)
    if card is None:
        return None
    if room != OWN and card.key != name_of(path):
        raise UsageError(f"{say_path(path)}: the card's key {card.key!r} is not the file's name")
    status = "partial" if card.lacks else verdicts.get(card.key, "exact")
    return Entry(card, room, path, status)


def verdicts_of(root: Path) -> dict[str, str]:
    """Read the verdicts that come with the package, as far as there are any."""
    path = root / "results.json"
    if not path.is_file():
        return {}
    try:
        verdicts = {key: row["verdict"] for key, row in json.loads(path.read_bytes()).items()}
    except (ValueError, AttributeError, TypeError, KeyError):
        raise UsageError(f"{say_path(path)} is damaged; it must map keys to verdicts") from None
    for key, verdict in verdicts.items():
        if verdict not in STATUSES:
            raise UsageError(
                f"{say_path(path)}: the verdict {verdict!r} of {key!r} is not known"
                + nearest(verdict, STATUSES)
            )
    return verdicts
