"""How much of what is written is in texts that are right: BLEU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import exp, log

__all__ = ["bleu"]

Words = Sequence[Hashable]


def bleu(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> float:
    """BLEU-4 of texts, from 0 to 1: exp(mean_n log p_n + min(0, 1 - r / c)).

    p_n is the share of n-grams in `said` that are in a text that is right, each as often as in one
    of these at most; of pairs and longer ones matches and totals count one more (Lin and Och, 2004;
    the second smoothing of Chen and Cherry, 2014). c is the length of `said`, r that of the right
    texts that are nearest in length. It is 0 where no word is right.

    Args:
        said: texts, of words or numbers of tokens.
        right: for each of them all that are right.
    """
    hits, totals, length, wanted = [0] * 4, [0] * 4, 0, 0
    for text, references in zip(said, right, strict=True):
        length += len(text)
        wanted += min((abs(len(r) - len(text)), len(r)) for r in references)[1]
        for n in range(4):
            mine, theirs = _grams(text, n + 1), Counter[tuple[Hashable, ...]]()
            for reference in references:
                theirs |= _grams(reference, n + 1)
            hits[n] += sum((mine & theirs).values())
            totals[n] += sum(mine.values())
    if not hits[0]:
        return 0.0
    more = (0, 1, 1, 1)
    mean = sum(log((h + m) / (t + m)) for h, t, m in zip(hits, totals, more, strict=True)) / 4
    return exp(mean + min(0.0, 1 - wanted / length))


def _grams(words: Words, n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
