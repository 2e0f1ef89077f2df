"""Chunks: spans of text that two tokenizers agree on, and how likely each side holds them.

A chunk is a number that tokens of both sides carry. Per row they are 0, 1, ... without gaps, and
the tokens of one are neighbours. Merging chunks is giving them new numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.core.data import Batch
from limbeck.core.signals import Signal
from limbeck.core.text.places import IGNORED
from limbeck.errors import UsageError

ENTRIES = 2**23  # log-probabilities of a side that exist at a time, about


@dataclass(frozen=True, eq=False)
class Tokens:
    """One side of a batch.

    Attributes:
        ids: (B, T).
        chunk: (B, T) the chunk of each token, or -1.
        most: C, more than any chunk's number on either side.
    """

    ids: Tensor
    chunk: Tensor
    most: int

    def total(self, values: Tensor) -> Tensor:
        """Sums over the tokens of each chunk, (B, T) -> (B, C)."""
        out = values.new_zeros(len(values), self.most + 1)
        column = self.chunk.where(self.chunk >= 0, self.most)
        return out.scatter_add(1, column, values)[:, : self.most]

    def sizes(self) -> Tensor:
        """How many tokens each chunk has, (B, C)."""
        return self.total(torch.ones_like(self.chunk))

    def last(self) -> Tensor:
        """Where the last token of each chunk is, (B, C); 0 where there is none."""
        out = self.chunk.new_zeros(len(self.chunk), self.most + 1)
        column = self.chunk.where(self.chunk >= 0, self.most)
        place = torch.arange(self.chunk.shape[1], device=column.device).expand_as(column)
        return out.scatter_reduce(1, column, place, "amax")[:, : self.most]

    def numbered(self, number: Tensor) -> Tokens:
        """The same with chunk c called number[b, c]; -1 takes it away."""
        new = number.gather(1, self.chunk.clamp_min(0))
        return Tokens(self.ids, torch.where(self.chunk >= 0, new, -1), self.most)


def sides(batch: Batch, merged: bool = False) -> tuple[Tokens, Tokens]:
    """The student's and the teacher's tokens of a batch with their chunks.

    Without "t_ids" in x both sides read the same tokens, and each trained one is a chunk. Chunks in
    which a token is not trained on (the first has no likelihood) are none.

    Args:
        batch: x as `core/text/encode.both` makes it; y.
        merged: take the columns "merged" and "t_merged" of x for the chunks.

    Raises:
        UsageError: the two sides' tokens are not aligned.
    """
    x, told = batch.x, batch.y != IGNORED
    told = told & (torch.arange(told.shape[1], device=told.device) > 0)
    if "t_ids" not in x:
        chunk = torch.where(told, told.cumsum(1) - 1, -1)
        same = Tokens(x["ids"], chunk, max(1, int(chunk.max()) + 1))
        return same, same
    if "chunk" not in x:
        raise UsageError(
            "one of the sides is an encoder-decoder, and the tokens of the two are not aligned, as "
            "alm needs them; give causal models, or run uld"
        )
    t_told = F.pad(x["t_wanted"], (1, 0))[:, :-1]
    chunk, t_chunk = (x["merged"], x["t_merged"]) if merged else (x["chunk"], x["t_chunk"])
    most = max(1, int(chunk.max()) + 1, int(t_chunk.max()) + 1)
    one, other = Tokens(x["ids"], chunk, most), Tokens(x["t_ids"], t_chunk, most)
    good = torch.ones_like(one.sizes(), dtype=torch.bool)
    for side, trained in ((one, told), (other, t_told)):
        size = side.sizes()
        good &= (size > 0) & (size == side.total(trained.long()))
    number = torch.where(good, good.cumsum(1) - 1, -1)
    return one.numbered(number), other.numbered(number)


def apart(one: Tokens, other: Tokens) -> Tensor:
    """Whether something lies between a chunk and the next, on either side, (B, C)."""
    found = torch.zeros_like(one.sizes(), dtype=torch.bool)
    for side in (one, other):
        last = side.last()
        first = last - side.sizes() + 1
        found |= F.pad(first[:, 1:], (0, 1), value=-1) != last + 1
    return found


def merged(one: Tokens, other: Tokens, ends: Tensor) -> tuple[Tokens, Tokens]:
    """Chunks go on until one ends, (B, C) bool; the last of a row ends with it."""
    number = ends.cumsum(1) - ends.long()
    return one.numbered(number), other.numbered(number)


def read(signal: Signal, side: Tokens, group: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What a side makes of its own tokens, (B, T) and (B, T).

    First the log-likelihood of each token of a chunk, given those before it. Then, at the last
    token of each chunk, that of the next token lying in a group. Both are 0 elsewhere.

    Args:
        signal: of (B, T) places, or of the first of them.
        side: the tokens.
        group: (V,) bool, such as the tokens that begin with white space; None: not asked.

    Raises:
        UsageError: the signal is of other tokens.
    """
    following = F.pad(side.chunk[:, 1:], (0, 1), value=-1)
    ends = (side.chunk >= 0) & (side.chunk != following)
    where = following >= 0
    if group is not None:
        where = where | ends
    inside = where[:, : signal.shape[1]]
    if inside.shape != signal.shape or int(inside.sum()) != int(where.sum()):
        raise UsageError(
            f"a side shows {tuple(signal.shape)} places of a batch of {tuple(where.shape)}; give "
            "each the reader of its own tokens, Causal(vocab, side='t_') for a teacher with "
            "another tokenizer"
        )
    ids = F.pad(side.ids[:, 1:], (0, 1))[where]
    found = _at_places(signal.at(inside), ids, group).unbind(-1)
    said, after = (v.new_zeros(where.shape).masked_scatter(where, v) for v in found)
    return F.pad(said, (1, 0))[:, :-1] * (side.chunk >= 0), after * ends


