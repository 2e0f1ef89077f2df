"""The leaderboard: who is in it, what is tried and kept, and what the rows say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import ttest_ind

from limbeck import registry
from limbeck.bench import grid, leaderboard, standings
from limbeck.bench.leaderboard import CELLS, LEFT_OUT, SEEDS, Cell, contenders
from limbeck.bench.store import Store
from limbeck.bench.trial import TUNING_SEEDS, defined, keys
from limbeck.cli import main
from limbeck.core.card import call
from limbeck.errors import UsageError
from limbeck.report import leaderboard as pages
from limbeck.report.verdicts import interval, of_groups

pytestmark = pytest.mark.xdist_group("leaderboard")
TINY = (
    Cell("one", "digits(tiny=True)", "a pair", 1),
    Cell("two", "digits(tiny=True, student='mlp-small')", "another", 1),
)


class InTurn:
    """A pool of this process, which counts."""

    ran = 0

    def each(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Iterator[tuple[Any, Any]]:
        for item in items:
            self.ran += 1
            yield item, function(item)


# --- the grid ------------------------------------------------------------------------------------


def test_each_vision_method_is_in_it_or_left_out_with_a_reason() -> None:
    models = {e.card.key for e in registry.cards("vision") if e.card.gives == "model"}
    assert {*contenders()} | {*LEFT_OUT} == models
    assert not {*contenders()} & {*LEFT_OUT}
    assert all(LEFT_OUT.values())


def test_settings_are_few_of_the_method_and_leave_the_budget_alone() -> None:
    for arm in ("kd", "labels", *contenders()):
        tried = leaderboard.settings(arm)
        assert 1 <= len(tried) <= 4
        for setting in tried:
            name, values = call(setting)
            assert name == arm
            assert not {"epochs", "steps", "batch"} & {*values}


def test_its_seeds_are_of_no_trial_and_of_no_tuning() -> None:
    taken = {seed for key in keys() for each in defined(key) for seed in each.seeds}
    assert not {*SEEDS} & (taken | {*TUNING_SEEDS, leaderboard.TUNING_SEED})
    assert leaderboard.TUNING_SEED < 1000
    assert len({cell.world for cell in CELLS}) == len(CELLS) == 6


# --- the interval over cells ---------------------------------------------------------------------


def test_interval_of_two_groups_is_half_of_welchs() -> None:
    a, b = [0.01, 0.03, -0.02, 0.05], [0.2, -0.1, 0.15, 0.3, 0.4]
    mine = of_groups([a, b])
    theirs = ttest_ind(a, [-x for x in b], equal_var=False).confidence_interval(0.95)
    assert mine.low == pytest.approx(theirs.low / 2)
    assert mine.high == pytest.approx(theirs.high / 2)


def test_interval_of_one_group_is_its_own_and_of_no_spread_has_no_width() -> None:
    a = [0.01, 0.03, -0.02, 0.05]
    assert of_groups([a]).high == pytest.approx(interval(a).high)
    flat = of_groups([[0.1, 0.1], [0.3, 0.3]])
    assert flat.low == flat.high == pytest.approx(0.2)


# --- running it ----------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    for module in (leaderboard, grid, standings):
        monkeypatch.setattr(module, "CELLS", TINY)
    for module in (leaderboard, standings):
        monkeypatch.setattr(module, "SEEDS", range(4000, 4002))
    monkeypatch.setattr(grid, "as_committed", lambda files, name: "commit")
    grid._table.cache_clear()


@pytest.mark.usefixtures("tiny")
def test_a_run_tunes_reports_counts_memory_and_does_nothing_twice(tmp_path: Path) -> None:
    store, pool, said = Store(tmp_path / "grid").open(), InTurn(), list[str]()
    for arm in ("kd", "labels", "fitnets"):
        grid.measure(arm, store, pool, 1, said.append)
    tried = {arm: len(leaderboard.settings(arm)) for arm in ("kd", "labels", "fitnets")}
    assert pool.ran == sum(2 * n + 2 * 2 + 1 for n in tried.values())
    before = pool.ran
    grid.measure("kd", store, pool, 1, said.append)
    assert pool.ran == before

    for cell in TINY:
        rows = [r for r in store.rows("kd") if r["on"] == "valid" and r["world"] == cell.world]
        tuned = {r["setting"]: r["value"] for r in rows if r["measure"] == "score"}
        assert tuned[grid.chosen(cell, "kd", store)] == max(tuned.values())
    assert {r["live"] for r in store.rows("kd") if r["measure"] == "score"} == {False}

    row, value = grid.again("kd", TINY[0], store, pool, 4001)
    assert value == row["value"]
    with pytest.raises(UsageError, match="no row of 'kd' on 'one' with seed 4007 is stored"):
        grid.again("kd", TINY[0], store, pool, 4007)

    told = standings.standings(store)
    assert [each["name"] for each in told["cells"]] == ["one", "two"]
    kd = next(row for row in told["methods"] if row["key"] == "kd")
    assert kd["mean"] == [0, 0, 0]
    assert kd["time"] == kd["memory"] == kd["steps"] == 1
    hint = next(row for row in told["methods"] if row["key"] == "fitnets")
    assert hint["steps"] == 2
    assert hint["parts"] > 0


@pytest.mark.usefixtures("tiny")
def test_stored_outputs_and_the_teacher_itself_give_one_number() -> None:
    (job,) = leaderboard.jobs_of(TINY[0], "rkd", "rkd()", "valid")
    folder = grid._cache(TINY[0], "rkd")
    assert folder is not None
    assert grid.perform(replace(job, cache=folder))["value"] == grid.perform(job)["value"]
    assert grid._cache(TINY[0], "labels") is None


@pytest.mark.usefixtures("tiny")
def test_what_is_refused_is_kept_as_a_sentence() -> None:
    wrong = replace(leaderboard.jobs_of(TINY[0], "kd", "kd()", "valid")[0], setting="kd(tau=-1)")
    told = grid.perform(wrong)
    assert told["value"] is None
    assert "tau" in told["refused"]


def test_who_changes_inputs_or_looks_again_asks_the_teacher_itself() -> None:
    assert grid.cacheable("kd")
    assert grid.cacheable("crd")
    assert not grid.cacheable("funmatch")  # it mixes pictures
    assert not grid.cacheable("e2kd")  # it reads gradients inside the teacher


def test_memory_counts_each_storage_once_and_until_the_graph_goes() -> None:
    held = grid._Held()
    x, w = torch.ones(10, requires_grad=True), torch.ones(10, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.x):
        a = (x * w).sum()  # keeps x and w: 80 bytes
        assert held.now == 80
        b = (x * w).sum()  # the same storages once more
        assert held.now == 80
        c = (x[:5] * 2).exp().sum()  # the five results of exp
    assert held.now == held.most == 100
    (a + b + c).backward()
    assert held.now == 0
    assert held.most == 100


# --- what the rows say ---------------------------------------------------------------------------


def fill(store: Store, arm: str, values: dict[str, list[float | None]]) -> None:
    setting = leaderboard.settings(arm)[0]
    for cell in CELLS:
        for seed, value in zip(SEEDS, values.get(cell.name, [0.5] * 4), strict=True):
            job = replace(leaderboard.jobs_of(cell, arm, setting, "test")[0], seed=seed)
            row = {**job.place, "value": value, "steps": 10, "seconds": 1.0, "parts": 3}
            row |= {"source": "x", "live": False, "core": 1, "versions": {}, "refused": "no maps"}
            store.add(arm, row)


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    store, first = Store(tmp_path).open(), CELLS[0].name
    fill(store, "kd", {})
    fill(store, "labels", {first: [0.4, 0.4, 0.4, 0.4]})
    fill(store, "rkd", {cell.name: [0.56, 0.6, 0.58, 0.62] for cell in CELLS})
    fill(store, "crd", {cell.name: [0.56, 0.6, 0.58, 0.61] for cell in CELLS})
    fill(store, "dkd", {first: [None] * 4, **{c.name: [0.9] * 4 for c in CELLS[1:]}})
    return standings.write(store, tmp_path / "leaderboard.json")


def test_rows_are_ranked_marked_and_refused(told: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads((tmp_path / "leaderboard.json").read_text("utf-8")) == told
    rows = {row["key"]: row for row in told["methods"]}
    assert [row["key"] for row in told["methods"]] == ["dkd", "rkd", "crd", "kd"]
    assert rows["rkd"]["mean"][0] == pytest.approx(0.09)
    assert rows["rkd"]["mean"][1:] == pytest.approx(
        [0.09 - 2.100922 * 0.0258199 / 2 / 6**0.5, 0.09 + 2.100922 * 0.0258199 / 2 / 6**0.5],
        abs=1e-6,
    )  # t(0.975, 18), deviation of four values, six cells
    assert rows["rkd"]["near"]
    assert rows["crd"]["near"]
    assert not rows["kd"]["near"]
    assert not rows["dkd"]["near"]  # it does not run everywhere, so that it is not the best
    assert rows["dkd"]["refused"] == {CELLS[0].name: "no maps"}
    assert told["labels"]["mean"][0] == pytest.approx(-0.1 / 6, abs=1e-6)


def test_lines_have_every_cell_and_are_ordered_by_one(told: dict[str, Any]) -> None:
    text = list(pages.lines(told))
    assert sum(line.startswith("• ") for line in text) == 2
    assert any("dkd" in line and " - " in line for line in text)
    one = list(pages.lines(told, CELLS[1].name))
    assert [line.split()[0].strip("•") or line.split()[1] for line in one[-5:-1]] == [
        "dkd", "rkd", "crd", "kd",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="there is no cell 'moon'; there are: digits, thinner"):
        list(pages.lines(told, "moon"))


def test_the_table_can_be_sorted_and_filtered(told: dict[str, Any]) -> None:
    page = str(pages.leaderboard_table(told, registry.cards()))
    assert page.count('<tr data-kind="') == 4
    assert page.count('data-place="near the best"') == 2
    assert 'title="no maps"' in page
    assert "Labels alone, beside KD: -1.7 on average" in page


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "relatoin"], "no kind is called 'relatoin'; did you mean 'relation'?"),
        (["--again", "4000"], "--again runs a row of one method; 0 are named"),
        (["l2d", "--run"], "the grid does not hold 'l2d': it is for several labels of a picture"),
        (["kdd", "--run"], "the grid does not hold 'kdd'; did you mean"),
        (["--jobs", "0", "--run"], "--jobs is 0; give a number from 1 to 1024"),
        (["kd", "--again", "4000", "--cell", "moon"], "there is no cell 'moon'; there are: "),
    ],
)
def test_sentences_of_the_command(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["leaderboard", *words]) == 2
    assert said in capsys.readouterr().err
