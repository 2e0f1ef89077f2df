"""ROUGE-L against values worked by hand, a table of common subsequences, and its own words."""

import random

import pytest

from limbeck.core.text.rouge import _common, mean_rouge_l, rouge_l
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("text")

BY_HAND = [
    # Lin (2004): police killed the gunman / police kill the gunman -> LCS 3 of 4 and 4
    ("police killed the gunman", "police kill the gunman", 3 / 4),
    ("police killed the gunman", "the gunman kill police", 2 / 4),
    ("police killed the gunman", "the gunman police killed", 2 / 4),
    ("the cat sat", "the cat sat on the mat", 2 * 3 / 9),
    ("A, b; C!", "a-b-c", 1.0),
    ("state-of-the-art 3.5", "state of the art 3 5", 1.0),
    ("don't", "don t", 1.0),
    ("a a b", "a b b", 2 * 2 / 6),
    ("running", "runs", 0.0),  # no stemming
    ("", "a", 0.0),
    ("a", "", 0.0),
    ("?!", "?!", 0.0),
    ("naïve", "na ve", 1.0),  # only a-z and 0-9 are words
]


@pytest.mark.parametrize(("truth", "said", "want"), BY_HAND)
def test_values_worked_by_hand(truth, said, want):
    assert rouge_l(truth, said) == pytest.approx(want, abs=1e-12)
    assert rouge_l(said, truth) == pytest.approx(want, abs=1e-12)


def table(a, b):
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            longer = max(best[i - 1][j], best[i][j - 1])
            best[i][j] = best[i - 1][j - 1] + 1 if x == y else longer
    return best[-1][-1]


def test_common_subsequence_equals_the_table():
    rng = random.Random(0)
    for size in (1, 2, 5, 40, 100):
        for _ in range(30):
            a, b = (rng.choices("abcde", k=rng.randint(0, size)) for _ in range(2))
            assert _common(a, b) == table(a, b)


def test_mean_and_its_error():
    truths = ["a b", "a b", "a b", "a b"]
    mean, error = mean_rouge_l(truths, ["a b", "c", "a b", "c"])
    assert mean == 0.5
    assert error == pytest.approx((1 / 3) ** 0.5 / 2)  # sd of 1, 0, 1, 0 with n - 1, over root n
    assert mean_rouge_l(["a b"], ["a c"]) == (0.5, None)


def test_lists_that_do_not_match_are_refused():
    for truths, said in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(UsageError, match=f"{len(truths)} true texts and {len(said)} written"):
            mean_rouge_l(truths, said)
