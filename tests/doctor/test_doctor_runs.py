"""The doctor on runs: by their records alone, with their models, and as a user calls it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from limbeck.cli import main
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import BlackBox, Nobody
from limbeck.core.untrained import Untrained
from limbeck.doctor import Diagnosis, diagnose, read
from limbeck.errors import Missing, UsageError

pytestmark = pytest.mark.xdist_group("doctor")

TASK = """
import torch
from torch import nn
from limbeck import Budget, Optimiser, Task

def net(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))

def make():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(600, 6, generator=g)
    y = x[:, :3].argmax(1)
    teacher = nn.Linear(6, 3)
    with torch.no_grad():
        teacher.weight.copy_(12 * torch.eye(6)[:3])
        teacher.bias.zero_()
    budget = Budget(steps=STEPS, batch=32, optimiser=Optimiser("sgd", lr=LR, momentum=0.9))
    train, valid, test = ((x[a:b], y[a:b]) for a, b in ((0, 300), (300, 450), (450, 600)))
    return Task(teacher, lambda: net(12), train, valid, test, budget=budget, taps={})
"""


def written(folder: Path, loss: list[float], **files: Any) -> Path:
    """A run's folder with a log of one fit under a cosine."""
    folder.mkdir()
    steps = len(loss)
    rows = [
        {
            "stage": "fit",
            "step": i,
            "lr": 0.05 * (1 + math.cos(math.pi * i / steps)),
            "terms": {"label": 0.1 * v, "kd": 0.9 * v},
            "norms": {"label": 0.2, "kd": 1.0},
        }
        for i, v in enumerate(loss)
    ]
    run = {
        "request": {
            "method": "kd",
            "given": {"tau": 8.0},
            "command": "limbeck run kd --world digits --tau 8 --out here",
        }
    }
    files = {"run": run, "result": {"method": "kd", "fields": {"tau": 8.0}}, **files}
    for name, value in files.items():
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"stage": "fi')
    return folder


def appraisal(**changes: Any) -> dict[str, Any]:
    """What is measured after a run; a healthy one."""
    side = {"score": 0.9, "ece": 0.03, "confidence": 0.91}
    return {
        "set": "test",
        "samples": 500,
        "score_name": "accuracy",
        "sides": {"student": side, "teacher": {**side, "score": 0.95}, "baseline": side},
        "agreement": {"student": {"top1": 0.92, "kl": 0.1}, "baseline": {"top1": 0.9, "kl": 0.2}},
        "train": {"samples": 1000, "student": 0.95, "teacher": 0.99, "baseline": 0.96},
        **changes,
    }


FALLS = [0.2 + 2 * math.exp(-i / 10) for i in range(100)]


def by_records(folder: Path) -> Diagnosis:
    return diagnose(None, run=folder)


def states(found: Diagnosis) -> dict[str, str]:
    return {f.name: f.state for f in found.findings if f.state in ("bad", "watch")}


def test_a_healthy_run_is_healthy_by_its_records(tmp_path: Path) -> None:
    found = by_records(written(tmp_path / "r", FALLS, appraisal=appraisal()))
    assert found.healthy, found
    good = {f.name for f in found.findings if f.state == "good"}
    assert good >= {"teacher", "rate", "balance", "student", "data", "calibration", "agreement"}


