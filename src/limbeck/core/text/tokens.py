"""Rows cut into tokens, and tokens as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.core.text.chat import Written, specials
from limbeck.core.text.places import IGNORED
from limbeck.core.text.spelling import raw

__all__ = ["Ids", "Told", "array", "coded", "pad_of", "parts_of", "stacked", "tokens"]

Ids = NDArray[np.int64]
Told = NDArray[np.bool_]
"""Which tokens are trained on."""


def tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts, without special ones that no text holds.

    Raises:
        UsageError: a text has no UTF-8.
    """
    found: list[list[int]] = _cut(tokenizer, texts)["input_ids"] if texts else []
    return found


def _cut(tokenizer: Any, texts: Sequence[str], **asked: bool) -> Any:
    for text in texts:
        raw(text)  # refuses what the tokenizer would choke on
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **asked,
    )


def coded(written: Sequence[Written], tokenizer: Any) -> tuple[list[Ids], list[Told]]:
    """The tokens of written rows, and which of them are trained on (never the first).

    A row is cut as one text; where a token would lie across an edge of a turn, its parts are cut
    each by itself.
    """
    head, eos = array(specials(tokenizer)[0]), tokenizer.eos_token_id
    fast = tokenizer.is_fast  # else it tells no offsets
    found = _whole(written, tokenizer) if fast else [None] * len(written)
    parted = iter(_parted([w for w, f in zip(written, found, strict=True) if not f], tokenizer))
    ids, told = [], []
    for row, whole in zip(written, found, strict=True):
        own, mine = whole or next(parted)
        if row.special:
            own, mine = np.concatenate([head, own]), np.append(np.zeros(len(head), bool), mine)
        if not row.ended and eos is not None:
            own, mine = np.append(own, eos), np.append(mine, True)
        mine[:1] = False
        ids.append(own)
        told.append(mine)
    return ids, told


Cut = tuple[Ids, Told]


def _whole(written: Sequence[Written], tokenizer: Any) -> list[Cut | None]:
    """Each row cut as one text; None where a token lies across an edge of a turn."""
    if not written:
        return []
    found: list[Cut | None] = []
    cut = _cut(tokenizer, [row.text for row in written], return_offsets_mapping=True)
    for row, own, offsets in zip(written, cut["input_ids"], cut["offset_mapping"], strict=True):
        ends = np.maximum.accumulate(array(stop for _, stop in offsets))
        edges = array(edge for turn in row.turns for edge in (turn.start, turn.stop))
        places = np.searchsorted(ends, edges, "right")  # the first token that ends beyond an edge
        before = np.append(0, ends)[places]
        across = (before < edges) & (places < len(ends))
        found.append(None if across.any() else (array(own), _within(places, len(own))))
    return found


def _within(places: Ids, size: int) -> Told:
    """The tokens in ranges [first, last), which are given one after the other."""
    steps = np.zeros(size + 1, dtype=np.int64)
    np.add.at(steps, places[::2], 1)
    np.add.at(steps, places[1::2], -1)
    inside: Told = np.cumsum(steps[:-1]) > 0
    return inside


def _parted(written: Sequence[Written], tokenizer: Any) -> list[Cut]:
    """Each row cut at the edges of its turns first."""
    pieces = [parts_of(row) for row in written]
    cut = iter(tokens(tokenizer, [piece for parts in pieces for piece in parts]))
    found = []
    for parts in pieces:
        own = [next(cut) for _ in parts]
        told = [np.full(len(ids), i % 2 == 1) for i, ids in enumerate(own)]
        found.append((array(chain.from_iterable(own)), np.concatenate(told)))
    return found


def parts_of(row: Written) -> list[str]:
    """A row's text cut at the edges of its turns; every second part is a turn."""
    edges = [0, *(edge for turn in row.turns for edge in (turn.start, turn.stop)), len(row.text)]
    return [row.text[a:b] for a, b in pairwise(edges)]


def stacked(
    ids: Sequence[Ids], told: Sequence[Told], tokenizer: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """Samples of different lengths as tensors, padded on the right to the longest."""
    lengths = array(map(len, ids))
    mask = np.arange(int(lengths.max())) < lengths[:, None]
    x = np.full(mask.shape, pad_of(tokenizer), dtype=np.int64)
    x[mask] = np.concatenate(ids)
    y = np.full(mask.shape, IGNORED, dtype=np.int64)
    y[mask] = np.where(np.concatenate(told), x[mask], IGNORED)
    both = {"ids": torch.from_numpy(x), "mask": torch.from_numpy(mask.astype(np.int64))}
    return both, torch.from_numpy(y)


def pad_of(tokenizer: Any) -> int:
    """The id that fills samples up."""
    found = tokenizer.pad_token_id
    return int(found if found is not None else tokenizer.eos_token_id or 0)


def array(values: Iterable[int]) -> Ids:
    """Numbers as int64 (N,)."""
    return np.fromiter(values, dtype=np.int64)
