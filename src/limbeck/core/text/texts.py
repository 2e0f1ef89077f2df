"""Texts to learn from: words or values of Python as rows of three sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from limbeck.core.sources.split import hold_out, split
from limbeck.core.text.origins import tables_of
from limbeck.core.text.rows import Row, Taken, shape_of, taken
from limbeck.core.text.tagged import renumbered
from limbeck.errors import UsageError

__all__ = ["Texts", "in_order", "read"]

SHARE = 0.1
MOST = 2000
"""As many rows are held out for a set at most."""


@dataclass(frozen=True)
class Texts:
    """Rows of three sets.

    A row is {"text"}, {"prompt", "response"}, {"messages": [{"role", "content"}, ...]} or
    {"text", "label"}, the label being the number of a class, or {"tokens", "tags"}, words and the
    number of each one's tag.

    Attributes:
        train, valid, test: the rows.
        made: whether rows were held out here.
        name: of the data, for sentences and folders.
        notes: sentences on what was guessed, left out or held out.
        names: of the classes, where rows have labels.
        cut: by set, which rows of the training data went there, where some were held out.
    """

    train: list[Row]
    valid: list[Row]
    test: list[Row]
    made: bool
    name: str
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    cut: Mapping[str, list[int]] = field(default_factory=dict)


def read(data: Any, test: Any = None, target: str | None = None) -> Texts:
    """Read texts, and hold out some as valid and test where these are not given.

    Args:
        data: words: a folder (with files or folders train, valid, test, or else of one set), a .txt
            file (its paragraphs are the texts), .jsonl, .json, .parquet, .csv, .tsv, hf:ID,
            hf:ID:CONFIGURATION, a folder of save_to_disk, FILE.py:NAME; or values: a list of texts
            or dicts, a data set of `datasets`, or a dict of these with 'train'.
        test: likewise, the test set (or its part 'test').
        target: the column of the labels; without it `label`, where there is one.

    Raises:
        Missing: a file, part, column or package is not there.
        UsageError: it cannot be read, or there are too few rows.
    """
    tables, name, notes = tables_of(data, "--data")
    if test is not None:
        if "test" in tables:
            raise UsageError(
                "the data have a part 'test', and a test set was given too; leave one out"
            )
        apart, _, more = tables_of(test, "--test")
        tables["test"] = apart.get("test", apart["train"])
        notes += more
    shape = shape_of(tables["train"], target)
    notes += filter(None, [shape.note])
    sets: dict[str, Taken] = {}
    for part, raw in tables.items():
        found = taken(raw, shape, sets["train"].names if shape.label and sets else None)
        notes += found.notes
        if found.rows:
            sets[part] = found
        elif part == "train":
            raise UsageError(f"{raw.what} has no row with text in it")
        else:
            notes.append(f"so {raw.what} is not used")
    lacking = [part for part in ("valid", "test") if part not in sets]
    cut = _held_out(sets["train"], lacking)
    rows = {part: found.rows for part, found in sets.items()}
    rows |= {part: [sets["train"].rows[i] for i in numbers] for part, numbers in cut.items()}
    notes += _said(rows, lacking)
    given = {part: [sets["train"].numbers[i] for i in picked] for part, picked in cut.items()}
    names = sets["train"].names
    return Texts(**rows, made=bool(cut), name=name, notes=tuple(notes), names=names, cut=given)


def in_order(found: Texts, theirs: Mapping[int, str]) -> tuple[Texts, tuple[str, ...]]:
    """Tagged rows with their tags numbered as a teacher's are, and the tags' names.

    They stay as they are where it has not all of them.
    """
    order = tuple(str(theirs[i]) for i in sorted(theirs))
    if order == found.names or not set(found.names) <= set(order):
        return found, found.names
    sets: dict[str, Any] = {
        part: renumbered(getattr(found, part), found.names, order)
        for part in ("train", "valid", "test")
    }
    return replace(found, **sets, names=order), order


# --- holding out ---------------------------------------------------------------------------------


def _held_out(train: Taken, lacking: Sequence[str]) -> dict[str, list[int]]:
    """Which training rows become train and the lacking sets, each class in its share."""
    if not lacking:
        return {}
    count = len(train.rows)
    share = min(SHARE, MOST / count)
    y = torch.tensor([row.get("label", 0) for row in train.rows])
    if len(lacking) == 2:
        parts: tuple[torch.Tensor, ...] = split(y, (1 - 2 * share, share, share))
    else:
        parts = hold_out(y, share)
    cut = dict(zip(("train", *lacking), parts, strict=True))
    for part, numbers in cut.items():
        if not len(numbers):
            raise UsageError(
                f"{count} row{'s are' if count > 1 else ' is'} too few to hold any out as '{part}'"
                f"; give three or more{' of a class' if train.names else ''}, or sets of your own"
            )
    return {part: numbers.tolist() for part, numbers in cut.items()}


def _said(rows: Mapping[str, list[Row]], lacking: Sequence[str]) -> list[str]:
    if not lacking:
        return []
    counts = ", ".join(f"{len(rows[part]):,} {part}" for part in ("train", "valid", "test"))
    what = " and no ".join(f"{part} set" for part in lacking)
    each = " for each" if len(lacking) == 2 else ""
    limit = f"10 % of the training rows{each}, {MOST:,} at most,"
    return [f"no {what} was given, so {limit} were held out: {counts}"]
