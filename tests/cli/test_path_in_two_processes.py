"""The whole path under torchrun: a teacher trained first, a student, a baseline, a page."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

from limbeck.cli import main

pytestmark = pytest.mark.xdist_group("path in two processes")

NETS = """
from torch import nn

def net(width, classes):
    norm = nn.BatchNorm1d(width)
    return nn.Sequential(nn.Linear(4, width), norm, nn.ReLU(), nn.Dropout(0.1),
                         nn.Linear(width, classes))

class Big(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.net = net(32, classes)

    def forward(self, x):
        return self.net(x)

class Small(Big):
    def __init__(self, classes):
        super().__init__(classes)
        self.net = net(4, classes)
"""

# Python imports it first of all. Each process says its number, and which files it opens to write,
# makes, moves or removes.
WATCH = """
import os, sys

if "RANK" in os.environ:
    told = open(os.environ["TOLD"] + "." + os.environ["RANK"], "a")
    told.write(f"pid {os.getpid()}\\n")
    told.flush()

    def watch(event, args):
        if event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            told.write(f"open {args[0]}\\n")
        elif event in ("os.rename", "os.link"):
            told.write(f"into {args[1]}\\n")
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            told.write(f"{event} {args[0]}\\n")
        told.flush()

    sys.addaudithook(watch)
"""

OWN = ("--teacher", "nets.py:Big", "--student", "nets.py:Small", "--data", "table.csv")
RUN = ("run", "kd", *OWN, "--baseline", "--steps", "48", "--batch", "16")
SAME = ("student.safetensors", "teacher.safetensors", "metrics.jsonl", "result.json")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


class Place:
    """A folder with models and data, where commands run in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "nets.py").write_text(NETS)
        (folder / "watch").mkdir()
        (folder / "watch" / "sitecustomize.py").write_text(WATCH)
        draw = random.Random(1)
        rows = [[draw.gauss(0, 1) for _ in range(4)] for _ in range(200)]
        kinds = ["pqr"[max(range(3), key=row.__getitem__)] for row in rows]
        lines = [
            ",".join([*(f"{x:.4f}" for x in row), k]) for row, k in zip(rows, kinds, strict=True)
        ]
        (folder / "table.csv").write_text("\n".join(["a,b,c,d,kind", *lines, ""]))

    def begin(self, name: str, *words: str, two: bool = True) -> subprocess.Popen[str]:
        """Begin a command that has a cache of its own, and whose processes tell what they write."""
        path = os.pathsep.join([str(self.folder / "watch"), os.environ["PYTHONPATH"]])
        own = {"LIMBECK_CACHE": str(self.folder / f"{name}-cache"), "PYTHONPATH": path}
        env = {**os.environ, **own, "TOLD": str(self.folder / f"{name}.told")}
        command = [sys.executable, *(TWO if two else ()), "-m", "limbeck", *words]
        with (
            (self.folder / f"{name}.out").open("w") as out,
            (self.folder / f"{name}.err").open("w") as err,
        ):
            return subprocess.Popen(
                command, cwd=self.folder, env=env, text=True, stdout=out, stderr=err
            )

    def whole(self, name: str, *words: str, two: bool = True) -> None:
        code = self.begin(name, *words, two=two).wait(60)
        assert code == 0, self.said(name, "err")[-3000:]

    def said(self, name: str, stream: str) -> str:
        return (self.folder / f"{name}.{stream}").read_text()

    def told(self, name: str, rank: int) -> list[list[str]]:
        """What a process told: pairs of a word and what it is about."""
        path = self.folder / f"{name}.told.{rank}"
        text = path.read_text() if path.exists() else ""
        return [line.split(" ", 1) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    def pids(self, name: str) -> list[int]:
        """The processes of the last command of a name."""
        found = [[int(x) for word, x in self.told(name, r) if word == "pid"] for r in (0, 1)]
        return [each[-1] for each in found if each]

    def written(self, name: str, rank: int) -> list[str]:
        """What a process did to the run's folder or to the cache, in turn."""
        roots = (f"{name}/", f"{name}-cache")
        lines = ([word, x.strip().removeprefix(f"{self.folder}/")] for word, x in
                 self.told(name, rank))  # fmt: skip
        return [f"{word} {x}" for word, x in lines if x == name or x.startswith(roots)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run in two processes, and the same in one."""
    place = Place(tmp_path_factory.mktemp("two"))
    place.whole("two", *RUN, "--out", "two")
    place.whole("one", *RUN, "--accumulate", "2", "--out", "one", two=False)
    return place


def digests(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def rows(folder: Path, stage: str) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count(f'"stage": "{stage}"') if path.exists() else 0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_processes_equal_one_that_accumulates(place: Place) -> None:
    for name, processes in (("two", 2), ("one", 1)):
        assert json.loads((place.folder / name / "run.json").read_text())["processes"] == processes
        for stage in ("teacher", "fit", "baseline"):
            assert rows(place.folder / name, stage), "nothing was trained"
    assert len(set(place.pids("two"))) == 2
    for name in ("student.safetensors", "teacher.safetensors"):  # whose facts name the budget
        two, one = (load_file(place.folder / folder / name) for folder in ("two", "one"))
        assert two.keys() == one.keys()
        assert all(two[key].numpy().tobytes() == one[key].numpy().tobytes() for key in one)


def test_only_the_first_process_speaks(place: Place) -> None:
    out = place.said("two", "out").splitlines()
    assert len(out) == 1, out
    assert out[0].startswith("kd, seed 0: accuracy ")
    err = place.said("two", "err")
    alone = place.said("one", "err").splitlines()
    sentences = [line for line in alone if " steps in " not in line]
    assert sum("is trained first" in line for line in sentences) == 1
    assert Counter(err.splitlines()) >= Counter(sentences)
    assert all(err.count(sentence) == 1 for sentence in sentences)
    assert "[rank1]" not in err


def test_only_the_first_process_writes(place: Place) -> None:
    assert place.written("two", 1) == []
    did = Counter(place.written("two", 0))
    for name in ("report.html", "result.json", "appraisal.json", "student.safetensors",
                 "teacher.safetensors", "checkpoints/fit.done.safetensors"):  # fmt: skip
        assert did[f"into two/{name}"] == 1, name
        assert (place.folder / "two" / name).is_file()
    left = {path.name for path in (place.folder / "two").iterdir()}
    known = {"run.json", "metrics.jsonl", "checkpoints", "report.html", "result.json", "split.json",
             "time.json"}  # fmt: skip
    assert left == known | {"appraisal.json", "student.safetensors", "teacher.safetensors"}
    told = [json.loads(x) for x in (place.folder / "two/metrics.jsonl").read_text().splitlines()]
    steps = [(row["stage"], row["step"]) for row in told if "terms" in row]
    assert len(steps) == len(set(steps)) == 3 * 48


def test_a_page_can_be_made_of_it(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place.folder / "two"
    assert "accuracy" in (folder / "report.html").read_text()
    assert main(["report", str(folder), "--out", str(place.folder / "page.html")]) == 0
    assert "page.html" in capsys.readouterr().out
    assert (place.folder / "page.html").read_text() == (folder / "report.html").read_text()


def test_killed_in_the_middle_it_ends_with_the_same_bits(place: Place) -> None:
    folder = place.folder / "killed"
    process = place.begin("killed", *RUN, "--out", "killed")
    until = time.monotonic() + 60
    while rows(folder, "fit") < 16:
        assert process.poll() is None, place.said("killed", "err")[-3000:]
        assert time.monotonic() < until
        time.sleep(0.005)
    pids = place.pids("killed")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert len(pids) == 2
    assert process.wait(60) != 0
    assert (folder / "checkpoints" / "fit.now.safetensors").exists(), "it was not in the middle"
    assert not (folder / "result.json").exists()
    place.whole("killed", "resume", "killed")
    assert digests(folder, SAME) == digests(place.folder / "two", SAME)
    assert place.written("killed", 1) == []
    assert len(place.said("killed", "out").splitlines()) == 1


CHOOSE = """
import os, time
from pathlib import Path
from limbeck.cli import _records as records
from limbeck.cli.running import _free_folder

first, free_folder = os.environ["RANK"] == "0", records.free_folder

def quick_first(name):
    while not first and not Path("runs/kd").exists():
        time.sleep(0.01)
    folder = free_folder(name)
    if first:
        folder.mkdir(parents=True)
    return folder

records.free_folder = quick_first
print(_free_folder("kd", "cpu"), flush=True)
"""


def test_without_a_name_all_share_the_folder_that_the_first_chooses(place: Place) -> None:
    (place.folder / "choose.py").write_text(CHOOSE)
    command = [sys.executable, *TWO, "choose.py"]
    done = subprocess.run(command, cwd=place.folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.replace("\n", "") == "runs/kd" * 2  # lines of two may run together


def test_a_dry_run_is_told_once(place: Place) -> None:
    place.whole("dry", *RUN, "--dry")
    out, err = place.said("dry", "out"), place.said("dry", "err")
    for sentence in ("KD(", "would be trained first", "first stage: ", "seconds a step: "):
        assert out.count(sentence) == 1, out
    assert err.count("the labels are column") == 1, err


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("taps", ("--taps", "mid=net.9,net.0"), "has no module 'net.9'"),
        ("models", ("--student", "nets.py:net"), "needs the argument 'width'"),
    ],
)
def test_a_mistake_is_one_sentence_and_ends_both(
    place: Place, name: str, words: tuple[str, ...], sentence: str
) -> None:
    began = time.monotonic()
    assert place.begin(name, *RUN, *words, "--out", name).wait(60) != 0
    assert time.monotonic() - began < 40, "it hung"
    pids = place.pids(name)
    assert len(pids) == 2
    assert not any(map(alive, pids))
    err = place.said(name, "err")
    said = [line for line in err.splitlines() if "error: " in line]
    assert len(said) == 1, err
    assert sentence in said[0]
    assert "limbeck/" not in err.replace(str(place.folder), ""), "a traceback of limbeck's"
    assert place.said(name, "out") == ""
    assert place.written(name, 1) == []
