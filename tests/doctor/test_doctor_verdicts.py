"""What the doctor concludes: failed runs, careful proposals, small sets, causes, slow models."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.cli import main
from limbeck.core import checkpoints
from limbeck.core.data import Table
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import BlackBox
from limbeck.core.untrained import Untrained
from limbeck.core.views import Side
from limbeck.doctor import Diagnosis, Finding, diagnose, limits, rates, sides
from limbeck.doctor.words import grouped

pytestmark = pytest.mark.xdist_group("doctor")


def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples that the largest of their first three numbers names."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1)


def right() -> nn.Module:
    """A teacher that is always right."""
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.copy_(4 * torch.eye(6)[:3])
        model.bias.zero_()
    return model


def task(lr: float = 0.1, name: str = "sgd", held: int = 300) -> Task:
    optimiser = Optimiser(name, lr=lr, momentum=0.9 if name == "sgd" else 0.0)
    return Task(
        right(),
        lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)),
        draw(300, 1),
        valid=draw(held, 2),
        budget=Budget(steps=200, batch=32, optimiser=optimiser),
        classes=3,
    )


def run_of(folder: Path, scores: dict[str, float], *, command: str = "", lr: float = 0.1,
           samples: int = 400, loss: Any = None, **files: Any) -> Path:  # fmt: skip
    """The records of a run of ten classes with these scores."""
    folder.mkdir()
    losses = [0.2 + 2 / (1 + i) for i in range(60)] if loss is None else loss
    rows = [{"stage": "fit", "step": i, "lr": lr, "terms": {"kd": v}} for i, v in enumerate(losses)]
    counts = [samples // 10] * 10
    sides = {side: {"score": v, "per_class_count": counts} for side, v in scores.items()}
    command = command or "limbeck run kd --world digits --epochs 4"
    files = {
        "run": {"request": {"method": "kd", "command": command}},
        "result": {"method": "kd", "stages": [{"stage": "fit", "steps": 60}]},
        "appraisal": {"samples": samples, "score_name": "accuracy", "sides": sides},
        **files,
    }
    for name, value in files.items():
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def blamed(found: Diagnosis) -> dict[str, str]:
    return {f.name: f.state for f in found.findings if f.state in ("bad", "watch")}


# --- a run that failed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "state"),
    [
        ({"student": 0.145, "teacher": 0.967}, "bad"),  # hardly above chance
        ({"student": 0.42, "teacher": 0.967}, "watch"),
        ({"student": 0.9, "teacher": 0.967}, "good"),
        ({"student": 0.7, "teacher": 0.967, "baseline": 0.9}, "bad"),  # worse than without it
        ({"student": 0.85, "teacher": 0.967, "baseline": 0.93}, "watch"),
        ({"student": 0.92, "teacher": 0.967, "baseline": 0.93}, "unknown"),  # within the noise
        ({"student": 0.95, "teacher": 0.967, "baseline": 0.85}, "good"),
        ({"student": 0.8, "teacher": 0.81, "baseline": 0.9}, "watch"),  # as its bad teacher
    ],
)
def test_a_run_is_judged_by_what_its_student_learned(
    tmp_path: Path, scores: dict[str, float], state: str
) -> None:
    found = diagnose(None, run=run_of(tmp_path / "r", scores))
    assert found["run"].state == state
    assert found.healthy == (state in ("good", "unknown"))
    alone = scores.get("baseline", 0.0)
    assert ("no gain shown over the student alone" in found.verdict) == (state == "unknown")
    assert found.verdict.startswith("the run failed") == (state == "bad")
    told = "limbeck run kd --world digits --epochs 8"
    if state in ("good", "unknown"):
        assert blamed(found) == {}
        told = "limbeck run kd --world digits --epochs 4 --seeds 3 --baseline"
        if state == "good" and alone:
            told = f"limbeck export {tmp_path / 'r'} --to onnx"
    else:
        assert blamed(found)["run"] == state
    assert found["run"].command in (told, None if len(blamed(found)) > 1 else told)


def test_a_failed_run_sends_to_the_fault_that_is_named(tmp_path: Path) -> None:
    scores = {"student": 0.1, "teacher": 0.967}
    found = diagnose(None, run=run_of(tmp_path / "r", scores, loss=[2.3] * 60))
    assert found.verdict == "the run failed: rate"
    assert found.findings[0].name == "run"
    assert found["run"].command is None
    assert found["rate"].command is not None


# --- proposals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lr", "proposed"), [(0.001, "0.003"), (0.005, "0.01"), (0.1, "0.3"), (0.4, "0.5"), (0.5, None)]
)
def test_a_rate_that_was_not_tried_is_a_small_step(
    tmp_path: Path, lr: float, proposed: str | None
) -> None:
    folder = run_of(tmp_path / "r", {"student": 0.5, "teacher": 0.9}, lr=lr, loss=[2.3] * 60)
    found = diagnose(None, run=folder)["rate"]
    assert found.state == "bad"
    start = "limbeck run kd --world digits --epochs 4 --lr "
    assert found.command == (start + proposed if proposed else None)


@pytest.mark.parametrize("given", ["--teacher timm:a --pretrained no", "--teacher=timm:a"])
def test_a_teacher_that_the_run_trained_is_kept(tmp_path: Path, given: str) -> None:
    command = f"limbeck run kd {given} --student timm:b --data d"
    folder = run_of(tmp_path / "r", {"student": 0.5, "teacher": 0.9}, command=command,
                    loss=[2.3] * 60)  # fmt: skip
    (folder / "teacher.safetensors").touch()
    told = diagnose(None, run=folder)["rate"].command
    words = f"--student timm:b --data d --teacher timm:a@{folder}/teacher.safetensors --lr 0.3"
    assert told == f"limbeck run kd {words}"


def test_that_a_teacher_is_trained_again_is_said(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "r", {"student": 0.5, "teacher": 0.9}, loss=[2.3] * 60)
    (folder / "teacher.safetensors").touch()
    assert "the teacher will be trained again" in diagnose(None, run=folder)["rate"].advice
    other = run_of(tmp_path / "weak", {}, lr=1e-6, loss=[2.3] * 60, appraisal=None,
                   command="limbeck run kd --teacher timm:a --student timm:b --data d")  # fmt: skip
    flat = nn.Linear(6, 3)
    nn.init.zeros_(flat.weight)
    checkpoints.save(other / "teacher.safetensors", checkpoints.of_module(flat))
    found = diagnose(replace(task(lr=1e-6), teacher=Untrained(right, "big")), run=other)
    assert blamed(found) == {"rate": "bad"}  # and not what the teacher is fed with
    assert found["inputs"].state == "follows"
    assert "--teacher timm:a --student" in str(found["rate"].command)
    blank = replace(task(lr=1e-6), teacher=Untrained(right, "big"))
    assert "the teacher is trained with it, too" in diagnose(blank)["rate"].advice


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("lr", [1e-6, 1e-8])
def test_a_rate_at_which_nothing_moves(name: str, lr: float) -> None:
    found = diagnose(task(lr, name), command=["limbeck", "run", "kd"])
    assert blamed(found) == {"rate": "bad"}
    assert "too low" in found["rate"].advice
    proposed = float(str(found["rate"].command).split()[-1])
    assert 1e-4 <= proposed <= (0.5 if name == "sgd" else 0.01)


# --- the teacher ---------------------------------------------------------------------------------


def test_a_teacher_that_gives_probabilities() -> None:
    found = diagnose(replace(task(), teacher=nn.Sequential(right(), nn.Softmax(-1))))
    assert blamed(found) == {"outputs": "bad"}
    assert "probabilities" in found["outputs"].says
    assert "log()" in found["outputs"].advice
    logs = diagnose(replace(task(), teacher=nn.Sequential(right(), nn.LogSoftmax(-1))))
    assert logs["outputs"].state == "good"


def test_what_is_not_tried_is_not_said_to_have_failed() -> None:
    def worst(x: Tensor) -> Tensor:
        return torch.randn(len(x), 3, generator=torch.Generator().manual_seed(0)).softmax(-1)

    served = diagnose(replace(task(), teacher=BlackBox(worst, "probabilities")))
    assert "other scales of its inputs were not tried" in served["inputs"].says
    assert "its server" in served["inputs"].says
    with torch.random.fork_rng():
        torch.manual_seed(1)
        blank = nn.Linear(6, 3)
        nn.init.normal_(blank.weight[:, :3], 0, 1e-6)
    mine = diagnose(replace(task(), teacher=blank))
    assert "none of the usual scales of its inputs helps" in mine["inputs"].says
    # one cause is one fault: that it is worse than the student, and flat, follows from it
    assert blamed(mine) == {"inputs": "bad"}
    assert mine["teacher"].state == "follows"
    assert "follows from 'inputs'" in mine["teacher"].says
    assert mine.verdict == "1 fault (inputs)"


@pytest.mark.parametrize(("samples", "state"), [(40, "unknown"), (20000, "bad")])
def test_one_sample_of_forty_is_no_verdict(tmp_path: Path, samples: int, state: str) -> None:
    scores = {"student": 0.9, "teacher": 0.875, "baseline": 0.9}
    found = diagnose(None, run=run_of(tmp_path / "r", scores, samples=samples))
    assert found["teacher"].state == state
    assert ("too few to tell" in found["teacher"].says) == (state == "unknown")


def test_classes_that_lie_one_after_the_other_are_all_looked_at() -> None:
    y = torch.arange(10).repeat_interleave(100)
    batches = list(sides.chunks(Table((y[:, None].float(), y)), 200, torch.device("cpu")))
    seen = torch.cat([b.columns["y"] for b in batches])
    assert len(seen) == 200
    assert len(set(seen.tolist())) == 10
    few = sides.chunks(Table((y[:, None].float(), y)), 128, torch.device("cpu"))
    assert torch.equal(torch.cat([b.columns["y"] for b in few]), seen[:128])


# --- a teacher that is yet to be trained, and a run that stopped ---------------------------------


def test_a_reason_is_given_once() -> None:
    same = [Finding(n, "unknown", "not known: it is not trained") for n in ("a", "b", "c")]
    other = Finding("d", "unknown", "not known: no taps")
    good = [Finding(n, "good", "fine") for n in ("e", "f")]
    told = grouped([same[0], other, *same[1:], *good])
    assert [f.name for f in told] == ["a", "d", "e", "f"]
    assert told[0].says == "not known: it is not trained (nor are: b, c)"


def test_a_stopped_run_is_judged_with_the_teacher_that_it_trained(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "r", {}, loss=[], result=None, appraisal=None)
    (folder / "metrics.jsonl").write_text('{"stage": "teacher", "step": 7, "terms": {"label": 1}}')
    mine = replace(task(), teacher=Untrained(lambda: nn.Linear(6, 3), "big"))
    assert diagnose(mine, run=folder)["teacher"].state == "unknown"
    checkpoints.save(folder / "teacher.safetensors", checkpoints.of_module(right()))
    found = diagnose(mine, run=folder)
    assert found["teacher"].state == found["inputs"].state == "good"
    assert "the run is not finished: step 7 of 'teacher'" in found["fit"].says
    assert found["fit"].command == f"limbeck resume {folder}"
    (folder / "teacher.safetensors").write_bytes(b"cut")
    assert diagnose(mine, run=folder)["teacher"].state == "unknown"


# --- slow models ---------------------------------------------------------------------------------


class Slow(nn.Module):
    """A student that waits."""

    seconds = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        out: Tensor = self.inner(x)
        return out


def test_slow_models_have_shorter_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(task(), student=Slow)
    assert rates.paced(slow, 0, "cpu", 0.0) == limits.STEPS
    assert rates.paced(slow, 0, "cpu", 1.0) == limits.LEAST  # of the teacher's answers
    monkeypatch.setattr(Slow, "seconds", 0.2)
    assert rates.paced(slow, 0, "cpu", 0.0) == limits.LEAST
    monkeypatch.setattr(Slow, "seconds", 0.0)
    told: list[str] = []
    monkeypatch.setattr(limits, "GOAL", 1e-9)
    assert "in 20 steps" in diagnose(slow, say=told.append)["fit"].says
    assert any("have 20" in sentence for sentence in told)
    assert "in 30 steps" in diagnose(slow, probe_steps=30)["fit"].says


def test_a_slow_side_is_asked_less(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(2000, 5)
    model = right()

    def side_of(batch: Any) -> Side:
        return sides.Look(model, "student", {}, None).side_of(batch)

    def asked() -> int:
        with torch.no_grad():
            return len(sides.answers(side_of, Table((x, y)), 1500, torch.device("cpu"), 3))

    assert asked() == 1500
    monkeypatch.setattr(limits, "PATIENCE", 0.0)
    assert asked() == limits.FEWEST


# --- as a user calls it --------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["kd"], ["kd", "--world", "digits"], ["kd(tau=2)", "--lr", "1"]])
def test_a_method_where_a_folder_goes(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *words]) == 2
    assert "look at it before a run with --method kd" in capsys.readouterr().err
