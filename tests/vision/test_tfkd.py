"""tfkd: the made teacher by hand and by loops, label smoothing as its limit, both machines."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.vision.tfkd import Taught, TfKD, made, reg_loss

pytestmark = pytest.mark.xdist_group("tfkd")

G = torch.Generator().manual_seed(19)
S = torch.randn(7, 5, generator=G, dtype=torch.float64)
T = 2 * torch.randn(7, 5, generator=G, dtype=torch.float64)
Y = torch.arange(7) % 5


def soft(y: int, c: int, a: float, tau: float, soften: str) -> list[float]:
    """p^d_tau, a number at a time."""
    p = [a if k == y else (1 - a) / (c - 1) for k in range(c)]
    raw = [math.exp(v / tau) if soften == "probabilities" else v ** (1 / tau) for v in p]
    return [v / sum(raw) for v in raw]


def terms(method: TfKD, s: Tensor = S, t: Tensor | None = T, y: Tensor = Y) -> dict[str, Tensor]:
    sides: list[Any] = [SimpleNamespace(logits=s), SimpleNamespace()]
    if t is not None:
        sides[1] = SimpleNamespace(logits=t)
    return Taught(method).terms(nn.Module(), *sides, Batch(x=s, y=y), Clock(0, "s", 0, 9, 3))


def test_defaults_are_the_papers() -> None:
    m = TfKD()
    assert (m.machine, m.label, m.tfkd, m.tau) == ("self", 0.1, 0.9, 20.0)
    assert (m.a, m.soften, m.both) == (0.99, "probabilities", False)


def test_the_made_teacher() -> None:
    p = made(torch.tensor([1, 0]), 3, 0.9).exp()
    torch.testing.assert_close(p, torch.tensor([[0.05, 0.9, 0.05], [0.9, 0.05, 0.05]]))
    torch.testing.assert_close(made(Y, 5, 0.2).exp(), torch.full((7, 5), 0.2))


@pytest.mark.parametrize(
    ("soften", "tau", "want"),
    [("probabilities", 20, 0.000202559), ("logits", 20, 0.002390858), ("logits", 1, 0.704214597)],
)
def test_three_classes_by_hand(soften: str, tau: float, want: float) -> None:
    z, y = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0])
    assert float(reg_loss(z, y, 0.9, tau, soften)) == pytest.approx(want, abs=3e-7)


@pytest.mark.parametrize("soften", ["probabilities", "logits"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("tau", [1.0, 3.0, 20.0])
def test_value_and_gradient_by_loops(soften: str, both: bool, tau: float) -> None:
    own, total = tau if both else 1.0, 0.0
    want = torch.zeros_like(S)
    for b in range(7):
        p = soft(int(Y[b]), 5, 0.99, tau, soften)
        raw = [math.exp(float(z) / own) for z in S[b]]
        q = [v / sum(raw) for v in raw]
        total += own**2 * sum(u * math.log(u / v) for u, v in zip(p, q, strict=True)) / 7
        want[b] = torch.tensor([own * (v - u) / 7 for u, v in zip(p, q, strict=True)])
    z = S.clone().requires_grad_()
    loss = reg_loss(z, Y, 0.99, tau, soften, both)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], want, atol=1e-6, rtol=1e-5)


def test_unsoftened_it_is_label_smoothing() -> None:
    m = TfKD(machine="reg", label=0.7, tfkd=0.3, tau=1.0, a=0.9, soften="logits")
    z = S.clone().requires_grad_()
    out = terms(m, z, None)
    found = torch.autograd.grad(out["label"] + out["tfkd"], z)[0]
    e = 0.3 * 5 * (1 - 0.9) / 4
    smooth = F.cross_entropy(z, Y, label_smoothing=e)
    torch.testing.assert_close(found, torch.autograd.grad(smooth, z)[0], atol=1e-6, rtol=1e-5)
    # softening p^d as logits at tau = 1 is another distribution
    assert float(reg_loss(S, Y, 0.9, 1.0)) != pytest.approx(float(reg_loss(S, Y, 0.9, 1, "logits")))


def test_a_high_temperature_or_an_even_a_is_uniform() -> None:
    even = float(-(S.log_softmax(1)).mean() - math.log(5))
    for soften in ("probabilities", "logits"):
        assert float(reg_loss(S, Y, 0.99, 1e6, soften)) == pytest.approx(even, rel=1e-4)
        assert float(reg_loss(S, Y, 0.2, 2.0, soften)) == pytest.approx(even, rel=1e-4)


def test_self_is_tau_square_kl_beside_labels() -> None:
    out = terms(TfKD(label=0.3, tfkd=2.0, tau=4.0))
    p, q = (T / 4).softmax(1), (S / 4).softmax(1)
    each = [sum(a * math.log(a / b) for a, b in zip(*r, strict=True)) for r in zip(p, q)]  # noqa: B905
    assert float(out["tfkd"]) == pytest.approx(2 * 16 * float(sum(each)) / 7, rel=1e-9)
    assert float(out["label"]) == pytest.approx(0.3 * float(F.cross_entropy(S, Y)), rel=1e-5)
    z = T.clone().requires_grad_()
    same = terms(TfKD(label=0.0), z + 3)["tfkd"]
    assert float(same.detach()) == pytest.approx(0, abs=1e-9)
    assert float(torch.autograd.grad(same, z)[0].abs().max()) < 1e-12
    assert set(terms(TfKD(tfkd=0.0))) == {"label"}


def test_half_precision_stays_finite() -> None:
    z = (1000 * S).half().requires_grad_()
    loss = terms(TfKD(machine="reg"), z, None)["tfkd"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(z.grad).all())  # type: ignore[arg-type]


def test_reg_refuses_mixed_labels() -> None:
    with pytest.raises(UsageError, match="one true class"):
        terms(TfKD(machine="reg", label=0), S, None, Y[:, None].float())


def world(teacher: nn.Module | None) -> Task:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    budget = Budget(epochs=20, batch=16, optimiser=Optimiser("adam", lr=0.02))
    return Task(teacher, lambda: nn.Linear(6, 3), (x, x[:, :3].argmax(1)), budget=budget, classes=3)


@pytest.mark.parametrize(
    ("machine", "given", "stages"),
    [
        ("self", False, ["alone", "student"]),
        ("self", True, ["student"]),
        ("reg", False, ["student"]),
        ("reg", True, ["student"]),
    ],
)
def test_stages(machine: str, given: bool, stages: list[str]) -> None:
    method: Any = TfKD(machine=machine)  # type: ignore[arg-type]
    result = limbeck.run(method, world(nn.Linear(6, 3) if given else None), seed=3)
    assert [row["stage"] for row in result.facts["stages"]] == stages
    if machine == "reg":
        assert {"label", "tfkd"} <= set(result.log[0]["terms"])


def test_the_first_student_teaches_the_second() -> None:
    task = world(None)
    with Run(task, seed=3):
        model = TfKD(label=0.0, tfkd=1.0, tau=1.0).run(task).model
    assert model is not None
    x, y = task.train
    with torch.no_grad():  # without labels it knows the classes all the same
        assert float((model(x).argmax(1) == y).float().mean()) > 0.8
