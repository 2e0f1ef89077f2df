"""Runs: names, what is remembered, the log, and folders that do not fit."""

import json
import os
import resource
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from _probes import X, Y, in_child, net
from torch import nn

import limbeck
from limbeck.core import checkpoints
from limbeck.core.data import Epochs
from limbeck.core.engine import fit
from limbeck.core.method import Objective
from limbeck.core.objectives import Labels
from limbeck.core.run import Run, current, loop, rng, stage
from limbeck.core.task import Budget, Optimiser, Score, Task
from limbeck.core.teachers import Nobody
from limbeck.errors import Missing, UsageError


class Stop(Exception):
    pass


def stopping(at):
    """A hook that raises after so many steps."""
    done = []

    def after_step(name, step):
        done.append(step)
        if len(done) == at:
            raise Stop

    return after_step


def train(run, student=None, name="fit", steps=10):
    plan = Budget(steps=steps, batch=16, optimiser=Optimiser("sgd", 0.1))
    with run:
        student = student or net("student")
        return fit(Labels(), student, Nobody(), Epochs((X, Y)), name=name, budget=plan)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- stages ---


def test_a_stage_is_done_once_and_remembered_as_it_was(tmp_path):
    value = {"b": [torch.arange(3), (1, 2.5)], "a": None, "c": "x"}
    calls = []

    def work():
        calls.append(1)
        return value

    for _ in range(2):
        with Run(folder=tmp_path, device="cpu"):
            got = stage("work", work)
        assert list(got) == ["b", "a", "c"]
        assert torch.equal(got["b"][0], torch.arange(3))
        assert got["b"][1] == (1, 2.5)
        assert (got["a"], got["c"]) == (None, "x")
    assert len(calls) == 1
    with Run(device="cpu"):
        stage("work", work)
    assert len(calls) == 2  # in memory nothing is remembered


def test_a_stage_that_failed_is_done_again(tmp_path):
    def fails():
        raise Stop

    with pytest.raises(Stop), Run(folder=tmp_path, device="cpu"):
        stage("work", fails)
    with Run(folder=tmp_path, device="cpu"):
        assert stage("work", lambda: 3) == 3


def test_names_are_unique_and_nested():
    with Run(device="cpu") as run:
        stage("one", lambda: stage("two", lambda: 1))
        stage("two", lambda: 1)
        assert run._used == {"one", "one/two", "two"}
        with pytest.raises(UsageError, match="'two' was already run in this run"):
            stage("two", lambda: 1)
        with pytest.raises(UsageError, match="'two' was already run"):
            next(iter(loop("two", {}, 2)))
        with pytest.raises(UsageError, match="has other signs than letters"):
            stage("a b", lambda: 1)
        with pytest.raises(UsageError, match="has other signs"):
            stage("../a", lambda: 1)


def test_draws_outside_a_fit_are_by_seed_and_stage():
    def draw(seed, name, inside=None):
        with Run(seed=seed, device="cpu"):
            if inside:
                return stage(inside, lambda: torch.rand(3, generator=rng(name)).tolist())
            return torch.rand(3, generator=rng(name)).tolist()

    assert draw(1, "a") == draw(1, "a")
    others = [draw(2, "a"), draw(1, "b"), draw(1, "a", "s"), draw(1, "a", "t"), draw(1, "a")]
    assert len({tuple(o) for o in others}) == 5


def test_a_bare_call_has_a_run_of_its_own_in_memory():
    assert current() is not current()
    with Run(device="cpu") as run:
        assert current() is run
    assert current() is not run


# --- rounds ---