@pytest.mark.parametrize(
    ("name", "state", "loss", "changes"),
    [
        ("data", "bad", FALLS, {"train": {"student": 1.0, "teacher": 1.0}}),
        ("student", "watch", FALLS, {"train": {"student": 0.6, "teacher": 0.99}}),
        ("rate", "bad", [2.0 + 0.1 * i for i in range(100)], {}),
        ("rate", "bad", [2.0 + 0.01 * math.sin(i) for i in range(100)], {}),
        ("agreement", "watch", FALLS, {
            "agreement": {"student": {"top1": 0.8, "kl": 0.5}, "baseline": {"top1": 0.9}},
        }),
        ("calibration", "bad", FALLS, {
            "sides": {
                "student": {"score": 0.7},
                "teacher": {"score": 0.75, "ece": 0.35, "confidence": 0.99},
                "baseline": {"score": 0.65},
            },
            "train": {"student": 0.72, "teacher": 0.8},
            "agreement": {"student": {"top1": 0.8, "kl": 0.5}},
        }),
        ("teacher", "bad", FALLS, {
            "sides": {
                "student": {"score": 0.9}, "teacher": {"score": 0.8}, "baseline": {"score": 0.9},
            },
        }),
    ],
)  # fmt: skip
def test_faults_by_the_records(
    tmp_path: Path, name: str, state: str, loss: list[float], changes: dict[str, Any]
) -> None:
    if name == "data":
        changes = {**changes, "sides": {"student": {"score": 0.5}, "teacher": {"score": 0.9}},
                   "agreement": {"student": {"top1": 0.6, "kl": 0.5}}}  # fmt: skip
    found = by_records(written(tmp_path / "r", loss, appraisal=appraisal(**changes)))
    assert states(found) == {name: state}


def test_a_diverged_and_an_unmoved_run_get_opposite_advice(tmp_path: Path) -> None:
    up = by_records(written(tmp_path / "up", [2.0 + 0.1 * i for i in range(100)]))["rate"]
    flat = by_records(written(tmp_path / "flat", [2.0] * 100))["rate"]
    start = "limbeck run kd --world digits --tau 8 --lr"
    assert (up.command, flat.command) == (f"{start} 0.01", f"{start} 0.3")


def test_a_loss_that_blew_up_at_once_and_falls_from_there_has_diverged(tmp_path: Path) -> None:
    loss = [9.65, *(7e18 - 5e16 * i for i in range(99))]
    found = by_records(written(tmp_path / "r", loss))["rate"]
    assert found.state == "bad"
    assert "too high" in found.advice
    assert found.command == "limbeck run kd --world digits --tau 8 --lr 0.01"


def test_norms_of_a_run_are_judged(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", FALLS)
    text = (folder / "metrics.jsonl").read_text().replace('"label": 0.2', '"label": 0.0005')
    (folder / "metrics.jsonl").write_text(text)
    found = by_records(folder)
    assert states(found) == {"balance": "bad"}
    assert "1/2e+03 of the largest" in found["balance"].says


def test_an_unfinished_run_says_where_it_stopped(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", FALLS, result=None)
    found = by_records(folder)
    assert found["fit"].state == "unknown"
    assert "not finished: step 99 of 'fit'" in found["fit"].says
    assert found["fit"].command == f"limbeck resume {folder}"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"there is no run in .* \(no run.json\)"):
        read(tmp_path)
    (tmp_path / "run.json").write_text("[1")
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path)
    with pytest.raises(UsageError, match="nothing to look at"):
        diagnose(None)


# --- other teachers ------------------------------------------------------------------------------


def made(steps: int = 100, lr: float = 0.1) -> Task:
    space: dict[str, Any] = {}
    exec(TASK.replace("STEPS", str(steps)).replace("LR", str(lr)), space)
    task: Task = space["make"]()
    return task


