"""Columns of text as rows: plain texts, prompts with responses, chats, or texts with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from limbeck.core.sources.labels import numbered
from limbeck.core.text.tagged import TAGS, rows_of
from limbeck.errors import Missing, UsageError, nearest

__all__ = ["Raw", "Shape", "Taken", "joined", "of_values", "shape_of", "taken"]

Row = dict[str, Any]

TEXTS = ("text", "content", "sentence")
PAIRS = (
    (("prompt",), "response"),
    (("prompt",), "completion"),
    (("instruction", "input"), "output"),
    (("instruction", "context"), "response"),
    (("question",), "answer"),
)
"""Columns of prompts (those after the first may be lacking or blank) and of responses."""

WANTED = (
    "text (or content), prompt and response (or completion), question and answer, instruction and "
    "output, messages, text and label, or tokens and tags"
)


@dataclass(frozen=True)
class Raw:
    """A table whose columns are read when they are asked for.

    Attributes:
        what: where it comes from, for sentences.
        columns: their names.
        size: how many rows.
        column: gives the values of a column, one a row.
        classes: names of classes, by column, where the table brings them.
    """

    what: str
    columns: tuple[str, ...]
    size: int
    column: Callable[[str], list[Any]]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def of_values(values: Sequence[Any], what: str) -> Raw:
    """Texts, or dicts with a column's name and value each.

    Raises:
        UsageError: they are neither.
    """
    for i, value in enumerate(values):
        if not isinstance(value, str | Mapping) or isinstance(value, str) != isinstance(
            values[0], str
        ):
            raise UsageError(
                f"sample {i} of {what} is a {type(value).__name__}; give texts only, or dicts only "
                "(a row each)"
            )
    if values and isinstance(values[0], str):
        return Raw(what, ("text",), len(values), lambda name: list(values))
    columns = dict.fromkeys(str(name) for value in values for name in value)
    return Raw(what, tuple(columns), len(values), lambda n: [value.get(n) for value in values])


def joined(tables: Sequence[Raw], what: str) -> Raw:
    """Tables one after the other; a column that one lacks is empty there."""
    if len(tables) == 1:
        return tables[0]
    columns = tuple(dict.fromkeys(name for table in tables for name in table.columns))

    def column(name: str) -> list[Any]:
        values: list[Any] = []
        for table in tables:
            values += table.column(name) if name in table.columns else [None] * table.size
        return values

    return Raw(what, columns, sum(table.size for table in tables), column)


@dataclass(frozen=True)
class Shape:
    """Which columns make a row.

    Attributes:
        kind: what a row becomes.
        columns: those that are read: the texts, (prompt parts..., response), or the messages.
        label: the column of class labels, if there is one.
    """

    kind: str
    columns: tuple[str, ...]
    label: str | None = None

    @property
    def note(self) -> str:
        """A sentence on columns that go by other names than the row's; empty where none does."""
        if self.kind != "pair" or self.columns == ("prompt", "response"):
            return ""
        *first, last = self.columns
        return f"the prompt of a row is its {' and '.join(first)}, the response its {last}"


def shape_of(raw: Raw, target: str | None) -> Shape:
    """Tell the shape of a table's rows from the names of its columns.

    Args:
        raw: the table.
        target: the column of the labels; without it `label`, where there is one.

    Raises:
        UsageError: no columns that are known, or no such target.
    """
    there = raw.columns
    text = next((name for name in TEXTS if name in there), None)
    tags = next((name for name in (target, *TAGS) if name in there), None)
    if target is not None:
        if target not in there:
            raise Missing(f"{raw.what} has no column '{target}' for the target{_among(there)}")
        if "tokens" in there and (text is None or target in TAGS):
            return Shape("tags", ("tokens",), target)
        if text is None or text == target:
            raise UsageError(
                f"{raw.what} has no column of texts beside '{target}'{_among(there)}; call it text"
            )
        return Shape("label", (text,), target)
    if "tokens" in there and tags is not None:
        return Shape("tags", ("tokens",), tags)
    if "messages" in there:
        return Shape("chat", ("messages",))
    for prompts, response in PAIRS:
        if prompts[0] in there and response in there:
            return Shape("pair", (*(name for name in prompts if name in there), response))
    if text is not None:
        labelled = "label" in there
        return Shape("label" if labelled else "text", (text,), "label" if labelled else None)
    raise UsageError(f"{raw.what} has no columns that are known{_among(there)}; give {WANTED}")


def _among(names: Iterable[str]) -> str:
    told = ", ".join(names)
    return f" (there are: {told})" if told else " (there are none)"


