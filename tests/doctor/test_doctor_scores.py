"""What the doctor says by a score that is no accuracy, and what that costs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_doctor_runs import made

from limbeck.core.score import Score
from limbeck.core.task import Task
from limbeck.core.teachers import BlackBox
from limbeck.doctor import diagnose, limits
from limbeck.doctor.gather import _score, _tables
from limbeck.doctor.seen import Seen
from limbeck.doctor.sides import few_of

pytestmark = pytest.mark.xdist_group("doctor_scores")

HELD = "held-out samples of 'test'"


def run_of(folder: Path, higher: bool, errors: float, **scores: float) -> Path:
    """The records of a finished run with a score of its own, of these sides."""
    folder.mkdir()
    sides = {("student" if k == "score" else k): {"bits_se": errors} for k in scores}
    files: dict[str, Any] = {
        "run": {"request": {"method": "gkd", "command": "limbeck run gkd --steps 8"}},
        "result": {"method": "gkd", "score_name": "bits", "stages": [], **scores},
        "appraisal": {"set": "test", "score_name": "bits", "score_higher": higher, "sides": sides},
    }
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("higher", "score", "baseline", "state"),
    [
        (False, 1.0, 2.0, "good"),
        (False, 2.0, 1.0, "watch"),
        (True, 1.0, 2.0, "watch"),
        (True, 2.0, 1.0, "good"),
        (False, 1.0, 1.25, "unknown"),  # 2 x 0.2 (of two sides with 0.1414 each) are not exceeded
        (False, 1.0, 1.45, "good"),
        (False, 1.45, 1.0, "watch"),
    ],
)
def test_a_student_is_set_against_itself_alone(
    tmp_path: Path, higher: bool, score: float, baseline: float, state: str
) -> None:
    folder = run_of(tmp_path / "r", higher, 0.02**0.5, score=score, baseline=baseline)
    found = diagnose(None, run=folder)["run"]
    assert found.state == state
    told = f"the student has bits {score:.4g} on {HELD}, the student alone"
    assert found.says == f"{told} {baseline:.4g}"
    command = {"good": None, "watch": "--steps 16", "unknown": "--steps 8 --seeds 3 --baseline"}
    assert (found.command or "").endswith(command[state] or "")
    assert (found.command is None) == (state == "good")


def test_without_a_student_alone_the_gain_is_not_known(tmp_path: Path) -> None:
    found = diagnose(None, run=run_of(tmp_path / "r", False, 0.0, score=1.0, teacher=0.5))["run"]
    assert found.state == "good"
    assert "the teacher 0.5" in found.says
    assert "whether the teacher helps is not known" in str(found.advice)


@pytest.mark.parametrize(("teacher", "state"), [(0.5, "good"), (1.0, "good"), (2.0, "watch")])
def test_a_teacher_is_set_against_the_student(tmp_path: Path, teacher: float, state: str) -> None:
    """Against the student alone, where there is one: the student has learnt from the teacher."""
    scores = {"score": 0.4, "baseline": 1.0, "teacher": teacher}
    found = diagnose(None, run=run_of(tmp_path / "r", False, 0.0, **scores))["teacher"]
    assert found.state == state
    assert found.says.endswith(f"has bits {teacher:.4g} on {HELD}, the student alone 1")
    assert ("it has little to teach" in str(found.advice)) == (state == "watch")


def wrong(entries: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Wrong answers and samples."""
    miss = entries["logits"].argmax(-1) != batch.columns["y"]
    return miss.sum().double(), torch.tensor(float(len(miss)))


def test_both_sides_are_scored_on_as_many_samples_as_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "FEWEST", 40)
    task = replace(made(), score=Score("misses", False, each=wrong))
    student, where = task.new_student(3), torch.device("cpu")
    seen = Seen("kd", task=task)
    table = _tables(seen, task)["held"]
    _score(seen, task, student, table, where)
    few = few_of(table, 40)
    rows = few.rows(torch.arange(len(few))).columns
    with torch.no_grad():
        for side, model in (("student", student.eval()), ("teacher", task.teacher)):
            told = float((model(rows["x"]).argmax(1) != rows["y"]).double().mean())
            assert seen.scored[side] == pytest.approx(told)
    assert (seen.score_name, seen.score_higher, len(few)) == ("misses", False, 40)
    plain = Seen("kd", task=made())
    _score(plain, made(), student, few, where)
    assert plain.scored == {}


def test_where_no_rates_are_tried_a_method_is_tried_once() -> None:
    """Texts of a student's own are new at each try, and a server is paid for each."""

    calls: list[int] = []

    def ask(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x[:, :3].softmax(-1)

    task, steps = made(), limits.LEAST + 8
    bare = Task(BlackBox(ask, "probabilities"), task.student, task.train[0], budget=task.budget)
    found = diagnose(bare, "kd(label=0)", probe_steps=steps)
    assert found["fit"].state in ("good", "watch")
    assert sum(calls) <= 4 + task.budget.batch * (steps + 1)
