"""What tokens spell: their bytes, under each way that vocabularies have of writing bytes.

No vocabulary says which way is its own, so each is tried, and what comes out is held against the
text: a reading counts only where it gives the text's bytes.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import UsageError

__all__ = ["Numbers", "Spelling", "raw", "spellings", "spelt", "walked"]

Numbers = NDArray[np.int64]


def raw(text: str) -> bytes:
    """A text's bytes.

    Raises:
        UsageError: it holds half of a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a text holds half of a surrogate pair at character {error.start}, which no UTF-8 "
            "has; take it out, for example with text.encode('utf-8', 'ignore').decode()"
        ) from error


class Spelling(dict[int, bytes | None]):
    """What tokens spell under one reading of a vocabulary, None where it has none."""

    def __init__(self, read: Callable[[str], bytes | None], tokenizer: Any) -> None:
        self.read, self.tokenizer = read, tokenizer

    def __missing__(self, index: int) -> bytes | None:
        added = self.added.get(index)
        token = self.tokenizer.convert_ids_to_tokens(index)
        if added is not None and not _BYTE.fullmatch(token):
            self[index] = str(added).encode()
        else:
            self[index] = None if token is None else self.read(token)
        return self[index]

    @functools.cached_property
    def added(self) -> dict[int, Any]:
        found: dict[int, Any] = self.tokenizer.added_tokens_decoder
        return found


def spellings(tokenizer: Any) -> list[Spelling]:
    """The readings of a tokenizer's tokens: byte-level, SentencePiece, bytes as characters."""
    return [Spelling(read, tokenizer) for read in (_byte_level, _pieces, _latin)]


_BYTE = re.compile("<0x([0-9A-F]{2})>")


@functools.cache
def _blanks() -> re.Pattern[bytes]:
    """Any white space of Unicode, as UTF-8."""
    blanks = [letter.encode() for letter in map(chr, range(0x3001)) if letter.isspace()]
    return re.compile(b"(?:" + b"|".join(map(re.escape, blanks)) + b")*")


@functools.cache
def _table() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes, as GPT-2 began it."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _byte_level(token: str) -> bytes | None:
    try:
        return bytes(map(_table().__getitem__, token))
    except KeyError:
        return None


def _pieces(token: str) -> bytes:
    """SentencePiece: '▁' for a space, '<0xE2>' for a byte."""
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()


def _latin(token: str) -> bytes | None:
    """ByT5: a byte is the character of that number."""
    return token.encode("latin-1") if all(ord(letter) < 256 for letter in token) else None


def spelt(readings: Sequence[Spelling], ids: Numbers, data: bytes) -> Numbers | None:
    """The ends of tokens that spell some bytes exactly, or after one space that was put before."""
    for spelling in readings:
        parts = [spelling[i] for i in ids.tolist()]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or not known:
            continue
        whole = b"".join(known)
        before = len(whole) - len(data)
        if whole == b" " * before + data and before in (0, 1):
            ends = np.cumsum([len(part) for part in known], dtype=np.int64) - before
            return np.maximum(ends, 0)
    return None


def walked(readings: Sequence[Spelling], ids: Numbers, text: str) -> Numbers | None:
    """The ends of tokens that spell a text, apart from white space that lies between them.

    Bytes that are no UTF-8 may stand in it as U+FFFD, as a decoder writes them.
    """
    data = raw(text)
    ends = spelt(readings, ids, data)
    if ends is not None or (not len(ids) and _blanks().fullmatch(data)):
        return ids if ends is None else ends
    for spelling in readings:
        parts = [spelling[i] for i in ids.tolist()]
        known = [part for part in parts if part is not None]
        if known and len(known) == len(parts):
            ends = _found(known, data)
            ends = _replaced(known, data) if ends is None else ends
            if ends is not None:
                return ends
    return None


def _found(parts: Sequence[bytes], data: bytes) -> Numbers | None:
    ends, place, blanks = [], 0, _blanks()
    for part in parts:
        if not data.startswith(part, place):
            place = blanks.match(data, place).end()  # type: ignore[union-attr]
            if not data.startswith(part, place):
                return None
        place += len(part)
        ends.append(place)
    if not blanks.fullmatch(data, place):
        return None
    return np.asarray([*ends[:-1], len(data)], dtype=np.int64)


def _replaced(parts: Sequence[bytes], data: bytes) -> Numbers | None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    shown = [decoder.decode(part).encode() for part in parts]
    shown[-1] += decoder.decode(b"", final=True).encode()
    if b"".join(shown) != data:
        return None
    return np.asarray(list(accumulate(map(len, shown))), dtype=np.int64)