@dataclass(frozen=True)
class Taken:
    """Rows of one set.

    Attributes:
        rows: those with something in them.
        numbers: which of the table's rows they were.
        notes: a sentence on those that were left out.
        names: of the classes of labelled rows.
    """

    rows: list[Row]
    numbers: list[int]
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def taken(raw: Raw, shape: Shape, known: Sequence[str] | None = None) -> Taken:
    """The rows of a table; those without text, response or label are left out and counted.

    Args:
        raw: the table.
        shape: of its rows.
        known: names of the classes, of the data that came before; None for the first.

    Raises:
        UsageError: a column is lacking, or holds something else than text; labels are no classes.
    """
    for name in (*shape.columns[:1], *shape.columns[-1:], *([shape.label] if shape.label else [])):
        if name not in raw.columns:
            near = nearest(name, raw.columns)
            raise UsageError(
                f"{raw.what} has no column '{name}', which the training data have{near}"
            )
    cells = {name: raw.column(name) for name in shape.columns if name in raw.columns}
    if shape.kind == "chat":
        rows: list[Row | None] = [_chat(m, i, raw.what) for i, m in enumerate(cells["messages"])]
    elif shape.kind == "pair":
        rows = _pairs(cells, raw.what)
    elif shape.kind == "tags":
        return _tagged(raw, shape, known)
    else:
        [(name, texts)] = cells.items()
        rows = [{"text": t} if _text(t, name, i, raw.what) else None for i, t in enumerate(texts)]
    labels = raw.column(shape.label) if shape.label else []
    named = raw.classes.get(shape.label or "")
    for i, label in enumerate(labels):
        if label is None or (named is not None and label == -1):
            rows[i] = None
    numbers = [i for i, row in enumerate(rows) if row is not None]
    kept = [row for row in rows if row is not None]
    names: tuple[str, ...] = ()
    if shape.label and kept:
        given = [labels[i] for i in numbers]
        y, names = _classes(given, raw, shape.label, named, known)
        for row, label in zip(kept, y.tolist(), strict=True):
            row["label"] = label
    return Taken(kept, numbers, _left_out(len(rows) - len(kept), raw, shape), names)


def _tagged(raw: Raw, shape: Shape, known: Sequence[str] | None) -> Taken:
    """The rows of words with a tag each."""
    assert shape.label is not None
    cells, tags = raw.column("tokens"), raw.column(shape.label)
    rows, names = rows_of(cells, tags, raw.what, raw.classes.get(shape.label), known)
    kept = {i: row for i, row in enumerate(rows) if row is not None}
    notes = _left_out(len(rows) - len(kept), raw, shape)
    return Taken([*kept.values()], [*kept], notes, names)


def _left_out(count: int, raw: Raw, shape: Shape) -> tuple[str, ...]:
    if not count:
        return ()
    lacking = {"pair": "prompt or response", "chat": "message", "label": "text or label"}
    lacking["tags"] = "words"
    what = lacking.get(shape.kind, "text")
    return (f"{count:,} of {raw.size:,} rows of {raw.what} have no {what} and were left out",)


def _classes(
    given: list[Any],
    raw: Raw,
    label: str,
    named: tuple[str, ...] | None,
    known: Sequence[str] | None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Class numbers, and names in the order that the table gives, else sorted."""
    what = f"{raw.what} (column '{label}')"
    if named is not None:  # the cells are numbers of these
        if known is None:
            known = named
        given = [named[i] for i in given]
    y, names = numbered(given, what, known)
    return y, tuple(names)


def _text(value: Any, name: str, row: int, what: str) -> bool:
    """Whether a cell has text in it."""
    if value is not None and not isinstance(value, str):
        raise UsageError(
            f"row {row} of {what}: column '{name}' holds a {type(value).__name__}; it must be text"
        )
    return bool(value and value.strip())


def _pairs(cells: Mapping[str, list[Any]], what: str) -> list[Row | None]:
    rows: list[Row | None] = []
    for i, values in enumerate(zip(*cells.values(), strict=True)):
        there = [_text(v, n, i, what) for n, v in zip(cells, values, strict=True)]
        parts = [v for v, full in zip(values[:-1], there, strict=False) if full]
        whole = there[0] and there[-1]
        rows.append({"prompt": "\n\n".join(parts), "response": values[-1]} if whole else None)
    return rows


def _chat(messages: Any, row: int, what: str) -> Row | None:
    if messages is None or (isinstance(messages, list) and not messages):
        return None
    fits = isinstance(messages, list) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages
    )
    if not fits or not all(isinstance(m.get("content"), str) for m in messages):
        raise UsageError(
            f"row {row} of {what}: messages must be a list of dicts with a role and a content, "
            "both text"
        )
    return {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}
