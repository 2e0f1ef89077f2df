"""`limbeck cache`, as a user calls it: the same bits, going on after a kill, what it shows."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limbeck.cli import main

pytestmark = pytest.mark.xdist_group("cache command")

# The teacher writes down how many samples it is shown in each pass, and can be made slow.
TASK = """
import os, time
import torch
from torch import nn
from limbeck import Budget, Task

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(),
                                 nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, x):
        time.sleep(float(os.environ.get("SLOW", "0")))
        with open("asked", "a") as file:
            file.write(f"{len(x)}\\n")
        return self.net(x)

def make():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(160, 6, generator=g)
    y = x[:, :3].argmax(1)
    torch.manual_seed(2)
    student = lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    taps = {"mid": ("net.2", "1")}
    return Task(Slow(), student, (x[:96], y[:96]), test=(x[96:], y[96:]),
                budget=Budget(steps=40, batch=16), taps=taps)
"""
CACHE = ("cache", "--task", "task.py:make", "--entries", "logits,mid", "--rows", "8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK)
    return tmp_path


def asked(place: Path) -> list[int]:
    """How many samples the teacher was shown, pass by pass, since this was last asked."""
    path = place / "asked"
    found = [int(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("method", ["kd", "fitnets"])
def test_a_cached_run_equals_the_live_one_to_the_bit(place: Path, method: str) -> None:
    # Passes of a few rows would go through other kernels, whose last digits differ.
    assert main([*CACHE[:-2], "--out", "kept"]) == 0
    assert asked(place)[-1] == 96
    run = ["run", method, "--task", "task.py:make", "--quiet", "--out"]
    assert main([*run, "live"]) == 0
    live = asked(place)
    assert main([*run, "read", "--cache", "kept"]) == 0
    read = asked(place)
    assert live.count(16) >= 40, "the live teacher was asked at each step"
    assert 16 not in read, "the cached one was not"
    for name in ("student.safetensors", "metrics.jsonl"):
        assert (place / "live" / name).read_bytes() == (place / "read" / name).read_bytes()


def test_killed_it_goes_on_where_it_was(place: Path) -> None:
    assert main([*CACHE, "--out", "whole"]) == 0
    asked(place)
    shell = [sys.executable, "-m", "limbeck", *CACHE, "--out", "killed"]
    process = subprocess.Popen(shell, env={**os.environ, "SLOW": "0.1"})
    until = time.monotonic() + 60
    log = place / "asked"
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = asked(place)
    assert sum(before) < 96, "it was to be killed before its end"
    assert main([*CACHE, "--out", "killed"]) == 0
    after = asked(place)
    assert sum(before) + sum(after) in (96, 96 + 8), "at most the pass under way is repeated"
    for name in ("cache.json", "logits.rows", "mid.rows", "checksums"):
        assert (place / "whole" / name).read_bytes() == (place / "killed" / name).read_bytes()


def test_it_shows_rows_time_left_and_size(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("SLOW", "0.1")
    assert main([*CACHE, "--out", "kept"]) == 0
    told = capsys.readouterr()
    lines = [line.strip() for line in told.err.replace("\r", "\n").splitlines() if "rows" in line]
    assert [int(line.split()[0]) for line in lines] == list(range(8, 97, 8))
    assert lines[0] == "8 of 96 rows"
    left = [re.fullmatch(r"\d+ of 96 rows, (\d+) s left", line) for line in lines[1:-1]]
    assert all(left)
    assert int(left[0][1]) >= 1, "ten passes of a tenth of a second are to come"
    assert lines[-1] == "96 of 96 rows"
    size = sum(path.stat().st_size for path in (place / "kept").iterdir())
    assert f"kept holds logits, mid, {size / 1e3:.1f} kB; read it with" in told.out


def test_a_refused_cache_names_what_differs(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*CACHE, "--out", "kept"]) == 0
    words = ("run", "kd", "--task", "task.py:make", "--cache", "kept", "--quiet", "--out", "r")
    for old, new, told in (
        ("manual_seed(2)", "manual_seed(3)", ["its teacher's weights"]),
        ("manual_seed(1)", "manual_seed(4)", ["its samples, or augment"]),
        ("(x[:96], y[:96])", "(x[:95], y[:95])", ["its length (96 then, 95 now)", "its samples"]),
    ):
        (place / "task.py").write_text(TASK.replace(old, new))
        capsys.readouterr()
        assert main(list(words)) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "is stale: it differs in" in err
        assert [each for each in told if each not in err] == []
        assert err.count(" then, ") == len(told)