def rounds(run, total=4, body=None):
    """A model that is moved by a draw of each round; a tensor and a list go along."""
    model = nn.BatchNorm1d(2)
    state = {"model": model, "sum": torch.zeros(()), "told": []}
    begun = []
    with run:
        for i in loop("rounds", state, total):
            begun.append(i)
            drawn = stage("draw", lambda: torch.rand(2, generator=rng("x")))
            if body:
                body(i)
            with torch.no_grad():
                model.weight.add_(drawn)
            model(torch.stack([drawn, -drawn]))
            state["sum"] = state["sum"] + drawn.sum()
            state["told"] = [*state["told"], i]
    tensors = {**model.state_dict(), "sum": state["sum"]}
    return begun, {k: v.clone() for k, v in tensors.items()}, state["told"]


def test_a_loop_goes_on_after_the_last_whole_round(tmp_path):
    _, whole, told = rounds(Run(device="cpu"))
    assert told == [0, 1, 2, 3]

    def stops(i):
        if i == 2:
            raise Stop

    with pytest.raises(Stop):
        rounds(Run(folder=tmp_path, device="cpu"), body=stops)
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    # the stages of finished rounds are gone, that of the round that was cut is there
    assert names == {"rounds.now.safetensors", "rounds@2@draw.done.safetensors"}
    begun, found, told = rounds(Run(folder=tmp_path, device="cpu"))
    assert begun == [2, 3]
    assert told == [0, 1, 2, 3]
    assert all(torch.equal(v, found[k]) for k, v in whole.items())
    begun, found, told = rounds(Run(folder=tmp_path, device="cpu"))
    assert (begun, told) == ([], [0, 1, 2, 3])  # a finished loop gives its state, and no round
    assert all(torch.equal(v, found[k]) for k, v in whole.items())


# --- the log ---


@pytest.mark.parametrize("stop", [2, 5, 9])  # before the first checkpoint, between, after
def test_the_log_of_a_resumed_run_has_each_row_once(tmp_path, stop):
    with pytest.raises(Stop):
        train(Run(folder=tmp_path, device="cpu", checkpoint=4, after_step=stopping(stop)))
    before = (tmp_path / "metrics.jsonl").read_text()
    assert len(before.splitlines()) == stop
    # a kill in the middle of a line
    (tmp_path / "metrics.jsonl").write_text(before + '{"stage": "fit", "step": 9, "te')
    fitted = train(Run(folder=tmp_path, device="cpu", checkpoint=4))
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(10))
    assert rows_of(tmp_path) == fitted.log
    plain = train(Run(device="cpu"))
    assert plain.log == fitted.log


def test_a_resumed_run_takes_back_only_its_own_rows(tmp_path):
    def both(after_step):
        run = Run(folder=tmp_path, device="cpu", checkpoint=4, after_step=after_step)
        with run:
            for name in ("one", "two"):
                plan = Budget(steps=6, batch=16)
                fit(Labels(), net("s"), Nobody(), Epochs((X, Y)), name=name, budget=plan)

    with pytest.raises(Stop):
        both(stopping(8))  # "one" calls five times, as its last step needs no call
    first = (tmp_path / "metrics.jsonl").read_text().splitlines()
    both(lambda *_: None)
    told = [(row["stage"], row["step"]) for row in rows_of(tmp_path)]
    assert told == [(name, i) for name in ("one", "two") for i in range(6)]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:6] == first[:6]


# --- what goes wrong on disk ---


def test_a_damaged_checkpoint_is_one_sentence_and_a_new_start_without_it(tmp_path):
    with pytest.raises(Stop):
        train(Run(folder=tmp_path, device="cpu", checkpoint=2, after_step=stopping(5)))
    path = tmp_path / "checkpoints" / "fit.now.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"is damaged .*remove it, and the run begins this stage"):
        train(Run(folder=tmp_path, device="cpu"))
    path.unlink()
    again = train(Run(folder=tmp_path, device="cpu"))
    other = train(Run(device="cpu"))
    assert again.log == other.log
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(10))


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_it_stays(tmp_path):

    def fills():
        def after_step(name, step):
            if step == 5:  # no file may grow to the size of the first checkpoint
                size = (tmp_path / "checkpoints" / "fit.now.safetensors").stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, resource.RLIM_INFINITY))

        run = Run(folder=tmp_path, device="cpu", checkpoint=4, after_step=after_step)
        with pytest.raises(UsageError, match=r"could not write .*fit.now.*; what was there before"):
            train(run)

    assert in_child(fills) == 0
    tensors, meta = checkpoints.load(tmp_path / "checkpoints" / "fit.now.safetensors")
    assert meta["step"] == 4
    assert tensors
    whole = train(Run(device="cpu"))
    found = train(Run(folder=tmp_path, device="cpu"))
    for k, v in whole.student.state_dict().items():
        assert torch.equal(found.student.state_dict()[k], v)


