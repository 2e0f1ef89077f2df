"""What is measured after a run, number by number against loops and scikit-learn."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from torch import Tensor, nn

from limbeck.core.cache import CacheWriter
from limbeck.core.tables import Table
from limbeck.core.task import Score, Task
from limbeck.core.teachers import BlackBox, Cached, Frozen, fingerprint_of
from limbeck.core.untrained import Untrained
from limbeck.runs import costs
from limbeck.runs.appraisal import appraise

pytestmark = pytest.mark.xdist_group("appraisal")

CPU = torch.device("cpu")
N, D, C = 200, 6, 4


@pytest.fixture(autouse=True, scope="module")
def _hurry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "SECONDS", {1: 0.0, 32: 0.0})
        yield


def linear(seed: int, out: int = C) -> nn.Linear:
    torch.manual_seed(seed)
    model = nn.Linear(D, out)
    nn.init.normal_(model.weight, std=1.5)
    return model


def samples(seed: int = 0, n: int = N) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=rng)
    y = linear(7)(x).argmax(-1).detach()
    y[::5] = torch.randint(C, (len(y[::5]),), generator=rng)  # nobody is right everywhere
    return x, y


def task(**changed: Any) -> Task:
    given: dict[str, Any] = {
        "teacher": linear(7),
        "student": linear(1),
        "train": samples(1),
        "test": samples(2),
    }
    return Task(**{**given, **changed})


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return appraise(task(), linear(1), linear(2), CPU)


def probabilities(model: nn.Module, x: Tensor) -> np.ndarray[Any, Any]:
    z = model(x).detach().double().numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


SIDES = {"student": 1, "baseline": 2, "teacher": 7}


@pytest.mark.parametrize("side", SIDES)
def test_scores_are_those_of_scikit_learn(told: dict[str, Any], side: str) -> None:
    x, y = samples(2)
    p = probabilities(linear(SIDES[side]), x)
    got = told["sides"][side]
    assert got["score"] == pytest.approx(accuracy_score(y, p.argmax(1)))
    assert got["nll"] == pytest.approx(log_loss(y, p, labels=range(C)), rel=1e-5)
    table = confusion_matrix(y, p.argmax(1), labels=range(C))
    assert got["per_class_count"] == table.sum(1).tolist()
    assert got["per_class"] == pytest.approx((table.diagonal() / table.sum(1)).tolist())


@pytest.mark.parametrize("side", SIDES)
def test_calibration_is_what_a_loop_gives(told: dict[str, Any], side: str) -> None:
    x, y = samples(2)
    bins: dict[int, list[tuple[float, bool]]] = {}
    entropy = 0.0
    for row, label in zip(probabilities(linear(SIDES[side]), x), y.tolist(), strict=True):
        edges = [k for k in range(15) if k / 15 < max(row) <= (k + 1) / 15]
        assert len(edges) == 1
        bins.setdefault(edges[0], []).append((max(row), int(row.argmax()) == label))
        entropy -= sum(v * math.log(v) for v in row) / N
    ece, expected = 0.0, []
    for k in sorted(bins):
        confidence = sum(p for p, _ in bins[k]) / len(bins[k])
        right = sum(hit for _, hit in bins[k]) / len(bins[k])
        ece += len(bins[k]) / N * abs(confidence - right)
        expected.append([confidence, right, len(bins[k])])
    got = told["sides"][side]
    assert len(expected) > 5
    assert len(got["reliability"]) == len(expected)
    for mine, theirs in zip(got["reliability"], expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert got["ece"] == pytest.approx(ece, rel=1e-5)
    assert got["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert got["confidence"] == pytest.approx(sum(p for b in bins.values() for p, _ in b) / N)


@pytest.mark.parametrize("side", ["student", "baseline"])
def test_agreement_is_what_a_loop_gives(told: dict[str, Any], side: str) -> None:
    x, _ = samples(2)
    t, s = probabilities(linear(7), x), probabilities(linear(SIDES[side]), x)
    pairs = [pair for p, q in zip(t, s, strict=True) for pair in zip(p, q, strict=True)]
    kl = sum(a * math.log(a / b) for a, b in pairs) / N
    same = sum(int(p.argmax() == q.argmax()) for p, q in zip(t, s, strict=True)) / N
    assert told["agreement"][side] == {
        "top1": pytest.approx(same),
        "kl": pytest.approx(kl, rel=1e-5),
    }


def test_who_is_the_teacher_agrees_with_it_wholly() -> None:
    told = appraise(task(), linear(7), None, CPU)
    assert told["agreement"]["student"] == {"top1": 1.0, "kl": 0.0}
    assert told["apart"] == []
    assert "baseline" not in told["sides"]


def test_costs_are_those_of_a_linear_layer(told: dict[str, Any]) -> None:
    for side in SIDES:
        got = told["sides"][side]
        assert got["parameters"] == D * C + C
        assert got["bytes"] == 4 * (D * C + C)
        assert got["macs"] == D * C
        assert set(got["latency_ms"]) == {"1", "32"}
        assert got["latency_ms"]["1"] > 0


class Tied(nn.Module):
    """Two names for one weight, a buffer, and an output with a name."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(D, D, bias=False)
        self.two = nn.Linear(D, D, bias=False)
        self.two.weight = self.one.weight
        self.register_buffer("shift", torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.two(self.one(x))[:, :C], "feature": x}


