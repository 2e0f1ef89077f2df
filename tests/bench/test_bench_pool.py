"""Where the bench's runs happen, the sentinels, and the command around them."""

import json
import os
from pathlib import Path

import pytest

import limbeck
from limbeck.bench import sentinels
from limbeck.bench.arms import Job, perform
from limbeck.bench.pool import Here, OnRay
from limbeck.bench.sentinels import SENTINELS, Kept, bits, look
from limbeck.cli import main
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("bench-pool")


def halved(n: int) -> tuple[float, str | None]:
    if n == 3:
        raise ValueError("three is odd")
    if n == 5:
        os._exit(1)
    return n / 2, os.environ.get("OMP_NUM_THREADS")


def test_processes_give_values_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    pool = Here(2)
    found = dict(pool.each(halved, [1, 2, 3, 4]))
    assert {n: found[n] for n in (1, 2, 4)} == {1: (0.5, "1"), 2: (1.0, "1"), 4: (2.0, "1")}
    assert isinstance(found[3], ValueError)
    with pytest.raises(UsageError, match="was killed, perhaps for lack of memory"):
        list(pool.each(halved, [5]))
    pool.close()
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_a_ray_cluster_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(limbeck.__file__).parents[1]))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other tests it would starve
    budget = (("batch", 16), ("steps", 3))
    jobs = [
        Job("rkd", setting, "blobs(n=64)", budget, 3, "score", "valid")
        for setting in ("rkd(distance=1, angle=1)", "rkd(tau=-1)")
    ]
    pool = OnRay("local")
    found = dict(pool.each(perform, jobs))
    pool.close()
    assert found[jobs[0]]["value"] == perform(jobs[0])["value"]
    assert isinstance(found[jobs[1]], UsageError)


def test_no_cluster_is_a_sentence() -> None:
    pytest.importorskip("ray", reason="needs ray")
    with pytest.raises(UsageError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'"):
        OnRay("127.0.0.1:1")


# --- sentinels -----------------------------------------------------------------------------------


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinels, "SENTINELS", (("kd", "digits"), ("rkd", "digits")))
    monkeypatch.setattr(sentinels.sources, "of_arm", lambda name, world: f"code of {name}")
    monkeypatch.setattr(sentinels, "platform_now", lambda: "here")


@pytest.mark.usefixtures("plain")
def test_other_bits_begin_an_epoch(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "sentinels.json")
    found = {("kd", "digits"): "a", ("rkd", "digits"): "b"}
    assert look(kept, found) == (1, [])
    assert look(kept, found) == (1, [])
    assert look(kept, {**found, ("rkd", "digits"): "c"}) == (2, ["rkd on digits"])
    assert look(kept, {**found, ("rkd", "digits"): "c"}) == (2, [])


@pytest.mark.usefixtures("plain")
def test_a_changed_method_says_nothing_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path / "sentinels.json")
    found = {("kd", "digits"): "a", ("rkd", "digits"): "b"}
    look(kept, found)
    monkeypatch.setattr(sentinels.sources, "of_arm", lambda name, world: f"new code of {name}")
    assert look(kept, {**found, ("rkd", "digits"): "c"}) == (1, [])
    monkeypatch.setattr(sentinels, "platform_now", lambda: "elsewhere")
    assert look(kept, {("kd", "digits"): "x", ("rkd", "digits"): "y"}) == (1, [])
    assert set(kept.read()["platforms"]) == {"here", "elsewhere"}


def test_damaged_sentinels_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "sentinels.json").write_text("{}")
    with pytest.raises(UsageError, match="is damaged"):
        Kept(tmp_path / "sentinels.json").read()


@pytest.mark.parametrize("sentinel", SENTINELS, ids=" on ".join)
def test_sentinel_ends_with_the_stored_bits(sentinel: tuple[str, str]) -> None:
    """If this fails the engine computes something else: `limbeck bench` begins a core epoch."""
    stored = Path(__file__).resolve().parents[2] / "results" / "sentinels.json"
    here = Kept(stored).read()["platforms"].get(sentinels.platform_now())
    if here is None:
        pytest.skip(f"no bits are stored for {sentinels.platform_now()}")
    source, digest = here[" on ".join(sentinel)]
    if source != sentinels.sources.of_arm(*sentinel):
        pytest.skip("the method's own code was changed, so its bits say nothing of the engine")
    assert bits(sentinel) == digest


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rdk"], "no method is called 'rdk'"),
        (["kd", "--jobs", "0"], "--jobs is 0; give a number from 1 to 1024"),
        (["--again", "1000"], "--again runs a seed of one method; 0 are named"),
        (["kd", "--again", "7", "--results", "none"], "no row of 'kd' with seed 7 is stored"),
        (["--room", "attic"], "the room 'attic' is not known"),
        (["kd", "--ray", "127.0.0.1:1"], "no Ray cluster answers"),
    ],
)
def test_mistakes_are_sentences(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


def test_bench_of_one_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command, with a definition that is small: rows, a verdict, the same row again."""
    from limbeck.bench import digest, runner
    from limbeck.bench import trial as trials
    from limbeck.bench.trial import Defined, Trial
    from limbeck.cli import benching

    defined = Defined(
        "rkd",
        "vision",
        1,
        Trial(
            claim="Relations help.",
            world="blobs(n=64)",
            settings={"rkd": ("rkd(distance=1, angle=1)",)},
            against=("labels",),
            seeds=12,
            budget={"steps": 3, "batch": 16},
        ),
        tmp_path / "rkd.py",
        None,
    )
    monkeypatch.setattr(trials, "defined", lambda key: (defined,))
    monkeypatch.setattr(sentinels, "SENTINELS", (("labels", "blobs"),))
    monkeypatch.setattr(runner, "committed", lambda trial: "abc")
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "rkd", "--jobs", "1"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("rkd, ")
    assert "Relations help." in told.out
    assert "24/24" in told.err
    rows = [json.loads(r) for r in (tmp_path / "results/trials/rkd.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == list(range(1000, 1012))
    assert all(row["commit"] == "abc" and row["core"] == 1 for row in rows)
    assert main(["bench", "rkd", "--jobs", "1", "--again", "1003"]) == 0
    assert capsys.readouterr().out.count("the same") == 2
    assert benching._changed(defined, digest.Store(tmp_path / "results" / "trials")) is False