def test_a_finished_fit_is_read_and_its_checkpoint_has_no_optimiser(tmp_path):
    fitted = train(Run(folder=tmp_path, device="cpu", checkpoint=2))
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert path.name == "fit.done.safetensors"
    tensors, _ = checkpoints.load(path)
    assert {k.split("/")[0] for k in tensors} == {"step"}
    called = []
    run = Run(folder=tmp_path, device="cpu", after_step=lambda *_: called.append(1))
    again = train(run)
    assert not called
    assert again.log == fitted.log
    for k, v in fitted.student.state_dict().items():
        assert torch.equal(again.student.state_dict()[k], v)


def test_another_student_than_the_stored_one_is_named(tmp_path):
    train(Run(folder=tmp_path, device="cpu"))
    with pytest.raises(UsageError, match=r"the stored state does not fit Step: .*size mismatch"):
        train(Run(folder=tmp_path, device="cpu"), net("student", 9))


# --- the front door ---


class Interrupting:
    """Accuracy, but a key is pressed at the n-th evaluation."""

    def __init__(self, at=None):
        self.at, self.asked = at, 0

    def __call__(self, logits, y):
        self.asked += 1
        if self.asked == self.at:
            raise KeyboardInterrupt
        return float((logits.argmax(1) == y).double().mean())


def task(at=None, **changes):
    spec = Optimiser("adamw", 0.01)
    plan = Budget(steps=12, batch=16, evaluate=2, optimiser=spec)
    given = {
        "teacher": net("teacher", 24),
        "student": net("student"),
        "train": (X, Y),
        "valid": (X[:30], Y[:30]),
        "score": Score("accuracy", True, Interrupting(at)),
        "budget": plan,
        **changes,
    }
    return Task(**given)