def test_what_is_tied_counts_once_and_outputs_may_be_dicts() -> None:
    got = appraise(task(), Tied(), None, CPU)["sides"]["student"]
    assert (got["parameters"], got["bytes"]) == (D * D, 4 * D * D + 3 * 8)
    assert got["macs"] == 2 * D * D
    assert got["nll"] > 0


def test_scores_on_training_samples() -> None:
    got = appraise(task(train=samples(1, 2300)), linear(1), None, CPU)["train"]
    x, y = samples(1, 2300)
    rows = Table((x, y)).some(2000)
    assert len(set(rows.tolist())) == 2000
    assert int(rows.max()) > 2200  # from all over the set
    first = accuracy_score(y[rows], linear(1)(x[rows]).argmax(-1))
    assert got["samples"] == 2000
    assert got["student"] == pytest.approx(first)
    assert "train" not in appraise(task(train=samples(1)[0]), linear(1), None, CPU)  # no labels
    assert "train" not in appraise(task(train=None), linear(1), None, CPU)


def test_samples_apart_begin_where_the_surer_teacher_is_right(told: dict[str, Any]) -> None:
    x, y = samples(2)
    t, s = probabilities(linear(7), x), probabilities(linear(1), x)
    both = []
    for i in range(N):
        if t[i].argmax() != s[i].argmax():
            right = int(t[i].argmax()) == int(y[i])
            both.append((not right, -t[i].max() * s[i].max(), i))
    assert len(both) > 12
    assert [each["index"] for each in told["apart"]] == [i for _, _, i in sorted(both)[:12]]
    first = told["apart"][0]
    i = first["index"]
    assert first["y"] == int(y[i])
    assert first["student"] == [int(s[i].argmax()), pytest.approx(s[i].max(), rel=1e-5)]
    assert first["teacher"] == [int(t[i].argmax()), pytest.approx(t[i].max(), rel=1e-5)]
    assert first["x"]["kind"] == "numbers"
    assert first["x"]["values"] == pytest.approx(x[i].tolist(), rel=1e-5)


# -- teachers --------------------------------------------------------------------------------------


def test_a_black_box_that_gives_labels_has_a_score_and_agrees_or_not() -> None:
    box = BlackBox(lambda x: linear(7)(x).argmax(-1), "labels")
    told, live = (appraise(task(teacher=t), linear(1), None, CPU) for t in (box, linear(7)))
    assert told["sides"]["teacher"] == {"score": live["sides"]["teacher"]["score"]}
    assert told["agreement"]["student"] == {"top1": live["agreement"]["student"]["top1"]}
    assert told["apart"][0]["teacher"][1] is None
    assert told["train"]["teacher"] == live["train"]["teacher"]


def test_a_black_box_that_gives_probabilities_is_measured_like_its_model() -> None:
    box = BlackBox(lambda x: linear(7)(x).softmax(-1), "probabilities")
    told, live = (appraise(task(teacher=t), linear(1), None, CPU) for t in (box, linear(7)))
    assert told["agreement"]["student"] == pytest.approx(live["agreement"]["student"], rel=1e-4)
    for key in ("nll", "ece", "entropy"):
        want = live["sides"]["teacher"][key]
        assert told["sides"]["teacher"][key] == pytest.approx(want, rel=1e-3)
    assert "parameters" not in told["sides"]["teacher"]


