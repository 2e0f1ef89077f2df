"""How alike two sentences are: smoothed BLEU of one against one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import exp, log

__all__ = ["sentence_bleu"]


def sentence_bleu(said: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """BLEU-4 of one sentence against one, from 0 to 1: exp(mean_n log p_n + min(0, 1 - r / c)).

    p_n is the share of n-grams of `said` that are in `truth`, each at most as often; of pairs and
    longer ones matches and totals count one more (Lin and Och, 2004; the second smoothing of Chen
    and Cherry, 2014). c and r are the lengths of `said` and `truth`. It is 1 for equal sentences,
    and 0 where no word is shared.
    """
    logs = 0.0
    for n in range(1, 5):
        mine, theirs = _grams(said, n), _grams(truth, n)
        more = n > 1
        hits = sum((mine & theirs).values()) + more
        if not hits:
            return 0.0
        logs += log(hits / (sum(mine.values()) + more))
    return exp(logs / 4 + min(0.0, 1 - len(truth) / len(said)))


def _grams(words: Sequence[Hashable], n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