def _at_places(signal: Signal, ids: Tensor, group: Tensor | None) -> Tensor:
    """(N, 2): log p of the given tokens, and of the group; so many places at a time."""

    def found(part: slice) -> Tensor:
        logp = signal.at(part).log_p()
        own = logp.gather(-1, ids[part, None])[:, 0]
        if group is None:
            return torch.stack([own, torch.zeros_like(own)], -1)
        inside = logp.masked_fill(~group, -torch.inf).logsumexp(-1)
        return torch.stack([own, inside.clamp_max(0)], -1)

    n, size = len(ids), max(1, ENTRIES // signal.vocab)
    if n <= size:
        return found(slice(0, n))
    parts = [slice(i, i + size) for i in range(0, n, size)]
    again: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(found, part, **again) for part in parts])


def windows(values: Tensor, size: int) -> Tensor:
    """Sums over `size` neighbouring chunks, (B, C) -> (B, ceil(C / size))."""
    padded = F.pad(values, (0, -values.shape[1] % size))
    return padded.view(len(values), -1, size).sum(-1)


def closing(there: Tensor, size: int) -> Tensor:
    """Which chunks are the last of their window, (B, C); `there` says which exist."""
    place = torch.arange(there.shape[1], device=there.device)
    return there & ((place % size == size - 1) | ~F.pad(there[:, 1:], (0, 1)))


def latent(s: Tensor, t: Tensor, one: Tokens, other: Tokens) -> Tensor:
    """Sum over chunks' ends of the mean square of s - t, over that of t in the text.

    Args:
        s: (B, T, H) the student's hidden states.
        t: (B, U, H) the teacher's.
        one: the student's tokens.
        other: the teacher's.

    Raises:
        UsageError: the widths differ.
    """
    if s.shape[-1] != t.shape[-1]:
        raise UsageError(
            f"the student's hidden states are {s.shape[-1]} wide and the teacher's {t.shape[-1]}; "
            "the latent loss is for sides of one width, so give latent=0"
        )
    there = other.sizes() > 0
    row = torch.arange(len(there), device=there.device)[:, None]
    mine, theirs = (h[row, side.last()].float() for h, side in ((s, one), (t, other)))
    size = theirs.detach().square().mean(-1) * there
    scale = size.sum(1) / there.sum(1).clamp_min(1) + 1e-8
    return ((mine - theirs.detach()).square().mean(-1) * there / scale[:, None]).sum()
