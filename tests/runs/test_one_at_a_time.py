"""Two runs do not write to one folder at once."""

from dataclasses import replace
from pathlib import Path

import pytest

import limbeck
from limbeck.bench import worlds
from limbeck.core.files import Lock
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("one-at-a-time")


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    task = worlds.make("blobs(n=64)", tiny=True)
    task = replace(task, budget=replace(task.budget, steps=2))
    first = limbeck.run("kd", task, out=tmp_path / "run").facts
    other = Lock(tmp_path / "run" / "checkpoints" / "lock")
    with pytest.raises(UsageError, match="is being written by another process"):
        limbeck.run("kd", task, out=tmp_path / "run")
    other.close()
    again = limbeck.run("kd", task, out=tmp_path / "run").facts
    assert first["score"] == again["score"]
