"""How long texts are: what fits a model's context, and which prompts are written on together."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import Any

from torch import Tensor

from limbeck.errors import UsageError

__all__ = ["apart", "context_of", "fits"]

_STEP = 48
"""What a step of writing costs beyond its rows, in tokens of a prompt: it reads all weights."""


def context_of(model: Any) -> int | None:
    """How many tokens a model can see; None where its config sets no limit."""
    found: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found


def fits(model: Any, there: int, new: int) -> None:
    """Refuse texts that go beyond a model's context.

    Raises:
        UsageError: there are more tokens than it can see.
    """
    limit = context_of(model)
    if limit is not None and there + new > limit:
        raise UsageError(
            f"{there} tokens and {new} new ones were asked of a model with a context of {limit}; "
            "cut the prompts, or ask for fewer new tokens"
        )


def apart(lengths: Tensor, new: int) -> list[Tensor]:
    """The rows (B,) of prompts of near lengths, in groups that cost least together.

    A group of n costs n * longest tokens of prompts, and `new` steps which each read all weights;
    so few rows, or much to write, stay together, and groups are made where padding costs more.
    Groups are cut from the rows in the order of their lengths, so the best cut is found exactly.
    """
    sizes, many = zip(*sorted(Counter(lengths.tolist()).items()), strict=True)
    best, cuts = [0.0], [0]
    upto = [0, *accumulate(many)]
    for stop in range(1, len(sizes) + 1):
        costs = [best[i] + (upto[stop] - upto[i]) * sizes[stop - 1] for i in range(stop)]
        cut = min(range(stop), key=costs.__getitem__)
        best.append(costs[cut] + _STEP * new)
        cuts.append(cut)
    groups, stop = list[Tensor](), len(sizes)
    while stop:
        low, high = sizes[cuts[stop]], sizes[stop - 1]
        groups.append(((lengths >= low) & (lengths <= high)).nonzero()[:, 0])
        stop = cuts[stop]
    return groups[::-1]