def test_a_cache_answers_for_its_own_samples_only(tmp_path: Path) -> None:
    x, y = samples(1)
    print_ = fingerprint_of(linear(7), Table((x, y)), None)
    with CacheWriter(tmp_path / "cache", print_, N) as writer:
        writer.write(torch.arange(N), {"logits": linear(7)(x).detach()})
    told = appraise(task(teacher=Cached(tmp_path / "cache")), linear(1), None, CPU)
    assert "teacher" not in told["sides"]  # of the test samples it knows nothing
    assert told["train"]["teacher"] == pytest.approx(accuracy_score(y, linear(7)(x).argmax(-1)))


@pytest.mark.parametrize("teacher", [None, Untrained(lambda: linear(7)), linear(7, C + 3)])
def test_a_teacher_that_cannot_be_compared_is_left_out(teacher: Any) -> None:
    told = appraise(task(teacher=teacher), linear(1), None, CPU)
    assert told.get("agreement", {}) == {}
    assert told.get("apart", []) == []
    assert told["sides"]["student"]["ece"] >= 0


# -- tasks -----------------------------------------------------------------------------------------


def test_real_labels_have_scores_and_costs_only() -> None:
    x, _ = samples(2)
    y = torch.randn(N, 1)
    mse = Score("mse", False, lambda z, y: float(((z - y) ** 2).mean()))
    t = task(train=(x, y), test=(x, y), teacher=linear(7, 1), score=mse)
    told = appraise(t, linear(1, 1), None, CPU)
    assert told["sides"]["student"]["score"] == pytest.approx(
        float(((linear(1, 1)(x).detach() - y) ** 2).mean())
    )
    assert told["score_higher"] is False
    assert set(told["sides"]["student"]) == {"score", "parameters", "bytes", "macs", "latency_ms"}
    assert not {"classes", "agreement", "apart"} & set(told)


def test_a_score_that_is_no_number_is_null_and_a_class_without_samples_too() -> None:
    x, _ = samples(2)
    bad = Score("bad", True, lambda z, y: float("nan"))
    told = appraise(task(test=(x, torch.zeros(N).long()), score=bad), linear(1), None, CPU)
    assert told["sides"]["student"]["score"] is None
    assert told["sides"]["student"]["per_class"][1:] == [None] * 3
    json.dumps(told, allow_nan=False)


def test_names_come_from_the_task() -> None:
    names = ["a", "b", "c", "<d>"]
    for changed in ({"about": {"names": names}}, {"data": {"names": names}}):
        assert appraise(task(**changed), linear(1), None, CPU)["classes"] == names
    short = task(data={"names": names[:2]})
    assert appraise(short, linear(1), None, CPU)["classes"] == ["0", "1", "2", "3"]


def test_each_side_sees_the_judged_set_through_its_own_reader() -> None:
    x, y = samples(2)
    readers = {"student": lambda x: -x, "teacher": lambda x: 2 * x}
    told = appraise(task(readers=readers), linear(1), None, CPU)
    t, s = linear(7)(2 * x).argmax(-1), linear(1)(-x).argmax(-1)
    assert told["sides"]["student"]["score"] == pytest.approx(accuracy_score(y, s))
    assert told["agreement"]["student"]["top1"] == pytest.approx(accuracy_score(t, s))


def test_models_are_left_as_they_were() -> None:
    student, teacher = nn.Sequential(linear(1), nn.BatchNorm1d(C)), linear(7)
    student.train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    appraise(task(teacher=Frozen(teacher)), student, None, CPU)
    assert student.training
    assert student[1].training
    assert teacher.training
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


class Odd(nn.Module):
    """A model that takes one batch size only."""

    def __init__(self, ok: Callable[[int], bool]) -> None:
        super().__init__()
        self.inner, self.ok = linear(1), ok

    def forward(self, x: Tensor) -> Tensor:
        if not self.ok(len(x)):
            raise RuntimeError("not this size")
        return self.inner(x)


def test_what_cannot_be_counted_is_null() -> None:
    got = appraise(task(), Odd(lambda n: n > 32), None, CPU)["sides"]["student"]
    assert got["macs"] is None
    assert got["latency_ms"] is None
    assert got["parameters"] == D * C + C


