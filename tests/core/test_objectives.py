"""Sums of objectives, labels, ramps."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import limbeck
from limbeck import Batch, Budget, Labels, Optimiser, Sum, Task, get, make
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Given, Mean, Objective
from limbeck.core.objectives import ramp
from limbeck.core.run import Run
from limbeck.core.updates import Phase
from limbeck.errors import UsageError


def nets() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    return student, nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def data(n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


def one_step(objective: Objective, lr: float = 0.1) -> tuple[nn.Module, list[dict[str, Any]]]:
    student, teacher = nets()
    budget = Budget(steps=1, batch=8, schedule="constant", optimiser=Optimiser("sgd", lr=lr))
    task = Task(teacher, student, data(), budget=budget, taps={"embedding": ("2:in", "2:in")})
    with Run(task):
        fitted = fit(objective, student, task.the_teacher(), task.batches(), name="fit")
    return fitted.student, fitted.log


def test_a_sums_gradient_is_the_hand_written_sums() -> None:
    crd = make("crd(label=0, crd=1, negatives=4, dim=4)")
    members = (("ce", 0.1, Labels()), ("kd", 0.9, make("kd(label=0, kd=1)")), ("crd", 0.8, crd))
    moved, log = one_step(Sum(members))
    student, teacher = nets()
    x, y = data()
    only_crd, _ = one_step(crd, lr=1.0)
    start = {n: p.detach().clone() for n, p in student.named_parameters()}
    loss = 0.1 * F.cross_entropy(student(x), y) + 0.9 * kl(student(x), teacher(x), 4.0).mean()
    grads = torch.autograd.grad(loss, list(student.parameters()))
    named = dict(only_crd.named_parameters())
    for (n, p), g in zip(moved.named_parameters(), grads, strict=True):
        of_crd = start[n] - named[n].detach()  # a step of rate 1 down crd alone
        torch.testing.assert_close(p.detach(), start[n] - 0.1 * (g + 0.8 * of_crd))
    assert list(log[0]["terms"]) == ["ce.label", "kd.kd", "crd.crd"]
    assert log[0]["terms"]["ce.label"] == pytest.approx(
        0.1 * F.cross_entropy(nets()[0](x), y).item()
    )


@dataclass(frozen=True)
class Odd(Objective):
    """One term of each kind, a part, and what it observes."""

    def build(self, s: Any, t: Any, batch: Any, facts: Any) -> nn.Module:
        parts = nn.Module()
        parts.w = nn.Parameter(torch.ones(2))
        parts.register_buffer("seen", torch.zeros(()))
        return parts

    def terms(self, parts: Any, s: Any, t: Any, batch: Any, clock: Any) -> dict[str, Any]:
        count = float(len(batch))
        ready = Given({"parts.w": torch.tensor([1.0, 2.0]), "student.2.bias": torch.ones(3)})
        return {"mean": Mean((parts.w.sum() * count), count), "ready": ready}

    def counts(self, batch: Any) -> dict[str, Any]:
        return {"mean": float(len(batch))}

    def observe(self, parts: Any, s: Any, t: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {"n": batch.index.float()}

    def after_step(self, parts: Any, seen: Any, clock: Any) -> None:
        parts.seen += seen["n"].sum()


def test_parts_observations_means_and_ready_gradients_are_prefixed_and_weighted() -> None:
    student, teacher = nets()
    bias = student[2].bias.detach().clone()
    budget = Budget(steps=1, batch=8, schedule="constant", optimiser=Optimiser("sgd", lr=1.0))
    task = Task(teacher, student, data(), budget=budget)
    objective = Sum((("a", 1.0, Odd()), ("b", 0.5, Odd())))
    with Run(task):
        fitted = fit(objective, student, task.the_teacher(), task.batches(), name="fit")
    torch.testing.assert_close(fitted.parts["a"].w.detach(), torch.tensor([-1.0, -2.0]))
    torch.testing.assert_close(fitted.parts["b"].w.detach(), torch.tensor([0.0, -0.5]))
    torch.testing.assert_close(student[2].bias.detach(), bias - 1.5)
    assert float(fitted.parts["a"].seen) == float(fitted.parts["b"].seen) == sum(range(8))


@dataclass(frozen=True)
class Phased(Odd):
    def update(self) -> tuple[Phase, ...]:
        return (Phase("x"),)


@dataclass(frozen=True)
class Cropping(Odd):
    def prepare(self, batch: Any, rng: Any) -> Any:
        return batch, batch


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ((("a", 1.0, Odd()), ("a", 1.0, Odd())), "a name of its own"),
        ((("a.b", 1.0, Odd()),), "without dots"),
        ((), "a name of its own"),
        ((("train", 1.0, Odd()),), "cannot call an objective 'train'"),
        ((("a", 1.0, Phased()),), "'a' brings phases"),
        ((("a", 1.0, Cropping()), ("b", 1.0, Cropping())), "a and b each bring a prepare"),
    ],
)
def test_what_is_not_one_sum_is_refused(members: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Sum(members)


def test_weight_zero_is_not_computed() -> None:
    _, log = one_step(Sum((("ce", 1.0, Labels()), ("kd", 0.0, get("kd")()))))
    assert list(log[0]["terms"]) == ["ce.label"]


def test_label_smoothing_is_torchs() -> None:
    x, y = data()
    _, log = one_step(Labels(label=2.0, smoothing=0.1))
    expected = 2 * float(F.cross_entropy(nets()[0](x), y, label_smoothing=0.1))
    assert log[0]["terms"]["label"] == pytest.approx(expected)


def test_a_ramp_is_linear_between_and_constant_outside() -> None:
    assert [ramp(f, 4, 1) for f in (0, 0.5, 1)] == [4, 2.5, 1]
    assert [ramp(f, 0, 10, 0.2, 0.7) for f in (0.1, 0.2, 0.45, 0.7, 0.9)] == pytest.approx(
        [0, 0, 5, 10, 10]
    )


def test_several_labels_are_whole_numbers() -> None:
    """A sum of binary cross-entropies, by loops; floats are probabilities of classes."""
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    several = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1]])

    def loss(y: torch.Tensor) -> float:
        side = SimpleNamespace(logits=z)
        batch = Batch(y=y, index=torch.arange(5))
        return float(Labels().terms(None, side, None, batch, None)["label"])  # type: ignore[arg-type]

    total = 0.0
    for row, ones in zip(z.tolist(), several.tolist(), strict=True):
        for value, one in zip(row, ones, strict=True):
            p = 1 / (1 + math.exp(-value))
            total -= math.log(p if one else 1 - p)
    assert loss(several) == pytest.approx(total / 5, rel=1e-5)
    soft = torch.full((5, 3), 1 / 3)
    assert loss(soft) == pytest.approx(float(F.cross_entropy(z, soft)))


def test_float_labels_must_be_probabilities() -> None:
    x, y = torch.randn(8, 4), torch.ones(8, 3)
    task = Task(teacher=None, student=torch.nn.Linear(4, 3), train=(x, y), classes=3)
    with pytest.raises(UsageError, match="a row sums to 3; give several labels as whole numbers"):
        limbeck.run(Labels(), task)
    series = torch.randn(8, 5, 4), torch.randn(8, 5, 2)
    curve = Task(teacher=None, student=nn.Linear(4, 2), train=series)
    with pytest.raises(UsageError, match="other numbers are not learned from labels alone"):
        limbeck.run(Labels(), curve)
