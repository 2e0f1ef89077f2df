"""The command `demo`: what it writes, that it goes on, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from limbeck import cli
from limbeck.cli._demo import Job, Plan
from limbeck.cli.demo import make, print_table
from limbeck.core.card import call
from limbeck.errors import UsageError
from limbeck.registry import cards, find

TINY = Plan(
    world="digits(n=64, teacher='cnn', student='mlp-tiny')",
    crowd="digits(n=64, teacher='cnn+resnet-small', student='mlp-tiny')",
    steps=12,
    batch=32,
    fields=(("kd", (("tau", 2.0),)),),
)


def jobs(
    folder: Path, plan: Plan = TINY, seeds: Sequence[int] = (0, 1), methods: Sequence[str] = ("kd",)
) -> list[Job]:
    return [Job(key, s, folder, plan, "a command") for s in seeds for key in ("scratch", *methods)]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command line says of a mistake, in one sentence."""
    assert cli.main(["demo", *words]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith("error: ")
    assert out.err.count("\n") == 1
    return out.err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A demo of two seeds."""
    folder = tmp_path_factory.mktemp("demo") / "deep" / "run"
    return folder, make(folder, jobs(folder), "limbeck demo --some", quiet=True)


def test_result_json_says_all(made: tuple[Path, dict[str, Any]]) -> None:
    folder, told = made
    assert told == json.loads((folder / "result.json").read_text())
    assert list(told["students"]) == ["kd"]
    for arm in (told["teacher"], told["scratch"], *told["students"].values()):
        assert set(arm["accuracy"]) == {"mean", "sd", "each"}
        assert len(arm["accuracy"]["each"]) == 2
        assert 0 < arm["accuracy"]["mean"] <= 1
        assert arm["latency_ms"] > 0
    kd, scratch = told["students"]["kd"], told["scratch"]
    assert kd["parameters"] == scratch["parameters"] < told["teacher"]["parameters"]
    assert kd["steps"] == scratch["steps"] == 12
    pairs = zip(kd["accuracy"]["each"], scratch["accuracy"]["each"], strict=True)
    assert kd["gain"]["each"] == pytest.approx([a - b for a, b in pairs])
    assert kd["fields"] == {"label": 0.1, "kd": 0.9, "tau": 2.0}
    assert told["seeds"] == [0, 1]
    assert told["command"] == "limbeck demo --some"
    assert [told["data"][name] for name in ("train", "valid", "test")] == [64, 200, 597]
    assert len(told["data"]["pictures"]) == len(told["data"]["classes"]) == 10


def test_each_run_is_an_ordinary_one(made: tuple[Path, dict[str, Any]]) -> None:
    folder, told = made
    for name, arm in {"scratch": told["scratch"], **told["students"]}.items():
        assert arm["runs"] == [f"{name}/seed-0", f"{name}/seed-1"]
        for place, accuracy in zip(arm["runs"], arm["accuracy"]["each"], strict=True):
            result = json.loads((folder / place / "result.json").read_text())
            assert (result["score"], result["score_of"]) == (accuracy, "test")
            assert (folder / place / "student.safetensors").exists()
            assert json.loads((folder / place / "run.json").read_text())["threads"] == 1


def test_the_page_is_written(made: tuple[Path, dict[str, Any]]) -> None:
    written = (made[0] / "report.html").read_text(encoding="utf-8")
    assert "limbeck demo --some" in re.sub("<[^>]+>", "", written)
    assert written.count("<polyline") == 3  # label; label and kd


def test_a_finished_demo_says_so(
    made: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, told = made
    (folder / "report.html").unlink()
    before = (folder / "result.json").stat().st_mtime_ns
    assert make(folder, jobs(folder), "another") == told
    assert "is finished" in capsys.readouterr().out
    assert (folder / "result.json").stat().st_mtime_ns == before
    assert (folder / "report.html").exists()


def test_more_seeds_are_added_to_what_is_there(made: tuple[Path, dict[str, Any]]) -> None:
    folder, told = made
    log = folder / "kd" / "seed-0" / "metrics.jsonl"
    before = log.stat().st_mtime_ns
    try:
        more = make(folder, jobs(folder, seeds=(0, 1, 2)), "more", quiet=True)
        assert more["scratch"]["accuracy"]["each"][:2] == told["scratch"]["accuracy"]["each"]
        assert len(more["students"]["kd"]["gain"]["each"]) == 3
        assert log.stat().st_mtime_ns == before
    finally:
        (folder / "result.json").write_text(json.dumps(told))


def test_the_table_is_plain_in_a_pipe(
    made: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(made[1])
    head, teacher, scratch, kd = capsys.readouterr().out.splitlines()
    assert head.split("  ")[-1] == "one sample"
    assert [line.split()[0] for line in (teacher, scratch, kd)] == ["teacher", "scratch", "kd"]
    assert "+-" in kd
    assert "\x1b" not in kd


def test_another_folder_is_left_alone(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.txt").write_text("mine")
    assert "holds no demo" in said(capsys, "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.txt"]
    assert "is a file" in said(capsys, "--out", str(tmp_path / "theirs.txt"))
    assert "cannot be made" in said(capsys, "--out", str(tmp_path / "theirs.txt" / "inner"))
    with pytest.raises(UsageError, match="other settings"):
        make(made[0], jobs(made[0], replace(TINY, lr=0.5)), "x", quiet=True)


def test_a_damaged_file_is_named(
    made: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (made[0] / "demo.json").read_text()
    try:
        (made[0] / "demo.json").write_text("{")
        assert "demo.json cannot be read" in said(capsys, "--out", str(made[0]))
    finally:
        (made[0] / "demo.json").write_text(whole)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--seeds", "0"), "--seeds is 0; it must be from 1 to 1000"),
        (("--seeds", "many"), "--seeds is 'many'; it must be a whole number"),
        (("--methods", "dk"), "did you mean 'kd'"),
        (("--methods", " , "), "--methods names no method"),
        (("--methods", "kd,diswot"), "diswot gives scores, not a model"),
        (("--method", "kd"), "did you mean '--methods'?"),
        (("kd",), "does not take 'kd'"),
    ],
)
def test_mistakes_are_sentences(
    words: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in said(capsys, *words, "--out", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_what_a_worker_refuses_is_said_here(tmp_path: Path) -> None:
    plan = replace(TINY, world="digits(n=64, teacher='cnn', student='mlp-tiny', data_seed=0)")
    bad = replace(plan, fields=(("kd", (("tau", -1.0),)),))
    with pytest.raises(UsageError, match="tau is -1"):
        make(tmp_path / "new", jobs(tmp_path / "new", bad, seeds=(0,)), "x", quiet=True)


# Those that can learn the demo's digits, and those that need bags, shifts or several modalities.
WORLDS = {e.card.key: call(e.card.world)[0] for e in cards(gives="model") if e.room != "language"}
PICTURES = [key for key, world in WORLDS.items() if world in ("digits", "shapes", "multilabel")]
OTHERS = sorted(WORLDS.keys() - set(PICTURES))


@pytest.mark.slow
@pytest.mark.parametrize("key", OTHERS)
def test_a_method_for_other_data_is_refused(key: str, tmp_path: Path) -> None:
    plan = replace(TINY, steps=4, fields=())
    with pytest.raises(UsageError, match=r"give|name a module"):
        make(tmp_path / "new", jobs(tmp_path / "new", plan, (0,), (key,)), "x", quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("key", PICTURES)
def test_every_method_that_gives_a_model_can_be_shown(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = TINY.world.replace("mlp-tiny", "cnn-tiny")  # some read maps, as the demo's student has
    plan = replace(TINY, world=world, steps=4, fields=())
    told = make(tmp_path / "new", jobs(tmp_path / "new", plan, (0,), (key,)), "x", quiet=True)
    arm = told["students"][key]
    assert len(arm["accuracy"]["each"]) == len(arm["gain"]["each"]) == 1
    several = "members" in find(key).card.needs
    assert ("teacher" in arm) == several
    print_table(told)
    table, page = capsys.readouterr().out, (tmp_path / "new" / "report.html").read_text()
    for written in (table, page):
        assert (f"{key} had {plan.crowd_teacher}" in written) == several
    assert key in page


SCRIPT = """
import sys
from pathlib import Path
from limbeck.cli.demo import make
from limbeck.cli._demo import Job, Plan

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    plan = Plan(world="digits(n=64, teacher='cnn', student='mlp-tiny')", steps=int(sys.argv[2]))
    jobs = [Job(key, seed, folder, plan, "c") for seed in (0, 1) for key in ("scratch", "kd")]
    make(folder, jobs, "c", quiet=True)
"""


def running(folder: Path) -> list[int]:
    """Processes that were started with this folder, or by one that was."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            session = int((path / "stat").read_text().rpartition(")")[2].split()[3])
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if session == STARTED.get(folder) and state != "Z":
            found.append(int(path.name))
    return found


STARTED: dict[Path, int] = {}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_killed_demo_leaves_nobody_and_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folder, steps = tmp_path / "demo", "400"
    command = [sys.executable, str(script), str(folder), steps]
    process = subprocess.Popen(command, start_new_session=True)
    STARTED[folder] = process.pid
    until = time.monotonic() + 120
    while not list(folder.glob("*/seed-*/metrics.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    assert len(running(folder)) > 1  # the premise: there are workers
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 30
    while running(folder):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not (folder / "result.json").exists()
    subprocess.run(command, check=True)
    whole = tmp_path / "whole"
    subprocess.run([sys.executable, str(script), str(whole), steps], check=True)
    first, second = (json.loads((f / "result.json").read_text()) for f in (folder, whole))
    for arm in ("scratch", "kd"):
        a, b = (t["scratch"] if arm == "scratch" else t["students"][arm] for t in (first, second))
        assert a["accuracy"] == b["accuracy"]
        student = f"{arm}/seed-1/student.safetensors"
        assert (folder / student).read_bytes() == (whole / student).read_bytes()
