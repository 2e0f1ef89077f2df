"""wsld: weights and loss by hand and by scipy, limits, gradients with w held, a loop."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl, soft_cross_entropy
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.wsld import WSLD, weights, wsl_loss

pytestmark = pytest.mark.xdist_group("wsld")

G = torch.Generator().manual_seed(22)
S = torch.randn(9, 5, generator=G, dtype=torch.float64)
T = 2 * torch.randn(9, 5, generator=G, dtype=torch.float64)
Y = torch.arange(9) % 5


def terms(method: WSLD, s: Tensor = S, t: Tensor | None = T, y: Tensor = Y) -> dict[str, Tensor]:
    sides = [SimpleNamespace(logits=z) if z is not None else SimpleNamespace() for z in (s, t)]
    return method.terms(nn.Module(), *sides, Batch(x=s, y=y), Clock(0, "fit", 0, 9, 3))


def slow(s: np.ndarray, t: np.ndarray, y: int, tau: float) -> tuple[float, float]:
    """The weight of one sample and its tau^2 KL."""
    mine, theirs = -math.log(softmax(s)[y]), -math.log(softmax(t)[y])
    w = 1 - math.exp(-mine / (theirs + 1e-7))
    return w, tau**2 * float(rel_entr(softmax(t / tau), softmax(s / tau)).sum())


def test_two_classes_by_hand() -> None:
    # The label has 3/4 and 1/2: losses log(4/3) and log 2, whose ratio is 2.409421.
    t, s, y = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2), torch.tensor([0])
    w = 1 - 0.5 ** (1 / math.log(4 / 3))
    assert float(weights(s, t, y)) == pytest.approx(w, rel=1e-6)
    assert w == pytest.approx(0.910133, abs=1e-6)
    soft = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert float(wsl_loss(s, t, y, 1.0)) == pytest.approx(w * soft, rel=1e-5)
    assert w * soft == pytest.approx(0.119056, abs=1e-6)
    assert float(weights(s, t, y) * soft_cross_entropy(s, t)) == pytest.approx(0.630856, abs=1e-6)


@pytest.mark.parametrize("tau", [1.0, 2.0, 4.0])
def test_weights_and_loss_are_those_of_a_loop(tau: float) -> None:
    each = [slow(S[b].numpy(), T[b].numpy(), int(Y[b]), tau) for b in range(9)]
    torch.testing.assert_close(weights(S, T, Y), torch.tensor([w for w, _ in each]).double())
    by_hand = np.mean([w * soft for w, soft in each])
    assert float(wsl_loss(S, T, Y, tau)) == pytest.approx(by_hand, rel=1e-9)


def test_sides_that_are_alike_weigh_one_less_a_third() -> None:
    s = T.clone().requires_grad_()
    torch.testing.assert_close(weights(s, T, Y), torch.full((9,), 1 - 1 / math.e).double())
    loss = wsl_loss(s, T, Y)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(torch.autograd.grad(loss, s)[0].abs().max()) < 1e-9


def test_a_weight_rises_with_the_students_loss_and_falls_with_the_teachers() -> None:
    better = 0.5 * torch.eye(5, dtype=torch.float64)[Y]  # raises the label's own logit
    w = weights(S, T, Y)
    assert bool((weights(S + better, T, Y) < w).all())
    assert bool((weights(S, T + better, Y) > w).all())
    assert bool(((w > 0) & (w < 1)).all())


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16])
def test_sure_sides_stay_finite(kind: torch.dtype) -> None:
    sure, y = torch.tensor([[200.0, 0.0, -200.0]], dtype=kind), torch.tensor([0])
    flat = torch.zeros(1, 3, dtype=kind)
    assert float(weights(flat, sure, y)) == 1  # the teacher has no loss
    assert float(weights(sure, sure, y)) == 0
    assert float(weights(sure, flat, y)) == 0
    s = flat.clone().requires_grad_()
    assert torch.autograd.grad(wsl_loss(s, sure, y), s)[0].isfinite().all()


def test_the_temperature_is_not_in_the_weights_and_a_shift_is_nowhere() -> None:
    shift = torch.randn(9, 1, generator=G, dtype=torch.float64)
    torch.testing.assert_close(weights(S + shift, T - 2 * shift, Y), weights(S, T, Y))
    torch.testing.assert_close(wsl_loss(S + shift, T, Y), wsl_loss(S, T, Y))
    for tau in (1.0, 4.0):
        torch.testing.assert_close(
            wsl_loss(S, T, Y, tau), (weights(S, T, Y) * kl(S, T, tau)).mean()
        )


def test_the_gradient_holds_the_weights() -> None:
    s = S.clone().requires_grad_()
    grad = torch.autograd.grad(wsl_loss(s, T, Y, 2.0), s)[0]
    by_hand = weights(S, T, Y)[:, None] * 2 * ((S / 2).softmax(1) - (T / 2).softmax(1)) / 9
    torch.testing.assert_close(grad, by_hand)
    s = S.clone().requires_grad_()  # the paper's cross-entropy has the same
    cross = (weights(S, T, Y) * 4 * soft_cross_entropy(s, T, 2.0)).mean()
    torch.testing.assert_close(torch.autograd.grad(cross, s)[0], by_hand)


def test_terms_are_weighted_and_weight_zero_is_not_computed() -> None:
    out = terms(WSLD(label=0.5, wsl=3.0, tau=2.0))
    each = [slow(S[b].numpy(), T[b].numpy(), int(Y[b]), 2.0) for b in range(9)]
    assert float(out["wsl"]) == pytest.approx(3 * np.mean([w * soft for w, soft in each]), rel=1e-9)
    label = -np.log(softmax(S.numpy(), 1))[np.arange(9), Y.numpy()].mean()
    assert float(out["label"]) == pytest.approx(0.5 * label, rel=1e-6)
    plain = terms(WSLD())
    each = [slow(S[b].numpy(), T[b].numpy(), int(Y[b]), 4.0) for b in range(9)]
    assert float(plain["wsl"]) == pytest.approx(2.25 * np.mean([w * soft for w, soft in each]))
    assert float(plain["label"]) == pytest.approx(label, rel=1e-6)
    assert set(terms(WSLD(wsl=0), t=None)) == {"label"}
    assert set(terms(WSLD(label=0))) == {"wsl"}


def test_what_is_no_class_number_is_refused() -> None:
    with pytest.raises(UsageError, match="wsld weighs a sample by the loss of its label"):
        terms(WSLD(label=0), y=torch.full((9, 5), 0.2))
    with pytest.raises(UsageError, match="same number of classes"):
        terms(WSLD(), t=T[:, :4])
    for field in ("wsl=-1", "tau=0", "label=-1"):
        with pytest.raises(UsageError):
            make(f"wsld({field})")


def test_a_run_is_the_loop_that_one_would_write() -> None:
    x, y = torch.randn(24, 6, generator=G), torch.arange(24) % 4
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 4), nn.Linear(6, 4)
    budget = Budget(
        steps=5, batch=24, schedule="constant", optimiser=Optimiser("sgd", lr=0.3, momentum=0.0)
    )
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)
    result = limbeck.run("wsld", task, device="cpu", label=0.5, wsl=3.0, tau=2.0)

    xs, at = x.double().numpy(), (np.arange(24), y.numpy())
    w, b = (p.detach().double().numpy().copy() for p in student.parameters())
    zt, one = teacher.double()(x.double()).detach().numpy(), np.eye(4)[y.numpy()]
    for _ in range(5):
        z = xs @ w.T + b
        ratio = np.log(softmax(z, 1)[at]) / np.log(softmax(zt, 1)[at])
        soft = (1 - np.exp(-ratio))[:, None] * 3 * 2 * (softmax(z / 2, 1) - softmax(zt / 2, 1))
        dz = (soft + 0.5 * (softmax(z, 1) - one)) / 24
        w, b = w - 0.3 * dz.T @ xs, b - 0.3 * dz.sum(0)
    np.testing.assert_allclose(result.model.weight.detach().numpy(), w, atol=1e-5)
    np.testing.assert_allclose(result.model.bias.detach().numpy(), b, atol=1e-5)
    assert np.abs(w - student.weight.detach().numpy()).max() > 0.1