def test_a_black_box_gives_labels_only() -> None:
    task = made()
    asked: list[int] = []

    def labels(x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return x[:, :3].argmax(1)

    found = diagnose(replace(task, teacher=BlackBox(labels)), "kd")
    assert found["teacher"].state == found["classes"].state == "good"
    assert found["soft targets"].state == "watch"
    assert "labels only" in found["soft targets"].says
    assert found["fit"].state == "bad"  # kd asks for logits
    assert "gives labels" in found["fit"].says
    assert found["rate"].state == "good"
    # each set once, the first look of a fit and its first step: answers may cost money
    assert sum(asked) <= 300 + 150 + 4 + 32


def test_classes_of_a_data_set_are_those_of_the_students_answers() -> None:
    class Pairs(Dataset[Any]):
        def __len__(self) -> int:
            return 128

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            return train[0][i], int(train[1][i])

    train = made().train
    found = diagnose(replace(made(), train=Pairs()), "kd", probe_steps=8)
    assert found["classes"].state == found["teacher"].state == "good"
    assert "teacher's 3 classes" in found["classes"].says


@pytest.mark.parametrize("given", [Nobody(), Untrained(lambda: torch.nn.Linear(6, 3), "big")])
def test_without_a_trained_teacher_the_student_is_looked_at(given: Any) -> None:
    found = diagnose(replace(made(), teacher=given), "kd")
    assert found["teacher"].state == "unknown"
    assert ("no teacher" if isinstance(given, Nobody) else "big is not trained") in found[
        "teacher"
    ].says
    assert found["rate"].state == found["student"].state == found["data"].state == "good"
    assert states(found) == ({"fit": "bad"} if isinstance(given, Nobody) else {})


def test_without_labels_little_is_known() -> None:
    task = made()
    bare = Task(task.teacher, task.student, task.train[0], budget=task.budget)
    found = diagnose(bare, "kd(label=0)")
    assert found["fit"].state == "good"
    assert found["balance"].state == "good"
    assert found["teacher"].state == "unknown"
    assert "no class labels" in found["teacher"].says


# --- as a user calls it --------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK.replace("STEPS", "200").replace("LR", "0.1"))
    return tmp_path


def test_before_and_after_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--task", "task.py:make", "--tau", "200"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "1 fault (temperature)"
    assert told[2].startswith("bad      temperature   at tau 200 ")
    assert told[-1].startswith("try next: limbeck run kd --task task.py:make --tau ")
    assert max(map(len, told)) <= 100
    assert not (place / "runs").exists()

    command = told[-1].removeprefix("try next: limbeck ").split()
    assert main([*command, "--out", "r", "--quiet"]) == 0
    before = {p: p.stat().st_mtime_ns for p in (place / "r").rglob("*")}
    capsys.readouterr()
    assert main(["doctor", "r", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"], found
    assert all(f["state"] != "unknown" or f["name"] == "features" for f in found["findings"])
    assert before == {p: p.stat().st_mtime_ns for p in (place / "r").rglob("*")}


def test_a_run_whose_file_changed_is_judged_by_its_records(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "kd", "--task", "task.py:make", "--out", "r", "--quiet"]) == 0
    (place / "task.py").write_text("raise SystemExit('this is executed')")
    capsys.readouterr()
    assert main(["doctor", "r"]) == 0
    out, err = capsys.readouterr()
    assert "goes by the records alone" in err
    assert "has changed since the run" in err
    assert "questions" in out


def test_an_unfinished_run_is_looked_at_with_its_models(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "kd", "--task", "task.py:make", "--out", "r", "--quiet"]) == 0
    for name in ("result.json", "appraisal.json", "student.safetensors"):
        (place / "r" / name).unlink(missing_ok=True)
    capsys.readouterr()
    assert main(["doctor", "r"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "the run is not finished: step 199" in " ".join(" ".join(out).split())
    assert out[-1] == "try next: limbeck resume r"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name a run's folder, or what to look at before a run"),
        (["--method"], "no method is called ''"),
        (["nowhere"], "there is no folder nowhere"),
        (["kd"], "'kd' is a method; look at it before a run with --method kd"),
        (["--world", "digits", "--method", "fitnet"], "did you mean 'fitnets'"),
        (["--world", "digits", "--task", "task.py:make"], "a command has one task"),
        (["--task", "task.py:make", "--probe-steps", "2"], "in fewer than 4"),
        (["r", "--lr", "3"], "leave --lr out"),
        (["--task", "task.py:make", "--method", "kd(tua=3)"], "did you mean 'tau'"),
    ],
)
def test_mistakes_are_sentences(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["doctor", *words]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert told in err[-1]
    assert err[-1].startswith("error: ")


def test_a_methods_values_go_into_the_proposed_command(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["doctor", "--method", "kd(tau=150, label=0.2)", "--task", "task.py:make", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["next"].startswith("limbeck run kd --task task.py:make --label 0.2 --tau ")


def test_rates_may_be_far_too_high_for_a_method_alone() -> None:
    adam = Budget(steps=300, batch=32, optimiser=Optimiser("adam", lr=3.0))
    found = diagnose(replace(made(), budget=adam), "kd")
    assert found["rate"].state == "bad"
    assert "too high" in found["rate"].advice
