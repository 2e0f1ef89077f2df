"""Two tokenizers on one text, aligned by bytes: which tokens of the two say the same.

A chunk is closed wherever both sides have a token that ends at the same byte. Tokens that are not
of the aligned text (special tokens, a prompt, a chat's other turns) are in no chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.core.text.encoded import Encoded
from limbeck.core.text.spelling import Numbers
from limbeck.errors import UsageError

__all__ = ["align", "chunks"]


def align(a: Sequence[Encoded], b: Sequence[Encoded]) -> tuple[Numbers, Numbers]:
    """The chunks (B, T) and (B, U) of a batch of texts cut by two tokenizers, padded with -1.

    Raises:
        UsageError: the sides have not equally many texts.
    """
    if len(a) != len(b):
        raise UsageError(
            f"{len(a)} texts of one tokenizer stand against {len(b)} of the other; give both the "
            "same texts"
        )
    masks = (_padded([e.text for e in a]), _padded([e.text for e in b]))
    return chunks(_padded([e.ends for e in a]), _padded([e.ends for e in b]), text=masks)


def _padded(rows: Sequence[NDArray[Any]]) -> Numbers:
    """Rows to equal length: ends by repeating the last, which covers nothing; masks by 0."""
    out = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
        line[len(row) :] = row[-1] if row.dtype != np.bool_ and len(row) else 0
    return out


def chunks(
    ends_a: ArrayLike,
    ends_b: ArrayLike,
    within: ArrayLike | None = None,
    text: tuple[ArrayLike, ArrayLike] | None = None,
) -> tuple[Numbers, Numbers]:
    """The chunk of each token of two sides of one text, or of a batch of texts.

    A chunk ends wherever both sides have a token that ends: [Hel, lo, ?] and [Hello, ?] have the
    chunks [0, 0, 1] and [0, 1]. Tokens after the last such place (one side was cut short) have -1.

    Args:
        ends_a: (T,) or (B, T) ends in bytes, as in `Encoded`; padding repeats the last.
        ends_b: (U,) or (B, U) those of the other side.
        within: (2,) or (B, 2) bytes [from, to): only chunks that lie wholly in there, counted from
            0; a range that begins within a token begins with the next chunk.
        text: masks of the two sides' tokens that are of the text; those of them without bytes go
            with the next token that has some (with the last, at the end).

    Returns:
        (T,) and (U,), or (B, T) and (B, U), int64; -1 for tokens that cover nothing.
    """
    given = [np.asarray(ends, dtype=np.int64) for ends in (ends_a, ends_b)]
    sides = [np.atleast_2d(ends) for ends in given]
    rows = len(sides[0])
    stride = 1 + max((int(ends.max()) for ends in sides if ends.size), default=0)
    floor = stride * np.arange(rows, dtype=np.int64)[:, None]
    flat = [ends + floor for ends in sides]
    shared = _shared(*(np.concatenate([floor, ends], 1).ravel() for ends in flat))
    if within is None:
        limits = np.asarray([[0, stride]], dtype=np.int64)
    else:
        limits = np.atleast_2d(np.asarray(within, dtype=np.int64))
    origin = np.searchsorted(shared, floor[:, 0] + np.maximum(limits[:, 0], 0))[:, None]
    stop = floor + np.minimum(limits[:, 1:], stride - 1)
    masks = [None, None] if text is None else [np.atleast_2d(np.asarray(m)) for m in text]
    out = []
    for ends, mask, shape in zip(flat, masks, (g.shape for g in given), strict=True):
        covers = ends > np.concatenate([floor, ends[:, :-1]], 1)[:, : ends.shape[1]]
        place = np.searchsorted(shared, ends)
        closed = np.append(shared, stride * rows)[place] <= stop
        number = np.where(covers & closed & (place > origin), place - 1 - origin, -1)
        out.append(_joined(number, covers, mask).reshape(shape))
    return out[0], out[1]


def _shared(a: Numbers, b: Numbers) -> Numbers:
    """What two rising sequences both have, each once: where chunks may begin and end."""
    found = a[b[np.minimum(np.searchsorted(b, a), len(b) - 1)] == a] if len(b) else a[:0]
    return found[np.diff(found, prepend=-1) > 0]


def _joined(number: Numbers, covers: NDArray[np.bool_], mask: NDArray[Any] | None) -> Numbers:
    """Give tokens of the text without bytes the number of the next one, or of the last."""
    if mask is None or not number.size:
        return number
    width = number.shape[1]
    column = np.broadcast_to(np.arange(width), covers.shape)
    after = np.where(covers, column, width)[:, ::-1]
    after = np.minimum.accumulate(after, 1)[:, ::-1]
    before = np.maximum.accumulate(np.where(covers, column, 0), 1)
    near = np.take_along_axis(number, np.where(after < width, after, before), 1)
    return np.where(mask.astype(np.bool_) & ~covers, near, number)
