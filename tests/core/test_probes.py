"""The contract on eight hard probes: stopped, killed, and in two processes, equal to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _probes import JOINS, PROBES, STOPS, Net, Stopped, play
from torch import nn

SCRIPT = str(Path(__file__).with_name("_probes.py"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole():
    """Each probe, run through."""
    return {name: play(name) for name in PROBES}


def scripted(*words):
    """Run the script with one thread a process."""
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=570,
    )
    assert done.returncode == 0, done.stderr[-9000:]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Each probe in processes that kill themselves."""
    folder = tmp_path_factory.mktemp("killed")
    scripted(SCRIPT, "kill", str(folder))
    return json.loads((folder / "kill.json").read_text())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Each probe, and each join of gradients, in two processes of one launch."""
    folder = tmp_path_factory.mktemp("two")
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    scripted(*launch, SCRIPT, "two", str(folder))
    return json.loads((folder / "two.json").read_text())


def test_there_are_eight_and_batchnorm_and_dropout_are_in_them():
    assert len(PROBES) == 8
    kinds = {type(m) for m in Net().modules()}
    assert kinds >= {nn.BatchNorm1d, nn.Dropout}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_trains_and_a_second_run_is_the_same(name, whole):
    other = PROBES[name](1)  # a run in memory with another seed
    assert play(name) == whole[name]
    rows = json.loads(whole[name]["log"])
    assert rows
    assert json.dumps(other.log) != whole[name]["log"]


@pytest.mark.parametrize("name", PROBES)
def test_stopped_at_several_steps_and_resumed(name, whole, tmp_path):
    for stop in STOPS.get(name, (2, 5, 2)):
        with pytest.raises(Stopped):
            play(name, tmp_path / "run", stop=stop)
    assert play(name, tmp_path / "run") == whole[name]
    assert play(name, tmp_path / "run") == whole[name]  # of the finished run: read, not trained


@pytest.mark.parametrize("name", PROBES)
def test_killed_and_resumed(name, whole, killed):
    assert killed[name]["codes"] == [-9] * len(STOPS.get(name, (2, 5, 2))) + [0]
    assert killed[name]["told"] == whole[name]
    rows = [tuple(row) for row in killed[name]["rows"]]
    assert len(rows) == len(set(rows)) == {"clients": 90, "masks": 15}.get(name, 9)


@pytest.mark.parametrize("name", [*PROBES, *JOINS])
def test_two_processes_equal_accumulation(name, two):
    assert two["processes"] == 2
    first, second = two["everyone"]
    assert first[name] == second[name]
    assert first[name] == play(name, accumulate=2)
    if name not in ("given", "surgery"):
        assert first[name] != play(name)  # the premise: two micro-batches are not one batch


@pytest.mark.parametrize("name", ["centred", "roles", "per_term"])
def test_two_processes_stop_and_resume(name, two):
    for each in two["everyone"]:
        assert each[f"{name} resumed"] == each[name]
