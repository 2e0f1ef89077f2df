"""The bench: definitions, stored rows, tuning and reporting, verdicts."""

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from limbeck import registry
from limbeck.bench import digest, rerun, runner, sources
from limbeck.bench.arms import budget, perform
from limbeck.bench.measures import NAMED
from limbeck.bench.store import Store
from limbeck.bench.trial import STANDARD, TUNING_SEEDS, Defined, Trial, bare, defined, keys
from limbeck.bench.trials._shared import SHARED
from limbeck.core.card import call
from limbeck.core.task import Budget, Optimiser
from limbeck.errors import Missing, UsageError
from limbeck.report.verdicts import Interval, interval, verdict

pytestmark = pytest.mark.xdist_group("trials")
ROOT = Path(__file__).resolve().parents[2]


class InTurn:
    """A pool of this process; stops after so many runs."""

    def __init__(self, most: int = 10**6) -> None:
        self.most, self.ran = most, list[Any]()

    def each(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Iterator[tuple[Any, Any]]:
        for item in items:
            if len(self.ran) == self.most:
                raise KeyboardInterrupt
            self.ran.append(item)
            yield item, function(item)


def small(tmp_path: Path, number: int = 1, **changes: Any) -> Defined:
    trial = Trial(
        claim="Relations help.",
        world="blobs(n=64)",
        settings={"rkd": ("rkd(distance=1, angle=1)", "rkd(lr_factor=0.5)")},
        against=("labels",),
        seeds=12,
        budget={"steps": 3, "batch": 16},
    )
    return Defined("rkd", "vision", number, replace(trial, **changes), tmp_path / "rkd.py", None)


# --- the interval and the word -------------------------------------------------------------------


def test_interval_is_scipys_paired_t_interval() -> None:
    from scipy.stats import ttest_rel

    a = [0.91, 0.93, 0.9, 0.95, 0.94, 0.89]
    b = [0.9, 0.9, 0.91, 0.93, 0.9, 0.9]
    mine = interval([x - y for x, y in zip(a, b, strict=True)])
    theirs = ttest_rel(a, b).confidence_interval(0.95)
    assert mine.low == pytest.approx(theirs.low)
    assert mine.high == pytest.approx(theirs.high)


def test_interval_by_hand() -> None:
    # Mean 2, deviation 1, n = 3: t(0.975, 2) = 4.302653, over sqrt(3) it is 2.484138.
    mine = interval([1.0, 2.0, 3.0])
    assert mine.mean == 2
    assert mine.half == pytest.approx(2.484138, abs=1e-6)
    assert interval([0.5, 0.5]) == Interval(0.5, 0.5, 0.5)


def test_verdict_asks_every_baseline() -> None:
    above, across, below = Interval(1, 0.5, 1.5), Interval(0, -1, 1), Interval(-1, -2, -0.1)
    assert verdict([above, above]) == "shown"
    assert verdict([above, across]) == "not shown"
    assert verdict([above, below]) == "contradicted"
    assert verdict([Interval(1, 0.0, 2)]) == "not shown"  # zero is not excluded


# --- definitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", list(keys()))
def test_definition_names_what_there_is(key: str) -> None:
    for each in defined(key):
        assert each.trial.claim.endswith(".")
        assert each.seeds[0] == 1000 * each.number
        for arm in each.arms:
            for text in each.trial.tried(arm):
                name, values = call(text)
                own = {
                    k: v
                    for k, v in values.items()
                    if k not in ("lr_factor", "epochs", "steps", "batch")
                }
                if name != "labels":
                    registry.make(name, **own)
        later = each.number > 1
        assert each.trial.why or not later, "a later definition says why the one before failed"


def test_named_measures_are_those_that_there_are() -> None:
    assert set(STANDARD) == {"score", *NAMED}


def test_tuning_is_as_wide_for_the_shared_arms() -> None:
    assert len({len(tried) for tried in SHARED.values()}) == 1
    assert max(TUNING_SEEDS) < 1000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"against": ()}, "'against' is empty"),
        ({"seeds": 5}, "5 seeds; it must be 12 or more"),
        ({"settings": {"kd": ("kd()",)}}, "'kd' is shared"),
        ({"settings": {"rkd": ()}}, "has 0 settings"),
        ({"against": ("dkd",)}, "'dkd' has no settings"),
    ],
)
def test_definition_is_checked(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        small(tmp_path, **changes)


def test_no_trial_and_no_method_are_sentences() -> None:
    with pytest.raises(Missing, match="no method is called 'rdk'"):
        defined("rdk")


def test_hash_is_of_what_decides(tmp_path: Path) -> None:
    one = small(tmp_path)
    assert one.hash == small(tmp_path / "elsewhere").hash
    for changes in ({"seeds": 13}, {"world": "digits"}, {"better": "lower"}, {"why": "else"}):
        assert small(tmp_path, **changes).hash != one.hash
    assert small(tmp_path, number=2).hash != one.hash


def test_bare_code_has_no_comments() -> None:
    plain = "def f(x):\n    return x + 1\n"
    assert bare(plain) == bare('def f(x):\n    """Add."""\n    # one\n    return (x + 1)\n')
    assert bare(plain) != bare("def f(x):\n    return x + 2\n")
    assert bare(plain) == bare(f'CARD = Card(key="f", departs="it adds")\n{plain}')


# --- what a number depends on --------------------------------------------------------------------


def test_source_follows_method_kit_losses_and_world(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    true = sources._digest

    def noting(path: Path) -> str:
        read.append(path.relative_to(registry.PACKAGE))
        return true(path)

    monkeypatch.setattr(sources, "_digest", noting)
    sources.of_arm("dot(of='crd(crd=1.0)')", "digits(n=100)")
    names = {str(path) for path in read}
    assert {"vision/dot.py", "vision/crd.py", "bench/worlds/digits.py"} <= names
    assert {"bench/worlds/_models.py", "bench/worlds/_build.py"} <= names
    assert any(name.startswith("core/losses/") for name in names)
    assert not any(name.startswith(("core/engine", "runs/", "report/")) for name in names)
    assert "vision/rkd.py" not in names


def test_source_changes_with_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    before, true = sources.of_arm("rkd()", "blobs"), sources._digest

    def changed(path: Path) -> str:
        return "other" if path.parent.name == "losses" else true(path)

    monkeypatch.setattr(sources, "_digest", changed)
    assert sources.of_arm("rkd()", "blobs") != before


# --- budgets and single runs ---------------------------------------------------------------------


def test_budget_of_an_arm() -> None:
    usual = Budget(epochs=5, batch=8, optimiser=Optimiser(lr=0.2))
    assert budget(usual, {"epochs": 7}) == replace(usual, epochs=7)
    assert budget(usual, {"steps": 3}) == replace(usual, epochs=None, steps=3)
    half = budget(usual, {"lr_factor": 0.5})
    assert half == replace(usual, optimiser=Optimiser(lr=0.1))
    with pytest.raises(UsageError, match="cannot set 'rounds'"):
        budget(usual, {"rounds": 2})


def test_an_arm_is_a_run(tmp_path: Path) -> None:
    """A row's value is what `limbeck.run` reports with the same seed."""
    import limbeck
    from limbeck.bench import worlds

    (job,) = runner.jobs_of(small(tmp_path), "rkd", "rkd(distance=1, angle=1)", [1003], "test")
    task = worlds.make("blobs(n=64)")
    task.budget = replace(task.budget, epochs=None, steps=3, batch=16)
    told = limbeck.run("rkd(distance=1, angle=1)", task, seed=1003).facts
    row = perform(job)
    assert row["value"] == told["score"]
    assert row["steps"] == 3


def test_agreement_counts_equal_answers(tmp_path: Path) -> None:
    import torch

    from limbeck.bench import worlds
    from limbeck.bench.measures import agreement
    from limbeck.core.method import Result

    task = worlds.make("blobs(n=64)")
    student = task.new_student(0).eval()
    x = task.test[0]
    with torch.no_grad():
        pairs = zip(student(x), task.the_teacher().module(x), strict=True)
        same = sum(int(a.argmax() == b.argmax()) for a, b in pairs)
    assert agreement(task, Result(model=student), "test") == pytest.approx(same / len(x))


# --- the runner ----------------------------------------------------------------------------------


def test_trial_is_tuned_reported_and_kept(tmp_path: Path) -> None:
    trial, store = small(tmp_path), Store(tmp_path / "rows").open()
    with pytest.raises(KeyboardInterrupt):  # stopped in the middle of the tuning
        runner.measure_trial(trial, store, InTurn(3), 1, lambda text: None)
    store.close()
    store = Store(tmp_path / "rows").open()
    first = InTurn()
    runner.measure_trial(trial, store, first, 1, lambda text: None)
    # Two arms of 2 and 4 settings x 2 seeds of tuning, of which 3 had run; then 2 x 12.
    assert len(first.ran) == 2 * 2 + 4 * 2 - 3 + 2 * 12
    assert [row["seed"] for row in store.rows("rkd")[:4]] == [1, 2, 1, 2]
    own = {row["definition"] for row in store.rows("rkd")}
    assert own == {trial.hash}
    (common,) = {(row["definition"], row["number"]) for row in store.rows("labels")}
    other = small(tmp_path, claim="Something else.")  # a trial that shares the arm changes nothing
    assert common == (runner.shared(runner.tuning(other)[-1]), 0)
    second = InTurn()
    runner.measure_trial(trial, store, second, 1, lambda text: None)
    assert not second.ran
    told = digest.of_trial(trial, store)
    assert told is not None
    mine = {
        arm: [r["value"] for r in store.rows(arm) if r["on"] == "test"] for arm in ("rkd", "labels")
    }
    apart = [a - b for a, b in zip(mine["rkd"], mine["labels"], strict=True)]
    assert told["verdict"] == verdict([interval(apart)])
    assert told["arms"]["labels"]["difference"]["mean"] == pytest.approx(sum(apart) / 12, abs=1e-6)
    assert not told["stale"]
    best = max(
        SHARED["labels"],
        key=lambda s: sum(
            r["value"] for r in store.rows("labels") if r["setting"] == s and r["on"] == "valid"
        ),
    )
    assert told["arms"]["labels"]["setting"] == best
    rows = list(rerun.again(trial, store, InTurn(), 1004))
    assert [row["value"] for row, _ in rows] == [value for _, value in rows]
    store.close()


def test_rows_are_kept_where_changed_code_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, store = small(tmp_path), Store(tmp_path / "rows").open()
    runner.measure_trial(trial, store, InTurn(), 1, lambda text: None)
    monkeypatch.setattr(runner, "source_of", lambda job: "new code")
    told = digest.of_trial(trial, store)
    assert told is not None
    assert told["stale"]
    pool = InTurn()
    assert rerun.confirm(trial, store, pool) == (1000, 1011)
    assert sorted(job.seed for job in pool.ran) == [1000, 1000, 1011, 1011]
    now = digest.of_trial(trial, store)
    assert now == {**told, "stale": False}
    assert not [j for j in runner.tuning(trial) if store.find(j.arm, j, "new code") is None]
    kept = [row for row in store.rows("rkd") if row.get("confirmed")]
    assert len(kept) == 2 * 2 + 12
    monkeypatch.setattr(runner, "source_of", lambda job: "newer code")
    monkeypatch.setattr(rerun, "perform", lambda job: {**perform(job), "value": 0.0})
    with pytest.raises(UsageError, match="the change of code changed the number"):
        rerun.confirm(trial, store, InTurn())
    assert digest.of_trial(trial, store)["stale"]  # type: ignore[index]
    store.close()


def test_definition_may_not_change_after_its_seeds_ran(tmp_path: Path) -> None:
    trial, store = small(tmp_path), Store(tmp_path / "rows").open()
    (job,) = runner.jobs_of(trial, "rkd", "rkd()", [1000], "test")
    told = {"value": 0.5, "steps": 1, "seconds": 0.1, "definition": trial.hash, "number": 1}
    store.add("rkd", {**job.place, **told, "source": "s"})
    runner.unchanged(trial, store)
    with pytest.raises(UsageError, match="changed after its seeds ran"):
        runner.unchanged(small(tmp_path, claim="Relations may help."), store)
    runner.unchanged(small(tmp_path, number=2, claim="Relations may help."), store)
    store.close()


def test_definition_must_be_committed(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    room = tmp_path / "vision"
    room.mkdir()
    (tmp_path / "_shared.py").write_text("")
    (room / "rkd.py").write_text("TRIALS = ()\n")
    trial = replace(small(tmp_path), path=room / "rkd.py")
    assert runner.committed(trial) is None  # outside a clone nobody can say
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "none")
    with pytest.raises(UsageError, match="not committed"):
        runner.committed(trial)
    git("add", "-A")
    git("commit", "-q", "-m", "defined")
    assert runner.committed(trial)
    (room / "rkd.py").write_text("TRIALS = (1,)\n")
    with pytest.raises(UsageError, match="not committed as it stands"):
        runner.committed(trial)


def test_failed_run_is_told_and_others_are_kept(tmp_path: Path) -> None:
    class Failing(InTurn):
        def each(self, function: Any, items: Any) -> Iterator[tuple[Any, Any]]:
            for n, item in enumerate(items):
                yield item, function(item) if n < 2 else ValueError("no luck")

    store = Store(tmp_path / "rows").open()
    with pytest.raises(UsageError, match="seed 1 failed: no luck; rows that were measured"):
        runner.measure_trial(small(tmp_path), store, Failing(), 1, lambda text: None)
    assert len(Store(tmp_path / "rows").rows("rkd")) == 2
    store.close()


# --- stored rows ---------------------------------------------------------------------------------


def test_line_cut_short_is_dropped(tmp_path: Path) -> None:
    job = runner.jobs_of(small(tmp_path), "rkd", "rkd()", [1000], "test")[0]
    row = {**job.place, "value": 0.5, "source": "s"}
    store = Store(tmp_path).open()
    store.add("rkd", row)
    store.close()
    path = tmp_path / "rkd.jsonl"
    path.write_text(path.read_text() + '{"arm": "rkd", "val')
    again = Store(tmp_path).open()
    assert again.rows("rkd") == [row]
    again.add("rkd", {**row, "value": 0.75})
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [0.5, 0.75]
    newest = again.find("rkd", job)
    assert newest is not None
    assert newest["value"] == 0.75
    assert again.find("rkd", job, "other code") is None
    again.close()


def test_damaged_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "rkd.jsonl").write_text('{"arm": "rkd"}\nxx\n')
    with pytest.raises(UsageError, match="line 1 is no row"):
        Store(tmp_path).rows("rkd")


def test_two_benches_do_not_write_at_once(tmp_path: Path) -> None:
    one = Store(tmp_path).open()
    with pytest.raises(UsageError, match="being written by another process"):
        Store(tmp_path).open()
    one.close()
    Store(tmp_path).open().close()


# --- what is packaged ----------------------------------------------------------------------------


def test_packaged_digest_is_of_the_stored_rows() -> None:
    """After a change of a method run its trial again, or tell its rows old: `bench --digest`."""
    if not (ROOT / "results" / "trials").is_dir():
        pytest.skip("not a clone: the rows are not packaged")
    stored = json.loads(digest.PLACE.read_bytes())
    assert stored == digest.digest(Store(ROOT / "results" / "trials"))


def test_method_that_takes_longer_has_a_baseline_that_does() -> None:
    for key, told in json.loads(digest.PLACE.read_bytes()).items():
        for each in told["definitions"]:
            steps = {arm: facts["steps"] for arm, facts in each["arms"].items()}
            others = [n for arm, n in steps.items() if arm != key]
            assert steps[key] <= 2 * min(others) or max(others) >= 0.8 * steps[key], (key, steps)
