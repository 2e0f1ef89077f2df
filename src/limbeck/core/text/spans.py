"""Spans: which bytes of the UTF-8 text each token covers.

The tokens of a text share out all of its bytes, in order, so that a token's start is the end of the
one before it. White space that a tokenizer drops goes to the token that follows, at the end of the
text to the last one; anything else that it drops (accents, control characters) stays with the token
before it. Where several tokens share a character, its bytes are told from what the tokens spell, if
that is known (a byte-level vocabulary, `<0xE2>`, ByT5); else the last of them has it all. What
tokens are taken to spell is always held against the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from limbeck.core.text.spelling import Numbers, Spelling, raw, spellings, spelt, walked
from limbeck.errors import UsageError

__all__ = ["Cut", "cut", "cut_as"]


class Cut(NamedTuple):
    """A text's tokens (T,): ids, the bytes [lo, hi) of each, and which are of the text.

    A token owns the bytes from the `hi` before it to its own. `lo` is where its characters begin:
    after white space that was dropped, at the start of a character that it has a part of.
    """

    ids: Numbers
    lo: Numbers
    hi: Numbers
    text: NDArray[np.bool_]


def cut(tokenizer: Any, texts: Sequence[str], add_special: bool) -> list[Cut]:
    """Cut texts with a Hugging Face tokenizer, with or without the special tokens that it adds.

    Raises:
        UsageError: the tokenizer gives no offsets, and its tokens do not spell the text.
    """
    if not texts:
        return []
    if not tokenizer.is_fast:
        return [_slow(tokenizer, text, add_special) for text in texts]
    data = [raw(text) for text in texts]  # refuses what the tokenizer would choke on
    found = tokenizer(
        list(texts),
        add_special_tokens=add_special,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    readings = spellings(tokenizer)
    cuts = []
    for i, ids in enumerate(found["input_ids"]):
        own = np.asarray(found["special_tokens_mask"][i], dtype=np.int64) == 0
        ids = np.asarray(ids, dtype=np.int64)
        offsets = np.asarray(found["offset_mapping"][i], dtype=np.int64).reshape(-1, 2)[own]
        told = spelt(readings, ids[own], data[i])
        if told is not None:
            lo, hi = _starts(told), told
        else:
            lo, hi = _by_offsets(texts[i], data[i], ids[own], offsets, readings)
        cuts.append(_placed(ids, lo, hi, own))
    return cuts


def cut_as(tokenizer: Any, text: str, ids: Sequence[int]) -> Cut:
    """The cut of a text into tokens that are given, such as those that a model has written.

    Special tokens among them cover nothing. If the ids are not how the tokenizer cuts the text,
    they must spell it: text = tokenizer.decode(ids, skip_special_tokens=True,
    clean_up_tokenization_spaces=False).

    Raises:
        UsageError: they do not spell the text, or what they spell is not known (WordPiece).
    """
    given = np.asarray(ids, dtype=np.int64).reshape(-1)
    own = ~np.isin(given, np.asarray(tokenizer.all_special_ids, dtype=np.int64))
    usual = cut(tokenizer, [text], False)[0]
    if np.array_equal(usual.ids, given[own]):
        return _placed(given, usual.lo, usual.hi, own)
    ends = walked(spellings(tokenizer), given[own], text)
    if ends is None:
        raise UsageError(
            f"{len(given)} given tokens do not spell the text of {len(text)} characters as "
            f"{type(tokenizer).__name__} can tell; decode them with skip_special_tokens=True and "
            "clean_up_tokenization_spaces=False, or let the tokenizer cut the text"
        )
    return _placed(given, _starts(ends), ends, own)


def _placed(ids: Numbers, lo: Numbers, hi: Numbers, own: NDArray[np.bool_]) -> Cut:
    """Spread the text's tokens over a sequence whose other tokens cover nothing."""
    starts, ends = np.zeros_like(ids), np.zeros_like(ids)
    ends[own] = hi
    ends = np.maximum.accumulate(ends)
    starts[:] = ends
    starts[own] = lo
    return Cut(ids, starts, ends, own)


def _starts(ends: Numbers) -> Numbers:
    return np.append(0, ends)[: len(ends)]


def _slow(tokenizer: Any, text: str, add_special: bool) -> Cut:
    raw(text)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ends = walked(spellings(tokenizer), np.asarray(ids, dtype=np.int64), text)
    if ends is None:
        raise UsageError(
            f"{type(tokenizer).__name__} gives no offsets and its tokens do not spell the text, so "
            "it cannot be aligned by bytes; use the fast tokenizer of the same model"
        )
    whole = tokenizer.build_inputs_with_special_tokens(ids) if add_special else ids
    first = next(i for i in range(len(whole)) if whole[i : i + len(ids)] == ids) if whole else 0
    own = np.zeros(len(whole), dtype=np.bool_)
    own[first : first + len(ids)] = True
    return _placed(np.asarray(whole, dtype=np.int64), _starts(ends), ends, own)


def _by_offsets(
    text: str, data: bytes, ids: Numbers, offsets: Numbers, readings: Sequence[Spelling]
) -> tuple[Numbers, Numbers]:
    """The first and last bytes of tokens whose offsets in characters (T, 2) are known."""
    if not len(ids):
        return ids, ids
    letters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (letters > 0x7F) + (letters > 0x7FF) + (letters > 0xFFFF)
    byte = np.append(0, np.cumsum(sizes))  # of each character's start
    low, high = offsets.T
    after = np.minimum.accumulate(low[::-1])[::-1]  # where this token and all further ones begin
    following = np.append(after[1:], len(letters))
    reach = np.maximum.accumulate(high)
    ends = np.maximum.accumulate(np.minimum(high, following))
    # What was dropped stays with the token before it up to the first white space.
    blank = np.isin(letters, [ord(letter) for letter in set(text) if letter.isspace()])
    halts = np.append(np.where(blank, np.arange(len(letters)), len(letters)), len(letters))
    halts = np.minimum.accumulate(halts[::-1])[::-1]
    ends = np.minimum(halts[ends], following)
    ends[-1] = len(letters)
    lo, hi = byte[np.minimum(low, ends)], byte[ends]
    # Tokens that share characters, in groups; what they spell tells their bytes.
    last = np.flatnonzero(reach <= following)
    for first, final in zip(np.append(0, last + 1)[:-1], last, strict=True):
        if first < final:
            start, end = byte[after[first]], byte[reach[final]]
            told = spelt(readings, ids[first : final + 1], data[start:end])
            if told is not None:
                hi[first:final] = start + told[:-1]
    return lo, hi
