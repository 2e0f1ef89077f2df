"""Two processes equal one that accumulates two micro-batches, to the bit, for every method."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.check.case import Case
from limbeck.registry import cards

HERE = Path(__file__).parent
KEYS = [entry.card.key for entry in cards()]
RIGHT = [str(path) for path in sorted((HERE / "right").glob("*.py"))]
DRIFTS = str(HERE / "drifts" / "drifts.py")
METHODS = [*KEYS, *RIGHT, DRIFTS]

pytestmark = pytest.mark.xdist_group("two processes")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What one process says, and what each of two says: from one launch each."""
    folder = tmp_path_factory.mktemp("ends")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for launcher in ([], torchrun):
        command = [sys.executable, *launcher, str(HERE / "launch.py"), str(folder), *METHODS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-4000:]
    read = {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    return {"one": [read["1-0"]], "two": [read["2-0"], read["2-1"]]}


def test_there_are_two_processes(told: dict[str, list[dict[str, Any]]]) -> None:
    assert [t["processes"] for t in told["one"]] == [1]
    assert [t["processes"] for t in told["two"]] == [2, 2]
    assert len({t["pid"] for t in told["one"] + told["two"]}) == 3


@pytest.mark.parametrize("method", [*KEYS, *RIGHT], ids=lambda method: Path(method).stem)
def test_two_processes_equal_accumulation(
    method: str, told: dict[str, list[dict[str, Any]]]
) -> None:
    one, first, second = (t["ends"][method] for t in (*told["one"], *told["two"]))
    reason = Case(method).exempt.get("processes")
    if reason is not None:
        assert str(reason).strip(), "EXEMPT gives no reason for 'processes'"
        assert not one == first == second, "exemption from 'processes' not needed"
        return
    assert "raised" not in one, one["raised"]
    assert "raised" not in first, first["raised"]
    assert first == second, "the two processes drift apart"
    assert first == one


def test_what_drifts_is_noticed(told: dict[str, list[dict[str, Any]]]) -> None:
    one, first, second = (t["ends"][DRIFTS] for t in (*told["one"], *told["two"]))
    assert "raised" not in {**one, **first, **second}
    assert first["fit"] != one["fit"]
