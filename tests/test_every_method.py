"""The common suite (`limbeck check`) over every registered method.

All checks of a method share its runs, so they share a process: one xdist group for each method.
"""

from functools import lru_cache

import pytest

from limbeck.check.case import Case
from limbeck.check.suite import CHECKS, Suite
from limbeck.registry import cards

KEYS = [entry.card.key for entry in cards()]
EVERY = [
    pytest.param(key, check, id=f"{key}-{check}", marks=pytest.mark.xdist_group(key))
    for key in KEYS
    for check in CHECKS
]
# How many exemptions from the suite the methods have; a change of it is said in CHANGELOG.md.
EXEMPTIONS = 25


@lru_cache(maxsize=2)
def suite(key: str) -> Suite:
    return Suite(Case(key))


def test_there_are_methods() -> None:
    assert "kd" in KEYS


@pytest.mark.parametrize(("key", "check"), EVERY)
def test_method(key: str, check: str) -> None:
    finding = suite(key).find(check)
    assert finding.verdict != "failed", finding.said


def test_exemptions_are_counted() -> None:
    found = [f"{key}: {n}" for key in KEYS for n in Case(key).exempt if not n.startswith("tree:")]
    assert len(found) == EXEMPTIONS, found