def test_times_are_medians_taken_within_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(costs, "SECONDS", {1: 0.1, 32: 0.2})

    class Slow(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds, self.runs = seconds, 0

        def forward(self, x: Tensor) -> Tensor:
            clock[0] += self.seconds * (1 + len(x)) * (9 if not self.runs else 1)  # a cold start
            self.runs += 1
            return x

    fast, slow = Slow(0.001), Slow(0.002)
    got = costs.latencies({"a": (fast, None), "b": (slow, None)}, Table(samples(2)), CPU)
    assert got["a"] == pytest.approx({"1": 2, "32": 33})
    assert got["b"] == pytest.approx({"1": 4, "32": 66})
    assert fast.runs == slow.runs
    assert 0.3 < clock[0] < 0.5
    assert costs.latencies({"a": (Slow(10.0), None)}, Table(samples(2)), CPU)["a"] is not None


# -- samples ---------------------------------------------------------------------------------------


class Looks(nn.Module):
    """Answers by the mean of a picture; `turn` answers the other way round."""

    def __init__(self, turn: float) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.tensor(turn))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.float().flatten(1).mean(1) - 0.5
        return torch.stack([mean, -mean], 1) * self.turn


def shown(x: Any, reader: Any = None) -> list[dict[str, Any]]:
    readers = {"student": reader, "teacher": reader} if reader else {}
    y = torch.zeros(len(x)).long()
    data = (x, y) if isinstance(x, Tensor) else [(each, 0) for each in x]
    t = Task(Looks(-1.0), Looks(1.0), data, test=data, readers=readers, classes=2)
    found = appraise(t, Looks(1.0), None, CPU)["apart"]
    return [each["x"] for each in sorted(found, key=lambda each: each["index"])]


def test_pictures_of_every_layout_are_the_same_picture() -> None:
    rgb = torch.rand(3, 5, 6, 3)  # (N, H, W, C)
    want = (255 * rgb).round().int().tolist()
    for x in (rgb, rgb.movedim(-1, 1)):
        assert [each["pixels"] for each in shown(x)] == want
    whole = (255 * rgb).round().to(torch.uint8)
    assert [each["pixels"] for each in shown(whole)] == want
    grey = rgb[..., 0]
    want = (255 * grey).round().int().tolist()
    for x in (grey, grey[:, None], grey[..., None]):
        assert [each["pixels"] for each in shown(x)] == want


def test_what_lies_outside_is_stretched_alike_for_all() -> None:
    x = torch.zeros(2, 4, 4)
    x[0, 0, 0], x[1, 0, 0] = -1.0, 3.0
    first, second = (each["pixels"] for each in shown(x))
    assert (first[0][0], first[1][1]) == (0, 64)  # -1 is black, 0 a quarter of the way to 3
    assert (second[0][0], second[1][1]) == (255, 64)


def test_large_pictures_become_small_ones() -> None:
    x = torch.zeros(1, 3, 192, 96)
    x[:, :, :64] = 1.0
    (picture,) = shown(x)
    assert (len(picture["pixels"]), len(picture["pixels"][0])) == (96, 48)
    assert picture["pixels"][0][0] == [255, 255, 255]
    assert picture["pixels"][-1][-1] == [0, 0, 0]


def test_pil_pictures_are_shown() -> None:
    image = pytest.importorskip("PIL.Image", reason="needs PIL")
    array = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)

    def read(pictures: list[Any]) -> Tensor:
        return torch.stack([torch.tensor(np.array(p)) for p in pictures])

    (picture,) = shown([image.fromarray(array)], read)
    assert picture == {"kind": "picture", "pixels": array.tolist()}
    (picture,) = shown([image.fromarray(array[..., 0])], read)
    assert picture["pixels"] == array[..., 0].tolist()


def test_numbers_are_few_and_named_where_columns_are() -> None:
    x = torch.arange(20.0).view(1, 20) + 1.0
    (numbers,) = shown(x)
    assert numbers == {"kind": "numbers", "values": [float(v) for v in range(1, 13)]}
    about = {"inputs": {"kind": "table", "columns": [f"c{i}" for i in range(D)]}}
    told = appraise(task(about=about), linear(1), None, CPU)
    assert told["apart"][0]["x"]["names"] == [f"c{i}" for i in range(D)]
