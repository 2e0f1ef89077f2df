"""The same texts as two tokenizers cut them, with the spans that both agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core.text.align import align
from limbeck.core.text.chat import Written, specials
from limbeck.core.text.encoded import Encoded, encode_all
from limbeck.core.text.spans import cut as spans_of
from limbeck.core.text.spelling import raw
from limbeck.core.text.tokens import Ids, Told, array, coded, parts_of

__all__ = ["Side", "chunked", "pieces", "turns"]


@dataclass(frozen=True)
class Side:
    """A sample as one tokenizer cuts it.

    Attributes:
        ids: (T,) tokens.
        ends: (T,) bytes of the aligned text that end with each, as in `Encoded`.
        text: (T,) which are of the aligned text.
        told: (T,) which are trained on; never the first.
        closes: (T,) which are special tokens that end a text or a turn, and are trained on.
    """

    ids: Ids
    ends: Ids
    text: Told
    told: Told
    closes: Told

    def upto(self, count: int) -> Side:
        """Its first tokens."""
        text, told, closes = self.text[:count], self.told[:count], self.closes[:count]
        return Side(self.ids[:count], self.ends[:count], text, told, closes)


def chunked(a: Sequence[Side], b: Sequence[Side]) -> tuple[Tensor, Tensor]:
    """The spans of two sides' tokens (N, T) and (N, U), -1 for none, numbered from 0 in each row.

    Special tokens that end a turn or a text at the same place of both are a span. Spans in which a
    token is not trained on are none.
    """
    pairs = [_closed(*pair) for pair in zip(a, b, strict=True)]
    found = align([one for one, _ in pairs], [other for _, other in pairs])
    rows = np.arange(len(a), dtype=np.int64)[:, None]
    stride = 1 + max(int(part.max(initial=0)) for part in found)
    keys = [np.where(part >= 0, part + stride * rows, -1) for part in found]
    bad = [key[~_padded(side, key.shape[1])] for key, side in zip(keys, (a, b), strict=True)]
    good = np.setdiff1d(keys[0], np.append(np.concatenate(bad), -1))
    first = np.searchsorted(good, stride * rows)
    numbers = [np.where(np.isin(k, good), np.searchsorted(good, k) - first, -1) for k in keys]
    return torch.from_numpy(numbers[0]), torch.from_numpy(numbers[1])


def _closed(a: Side, b: Side) -> tuple[Encoded, Encoded]:
    """Both sides, where a token that closes the same place of both has a byte of its own."""
    places = np.intersect1d(a.ends[a.closes], b.ends[b.closes])
    out = []
    for side in (a, b):
        own = side.closes & np.isin(side.ends, places)
        out.append(Encoded(side.ids, side.ends + np.cumsum(own), side.text | own))
    return out[0], out[1]


def _padded(sides: Sequence[Side], width: int) -> Told:
    told = np.zeros((len(sides), width), dtype=np.bool_)
    for row, side in zip(told, sides, strict=True):
        row[: len(side.told)] = side.told
    return told


# --- plain texts ---------------------------------------------------------------------------------


def pieces(
    texts: Sequence[str], tokenizer: Any, other: Any, context: int
) -> tuple[list[Side], list[Side]]:
    """Texts in pieces that fit a context on both sides, cut where tokens of both end.

    Of a span that is longer than the context by itself, the rest is left out.
    """
    frames = [_Frame(side) for side in (tokenizer, other)]
    room = [context - frame.size for frame in frames]
    sides: tuple[list[Side], list[Side]] = ([], [])
    cuts = [encode_all(side, texts, add_special=False) for side in (tokenizer, other)]
    for pair in zip(*cuts, strict=True):
        places = _shared(*pair)
        here, last = 0, len(places) - 1
        while here < last:
            fits = min(
                int(np.searchsorted(places[:, i], places[here, i] + room[i], "right")) - 1
                for i in (0, 1)
            )
            stop = max(fits, here + 1)
            for i, (frame, whole, out) in enumerate(zip(frames, pair, sides, strict=True)):
                first, final = places[here, i], min(places[stop, i], places[here, i] + room[i])
                out.append(frame.around(whole, int(first), int(final), stop == last))
            here = stop
    return sides


def _shared(a: Encoded, b: Encoded) -> Ids:
    """(K, 2) how many tokens of each side lie before each place where both have one that ends."""
    ends = np.intersect1d(a.ends, b.ends)
    ends = ends[ends > 0]
    counts = [np.append(0, 1 + np.searchsorted(side.ends, ends, "left")) for side in (a, b)]
    for count, side in zip(counts, (a, b), strict=True):
        count[1:][-1:] = len(side.ids)  # with what has no bytes after the last
    return np.stack(counts, 1)


class _Frame:
    """What a tokenizer puts around a piece of a text: BOS, and EOS at its end; or CLS and SEP."""

    def __init__(self, tokenizer: Any) -> None:
        before, after = specials(tokenizer)
        self.wrapped = bool(before and after) and before[0] == tokenizer.cls_token_id
        if not self.wrapped:
            eos = tokenizer.eos_token_id
            after = after[-1:] or ([] if eos is None else [eos])
        self.before, self.after = array(before), array(after)
        self.size = len(before) + len(after)

    def around(self, whole: Encoded, first: int, final: int, last: bool) -> Side:
        """Tokens [first, final) of a text as a sample; `last` if the text ends there."""
        after = self.after if last or self.wrapped else self.after[:0]
        base = whole.ends[first - 1] if first else 0
        inner = whole.ends[first:final] - base
        ids = np.concatenate([self.before, whole.ids[first:final], after])
        around = [(len(self.before), 0), (len(after), int(inner[-1]) if len(inner) else 0)]
        (lead, start), (trail, end) = around
        ends = np.concatenate([np.full(lead, start), inner, np.full(trail, end)])
        inside = np.zeros(len(ids), dtype=np.bool_)
        inside[lead : len(ids) - trail] = True
        told = inside.copy() if self.wrapped else np.ones(len(ids), dtype=np.bool_)
        told[:1] = False
        closes = np.zeros_like(told)
        closes[len(ids) - trail :][:1] = not self.wrapped
        return Side(ids, ends, inside, told, closes & told)


# --- prompts and chats ---------------------------------------------------------------------------


def turns(written: Sequence[Written], tokenizer: Any) -> list[Side]:
    """Written rows; what is aligned is what the assistant says, one turn after the other."""
    if not written:
        return []
    whole = spans_of(tokenizer, [row.text for row in written], False)
    special = _special(tokenizer)
    sides = []
    for row, found, ids, told in zip(written, whole, *coded(written, tokenizer), strict=True):
        own = found.ids, found.lo, found.hi
        lead = len(specials(tokenizer)[0]) if row.special else 0
        size = len(ids) - lead - (not row.ended and tokenizer.eos_token_id is not None)
        if not np.array_equal(own[0], ids[lead : lead + size]):
            own = _parted(row, tokenizer)
        ends, inside, after = _said(row, own[1], own[2])
        trail = len(ids) - lead - len(ends)
        ends = np.concatenate([np.zeros(lead, dtype=np.int64), ends])
        ends = np.append(ends, np.full(trail, ends[-1] if len(ends) else 0))
        inside = np.pad(inside, (lead, trail))
        after = np.append(np.pad(after, (lead, 0)), np.ones(trail, dtype=np.bool_))
        closes = _first(after & told & np.isin(ids, special), ends)
        sides.append(Side(ids, ends, inside, told, closes))
    return sides


def _special(tokenizer: Any) -> list[int]:
    """The ids of special tokens."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return [*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)]


