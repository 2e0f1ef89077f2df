"""Reads a method file as text: its card, and for showing it the class that the card describes.

Nothing of the file is run, so neither torch nor anything else that it imports is needed.
"""

from __future__ import annotations

import ast
import re
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from inspect import cleandoc
from pathlib import Path

from limbeck.core.card import Card, literals
from limbeck.errors import UsageError, nearest

__all__ = ["Field", "Outline", "has_card", "outline", "read_card", "say_path"]

_CARD = re.compile(r"^CARD\b[^=\n]*=\s*(?:\w+\.)*Card\((.*?)^\)", re.MULTILINE | re.DOTALL)
_ANY_CARD = re.compile(r"^CARD\b", re.MULTILINE)
_BOUNDS = {"above": "above", "least": "at least", "below": "below", "most": "at most"}
_FIELDS = {f.name: f.default is MISSING for f in fields(Card)}


@dataclass(frozen=True)
class Field:
    """A hyper-parameter as it is written: type, default ("" if none), allowed range and help."""

    name: str
    type: str
    default: str
    range: str
    help: str

    @property
    def flag(self) -> str:
        """Its option, without dashes."""
        return self.name.replace("_", "-")

    @property
    def words(self) -> str:
        """Its type, a choice as "a|b"."""
        choice = re.fullmatch(r"(?:\w+\.)?Literal\[(.*)\]", self.type, re.DOTALL)
        return "|".join(re.findall(r"[^,'\"\s]+", choice.group(1))) if choice else self.type


@dataclass(frozen=True)
class Outline:
    """A method's class as it is written: name, docstring and fields."""

    name: str
    doc: str
    fields: tuple[Field, ...]


def say_path(path: Path) -> str:
    """Give the path as a person would: from where they stand, if it lies below."""
    with suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{say_path(path)} cannot be read: {error}") from None


def has_card(path: Path) -> bool:
    """Say whether a file holds a card, whole or broken."""
    return _ANY_CARD.search(_text(path)) is not None


def read_card(path: Path) -> Card | None:
    """Read one file's card from its text; None if the file has none.

    Raises:
        UsageError: naming file and line, if the card is not made of literals or says anything
            that a card cannot say.
    """
    text = _text(path)
    found = _CARD.search(text)
    start = found or _ANY_CARD.search(text)
    if start is None:
        return None
    try:
        if found is None:
            raise UsageError("the card must stand as 'CARD = Card(', its values, and a line ')'")
        return _card(found.group(1))
    except UsageError as error:
        line = text.count("\n", 0, start.start()) + 1
        raise UsageError(f"{say_path(path)}, line {line}: {error}") from None


def _card(written: str) -> Card:
    try:
        node = ast.parse(f"Card({written}\n)", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        told = getattr(error, "msg", None) or error
        raise UsageError(f"the card does not read as Python: {told}") from None
    if not isinstance(node, ast.Call) or node.args:
        raise UsageError("each value of the card must be named, as in key='kd'")
    values = literals(node)
    for name in values:
        if name not in _FIELDS:
            raise UsageError(f"the card has no field {name!r}{nearest(name, _FIELDS)}")
    if lacking := [name for name, needed in _FIELDS.items() if needed and name not in values]:
        raise UsageError(f"the card does not say its {', '.join(lacking)}")
    return Card(**values)


def outline(path: Path) -> Outline:
    """Read docstring and fields of the class that has `card = CARD`.

    Raises:
        UsageError: if the file does not read as Python or has not exactly one such class.
    """
    text = _text(path)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", 1)
        raise UsageError(f"{say_path(path)}, line {line}: {error.args[0]}") from None
    owners = [n for n in tree.body if isinstance(n, ast.ClassDef) and any(map(_is_card, n.body))]
    if len(owners) != 1:
        told = ", ".join(node.name for node in owners) or "none"
        raise UsageError(
            f"{say_path(path)}: exactly one class must have 'card = CARD'; here: {told}"
        )
    node = owners[0]
    doc = cleandoc(ast.get_docstring(node, clean=False) or "")
    return Outline(node.name, doc, tuple(_fields(node, text.splitlines(), doc)))


def _is_card(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        target: ast.expr = node.targets[0]
    elif isinstance(node, ast.AnnAssign):
        target = node.target
    else:
        return False
    named = isinstance(target, ast.Name) and target.id == "card"
    return named and isinstance(node.value, ast.Name) and node.value.id == "CARD"


def _fields(node: ast.ClassDef, lines: list[str], doc: str) -> list[Field]:
    result = []
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        kind = ast.unparse(item.annotation)
        if "ClassVar" in kind or item.target.id == "card":
            continue
        default, bounds = _default(item.value)
        about = _below(after) or _beside(item, lines) or _in_doc(item.target.id, doc)
        result.append(Field(item.target.id, kind, default, bounds, about))
    return result


def _default(value: ast.expr | None) -> tuple[str, str]:
    """Give a field's default and its range, which stand in `number(4.0, above=0)`."""
    if not isinstance(value, ast.Call):
        return (ast.unparse(value) if value is not None else ""), ""
    named = {k.arg: ast.unparse(k.value) for k in value.keywords if k.arg is not None}
    default = ast.unparse(value.args[0]) if value.args else named.get("default", "")
    return default, ", ".join(f"{_BOUNDS[name]} {named[name]}" for name in _BOUNDS if name in named)


def _below(node: ast.stmt | None) -> str:
    """Give the text that stands under a field."""
    value = node.value if isinstance(node, ast.Expr) else None
    text = value.value if isinstance(value, ast.Constant) else None
    return " ".join(text.split()) if isinstance(text, str) else ""


def _beside(node: ast.stmt, lines: list[str]) -> str:
    """Give the comment behind a field."""
    end = len(lines[node.lineno - 1].encode()[: node.end_col_offset].decode())
    if node.end_lineno != node.lineno:
        return ""
    found = re.fullmatch(r"\s*#\s*(.*)", lines[node.lineno - 1][end:])
    return found.group(1).strip() if found else ""


def _in_doc(name: str, doc: str) -> str:
    """Give what a docstring's line `name: ...` says, with the deeper lines under it."""
    found = re.search(
        rf"^( *)`*{re.escape(name)}`*(?: \([^)\n]*\))?: +(.*(?:\n\1 +\S.*)*)", doc, re.MULTILINE
    )
    return " ".join(found.group(2).split()) if found else ""
