"""`limbeck run` and `limbeck resume`, as a user calls them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limbeck.cli import main
from limbeck.cli._records import masked

TASK = """
import torch
from torch import nn
from limbeck import Budget, Optimiser, Task

def net(width):
    hidden = (nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1))
    return nn.Sequential(*hidden, nn.Linear(width, 3))

def make(steps=STEPS):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(160, 6, generator=g)
    y = x[:, :3].argmax(1)
    torch.manual_seed(2)
    budget = Budget(steps=steps, batch=16, optimiser=Optimiser("sgd", lr=0.1, momentum=0.9))
    return Task(net(16), lambda: net(4), (x[:96], y[:96]), test=(x[96:], y[96:]), budget=budget)

def nothing():
    return 3

def nan():
    task = make()
    task.train[0][5, 2] = float("nan")
    return task

def labels():
    task = make()
    task.test[1][3] = 7
    return task
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK.replace("STEPS", "12"))
    return tmp_path


def limbeck(*words: str) -> int:
    return main(list(words))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence of a call that must be refused."""
    capsys.readouterr()
    assert limbeck(*words) == 2
    out = capsys.readouterr()
    lines = out.err.strip().splitlines()
    assert len(lines) == 1, out.err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_run_writes_what_it_was_and_what_came_out(place: Path) -> None:
    assert limbeck("run", "kd", "--task", "task.py:make", "--tau", "2", "--out", "r") == 0
    told = json.loads((place / "r/run.json").read_text())
    assert told["method"] == "kd"
    assert told["fields"] == {"label": 0.1, "kd": 0.9, "tau": 2.0}
    assert "--tau 2" in told["command"]
    result = json.loads((place / "r/result.json").read_text())
    assert {"method", "fields", "world", "seed", "score", "teacher"} <= set(result)
    assert result["score_of"] == "test"
    rows = [json.loads(line) for line in (place / "r/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(12))
    assert set(rows[0]["terms"]) == {"label", "kd"}
    assert (place / "r/student.safetensors").exists()


def test_equal_runs_give_equal_files(place: Path) -> None:
    for out in ("a", "b"):
        assert limbeck("run", "kd", "--task", "task.py:make", "--out", out) == 0
    assert limbeck("run", "kd", "--task", "task.py:make", "--seed", "1", "--out", "c") == 0
    a, b, c = ((place / out / "student.safetensors").read_bytes() for out in "abc")
    assert a == b
    assert a != c


def test_seeds_give_mean_and_spread(place: Path) -> None:
    assert limbeck("run", "kd", "--task", "task.py:make", "--seeds", "3", "--out", "many") == 0
    told = json.loads((place / "many/result.json").read_text())
    each = [
        json.loads((place / f"many/seed-{s}/result.json").read_text())["score"] for s in range(3)
    ]
    assert told["score"]["each"] == each
    assert told["score"]["mean"] == pytest.approx(sum(each) / 3)


def test_an_own_method_file_runs_and_dry_trains_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(__file__).parents[2] / "src/limbeck/vision/kd.py"
    (place / "mine.py").write_text(source.read_text().replace('key="kd"', 'key="mine"'))
    assert limbeck("run", "mine.py", "--task", "task.py:make", "--out", "own") == 0
    assert json.loads((place / "own/result.json").read_text())["method"] == "mine"
    capsys.readouterr()
    assert limbeck("run", "mine.py", "--task", "task.py:make", "--dry") == 0
    told = capsys.readouterr().out
    assert "student.logits: (4, 3)" in told
    assert "seconds a step" in told
    assert not (place / "runs").exists()


def test_killed_at_any_moment_it_ends_with_the_same_bits(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "task.py").write_text(TASK.replace("STEPS", "400"))
    words = ["run", "kd", "--task", "task.py:make", "--quiet", "--out"]
    assert limbeck(*words, "whole") == 0
    shell = [sys.executable, "-m", "limbeck", *words, "killed"]
    process = subprocess.Popen(shell, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics = place / "killed/metrics.jsonl"
    while process.poll() is None and (
        not metrics.exists() or len(metrics.read_text().splitlines()) < 60
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed before its end"
    assert not (place / "killed/result.json").exists()
    (place / "killed/time.json").write_text('{"seconds": 7200.5, "sittings": 1}')  # it took long
    assert limbeck("resume", "killed") == 0
    told = json.loads((place / "killed/time.json").read_text())
    assert (told["sittings"], told["seconds"] > 7200.5) == (2, True)
    said = capsys.readouterr().out
    assert re.search(r"; it took 2:\d\d:\d\d h in 2 sittings; in killed$", said, re.M), said
    assert " h in 2 sittings" in (place / "killed/report.html").read_text()
    assert "sittings" not in (place / "whole/report.html").read_text()
    assert limbeck("run", *words[1:], "killed") == 0  # it is finished, and takes no time
    assert json.loads((place / "killed/time.json").read_text()) == told
    assert (place / "killed/student.safetensors").read_bytes() == (
        place / "whole/student.safetensors"
    ).read_bytes()
    assert (place / "killed/metrics.jsonl").read_text() == (
        place / "whole/metrics.jsonl"
    ).read_text()


def test_resume_before_the_first_checkpoint_begins_again_and_after_the_end_says_so(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert limbeck("run", "kd", "--task", "task.py:make", "--out", "r") == 0
    whole = (place / "r/student.safetensors").read_bytes()
    capsys.readouterr()
    assert limbeck("resume", "r") == 0
    assert "is finished" in capsys.readouterr().out
    for name in (
        "result.json",
        "student.safetensors",
        "checkpoints/fit.done.safetensors",
        "metrics.jsonl",
    ):
        (place / "r" / name).unlink()
    assert limbeck("resume", "r") == 0
    assert (place / "r/student.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "fitnet", "--task", "task.py:make"), "did you mean 'fitnets'"),
        (("run", "kd", "--task", "task.py:make", "--tua", "2"), "did you mean '--tau'"),
        (
            ("run", "kd", "--task", "task.py:make", "--tau", "-1"),
            "--tau is -1.0; it must be above 0",
        ),
        (("run", "kd", "--task", "task.py:make", "--tau", "warm"), "--tau is 'warm'"),
        (("run", "kd", "--task", "task.py:mak"), "has no 'mak'; did you mean 'make'"),
        (("run", "kd", "--task", "none.py:make"), "there is no file"),
        (("run", "kd", "--task", "task.py:nothing"), "gave a int; it must give a limbeck.Task"),
        (("run", "kd", "--task", "task.py:nan"), "not finite (the first in sample 5)"),
        (("run", "kd", "--task", "task.py:labels"), "labels from 0 to 7, but there are 3 classes"),
        (("run", "kd", "--task", "task.py:make", "--world", "digits"), "both --world and --task"),
        (("run", "kd", "--world", "digit"), "did you mean 'digits'"),
        (("run", "kd", "--task", "task.py:make", "--seeds", "0"), "it must be above 0"),
        (("run", "kd", "--task", "task.py:make", "--device", "toaster"), "cannot be used here"),
        (("resume", "nowhere"), "there is no run in nowhere"),
    ],
)
def test_bad_words_are_refused_and_leave_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert told in refused(capsys, *words)
    assert not list(place.glob("runs/*"))


def test_another_run_in_the_folder_or_a_changed_task_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert limbeck("run", "kd", "--task", "task.py:make", "--out", "r") == 0
    before = (place / "r/student.safetensors").read_bytes()
    assert "holds another run (fields" in refused(
        capsys, "run", "kd", "--task", "task.py:make", "--tau", "3", "--out", "r"
    )
    assert "another budget" in refused(
        capsys, "run", "kd", "--task", "task.py:make", "--steps", "9", "--out", "r"
    )
    (place / "r/result.json").unlink()
    (place / "task.py").write_text("raise SystemExit('executed')")
    assert "has changed" in refused(capsys, "resume", "r")
    (place / "full").mkdir()
    (place / "full/thing").write_text("")
    (place / "task.py").write_text(TASK.replace("STEPS", "12"))
    assert "holds no run" in refused(capsys, "run", "kd", "--task", "task.py:make", "--out", "full")
    assert (place / "r/student.safetensors").read_bytes() == before


def test_a_damaged_checkpoint_or_record_is_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert limbeck("run", "kd", "--task", "task.py:make", "--out", "r") == 0
    (place / "r/result.json").unlink()
    checkpoint = place / "r/checkpoints/fit.done.safetensors"
    whole = bytearray(checkpoint.read_bytes())
    whole[-3] ^= 1
    checkpoint.write_bytes(whole)
    assert "fit.done.safetensors is damaged" in refused(capsys, "resume", "r")
    checkpoint.write_bytes(b"junk")
    assert "is damaged" in refused(capsys, "resume", "r")
    (place / "r/run.json").write_text("{")
    assert "run.json cannot be read" in refused(capsys, "resume", "r")


def test_secrets_are_masked() -> None:
    told = masked(["limbeck", "run", "kd", "--api-key", "abc", "--token=def", "--tau", "2"])
    assert told == "limbeck run kd --api-key '***' '--token=***' --tau 2"


def test_a_repeat_without_the_baseline_keeps_what_was_trained(place: Path) -> None:
    words = ("run", "kd", "--task", "task.py:make", "--out", "r")
    assert limbeck(*words, "--baseline") == 0
    before = json.loads((place / "r" / "result.json").read_text())
    assert limbeck(*words) == 0
    assert json.loads((place / "r" / "result.json").read_text()) == before
    assert before["baseline"] > 0
