"""What the doctor proposes and how it says what its numbers are of: seeds, commands, words."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_doctor_runs import FALLS, appraisal, by_records, made, states, written
from test_doctor_verdicts import draw, right, run_of, task
from torch import Tensor, nn

from limbeck.cli import main
from limbeck.core.teachers import BlackBox
from limbeck.core.untrained import Untrained
from limbeck.doctor import chosen, diagnose, limits, probe, proposals
from limbeck.doctor.on_alike import agreement
from limbeck.doctor.records import read
from limbeck.doctor.seen import Seen
from limbeck.doctor.sides import Answers
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.runs import teaching

pytestmark = pytest.mark.xdist_group("doctor_proposals")


# --- several seeds -------------------------------------------------------------------------------


def seeds(place: Path, finished: list[int], several: int = 2) -> Path:
    """A folder of runs that were asked for together, those that are named finished."""
    place.mkdir()
    command = f"limbeck run kd --world digits --epochs 4 --seeds {several}"
    for seed in range(several):
        folder = run_of(place / f"seed-{seed}", {"student": 0.9, "teacher": 0.95})
        request = {"method": "kd", "command": command, "seed": seed, "seeds": list(range(several))}
        (folder / "run.json").write_text(json.dumps({"request": request}))
        if seed not in finished:
            (folder / "result.json").unlink()
            (folder / "appraisal.json").unlink()
    return place


def test_a_stopped_seed_goes_on_with_all_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = seeds(tmp_path / "many", [])
    found = diagnose(None, run=place / "seed-0")
    assert found["fit"].command == f"limbeck resume {place}"
    assert found.verdict.startswith(f"not finished: limbeck resume {place}; ")
    monkeypatch.chdir(place / "seed-1")
    assert read(".").whole == place
    monkeypatch.chdir(place)
    assert read("seed-1").whole == Path()
    alone = run_of(tmp_path / "seed-0", {}, result=None)  # so named by its user
    assert read(alone).whole == alone


def test_of_a_folder_of_seeds_the_first_finished_one_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = seeds(tmp_path / "many", [1], 3)
    told: list[str] = []
    found = diagnose(None, run=place, say=told.append)
    first = f"what is said is of {place}/seed-1, the first finished of 3 seeds (not finished: "
    first += f"seed-0, seed-2; go on with: limbeck resume {place})"
    assert told[0] == first
    assert found["run"].command == f"limbeck resume {place}"
    assert main(["doctor", str(place)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == first
    assert out[-1] == f"try next: limbeck resume {place}"
    assert main(["doctor", str(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["of"] == first


def test_of_seeds_that_are_finished_a_student_alone_is_asked_for(tmp_path: Path) -> None:
    place = seeds(tmp_path / "many", [0, 1])
    assert chosen(place)[1].endswith("the first finished of 2 seeds")
    command = diagnose(None, run=place)["run"].command
    assert command == "limbeck run kd --world digits --epochs 4 --seeds 3 --baseline"
    none = seeds(tmp_path / "none", [])
    assert chosen(none)[1].endswith("seed-0, the first of 2 seeds; none is finished")


def test_the_scores_of_all_seeds_stand_above_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = seeds(tmp_path / "many", [0, 1])
    score = {"mean": 0.9, "sd": 0.0, "each": [0.9, 0.9]}
    told = {"method": "kd", "score": score, "seeds": [0, 1]}
    told |= {"score_name": "accuracy", "score_of": "test"}
    (place / "result.json").write_text(json.dumps(told))
    assert main(["doctor", str(place)]) == 0
    assert "2 seeds: accuracy 0.9000 on test" in capsys.readouterr().out


# --- words ---------------------------------------------------------------------------------------


def test_the_set_that_scores_are_of_is_named(tmp_path: Path) -> None:
    found = diagnose(None, run=written(tmp_path / "r", FALLS, appraisal=appraisal()))
    assert "on 500 held-out samples of 'test'" in found["teacher"].says
    folder = written(tmp_path / "killed", FALLS, result=None)
    killed = diagnose(made(), run=folder)
    assert "held-out samples of 'valid'" in killed["teacher"].says
    assert killed.verdict.startswith(f"not finished: limbeck resume {folder}; ")
    assert not killed.healthy


def test_what_the_teacher_gives_is_named() -> None:
    mine = task()
    served = BlackBox(lambda x: right()(x).softmax(-1), "probabilities")
    found = diagnose(replace(mine, teacher=served), probe_steps=4)
    assert found["outputs"].says == "the teacher gives probabilities"
    x, y = draw(299, 1)
    assert (
        "299 training samples (about 100 a class)"
        in diagnose(replace(mine, train=(x, y)), probe_steps=4)["data"].says
    )


def test_a_run_that_failed_beside_what_is_to_be_watched(tmp_path: Path) -> None:
    falling = [4 - 2.5 * i / 60 for i in range(60)]
    scores = {"student": 0.1, "teacher": 0.967}
    found = diagnose(None, run=run_of(tmp_path / "r", scores, loss=falling))
    assert found["rate"].state == "watch"
    why = "none of the other questions says why"
    assert found.verdict == f"the run failed: {why}; 1 to watch (rate)"
    assert found["run"].command == "limbeck run kd --world digits --epochs 8"
    flat = diagnose(None, run=run_of(tmp_path / "flat", scores, loss=[2.3] * 60))
    assert flat["run"].advice == "first mend: rate"


@pytest.mark.parametrize("loss", [[2.0 + 0.1 * i for i in range(100)], [2.0] * 100])
def test_a_fit_that_went_astray_is_not_good(tmp_path: Path, loss: list[float]) -> None:
    found = by_records(written(tmp_path / "r", loss, appraisal=appraisal()))
    assert states(found) == {"rate": "bad"}
    assert found["fit"].state == "follows"
    assert ("diverged" if loss[-1] > 3 else "hardly moved") in found["fit"].says


def test_agreement_at_chance_is_not_good(tmp_path: Path) -> None:
    told = {
        "classes": [str(i) for i in range(8)],
        "sides": {"student": {"score": 0.125}, "teacher": {"score": 0.13}},
        "agreement": {"student": {"top1": 0.125, "kl": 0.5}},
        "train": {},
    }
    found = by_records(written(tmp_path / "r", FALLS, appraisal=appraisal(**told)))["agreement"]
    assert found.state != "good"
    assert found.says.endswith("; by chance they would to 0.125")
    seen = Seen("kd", steps=60)
    z = torch.zeros(90, 3)
    z[:, 0] = 1  # always the first class, which is right on a third
    sure = nn.functional.one_hot(torch.arange(90) % 3, 3).float()
    for side, logits in (("student", z), ("teacher", sure)):
        seen.answers[side, "held"] = Answers(logits, torch.arange(90) % 3)
    assert agreement(seen, []).state == "unknown"
    assert "no verdict after 60 steps" in agreement(seen, []).says


def test_the_agreement_of_the_student_alone_is_no_divergence(tmp_path: Path) -> None:
    says = by_records(written(tmp_path / "r", FALLS, appraisal=appraisal()))["agreement"].says
    assert says.endswith("(the student alone does to 0.900), with a mean KL of 0.100 nats")


# --- commands ------------------------------------------------------------------------------------

OWN = ["limbeck", "run", "kd", "--teacher", "timm:a", "--student", "timm:b", "--data", "d"]
OWN += ["--epochs", "4", "--tau", "8"]


def seen_of(**more: Any) -> Seen:
    return Seen("kd", make("kd"), replace(task(), **more))


def test_twice_the_budget_by_the_option_that_gives_it() -> None:
    for given, told in (
        (["--epochs", "4"], "--epochs 8"),
        (["--epochs=0.5"], "--epochs 1"),
        (["--steps", "70"], "--steps 140"),
        ([], "--steps 400"),
    ):
        command, note = proposals.longer(seen_of(), ["limbeck", "run", "kd", *given])
        assert (command, note) == (f"limbeck run kd {told}", "")
    epochs = replace(task().budget, steps=None, epochs=None)
    assert proposals.longer(seen_of(budget=epochs), ["limbeck"])[0] == "limbeck --epochs 20"


def test_a_teacher_is_trained_longer_where_the_run_trains_it() -> None:
    blank = seen_of(teacher=Untrained(right, "big"))
    command, note = proposals.teacher_longer(blank, OWN)
    assert str(command).endswith("--data d --tau 8 --epochs 8")
    assert "the run's own budget" in note
    command, note = proposals.teacher_longer(seen_of(), OWN)
    assert command is None
    assert "with --pretrained no the run trains it" in note


def test_pictures_are_augmented_and_numbers_are_not() -> None:
    pictures = seen_of(about={"inputs": {"kind": "pictures"}})
    assert proposals.augmented(pictures, OWN)[0] == " ".join([*OWN, "--augment", "crop,flip"])
    assert proposals.augmented(pictures, [*OWN, "--augment", "flip"])[0] is None
    assert proposals.augmented(pictures, ["limbeck", "run", "kd", "--world", "w"])[0] is None
    assert proposals.augmented(seen_of(), OWN)[0] is None


def test_another_method_has_no_fields_of_this_one() -> None:
    bare = "limbeck run {} --teacher timm:a --student timm:b --data d --epochs 4"
    assert proposals.reading_features(seen_of(), OWN) == bare.format("fitnets")
    assert proposals.reading_features(seen_of(), ["limbeck", "run", "kd", "--task", "t"]) is None
    told = "this method is for models that write; run gkd with own=0 and other=data"
    named = proposals.named_in(seen_of(), OWN, told)
    assert named == bare.format("gkd") + " --own 0 --other data"
    told = "give causal ones, or run distilbert"
    assert proposals.named_in(seen_of(), OWN, told) == bare.format("distilbert")
    assert proposals.named_in(seen_of(), OWN, "say how to run something") is None


def test_terms_of_the_teacher_weigh_more() -> None:
    seen = seen_of()
    seen.rows = [{"terms": {"label": 1.0, "kd": 2.0}}]
    assert proposals.weighed(seen, ["limbeck", "run", "kd"], 2.0) == "limbeck run kd --kd 1.8"
    listed = proposals.modules(OWN)
    assert listed == "limbeck show --modules timm:a"
    assert proposals.modules(["limbeck", "run", "kd", "--teacher", "hf:x"]) is None


# --- by heart ------------------------------------------------------------------------------------


def test_learning_by_heart_ends_when_it_has_or_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[int] = []

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))

        def forward(self, x: Tensor) -> Tensor:
            steps.append(len(x))
            out: Tensor = self.inner(x)
            return out

    mine = replace(task(), student=Counted)
    m, share = probe.by_heart(mine, limits.LEAST, 0, "cpu")
    assert (m, share >= limits.FITS) == (32, True)
    assert max(steps[:-1]) <= 16
    assert len(steps) < 8 * limits.LEAST
    monkeypatch.setattr(limits, "HEART", 0.0)
    with pytest.raises(UsageError, match=r"was over when 0\.\d+ of them .*--probe-steps 40 gives"):
        probe.by_heart(mine, limits.LEAST, 0, "cpu")


# --- served and kept teachers --------------------------------------------------------------------


def test_a_served_teacher_with_its_classes_turned_round_is_doubted() -> None:
    def turned(x: Tensor) -> Tensor:
        return right()(x).softmax(-1)[:, [2, 0, 1]]

    mine = replace(task(), teacher=BlackBox(turned, "probabilities", "far"))
    told = teaching.doubt(mine, torch.device("cpu"))
    assert told is not None
    assert "the teacher far agrees with 0% of the labels" in told
    assert "order of its classes" in told
    plain = BlackBox(lambda x: right()(x).softmax(-1), "probabilities")
    assert teaching.doubt(replace(mine, teacher=plain), torch.device("cpu")) is None
    found = diagnose(mine, probe_steps=4)
    assert found["classes"].state == "bad"
    assert "(0 -> 2, 1 -> 0, 2 -> 1)" in found["classes"].says


NETS = """
from torch import nn

def big(classes=2):
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, classes))

def small(classes=2):
    return nn.Linear(3, classes)
"""


def test_a_dry_look_takes_the_teacher_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    Path("nets.py").write_text(NETS)
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0)).tolist()
    rows = [f"{a:.4f},{b:.4f},{c:.4f},{'yes' if a > 0 else 'no'}" for a, b, c in x]
    Path("t.csv").write_text("\n".join(["a,b,c,y", *rows]))
    own = ["--teacher", "nets.py:big", "--student", "nets.py:small", "--data", "t.csv"]
    own += ["--pretrained", "no", "--steps", "20"]
    assert main(["run", "kd", *own, "--dry"]) == 0
    assert "would be trained first, 20 steps" in capsys.readouterr().out
    assert main(["run", "kd", *own, "--out", "r", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["run", "kd", *own, "--dry"]) == 0
    out, err = capsys.readouterr()
    assert "trained first" not in out
    assert "was trained by an earlier run, and kept" in err
