"""Where the patches stand among the tokens of a picture."""

from __future__ import annotations

import math

__all__ = ["leading"]

MOST = 8
"""At most so many tokens (of the class, registers) come before those of the patches."""


def leading(tokens: int) -> int | None:
    """How many of some tokens come before a square of patches, the fewest that it may be.

    None where there is no such square.
    """
    for lead in range(min(MOST, tokens - 1) + 1):
        if math.isqrt(tokens - lead) ** 2 == tokens - lead:
            return lead
    return None
