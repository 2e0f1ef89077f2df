"""ROUGE-L: how much of one text is found in another, in order."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from limbeck.errors import UsageError

__all__ = ["mean_rouge_l", "rouge_l"]

_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(truth: str, said: str) -> float:
    """F-measure of the longest common subsequence of words, in [0, 1].

    Words are runs of a-z and 0-9 after lower-casing, unstemmed, as in Google's rouge-score; a text
    in another script has none. It is 0 where a text has no words.
    """
    a, b = _WORD.findall(truth.lower()), _WORD.findall(said.lower())
    return 2 * _common(a, b) / (len(a) + len(b)) if a and b else 0.0


def mean_rouge_l(truths: Sequence[str], said: Sequence[str]) -> tuple[float, float | None]:
    """The mean of `rouge_l` over pairs of texts and its standard error; None of a single pair.

    Raises:
        UsageError: there are no pairs, or the lists differ in length.
    """
    if not truths or len(truths) != len(said):
        raise UsageError(
            f"ROUGE-L was asked for {len(truths)} true texts and {len(said)} written ones; it "
            "needs one for one, and at least one"
        )
    each = [rouge_l(t, s) for t, s in zip(truths, said, strict=True)]
    error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
    return statistics.fmean(each), error


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by bits.

    After each word of b, bit i of `row` is 0 where the next word of a, the i-th, made it longer
    (Hyyrö, 2004): a row of the usual table in one addition.
    """
    at: dict[str, int] = {}
    for i, word in enumerate(a):
        at[word] = at.get(word, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    for word in b:
        met = row & at.get(word, 0)
        row = ((row + met) | (row - met)) & full
    return len(a) - row.bit_count()
