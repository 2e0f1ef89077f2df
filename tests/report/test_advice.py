"""Advice from the leaderboard and the trials, and how good it is."""

from typing import Any

import pytest

from limbeck.report.advice import KINDS_OF_WORLDS, measured, of_grid, of_trials

CELLS = ("digits, thinner", "digits, across", "fashion, thinner", "fashion, across")


def row(key: str, *differences: float) -> dict[str, Any]:
    cells = {
        name: {"setting": f"{key}(tau={i})", "values": [0.9] * 4, "difference": [d, d - 1, d + 1]}
        for i, (name, d) in enumerate(zip(CELLS, differences, strict=True))
    }
    mean = sum(differences) / 4
    return {"key": key, "mean": [mean, mean - 0.01, mean + 0.01], "cells": cells, "time": 1.5}


ROWS = [
    row("kd", 0, 0, 0, 0),
    row("rkd", 0.02, 0.01, 0.03, 0.0),
    row("crd", -0.02, 0.05, -0.01, 0.05),
]
GRID = {"cells": [{"name": name} for name in CELLS], "methods": ROWS}


def test_the_best_comes_first_with_numbers_of_pairs_like_the_tasks() -> None:
    found = of_grid(GRID, {"rkd": [{"verdict": "shown"}]}, across=True)
    assert [one.key for one in found] == ["crd", "rkd", "kd"]
    assert found[0].setting == "crd(tau=1)"  # the better of the two cells across architectures
    assert "+1.8 points over KD (+0.8 to +2.8, 16 pairs of runs)" in found[0].why
    assert "of pairs like this: +5.0 on digits, across, +5.0 on fashion, across" in found[0].why
    assert "a step costs 1.5 times KD's" in found[0].why
    assert found[1].why.endswith("Its paper's claim was shown in a trial.")
    assert "compared with" in found[2].why


def test_what_advice_loses_is_counted_on_cells_that_it_had_not_seen() -> None:
    # Held out in turn; the sum over the other three cells decides:
    # thinner digits: rkd .04, crd .09 -> crd, -.02 where the best has .02: .04 lost
    # across digits: rkd .05, crd .02 -> rkd, .01 of .05: .04 lost
    # thinner fashion: rkd .03, crd .08 -> crd, -.01 of .03: .04 lost
    # across fashion: rkd .06, crd .02 -> rkd, .00 of .05: .05 lost
    told = measured(ROWS, CELLS)
    assert told["suggested"] == pytest.approx((0.04 + 0.04 + 0.04 + 0.05) / 4)
    assert told["alike"] == pytest.approx(0)  # the like pair advises crd across, rkd else
    assert told["kd"] == pytest.approx((0.02 + 0.05 + 0.03 + 0.05) / 4)
    lost = (0.02 - 0.0, 0.05 - 0.02, 0.03 - 0.02 / 3, 0.05 - 0.05 / 3)
    assert told["random"] == pytest.approx(sum(lost) / 4, abs=1e-6)


def trial(world: str, verdict: str, mean: float, half: float) -> dict[str, Any]:
    apart = {"mean": mean, "low": mean - half, "high": mean + half}
    arms = {"x": {"setting": "x(a=1)"}, "other": {"setting": "y()", "difference": apart}}
    return {"world": world, "verdict": verdict, "claim": "It helps.", "measure": "score",
            "against": ["other"], "arms": arms}  # fmt: skip


def test_trials_advise_on_their_own_kind_and_only_if_shown() -> None:
    known = {
        "a": trial("markov(order=2)", "shown", 0.2, 0.1),
        "b": trial("masklm", "shown", 1, 0.1),
        "c": trial("charlm", "not shown", 0.1, 0.2),
        "d": trial("charlm", "shown", 0.4, 0.1),
    }
    told = {
        key: [{**found, "arms": {key: found["arms"]["x"], "other": found["arms"]["other"]}}]
        for key, found in known.items()
    }
    assert [one.key for one in of_trials("next tokens", told)] == ["d", "a"]
    assert [one.key for one in of_trials("hidden tokens", told)] == ["b"]
    assert of_trials("several labels of a sample", told) == []
    assert (
        "It helps. +0.2 of score against y(), +0.1 to +0.3."
        in of_trials("next tokens", told)[1].why
    )


def test_kinds_are_of_worlds_that_exist() -> None:
    from limbeck.bench.worlds import names

    assert {*KINDS_OF_WORLDS} <= {*names()}
