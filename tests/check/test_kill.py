"""A run killed by signal 9 at any moment and started again ends with the same bits.

A handful of methods, which rotates with the commit; `limbeck check` stops and resumes every method.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.registry import cards

HERE = Path(__file__).parent
KEYS = [entry.card.key for entry in cards()]
HANDFUL = 3


def commit() -> int:
    """A number that is another at each commit; 0 where there is none."""
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return int(asked.stdout.strip()[:8], 16) if asked.returncode == 0 else 0


def test_the_handful_rotates() -> None:
    def chosen(number: int) -> list[str]:
        return random.Random(number).sample(KEYS, min(HANDFUL, len(KEYS)))

    assert len({tuple(chosen(number)) for number in range(20)}) > 1
    assert {key for number in range(200) for key in chosen(number)} == set(KEYS)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not hasattr(os, "fork"):
        pytest.skip("no signal 9 on this system")
    folder = tmp_path_factory.mktemp("killed")
    keys = random.Random(commit()).sample(KEYS, min(HANDFUL, len(KEYS)))
    command = [sys.executable, str(HERE / "killing.py"), str(folder), *keys]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads((folder / "told.json").read_text("utf-8"))
    assert list(found) == keys
    return found


def test_runs_were_killed(told: dict[str, Any]) -> None:
    for key, each in told.items():
        assert each["whole"], f"{key} wrote nothing"
        assert each["kills"] > 0, f"{key} was over before it could be killed"


def test_a_killed_run_ends_with_the_same_bits(told: dict[str, Any]) -> None:
    for key, each in told.items():
        assert each["killed"] == each["whole"], key
