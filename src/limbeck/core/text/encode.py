"""Rows as tensors: tokens, and which of them are trained on. Nothing here is random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.core.text.aligned import chunked, pieces, turns
from limbeck.core.text.chat import specials, write
from limbeck.core.text.places import wanted
from limbeck.core.text.tokens import array, coded, pad_of, stacked, tokens
from limbeck.errors import UsageError

__all__ = ["Samples", "answers", "blocks", "both", "labelled", "room_for", "same", "whole"]

Row = Mapping[str, Any]


class Samples(NamedTuple):
    """Samples of a text task.

    Attributes:
        x: {"ids": (N, T), "mask": (N, T)}, int64, padded on the right.
        y: (N, T) int64, the id of each token that is trained on, else IGNORED; of labelled texts
            (N,) numbers of classes.
        notes: sentences on what was cut or left out.
    """

    x: dict[str, Tensor]
    y: Tensor
    notes: tuple[str, ...] = ()


def blocks(rows: Sequence[Row], tokenizer: Any, context: int, pack: bool = True) -> Samples:
    """Plain texts in blocks of `context` tokens; all but a block's first are trained on.

    Texts follow one another, each with EOS after it and, if the tokenizer puts it there by itself,
    BOS before it. A tokenizer that puts CLS before and SEP after a text (of masked models) gets
    them around each block, SEP between texts, and trains on none of its special tokens.

    Args:
        rows: of {"text"}.
        tokenizer: of transformers.
        context: tokens of a block at most; the last of all is padded.
        pack: False keeps texts apart, each in as many blocks as it needs.

    Raises:
        UsageError: rows of another shape, a context without room, or no two tokens.
    """
    before, after = specials(tokenizer)
    wrapped = bool(before and after) and before[0] == tokenizer.cls_token_id
    room = context - (len(before) + len(after) if wrapped else 0)
    _check(room, context)
    texts = tokens(tokenizer, _texts(rows, "text"))
    ending = after[-1:] or ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])
    if wrapped:
        parts = [[*ids, *ending] if pack else ids for ids in texts]
    else:
        parts = [[*before, *ids, *ending] for ids in texts]
    if pack:
        stream = array(chain.from_iterable(parts))
        streams = [stream[: len(stream) - len(ending)] if wrapped else stream]
    else:
        streams = [array(part) for part in parts]
    pieces = [s[i : i + room] for s in streams for i in range(0, len(s), room)]
    if wrapped:
        head, tail = array(before), array(after)
        pieces = [np.concatenate([head, piece, tail]) for piece in pieces]
    kept = [piece for piece in pieces if len(piece) > 1]  # one token alone teaches nothing
    if not kept:
        raise UsageError(f"{len(rows):,} texts make no two tokens; give longer ones")
    trained = [np.arange(len(piece)) > 0 for piece in kept]
    if wrapped:
        own = np.asarray(tokenizer.all_special_ids, dtype=np.int64)
        own = own[own != tokenizer.unk_token_id]
        trained = [~np.isin(piece, own) for piece in kept]
    return Samples(*stacked(kept, trained, tokenizer))


def answers(rows: Sequence[Row], tokenizer: Any, context: int) -> Samples:
    """Prompts with responses and chats, one sample a row, padded to the longest.

    Written by the tokenizer's chat template, or plainly (`chat.write`). What the assistant says is
    trained on, with the token that ends its turn; what comes after the last such one is left out.
    No token lies across the beginning of a response.

    Args:
        rows: of {"prompt", "response"} or {"messages"}.
        tokenizer: of transformers.
        context: tokens of a sample at most; longer responses are cut, and rows whose prompt leaves
            no room are left out.

    Raises:
        UsageError: rows of another shape, or none of them has a response within the context.
    """
    _check(context, context)
    written = [write(row, i, tokenizer) for i, row in enumerate(rows)]
    silent = sum(not w.turns for w in written)
    spoken = [w for w in written if w.turns]
    whole = list(zip(*coded(spoken, tokenizer), strict=True))
    kept = [(ids[:context], told[:context]) for ids, told in whole if told[1:context].any()]
    cut = sum(bool(told[context:].any() and told[1:context].any()) for _, told in whole)
    filled = len(whole) - len(kept)
    notes = _notes(len(rows), context, cut, filled, silent)
    ids, told = zip(*kept, strict=True)
    return Samples(*stacked(ids, told, tokenizer), notes)


def room_for(rows: Sequence[Row], tokenizer: Any, context: int) -> list[int]:
    """The rows of which `answers` keeps a sample, by number."""
    written = [write(row, i, tokenizer) for i, row in enumerate(rows)]
    some = [i for i, w in enumerate(written) if w.turns]
    _, told = coded([written[i] for i in some], tokenizer)
    return [i for i, each in zip(some, told, strict=True) if each[1:context].any()]


def _notes(count: int, context: int, cut: int, filled: int, silent: int) -> tuple[str, ...]:
    """Sentences on rows that are not what they were; refuses if none is left."""
    if filled + silent == count:
        why = f"the prompts alone fill the context of {context} tokens; give a longer context"
        raise UsageError(
            f"none of {count:,} rows has a response to train on: "
            f"{why if filled else 'the assistant says nothing in them'}"
        )
    said = (
        (cut, f"were cut where they, with their prompts, fill the context of {context} tokens"),
        (filled, f"were left out, since their prompts alone fill the context of {context} tokens"),
        (silent, "were left out, since the assistant says nothing in them"),
    )
    return tuple(f"{n:,} of {count:,} rows {what}" for n, what in said if n)


def labelled(rows: Sequence[Row], tokenizer: Any, context: int) -> Samples:
    """Texts with the tokenizer's special tokens around them, and the numbers of their classes.

    Args:
        rows: of {"text", "label"}.
        tokenizer: of transformers.
        context: tokens of a text at most, special ones included; the rest is cut off.

    Raises:
        UsageError: rows of another shape, or a context without room.
    """
    x, cut = whole(_texts(rows, "text", "label"), tokenizer, context)
    note = f"{cut:,} of {len(rows):,} texts were cut to the context of {context} tokens"
    y = torch.tensor([row["label"] for row in rows], dtype=torch.int64)
    return Samples(x, y, (note,) if cut else ())


def whole(texts: Sequence[str], tokenizer: Any, context: int) -> tuple[dict[str, Tensor], int]:
    """Texts one by one, the tokenizer's special tokens around each, and how many were cut.

    Args:
        texts: N of them.
        tokenizer: of transformers.
        context: tokens of a text at most, special ones included; the rest is cut off.

    Raises:
        UsageError: a context without room.
    """
    before, after = specials(tokenizer)
    room = context - len(before) - len(after)
    _check(room, context)
    found = tokens(tokenizer, texts)
    pad = [] if before or after else [pad_of(tokenizer)]  # no text is of no token at all
    ids = [array([*before, *text[:room], *after] or pad) for text in found]
    x, _ = stacked(ids, [np.ones(len(i), dtype=np.bool_) for i in ids], tokenizer)
    return x, sum(len(text) > room for text in found)


def both(rows: Sequence[Row], tokenizer: Any, other: Any, context: int) -> Samples:
    """The same texts for a student and for a teacher with another tokenizer, aligned by bytes.

    Beside "ids" and "mask", x has the teacher's "t_ids" and "t_mask" (N, U), "t_wanted" (N, U) bool
    (its places whose next token is trained on), and "chunk" (N, T) and "t_chunk" (N, U): the number
    of the aligned span that a token is of, from 0, or -1. A span with a token that is not trained
    on on one of the sides (the first, without BOS before it) is none.

    Plain texts are not packed: each is cut, where tokens of both sides end, into pieces that fit
    the context on both. Of prompts and chats, each side's written by its own template, what the
    assistant says is aligned. The special tokens that end a text or a turn are a span of their own,
    where both sides have one there and train on it; else they are in none.

    Args:
        rows: of one shape, without labels.
        tokenizer: the student's.
        other: the teacher's.
        context: tokens of a sample at most, on either side.

    Raises:
        UsageError: as for `blocks` and `answers`; a tokenizer that cannot be aligned.
    """
    sides = (tokenizer, other)
    if rows and "text" in rows[0]:
        for side in sides:
            _check(context - 1 - sum(map(len, specials(side))), context)
        mine, theirs = pieces(_texts(rows, "text"), tokenizer, other, context)
        notes: tuple[str, ...] = ()
        good = [bool(a.told.any() and b.told.any()) for a, b in zip(mine, theirs, strict=True)]
        if not any(good):
            raise UsageError(f"{len(rows):,} texts make no two tokens; give longer ones")
    else:
        _check(context, context)
        written = [[write(row, i, side) for i, row in enumerate(rows)] for side in sides]
        spoken = [i for i, w in enumerate(written[0]) if w.turns and written[1][i].turns]
        mine, theirs = (
            turns([w[i] for i in spoken], side) for w, side in zip(written, sides, strict=True)
        )
        pairs = list(zip(mine, theirs, strict=True))
        good = [bool(a.told[:context].any() and b.told[:context].any()) for a, b in pairs]
        over = [bool(a.told[context:].any() or b.told[context:].any()) for a, b in pairs]
        cut = sum(g and o for g, o in zip(good, over, strict=True))
        notes = _notes(len(rows), context, cut, good.count(False), len(rows) - len(spoken))
    mine, theirs = (
        [s.upto(context) for s, g in zip(side, good, strict=True) if g] for side in (mine, theirs)
    )
    x, y = stacked([s.ids for s in mine], [s.told for s in mine], tokenizer)
    t, t_y = stacked([s.ids for s in theirs], [s.told for s in theirs], other)
    chunk, t_chunk = chunked(mine, theirs)
    x |= {"t_ids": t["ids"], "t_mask": t["mask"], "t_wanted": wanted(t_y)}
    return Samples(x | {"chunk": chunk, "t_chunk": t_chunk}, y, notes)


PROBES = (
    "Hello, world! It's 12345.67 o'clock",
    "  two  spaces\tand\n\nlines ",
    "naïve café Ünïcödé \u65e5\u672c\u8a9e \U0001f600",
    "def f(x):\n    return x ** 2  # indented",
)


def same(a: Any, b: Any) -> bool:
    """Whether two tokenizers cut texts alike: the same vocabulary, and some texts the same way."""
    if a is b:
        return True
    if len(a) != len(b) or a.get_vocab() != b.get_vocab():
        return False
    return all(
        a(text, verbose=False)["input_ids"] == b(text, verbose=False)["input_ids"]
        for text in PROBES
    )


def _texts(rows: Sequence[Row], *wanted: str) -> list[str]:
    for i, row in enumerate(rows):
        if not set(wanted) <= set(row):
            raise UsageError(
                f"row {i} has {' and '.join(row)}; rows of {' and '.join(wanted)} are wanted"
            )
    return [row["text"] for row in rows]


def _check(room: int, context: int) -> None:
    if room < 2:
        raise UsageError(
            f"a context of {context} tokens leaves room for {max(room, 0)} of a text; give a "
            "longer one"
        )