def test_a_run_that_was_stopped_ends_as_if_it_was_not(tmp_path):
    whole = limbeck.run("kd", task(), seed=4, out=tmp_path / "whole", checkpoint=3)
    with pytest.raises(KeyboardInterrupt):
        limbeck.run("kd", task(at=4), seed=4, out=tmp_path / "cut", checkpoint=3)
    assert not (tmp_path / "cut" / "result.json").exists()
    cut = limbeck.run("kd", task(), seed=4, out=tmp_path / "cut", checkpoint=3)
    assert cut.log == whole.log
    for name in ("student.safetensors", "metrics.jsonl", "result.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    other = limbeck.run("kd", task(), seed=5, out=tmp_path / "other", checkpoint=3)
    assert other.log != whole.log  # the premise: seeds make a difference
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["score_of"] == "valid"
    assert result["score"] == whole.facts["score"]
    assert result["stages"][0]["steps"] == 12


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_patience_and_the_best_state_go_on_where_they_were(tmp_path, stop):
    values = {2: 0.3, 4: 0.2, 6: 0.1, 8: 0.0, 10: 0.9}  # by steps: the first is best, of three

    def run(after_step, folder=None):
        student, states, fits = net("student"), {}, []

        def note(name, done):
            states[done] = {k: v.clone() for k, v in student.state_dict().items()}
            after_step(name, done)

        def of(logits, y):
            return values[fits[-1].log[-1]["step"] + 1]

        data = Task(None, student, (X, Y), valid=(X, Y), score=Score("told", True, of))
        plan = Budget(steps=12, batch=16, evaluate=2, patience=3, keep="best")
        with Run(folder=folder, device="cpu", checkpoint=1, after_step=note, on_fit=fits.append):
            batches = Epochs((X, Y))
            fit(Labels(), student, Nobody(), batches, name="fit", task=data, budget=plan)
        return student.state_dict(), states

    whole, states = run(lambda *_: None)
    assert max(states) == 7  # the eighth step was the last
    assert all(torch.equal(v, states[2][k]) for k, v in whole.items())
    with pytest.raises(Stop):
        run(stopping(stop), tmp_path)
    cut, states = run(lambda *_: None, tmp_path)
    assert max(states, default=7) == 7
    assert all(torch.equal(v, cut[k]) for k, v in whole.items())


def test_the_score_is_of_the_test_set_where_there_is_one():
    wrong = (X[:30], (Y[:30] + 1) % 4)
    result = limbeck.run("kd", task(test=wrong), seed=4).facts
    z = limbeck.run("kd", task(test=wrong), seed=4).model.eval()(wrong[0])["logits"]
    assert result["score_of"] == "test"
    assert result["score"] == pytest.approx((z.argmax(1) == wrong[1]).double().mean().item())


@pytest.mark.parametrize(
    ("key", "changes", "seed", "message"),
    [
        ("kd(tau=2)", {}, 0, "holds another run"),
        ("kd", {}, 1, "holds another run"),
        ("kd", {"teacher": net("other", 24)}, 0, "begun with another teacher"),
        ("kd", {"train": (X + 1, Y)}, 0, "begun with another train"),
        ("kd", {"valid": (X[:31], Y[:31])}, 0, "begun with another valid"),
        ("kd", {"student": net("student", 13)}, 0, "begun with another student"),
        ("kd", {"budget": Budget(steps=13)}, 0, "begun with another budget"),
    ],
)
def test_a_folder_with_another_run_or_task_is_refused(tmp_path, key, changes, seed, message):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        limbeck.run("kd", task(at=2), out=out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert before
    with pytest.raises(UsageError, match=message) as error:
        limbeck.run(key, task(**changes), out=out, seed=seed)
    assert "\n" not in str(error.value)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        limbeck.run("kd", task(), out=tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": (X[:0], Y[:0])}, "'train' is empty"),
        ({"train": (X, Y - 1)}, "'train' has labels from -1 to 2, but there are 3 classes"),
        ({"train": (X, Y), "classes": 3}, "'train' has labels from 0 to 3, but there are 3"),
        ({"valid": (X, Y + 1)}, "'valid' has labels from 1 to 4, but there are 4"),
        ({"train": (X.clone().fill_(float("nan")), Y)}, "'train' holds inputs that are not finite"),
        ({"train": (X, Y[:-1])}, r"the columns of 'train' differ in length \(x 96, y 95\)"),
        ({"teacher": nn.Linear(8, 5)}, r"the student's logits are \(16, 4\), the teacher's \(16,"),
        ({"taps": {"mid": ("nrom", "norm")}}, "the teacher .* has no module 'nrom'; did you mean"),
        ({"taps": {"mid": ("norm", "bdoy")}}, "the student .* has no module 'bdoy'; did you mean"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_sentence(changes, message):
    with pytest.raises(UsageError, match=message) as error:
        limbeck.run("kd", replace(task(), **changes))
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Wraps(Objective):
    """Asks for what a wrapped method needs, which no card of its own says."""

    def asks(self):
        return ("data:elsewhere",)

    def terms(self, parts, s, t, batch, clock):
        return {"label": F.cross_entropy(s.logits, batch.y)}


def test_a_set_that_a_wrapper_needs_is_missed_before_anything_is_trained():
    with pytest.raises(Missing, match="Wraps needs a set 'elsewhere'"):
        limbeck.run(Wraps(), task())
