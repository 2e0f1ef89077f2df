"""The card of a method: its facts, as literals that can be read without running the file.

Imports no torch, so that every method can be listed in a moment.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from limbeck.core.vocabulary import ENTRIES, GIVES, KINDS, PLAIN_NEEDS
from limbeck.errors import UsageError, nearest

__all__ = ["ENTRIES", "GIVES", "KINDS", "PLAIN_NEEDS", "Card", "Need", "call", "parse_needs"]

_ARXIV = re.compile(r"\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}")
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_CALL = re.compile(r"\s*([A-Za-z_]\w*|[^()]*\.py)\s*(\(.*\))?\s*", re.DOTALL)


class Need(NamedTuple):
    """One thing that a method needs.

    `side` is "both", "student" or "teacher" for an entry of a view, "data" for a named set of
    the task, and "plain" for a word of `PLAIN_NEEDS`.
    """

    side: str
    name: str

    def __str__(self) -> str:
        """Give the need as it is written on a card."""
        return self.name if self.side in ("both", "plain") else f"{self.side}:{self.name}"


def _need(text: str) -> Need:
    side, colon, name = text.partition(":")
    if not colon:
        if text in PLAIN_NEEDS:
            return Need("plain", text)
        if text in ENTRIES:
            return Need("both", text)
        raise UsageError(f"the need {text!r} is not known{nearest(text, [*ENTRIES, *PLAIN_NEEDS])}")
    if side == "data":
        if _KEY.fullmatch(name):
            return Need("data", name)
        raise UsageError(f"the need {text!r} names no set; write it as 'data:unlabelled'")
    if side not in ("student", "teacher"):
        sides = ("student", "teacher", "data")
        raise UsageError(f"the need {text!r} is of no known side{nearest(side, sides)}")
    if name not in ENTRIES:
        raise UsageError(f"the need {text!r} is of no known entry{nearest(name, ENTRIES)}")
    return Need(side, name)


def parse_needs(needs: tuple[str, ...]) -> tuple[tuple[frozenset[Need], ...], ...]:
    """Read the needs of a card.

    Args:
        needs: such as `("logits|hidden+head", "y")`: `|` stands between alternatives, `+` between
            things that are needed together.

    Returns:
        For each need its alternatives, each a set of things needed together: every need must
        be met, by any one of its alternatives.

    Raises:
        UsageError: for a word that is not in the vocabulary.

    Example:
        >>> parse_needs(("y", "logits|student:text"))[0]
        (frozenset({Need(side='plain', name='y')}),)
    """
    return tuple(
        tuple(
            frozenset(_need(word.strip()) for word in some.split("+")) for some in need.split("|")
        )
        for need in needs
    )


def call(text: str) -> tuple[str, dict[str, Any]]:
    """Read call syntax with literal values, running nothing.

    Args:
        text: a name, or a name with named values in brackets; the name may be a `FILE.py`.

    Returns:
        The name and its values.

    Raises:
        UsageError: if it reads as anything else.

    Example:
        >>> call("kd(tau=4, label=0.1)")
        ('kd', {'tau': 4, 'label': 0.1})
        >>> call("digits")
        ('digits', {})
    """
    found = _CALL.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise UsageError(f"{text!r} is not a name with values; write it as in 'kd(tau=4)'")
    name, brackets = found.groups()
    try:
        node = ast.parse(f"f{brackets or '()'}", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise UsageError(f"{text!r} has values without a name; write it as in 'kd(tau=4)'")
        return name, literals(node)
    except UsageError as error:
        raise UsageError(f"{text!r}: {error}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(f"{text!r} does not read as a call; write it as in 'kd(tau=4)'") from None


def literals(node: ast.Call) -> dict[str, Any]:
    """Give the named values of a parsed call, each of which must be a literal."""
    values: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise UsageError("values cannot be unpacked with '**' here; write them out")
        if keyword.arg in values:
            raise UsageError(f"{keyword.arg} is given twice; give it once")
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            shown = ast.unparse(keyword.value)
            raise UsageError(
                f"{keyword.arg} is {shown}, which is not a literal; write the value itself"
            ) from None
    return values


@dataclass(frozen=True)
class Card:
    """The facts of one method; a file's `CARD` is one of these, written out in literals.

    Attributes:
        key: the method's name and the name of its file, in snake_case.
        title: the paper's title.
        year: the paper's year.
        arxiv: its arXiv number, "" only if it has none.
        code: the address of the authors' code, "" if there is none.
        kinds: words of `KINDS`.
        needs: what it asks of the sides and the task, in the grammar of `parse_needs`.
        gives: a word of `GIVES`.
        world: the ready-made task of its trial, such as "digits(teacher='cnn')".
        stages: the names of its fits and stages, in order.
        tiny: field values with which it runs in two seconds.
        departs: where it departs from the paper or its code; "none known" if nowhere.
        lacks: what of the paper is missing here.
    """

    key: str
    title: str
    year: int
    arxiv: str
    code: str
    kinds: tuple[str, ...]
    needs: tuple[str, ...]
    gives: str
    world: str
    stages: tuple[str, ...]
    tiny: dict[str, Any] = field(hash=False)
    departs: str
    lacks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every fact against its vocabulary."""
        try:
            self._check()
        except UsageError as error:
            raise UsageError(f"the card of {self.key!r}: {error}") from None

    def _check(self) -> None:
        for name in ("key", "title", "arxiv", "code", "gives", "world", "departs"):
            _is_text(name, getattr(self, name), empty=name in ("arxiv", "code"))
        for name in ("kinds", "needs", "stages", "lacks"):
            _is_texts(name, getattr(self, name))
        if type(self.year) is not int or not 1950 <= self.year <= 2100:
            raise UsageError(f"year is {self.year!r}; write it as in 2015")
        if not _KEY.fullmatch(self.key):
            raise UsageError("the key must be in snake_case, as in 'born_again'")
        if self.arxiv and not _ARXIV.fullmatch(self.arxiv):
            raise UsageError(f"arxiv is {self.arxiv!r}; write it as in '1503.02531', or ''")
        if self.code and not self.code.startswith(("https://", "http://")):
            raise UsageError(f"code is {self.code!r}; write an address with https://, or ''")
        if not self.kinds:
            raise UsageError("kinds is empty; name at least one")
        for kind in self.kinds:
            _is_known("kind", kind, KINDS)
        parse_needs(self.needs)
        _is_known("result", self.gives, GIVES)
        call(self.world)
        _is_tiny(self.tiny)


def _is_text(name: str, value: object, empty: bool = False) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{name} is {value!r}; write a text in quotes")
    if not value.strip() and not empty:
        raise UsageError(f"{name} is empty" + ("; write 'none known'" if name == "departs" else ""))


def _is_texts(name: str, value: object) -> None:
    if not isinstance(value, tuple):
        raise UsageError(f'{name} is {value!r}; write a tuple, as in ("one",)')
    for item in value:
        _is_text(f"an item of {name}", item)
    if len(set(value)) < len(value):
        raise UsageError(f"{name} says a thing twice: {value}")


def _is_known(name: str, word: str, words: Collection[str]) -> None:
    if word not in words:
        raise UsageError(f"the {name} {word!r} is not known{nearest(word, words)}")


def _is_tiny(value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise UsageError(f"tiny is {value!r}; write a dict from field names to values")
    for name, item in value.items():
        _is_literal(name, item)


def _is_literal(name: str, value: object) -> None:
    if isinstance(value, tuple):
        for item in value:
            _is_literal(name, item)
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise UsageError(
            f"tiny gives {name} = {value!r}; write a number, a text or a tuple of them"
        )