def _first(some: Told, ends: Ids) -> Told:
    """The first of some tokens at each place."""
    found = np.zeros_like(some)
    own = np.flatnonzero(some)
    found[own[np.unique(ends[own], return_index=True)[1]]] = True
    return found


def _parted(row: Written, tokenizer: Any) -> tuple[Ids, Ids, Ids]:
    """The tokens of a row cut at the edges of its turns, with their first and last bytes."""
    base, found = 0, []
    parts = parts_of(row)
    for part, cut in zip(parts, spans_of(tokenizer, parts, False), strict=True):
        found.append((cut.ids, cut.lo + base, cut.hi + base))
        base += len(raw(part))
    ids, lo, hi = (np.concatenate(column) for column in zip(*found, strict=True))
    return ids, lo, hi


def _said(row: Written, lo: Ids, hi: Ids) -> tuple[Ids, Told, Told]:
    """Ends in bytes of what is said in a row's turns, and which tokens are of it, or end a turn."""
    ends = np.zeros_like(hi)
    inside, after = np.zeros(len(hi), dtype=np.bool_), np.zeros(len(hi), dtype=np.bool_)
    base = 0
    for turn in row.turns:
        said = turn.said.strip()  # a template may strip it; neither side has to
        place = row.text.index(said, turn.start)
        start = len(raw(row.text[:place]))
        stop = start + len(raw(said))
        inside |= (start <= lo) & (lo < stop)
        after |= (stop <= lo) & (lo < len(raw(row.text[: turn.stop])))
        ends = np.maximum(ends, np.where(hi > start, base + np.minimum(hi, stop) - start, 0))
        base += stop - start
    return ends, inside, after
