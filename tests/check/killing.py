"""Kills runs with signal 9 while they go on, goes on with them, and says what they end with.

    python killing.py FOLDER KEY ...

A run that is not killed and each that is are processes of their own, forked from this one, which
never trains anything itself.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from limbeck.check.case import SEED, Case
from limbeck.core.card import call
from limbeck.runs.door import run

KILLS = 3
FILES = ("student.safetensors", "metrics.jsonl", "result.json")


def forked(f: Callable[[], object]) -> int:
    """Begin f in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            f()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def train(case: Case, folder: Path) -> None:
    run(case.method, case.task(), seed=SEED, out=folder, device="cpu", checkpoint=3)


def lines(folder: Path) -> int:
    """How far a run is: rows of its log, or stored stages where it has none."""
    path = folder / "metrics.jsonl"
    if path.exists():
        return path.read_bytes().count(b"\n")
    return len(list(folder.glob("checkpoints/*")))


def kill(case: Case, folder: Path, after: int) -> bool:
    """Whether a run was killed, once it had gone so many rows further."""
    begun = lines(folder)
    pid = forked(lambda: train(case, folder))
    while lines(folder) < begun + after or not (folder / "run.json").exists():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "the run failed"
            return False
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def whole(case: Case, folder: Path) -> None:
    pid = forked(lambda: train(case, folder))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the run failed"


def digests(folder: Path) -> dict[str, str]:
    found = {name: folder / name for name in FILES if (folder / name).exists()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


def killed(key: str, folder: Path) -> dict[str, Any]:
    case = Case(key)
    # All that a run imports is imported before the first fork.
    import_module(f"limbeck.bench.worlds.{call(case.card.world)[0]}")
    case.method  # noqa: B018
    whole(case, folder / "whole")
    draws = random.Random(key)
    total = lines(folder / "whole")
    kills = 0
    for _ in range(KILLS):
        kills += kill(case, folder / "killed", draws.randint(1, max(1, total // (KILLS + 1))))
    whole(case, folder / "killed")
    told = {"whole": digests(folder / "whole"), "killed": digests(folder / "killed")}
    return {**told, "kills": kills, "rows": total}


def main(folder: str, *keys: str) -> None:
    torch.set_num_threads(1)
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]).step()  # torch imports much for it
    told = {key: killed(key, Path(folder, key)) for key in keys}
    Path(folder, "told.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
