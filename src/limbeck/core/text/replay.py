"""Texts in training form: joined of prompt and answer, cut to prompts again, kept for later."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from limbeck.core.tables import Batch
from limbeck.core.text.places import IGNORED
from limbeck.errors import UsageError

__all__ = ["Replay", "joined", "left_padded", "prompts_of", "right_padded"]


class Replay:
    """The newest texts that were added, up to `capacity`; older ones give way.

    Rows are kept without their padding, on the CPU. What is drawn is a function of what was added,
    in its order, and of the generator. Of a batch's columns x, y and index are kept, the last 0
    where it has none.

    Args:
        capacity: how many texts at most.
        pad: what padding is filled with.

    Example:
        >>> kept = Replay(capacity=2)
        >>> ids = torch.tensor([[5, 6, 0], [7, 8, 9], [3, 0, 0]])
        >>> kept.add(Batch(x={"ids": ids, "mask": ids.ne(0).long()}, y=ids))
        >>> kept.draw(2, torch.Generator().manual_seed(0)).x["ids"].sort(0).values
        tensor([[3, 0, 0],
                [7, 8, 9]])
    """

    def __init__(self, capacity: int, pad: int = 0) -> None:
        if capacity < 1:
            raise UsageError(f"a replay of {capacity} texts was asked for; it must hold at least 1")
        self.capacity, self.pad = capacity, pad
        self._rows: deque[tuple[Tensor, Tensor, int]] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, batch: Batch) -> None:
        """Take the rows of a batch with x of "ids" and "mask" (B, T) and y (B, T)."""
        columns = (batch.x["ids"].cpu(), batch.x["mask"].bool().cpu(), batch.y.cpu())
        numbers = batch.index.tolist() if "index" in batch else [0] * len(batch)
        for ids, there, y, number in zip(*columns, numbers, strict=True):
            self._rows.append((ids[there], y[there], number))  # copies, no views

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        """A batch of n different texts, right padded to the longest: x, y and index."""
        if not 0 < n <= len(self):
            raise UsageError(
                f"{n} texts were asked of a replay that holds {len(self)}; ask for fewer, or begin "
                "once it holds that many"
            )
        picked = torch.randperm(len(self), generator=generator)[:n].tolist()
        rows = [self._rows[i] for i in picked]
        mask = [torch.ones_like(ids) for ids, _, _ in rows]
        x = {"ids": _padded([ids for ids, _, _ in rows], self.pad), "mask": _padded(mask, 0)}
        index = torch.tensor([number for _, _, number in rows])
        return Batch(x=x, y=_padded([y for _, y, _ in rows], IGNORED), index=index)

    def state(self) -> dict[str, Any]:
        """All texts, the oldest first: ids and y in one row each (N,), lengths and index (n,)."""
        empty = torch.empty(0, dtype=torch.int64)
        return {
            "ids": torch.cat([empty, *(ids for ids, _, _ in self._rows)]),
            "y": torch.cat([empty, *(y for _, y, _ in self._rows)]),
            "lengths": torch.tensor([len(ids) for ids, _, _ in self._rows], dtype=torch.int64),
            "index": torch.tensor([number for _, _, number in self._rows], dtype=torch.int64),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        lengths = state["lengths"].tolist()
        ids, y = (state[name].cpu().split(lengths) for name in ("ids", "y"))
        self._rows.clear()
        self._rows.extend(zip(ids, y, state["index"].tolist(), strict=True))


def prompts_of(
    batch: Batch, new: int, context: int | None, pad: int = 0, least: int = 1
) -> tuple[Tensor, Tensor]:
    """The part of each text before its first label: ids and mask (B, P), right padded.

    A text without labels is all prompt. Of one that leaves no room in `context` for `new` more
    tokens the end is kept.

    Args:
        batch: with x of "ids" and "mask" (B, T) and y (B, T), padded on either side.
        new: how many tokens are to follow.
        context: how many tokens the model can see (`generate.context_of`); None for any number.
        pad: what padding is filled with.
        least: how many tokens of a plain text, whose labels begin at its second token, are its
            prompt.

    Raises:
        UsageError: there is no room for `least` tokens, or a text begins with a label.
    """
    most = batch.y.shape[1] if context is None else context - new
    if context is not None and most < least:
        raise UsageError(
            f"{new} new tokens leave room for {max(most, 0)} of a prompt in a context of "
            f"{context}, and {least} are needed; ask for fewer new tokens, or a longer context"
        )
    mask = batch.x["mask"].long()
    before = mask * ((batch.y != IGNORED).cumsum(1) == 0)
    plain = before.sum(1, keepdim=True) == 1
    start = mask * (mask.cumsum(1) <= least)
    ids, mask = left_padded(batch.x["ids"], torch.where(plain, start, before), pad)
    return right_padded(ids[:, -most:], mask[:, -most:])[:2]


def joined(
    ids: Tensor, mask: Tensor, written: Tensor, valid: Tensor, pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts (B, P) and what follows them (B, N) in training form: ids, mask and y (B, L).

    For all K hypotheses of a beam search give each prompt K times: `ids.repeat_interleave(K, 0)`,
    the same of mask, `found.ids.flatten(0, 1)` and `found.mask.flatten(0, 1)`.
    """
    ids, mask = left_padded(ids, mask, pad)
    there = torch.cat([mask, valid.to(mask)], 1)
    whole = torch.cat([ids, written], 1).masked_fill(there == 0, pad)
    return right_padded(whole, there, ids.shape[1])


def left_padded(ids: Tensor, mask: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, longest) of texts that are padded anywhere, with the padding first.

    Raises:
        UsageError: a row has no token.
    """
    lengths = mask.sum(1)
    if bad := int((lengths == 0).sum()):
        raise UsageError(
            f"{bad} of {len(ids)} prompts have no token; give each one at least, such as the "
            "tokenizer's first token"
        )
    longest, mask = int(lengths.max()), mask.long()
    order = mask.argsort(dim=1, stable=True)[:, -longest:]
    mask = mask.gather(1, order)
    return ids.gather(1, order).masked_fill(mask == 0, pad), mask


def right_padded(ids: Tensor, mask: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and y of texts padded anywhere, padding last; labels are the columns from start."""
    order = mask.argsort(dim=1, descending=True, stable=True)
    labelled = mask.bool() & (torch.arange(ids.shape[1], device=ids.device) >= start)
    y = ids.masked_fill(~labelled, IGNORED)
    return ids.gather(1, order), mask.gather(1, order), y.gather(1, order)


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
