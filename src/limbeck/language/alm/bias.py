"""Tokenisation bias: what the end of a token says about the text that follows.

That a tokenizer cut after "fo" rules out that "x" follows, if "fox" is a token. Where one tokenizer
rules out what the other does not, the two sides' events differ at that place.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.data import Batch, Batches
from limbeck.core.method import Clock
from limbeck.core.tables import Table
from limbeck.language.alm.chunks import Tokens, apart, merged, sides
from limbeck.language.alm.pieces import Pieces

SMOOTHING = 1e-9  # of the tokens' frequencies
ROWS = 256  # that are read at a time


class Ends:
    """What the end of each token of a vocabulary rules out.

    Args:
        pieces: the vocabulary.
        counts: (V,) how often each token was seen.
    """

    def __init__(self, pieces: Pieces, counts: Tensor) -> None:
        self.pieces = pieces
        p = counts.double() + SMOOTHING * counts.sum()
        self.p: list[float] = (p / p.sum()).tolist()
        rows = zip(pieces.names, pieces.spelled, strict=True)
        own = [
            (name, i) for i, (name, part) in enumerate(rows) if part and not pieces.is_byte(name)
        ]
        self._sorted = sorted(own)
        self._found: dict[str, list[tuple[float, str, int]]] = {}

    def across(self, token: int) -> tuple[float, Iterator[tuple[float, str, int]]]:
        """(p, text after the end, token across it) for all that could lie across, likeliest first.

        With the sum of all p before.
        """
        name = self.pieces.names[token]
        lists = [self._longer(name[start:]) for start in range(len(name))]
        return sum(p for rows in lists for p, _, _ in rows), heapq.merge(*lists, reverse=True)

    def _longer(self, part: str) -> list[tuple[float, str, int]]:
        """(p, what comes after, token) of tokens that begin with a text and go on."""
        if part not in self._found:
            first = bisect_left(self._sorted, (part,))
            rows = itertools.takewhile(
                lambda r: r[0].startswith(part), itertools.islice(self._sorted, first, None)
            )
            found = [(self.p[i], name[len(part) :], i) for name, i in rows if len(name) > len(part)]
            self._found[part] = sorted(found, reverse=True)
        return self._found[part]

    def rules_out(self, token: int, text: str, by: int | None = None) -> bool:
        """Whether a token would lie across the end, if that text followed; `by` says which."""
        if self.pieces.is_byte(self.pieces.names[token]):
            return False
        last = self.pieces.cut(self.pieces.names[token] + text)[-1:]
        if by is not None:
            return last == [by]
        return bool(last) and len(self.pieces.names[last[0]]) > len(text)


def excess(one: Ends, token: int, other: Ends, theirs: int, limit: float = torch.inf) -> float:
    """The mass of tokens across the end of one's token whose text the other does not rule out.

    Counting stops once it is above the limit, or cannot come to be.
    """
    if one.pieces.is_byte(one.pieces.names[token]):
        return 0.0
    found = 0.0
    rest, some = one.across(token)
    for p, text, by in some:
        if found > limit or found + rest <= limit < torch.inf:
            break
        rest -= p
        if not one.rules_out(token, text, by):
            continue
        data = one.pieces.reading.read(text)
        written = None if data is None else other.pieces.written(data)
        if written is None or not other.rules_out(theirs, written):
            found += p
    return found


def is_biased(one: Ends, token: int, other: Ends, theirs: int, limit: float) -> bool:
    """Whether either side's end rules out more than the limit that the other's does not.

    White space alone counts as biased.
    """
    mine, its = one.pieces.spelled[token], other.pieces.spelled[theirs]
    if mine is None or its is None:
        return False
    if not mine.strip() or not its.strip():
        return True
    if excess(one, token, other, theirs, limit) > limit:
        return True
    return excess(other, theirs, one, token, limit) > limit


def biased_pairs(table: Table, tokenizer: Any, other: Any, limit: float) -> Tensor:
    """Pairs of tokens that end chunks of a set and are biased, as sorted `keys`, (K,) int64."""
    tokenizers = (tokenizer, other)
    counts = [torch.zeros(len(each), dtype=torch.int64) for each in tokenizers]
    seen = torch.zeros(0, dtype=torch.int64)
    for batch in table.chunks(ROWS):
        for count, side in zip(counts, ("", "t_"), strict=True):
            ids = batch.x[f"{side}ids"][batch.x[f"{side}mask"].bool()]
            count += torch.bincount(ids, minlength=len(count))[: len(count)]
        pair = sides(batch)
        keys = keys_of(*pair, len(tokenizer))[pair[0].sizes() > 0]
        seen = torch.unique(torch.cat([seen, keys]))
    one, two = (Ends(Pieces(t), c) for t, c in zip(tokenizers, counts, strict=True))
    found = [
        key
        for key in seen.tolist()
        if is_biased(one, key % len(tokenizer), two, key // len(tokenizer), limit)
    ]
    return torch.tensor(found, dtype=torch.int64)


def keys_of(one: Tokens, other: Tokens, vocab: int) -> Tensor:
    """Each chunk's pair of last tokens as a number, (B, C): teacher's * vocab + student's."""
    mine, theirs = (side.ids.gather(1, side.last()) for side in (one, other))
    return theirs * vocab + mine


class Unbiased(Batches):
    """Batches whose chunks go on until they end with an unbiased pair.

    x has "merged" (B, T) and "t_merged" (B, U) beside "chunk" and "t_chunk".
    """

    def __init__(self, main: Batches, biased: Tensor, vocab: int) -> None:
        self.main, self.samples, self.table = main, main.samples, main.table
        self.biased, self.vocab = biased, vocab

    def __call__(self, student: nn.Module, teacher: Any, clock: Clock) -> Batch:
        return self.with_chunks(self.main(student, teacher, clock))

    def with_chunks(self, batch: Batch) -> Batch:
        """The batch with the chunks that are merged; as it is where both read the same tokens."""
        if "t_ids" not in batch.x:
            return batch
        one, other = sides(batch)
        fine = ~torch.isin(keys_of(one, other, self.vocab), self.biased)
        one, other = merged(one, other, fine | apart(one, other))
        x = {**batch.x, "merged": one.chunk, "t_merged": other.chunk}
        return batch.replace(x=x)

    def first(self) -> Batch:
        return self.with_chunks(self.main.first())

    def labels(self) -> Tensor | None:
        return self.main.labels()

    def per_epoch(self, batch: int) -> int:
        return self.main.per_epoch(batch)

    def state(self) -> dict[str, Any]:
        return self.main.state()

    def load(self, state: dict[str, Any]) -> None:
        self.main.load(state)
