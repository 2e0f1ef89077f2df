"""kd: closed forms, the size of its gradient, and a run against a loop written by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr, softmax
from torch import nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.kd import KD, kd_loss

G = torch.Generator().manual_seed(5)
S, T = torch.randn(7, 5, generator=G), 3 * torch.randn(7, 5, generator=G)
Y = torch.arange(7) % 5


def terms(method: KD, s: torch.Tensor = S, t: torch.Tensor | None = T) -> dict[str, torch.Tensor]:
    """The terms on given logits; a side without logits fails when it is asked."""
    sides = [SimpleNamespace(logits=z) if z is not None else SimpleNamespace() for z in (s, t)]
    return method.terms(nn.Module(), *sides, Batch(x=s, y=Y), None)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_soft_term_is_scipys_relative_entropy(tau: float) -> None:
    total = 0.0
    for s, t in zip(S.double().numpy(), T.double().numpy(), strict=True):
        total += tau**2 * rel_entr(softmax(t / tau), softmax(s / tau)).sum()
    assert float(kd_loss(S, T, tau)) == pytest.approx(total / len(S), rel=1e-5)


def test_two_classes_by_hand() -> None:
    # p_t = (3/4, 1/4) and p_s = (1/2, 1/2) at tau 2: 4 (3/4 log 3/2 + 1/4 log 1/2).
    t, s = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    by_hand = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(kd_loss(s, t, 2.0)) == pytest.approx(by_hand, rel=1e-6)


def test_it_is_soft_cross_entropy_less_the_teachers_entropy() -> None:
    p = (T / 4).softmax(1)
    cross = F.cross_entropy(S / 4, p, reduction="none")
    entropy = -(p * p.log()).sum(1)
    assert float(kd_loss(S, T)) == pytest.approx(float(16 * (cross - entropy).mean()), rel=1e-5)
    assert float(kd_loss(S, T)) == pytest.approx(
        float(16 * F.kl_div((S / 4).log_softmax(1), p, reduction="batchmean")), rel=1e-5
    )


def test_equal_logits_cost_nothing_and_shifts_do_not_count() -> None:
    assert float(kd_loss(S, S)) == 0
    assert float(kd_loss(S, S + 3)) == pytest.approx(0, abs=1e-6)
    assert float(kd_loss(S + torch.randn(7, 1, generator=G), T)) == pytest.approx(
        float(kd_loss(S, T)), rel=1e-4
    )
    assert float(kd_loss(S, T)) > 0.1


def gradient(tau: float) -> torch.Tensor:
    s = S.double().requires_grad_()
    return torch.autograd.grad(kd_loss(s, T.double(), tau), s)[0]


def test_gradient_is_tau_times_the_difference_of_probabilities() -> None:
    for tau in (1.0, 4.0):
        by_hand = tau * ((S / tau).softmax(1) - (T / tau).softmax(1)) / len(S)
        torch.testing.assert_close(gradient(tau).float(), by_hand, rtol=1e-4, atol=1e-6)


def test_gradient_keeps_its_size_when_tau_grows() -> None:
    # The limit matches centred logits; the last digits are lost to float32 inside the loss.
    centred = (S - S.mean(1, keepdim=True)) - (T - T.mean(1, keepdim=True))
    torch.testing.assert_close(gradient(300.0).float(), centred / (5 * 7), rtol=0.02, atol=2e-3)
    assert 0.1 < float(gradient(20.0).norm() / gradient(2.0).norm()) < 10


def test_terms_are_the_weighted_losses() -> None:
    out = terms(KD(label=0.3, kd=0.6, tau=2.0))
    by_hand = sum(-math.log(softmax(s)[y]) for s, y in zip(S.numpy(), Y, strict=True)) / 7
    assert set(out) == {"label", "kd"}
    assert float(out["label"]) == pytest.approx(0.3 * by_hand, rel=1e-5)
    assert float(out["kd"]) == pytest.approx(0.6 * float(kd_loss(S, T, 2.0)), rel=1e-6)


def test_weight_zero_is_not_computed() -> None:
    assert set(terms(KD(kd=0), t=None)) == {"label"}  # the teacher has no logits to give
    with pytest.raises(AttributeError):
        terms(KD(), t=None)
    batch = Batch(x=S)  # no labels here
    sides = SimpleNamespace(logits=S), SimpleNamespace(logits=T)
    assert set(KD(label=0).terms(nn.Module(), *sides, batch, None)) == {"kd"}


def test_class_counts_that_differ_are_refused() -> None:
    with pytest.raises(UsageError, match=r"student's logits are \(7, 5\), the teacher's \(7, 4\)"):
        terms(KD(), t=T[:, :4])
    with pytest.raises(UsageError, match="same number of classes"):
        terms(KD(), t=T[:, :1])  # would broadcast


@pytest.mark.parametrize("field", ["tau=0", "kd=-1", "label=-0.1", "tau='4'"])
def test_fields_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(UsageError):
        make(f"kd({field})")


def test_a_run_is_the_loop_that_one_would_write() -> None:
    x, y = torch.randn(24, 6, generator=G), torch.arange(24) % 3
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 3), nn.Linear(6, 3)
    before = [p.detach().clone() for p in teacher.parameters()]
    budget = Budget(
        steps=8, batch=24, schedule="constant", optimiser=Optimiser("sgd", lr=0.5, momentum=0.5)
    )
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)
    result = limbeck.run("kd", task, label=0.4, kd=0.5, tau=3.0, device="cpu")

    w, b = (p.detach().double().numpy().copy() for p in student.parameters())
    soft = softmax((x.double().numpy() @ before[0].double().numpy().T + before[1].numpy()) / 3, 1)
    vw, vb = np.zeros_like(w), np.zeros_like(b)
    for _ in range(8):
        z = x.double().numpy() @ w.T + b
        dz = 0.4 * (softmax(z, 1) - np.eye(3)[y]) + 0.5 * 3 * (softmax(z / 3, 1) - soft)
        dw, db = dz.T @ x.double().numpy() / 24, dz.mean(0)
        vw, vb = 0.5 * vw + dw, 0.5 * vb + db
        w, b = w - 0.5 * vw, b - 0.5 * vb
    np.testing.assert_allclose(result.model.weight.detach().numpy(), w, atol=1e-5)
    np.testing.assert_allclose(result.model.bias.detach().numpy(), b, atol=1e-5)
    assert np.abs(w - student.weight.detach().numpy()).max() > 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
