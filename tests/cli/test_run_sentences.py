"""What `limbeck run` says of words that do not fit, and of what it does with them."""

import json
import re
import shutil
import statistics
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from limbeck.cli import _records, main
from limbeck.cli._tasks import reopen
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("run sentences")

NETS = """
from torch import nn

def small(classes):
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, classes))

class Raw(nn.Sequential):  # a class has no weights, a function may give some
    def __init__(self, classes):
        super().__init__(nn.Linear(4, classes))

def conv(classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, classes))
"""
OWN = ("--teacher", "nets.py:small", "--student", "nets.py:small", "--data", "t.csv")
KD = ("run", "kd", *OWN)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "nets.py").write_text(NETS)
    rows = [f"{i % 7},{i % 5},{i % 3},{i % 11},{'pq'[i % 3 > 0]}" for i in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c,d,kind", *rows, ""]))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence of a call that must be refused."""
    capsys.readouterr()
    assert main(list(words)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("run", "--teacher", "timm:x", "--student", "timm:y", "--data", "t.csv"),
            "a method must be named first, as in: limbeck run kd --teacher ...; `limbeck list` "
            "shows the methods",
        ),
        ((*KD, "--taau", "2"), "'limbeck run' has no option '--taau'; did you mean '--tau'?"),
        ((*KD, "--stpes", "2"), "'limbeck run' has no option '--stpes'; did you mean '--steps'?"),
        (
            (*KD, "--foo", "2"),
            "'limbeck run' has no option '--foo'; the method's own are: --label, --kd, --tau; for "
            "the rest see 'limbeck run --help'",
        ),
        ((*KD, "--tau", "abc"), "--tau is 'abc'; it must be a number"),
        ((*KD, "--tau", "-1"), "--tau is -1.0; it must be above 0"),
        (("cache", "--foo"), "'limbeck cache' has no option '--foo'; see 'limbeck cache --help'"),
        (
            (*KD, "--requests", "3"),
            "--requests is for a teacher behind a URL, and --teacher is 'nets.py:small'; leave it "
            "out",
        ),
        (
            ("run", "takd", *OWN),
            "takd needs a set 'assistants'; give it as Task(..., data={'assistants': ...}), at the "
            "command line in a task file: --task FILE.py:FUNCTION",
        ),
    ],
)
def test_words_that_do_not_fit(
    place: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert refused(capsys, *words) == told


def test_pictures_as_a_table_lead_to_the_room_that_has_pictures(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("run", "kd", "--teacher", "none", "--student", "nets.py:conv")
    told = refused(capsys, *words, "--data", "sklearn:digits", "--room", "plain")
    assert "does not take samples of shape (64,)" in told
    assert told.endswith("; to have them as pictures, add --room vision")
    assert "--room vision" not in refused(capsys, *words, "--data", "t.csv")


def test_another_run_in_the_folder_is_told_by_what_differs(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*KD, "--steps", "10", "--out", "r", "--quiet"]) == 0
    begun = "the run in r was begun with another budget"
    after = "; give it as it was, or name another folder with --out"
    told = refused(capsys, *KD, "--steps", "20", "--out", "r")
    assert told == f"{begun} (steps 10 there, 20 asked){after}"
    told = refused(capsys, *KD, "--steps", "10", "--lr", "0.5", "--out", "r")
    assert told == f"{begun} (lr 0.001 there, 0.5 asked){after}"
    told = refused(capsys, *KD, "--epochs", "3", "--out", "r")
    assert told == f"{begun} (epochs none there, 3.0 asked, steps 10 there, none asked){after}"
    told = refused(capsys, *KD, "--steps", "10", "--tau", "3", "--out", "r")
    assert told == (
        "r holds another run (fields: tau 4.0 there, 3.0 asked); name another folder with --out, "
        "or remove it"
    )
    text = (place / "t.csv").read_text()
    (place / "t.csv").write_text("\n".join(text.splitlines()[:-20]))
    told = refused(capsys, *KD, "--steps", "10", "--out", "r")
    assert "another t" in told
    assert max(map(len, told.replace("(", " ").split())) < 20, "no whole digests"


def test_from_python_the_folder_is_out(place: Path) -> None:
    import torch
    from torch import nn

    import limbeck

    x = torch.randn(20, 3)
    task = limbeck.Task(nn.Linear(3, 2), nn.Linear(3, 2), (x, (x[:, 0] > 0).long()),
                        budget=limbeck.Budget(steps=2, batch=4))  # fmt: skip
    limbeck.run("kd", task, out="r")
    with pytest.raises(limbeck.UsageError, match="name another folder with out=, or remove it"):
        limbeck.run("kd", task, out="r", tau=3)


def test_what_is_not_used_as_asked_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--steps", "5", "--batch", "500", "--taps", "mid=0,0")
    assert main([*KD, *words, "--out", "r"]) == 0
    told = capsys.readouterr().err
    assert (
        told.count("a batch of 500 samples was asked for, and there are 70: a step takes 70") == 1
    )
    unread = "--taps mid: the method does not read it; inside the models it reads"
    assert f"{unread} nothing\n" in told
    assert main(["run", "rkd", *OWN, "--steps", "5", "--taps", "mid=0,0", "--out", "e"]) == 0
    assert f"{unread} 'embedding'\n" in capsys.readouterr().err
    assert main(["run", "fitnets", *OWN, "--steps", "5", "--taps", "mid=0,0", "--out", "f"]) == 0
    assert "does not read it" not in capsys.readouterr().err


DEEP = """
from torch import nn

def layer(width, stride):
    return nn.Sequential(nn.Conv2d(width, width, 3, stride, 1), nn.ReLU())

def deep(classes):
    return nn.Sequential(nn.Conv2d(1, 4, 1), layer(4, 1), layer(4, 2), layer(4, 2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""
STAGES = ("--teacher", "deep.py:deep", "--student", "deep.py:deep", "--data", "sklearn:digits",
          "--room", "vision", "--steps", "2")  # fmt: skip


def taps_of(folder: Path) -> dict[str, list[object]]:
    return json.loads((folder / "run.json").read_text())["request"]["taps"]


def test_a_list_of_places_is_joined_by_plus(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "deep.py").write_text(DEEP)
    assert main(["run", "ofa_kd", *STAGES, "--out", "a"]) == 0
    told = capsys.readouterr().err.partition("can change: ")[2].splitlines()[0]
    assert told == "--taps embedding=6:in, blocks=,1+2+3"
    # What is said may be given, and gives the same run; a lone block is a list too.
    assert main(["run", "ofa_kd", *STAGES, "--out", "b", *told.split()]) == 0
    assert taps_of(place / "b") == {"embedding": ["6:in", None], "blocks": [None, ["1", "2", "3"]]}
    assert main(["run", "ofa_kd", *STAGES, "--out", "c", "--taps", "blocks=1+2,3"]) == 0
    assert taps_of(place / "c") == {"blocks": [["1", "2"], ["3"]]}
    logs = [
        [json.loads(line).get("terms") for line in (place / f"{n}/metrics.jsonl").open()]
        for n in "abc"
    ]
    assert logs[0] == logs[1] != logs[2]
    assert "reads nothing" not in capsys.readouterr().err
    assert main(["resume", "c"]) == 0


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("blocks=0++1,2", "write NAME=PATH,PATH: the place in the teacher, then in the student"),
        ("blocks=,", "several places are joined, as in blocks=layer1+layer2,features.3+features.7"),
        ("blocks=0+1", "a side that is not read is left out, as in blocks=,features.3+features.7"),
        ("mid=0+1,0", "'mid' is read at one place of a side; of several are 'blocks' and"),
    ],
)
def test_places_that_do_not_read_are_a_sentence(
    word: str, says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, *KD, "--taps", word)
    assert told.startswith(f"--taps has '{word}'")
    assert says in told


def test_what_a_method_inside_reads_is_proposed_too(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "deep.py").write_text(DEEP)
    assert main(["run", "nd_loss", *STAGES, "--of", "ofa_kd", "--out", "n"]) == 0
    assert "--taps embedding=6:in,6:in blocks=,1+2+3\n" in capsys.readouterr().err
    taps = ("--taps", "blocks=,2+3")
    assert main(["run", "nd_loss", *STAGES, "--of", "ofa_kd", *taps, "--out", "m"]) == 0
    assert "does not read it" not in capsys.readouterr().err
    assert main(["run", "nd_loss", *STAGES, *taps, "--out", "o"]) == 0
    assert "--taps blocks: the method does not read it; inside the models it reads 'embedding'" in (
        capsys.readouterr().err
    )


def test_seeds_end_with_all_means_and_the_paired_difference(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--steps", "30", "--seeds", "3", "--quiet")
    assert main([*KD, *words, "--baseline", "--out", "b"]) == 0
    *_, means, apart = capsys.readouterr().out.splitlines()
    told = [json.loads((place / f"b/seed-{s}/result.json").read_text()) for s in range(3)]
    mean = {k: statistics.fmean(t[k] for t in told) for k in ("score", "teacher", "baseline")}
    assert f"3 seeds: accuracy {mean['score']:.4f}" in means
    assert f"on test (teacher {mean['teacher']:.4f}, " in means
    assert f"student alone {mean['baseline']:.4f}" in means
    assert apart.startswith(f"kd over the student alone: {mean['score'] - mean['baseline']:+.4f} ")
    assert main([*KD, *words, "--out", "a"]) == 0
    assert "student alone" not in capsys.readouterr().out


def test_seeds_that_were_stopped_end_with_the_same_means(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is finished, one in the middle, one had not begun."""
    words = ("--steps", "30", "--seeds", "3", "--quiet", "--baseline", "--out", "b")
    assert main([*KD, *words]) == 0
    *_, means, apart = capsys.readouterr().out.splitlines()
    told = (place / "b/result.json").read_bytes()
    for name in ("result.json", "report.html", "seed-1/result.json"):
        (place / "b" / name).unlink()
    shutil.rmtree(place / "b/seed-2")
    assert main(["resume", "b", "--quiet"]) == 0
    first, *_, again, again_apart = capsys.readouterr().out.splitlines()
    assert first.startswith("the run in b/seed-0 is finished. kd, seed 0: accuracy")
    assert (again, again_apart) == (means, apart)
    assert means.startswith("3 seeds: accuracy")
    assert (place / "b/result.json").read_bytes() == told
    assert (place / "b/report.html").exists()


def test_of_several_seeds_all_are_gone_on_with(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever command says so of one of them, and where Ctrl-C stopped it."""
    assert main([*KD, "--steps", "4", "--seeds", "2", "--quiet", "--out", "my runs"]) == 0
    told = "go on with: limbeck resume 'my runs'\n"
    (place / "my runs/seed-1/result.json").unlink()
    for command in (["report", "my runs"], ["report", "my runs/seed-1"],
                    ["export", "my runs/seed-1", "--to", "onnx"]):  # fmt: skip
        capsys.readouterr()
        assert main(command) == 2
        assert capsys.readouterr().err.endswith(f"my runs/seed-1 is not finished; {told}")
    with pytest.raises(UsageError, match=f"seed-1 is not finished; {told.strip()}"):
        reopen(Path("my runs/seed-1"))
    own = ["run", "kd", "--teacher", "my runs/seed-1", *KD[4:]]
    (place / "my runs/seed-1/student.safetensors").unlink()
    assert main([*own, "--steps", "4"]) == 2
    whole = place / "my runs"
    assert f"finish it with: limbeck resume '{whole}'\n" in capsys.readouterr().err

    def stop(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.runs.door.run", stop)
    assert main(["resume", "my runs", "--quiet"]) == 130
    assert capsys.readouterr().err == f"interrupted; {told}"
    request = json.loads((place / "my runs/seed-1/run.json").read_text())["request"]
    (place / "my runs/seed-1/run.json").write_text(json.dumps({"request": request}))
    assert main(["report", "my runs/seed-1"]) == 2
    assert capsys.readouterr().err.endswith(f"stopped before its first step; {told}")


def test_the_interval_is_students(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    for n in (2, 3, 12, 31, 32, 40, 200):
        values = [float((7 * i) % 5) for i in range(n)]
        low, high = stats.t.interval(0.95, n - 1, statistics.fmean(values), stats.sem(values))
        assert _records._half(values) == pytest.approx((high - low) / 2, rel=1e-3)


def test_a_dry_run_tells_of_the_teachers_training(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--student", "nets.py:small", "--data", "t.csv", "--steps", "33", "--dry")
    assert main(["run", "kd", "--teacher", "nets.py:Raw", *words]) == 0
    told = capsys.readouterr().out
    assert "the teacher 'Raw': it has no weights, so it would be trained first, 33 steps" in told
    assert re.search(r"^seconds a step: \d+\.\d+, after the teacher's own training$", told, re.M)
    assert not (place / "cache").exists()
    assert main(["run", "kd", "--teacher", "nets.py:small", *words]) == 0
    told = capsys.readouterr().out
    assert "trained first" not in told
    assert re.search(r"^seconds a step: \d+\.\d+$", told, re.M)


class Answers(BaseHTTPRequestHandler):
    """A served teacher that is sure of nothing."""

    requests: ClassVar[list[int]] = []

    @staticmethod
    def predict(row: list[float]) -> list[float]:
        return [0.5, 0.5]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["instances"]
        self.requests.append(len(asked))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"predictions": [self.predict(x) for x in asked]}).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/p"
        server.shutdown()


def test_a_dry_run_tells_how_often_a_server_was_asked(
    place: Path, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    words = ["run", "kd", "--teacher", server, *OWN[2:], "--dry", "--requests", "50"]
    assert main(words) == 0
    n = len(Answers.requests)
    assert n > 0
    assert f"the teacher at {server} was sent {n} requests; its answers" in capsys.readouterr().out
    assert main(words) == 0
    assert len(Answers.requests) == n
    assert "was sent 0 requests" in capsys.readouterr().out


def test_classes_in_another_order_are_told_of_where_the_teacher_is_judged(
    place: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the page too, which is all that a quiet run says."""
    words = ["run", "kd", "--teacher", server, *OWN[2:], "--steps", "5", "--quiet", "--out"]
    turned, right = [[0.1, 0.9], [0.9, 0.1]], [[0.9, 0.1], [0.1, 0.9]]  # "p" is where c is 0
    for answers, out in ((turned, "a"), (right, "b")):
        monkeypatch.setattr(
            Answers, "predict", staticmethod(lambda row, has=answers: has[row[2] > 0])
        )
        assert main([*words, out]) == 0
        doubt = "agrees with 0% of the labels of 64 training samples"
        told = json.loads((place / out / "result.json").read_text())
        assert (doubt in told.get("doubt", "")) == (answers is turned)
        assert (doubt in (place / out / "report.html").read_text()) == (answers is turned)
        for kept in (place / "cache").rglob("*.sqlite"):
            kept.unlink()


def test_interrupted_is_said_by_the_first_process_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(argv: list[str]) -> int:
        raise KeyboardInterrupt("limbeck resume runs/one")

    monkeypatch.setattr("limbeck.cli.running.run", stop)
    for rank, told in (("0", "interrupted; go on with: limbeck resume runs/one\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert main(["run", "kd"]) == 130
        assert capsys.readouterr().err == told
