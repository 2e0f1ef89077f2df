"""dkd: the sum that it takes apart, each half by scipy and by its gradient, and the warm-up."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.dkd import DKD, nckd, split, tckd

pytestmark = pytest.mark.xdist_group("dkd")

G = torch.Generator().manual_seed(7)
S = torch.randn(9, 5, generator=G, dtype=torch.float64)
Y = torch.arange(9) % 5
T = 3 * torch.randn(9, 5, generator=G, dtype=torch.float64)
T[::2] += 8 * torch.eye(5)[Y][::2]  # of every other label the teacher is sure
TAUS = [0.5, 1.0, 4.0]


def clock(epoch: int = 99, epochs: int = 100) -> Clock:
    return Clock(0, "fit", 3 * epoch + 1, 3 * epochs, 3)


def terms(method: DKD, s: Tensor = S, t: Tensor | None = T, y: Tensor = Y, at: Clock | None = None):
    sides = [SimpleNamespace(logits=z) if z is not None else SimpleNamespace() for z in (s, t)]
    return method.terms(nn.Module(), *sides, Batch(x=s, y=y), at or clock())


def slow_halves(s: np.ndarray, t: np.ndarray, y: int, tau: float) -> tuple[float, float]:
    q, p = softmax(s / tau), softmax(t / tau)
    target = rel_entr([p[y], 1 - p[y]], [q[y], 1 - q[y]]).sum()
    q, p = (np.delete(v, y) / np.delete(v, y).sum() for v in (q, p))
    return tau**2 * target, tau**2 * rel_entr(p, q).sum()


@pytest.mark.parametrize("tau", TAUS)
def test_each_half_is_scipys_relative_entropy(tau: float) -> None:
    for b in range(9):
        by_hand = slow_halves(S[b].numpy(), T[b].numpy(), int(Y[b]), tau)
        assert float(tckd(S, T, Y, tau)[b]) == pytest.approx(by_hand[0], rel=1e-9)
        assert float(nckd(S, T, Y, tau)[b]) == pytest.approx(by_hand[1], rel=1e-9)


@pytest.mark.parametrize("tau", TAUS)
def test_kd_is_the_sum_with_the_teachers_doubt_as_weight(tau: float) -> None:
    doubt = 1 - (T / tau).softmax(1)[torch.arange(9), Y]
    both = tckd(S, T, Y, tau) + doubt * nckd(S, T, Y, tau)
    torch.testing.assert_close(both, kl(S, T, tau), rtol=1e-12, atol=1e-14)
    assert float(doubt.min()) < 0.5 < float(doubt.max())


def test_the_split_is_the_softmax() -> None:
    pair, others = split(S, Y, 2.0)
    p = (S / 2).softmax(1)
    for b, y in enumerate(Y.tolist()):
        torch.testing.assert_close(pair[b].softmax(0), torch.stack((p[b, y], 1 - p[b, y])))
        rest = torch.cat((p[b, :y], p[b, y + 1 :]))
        torch.testing.assert_close(others[b].softmax(0), rest / rest.sum())


def test_three_classes_by_hand() -> None:
    # p = (1/3, 1/2, 1/6), q uniform: the target agrees; the others are 3/4, 1/4 against halves.
    t, s, y = torch.tensor([[2.0, 3.0, 1.0]]).log(), torch.zeros(1, 3), torch.tensor([0])
    assert float(tckd(s, t, y, 1.0)) == pytest.approx(0, abs=1e-7)
    by_hand = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert float(nckd(s, t, y, 1.0)) == pytest.approx(by_hand, rel=1e-5)
    assert float(kl(s, t)) == pytest.approx(2 / 3 * by_hand, rel=1e-5)
    # p = (2/3, 1/6, 1/6): the others agree; 2/3 log 2 + 1/3 log 1/2, at tau 2 four times that.
    t = 2 * torch.tensor([[4.0, 1.0, 1.0]]).log()
    assert float(tckd(s, t, y, 2.0)) == pytest.approx(4 * math.log(2) / 3, rel=1e-6)
    assert float(nckd(s, t, y, 2.0)) == 0


def test_what_each_half_does_not_see() -> None:
    shift = torch.randn(9, 1, generator=G, dtype=torch.float64)
    target = torch.zeros_like(S).scatter(1, Y[:, None], 1.0)
    for half in (tckd, nckd):
        torch.testing.assert_close(half(S + shift, T, Y), half(S, T, Y))
        torch.testing.assert_close(half(S, T - shift, Y), half(S, T, Y))
        assert float(half(S, S + shift, Y).abs().max()) < 1e-14
    torch.testing.assert_close(nckd(S + 5 * target, T - 2 * target, Y), nckd(S, T, Y))
    # Other logits may change places among themselves, on one side only, for the first half.
    turned = S.clone()
    for b, y in enumerate(Y.tolist()):
        rest = [c for c in range(5) if c != y]
        turned[b, rest] = S[b, rest[::-1]]
    torch.testing.assert_close(tckd(turned, T, Y), tckd(S, T, Y))
    assert float((nckd(turned, T, Y) - nckd(S, T, Y)).abs().min()) > 1e-3


@pytest.mark.parametrize("tau", TAUS)
def test_gradients_are_the_closed_forms(tau: float) -> None:
    s = S.clone().requires_grad_()
    of_target = torch.autograd.grad(tckd(s, T, Y, tau).mean(), s)[0]
    of_others = torch.autograd.grad(nckd(s, T, Y, tau).mean(), s)[0]
    for b, y in enumerate(Y.tolist()):
        q, p = (S[b] / tau).softmax(0), (T[b] / tau).softmax(0)
        for c in range(5):
            rest_q, rest_p = (v[c] / (v[:y].sum() + v[y + 1 :].sum()) for v in (q, p))
            target = q[y] - p[y] if c == y else (p[y] - q[y]) * rest_q
            assert float(of_target[b, c]) == pytest.approx(float(tau * target / 9), abs=1e-12)
            others = 0 if c == y else float(rest_q - rest_p)
            assert float(of_others[b, c]) == pytest.approx(tau * others / 9, abs=1e-12)


def test_two_classes_have_no_others() -> None:
    s, t, y = S[:, :2], T[:, :2], Y % 2
    assert float(nckd(s, t, y).abs().max()) == 0
    torch.testing.assert_close(tckd(s, t, y), kl(s, t, 4.0))


def test_a_student_that_is_sure_of_the_target_has_finite_terms() -> None:
    s = torch.tensor([[-4e3, -4e3, 4e3, -4e3]], dtype=torch.float64, requires_grad=True)
    t, y = torch.arange(4.0, dtype=torch.float64)[None], torch.tensor([2])
    loss = tckd(s, t, y, 1.0)
    p = t.softmax(1)[0, 2]
    # (1 - p) (log(1 - p) + 8000 - log 3) + p log p
    by_hand = (1 - p) * ((1 - p).log() + 8000 - math.log(3)) + p * p.log()
    assert float(loss.detach()) == pytest.approx(float(by_hand), rel=1e-12)
    grad = torch.autograd.grad(loss.sum(), s)[0]
    by_hand = (1 - p) * torch.tensor([-1 / 3, -1 / 3, 1, -1 / 3], dtype=torch.float64)
    torch.testing.assert_close(grad[0], by_hand)


def test_terms_are_the_weighted_means() -> None:
    out = terms(DKD(label=0.5, tckd=2.0, nckd=3.0, tau=1.5))
    halves = [slow_halves(S[b].numpy(), T[b].numpy(), int(Y[b]), 1.5) for b in range(9)]
    assert set(out) == {"label", "tckd", "nckd"}
    assert float(out["tckd"]) == pytest.approx(2 * np.mean([h[0] for h in halves]), rel=1e-9)
    assert float(out["nckd"]) == pytest.approx(3 * np.mean([h[1] for h in halves]), rel=1e-9)
    plain = terms(DKD())
    assert float(plain["tckd"]) == pytest.approx(float(tckd(S, T, Y, 4.0).mean()), rel=1e-12)
    assert float(plain["nckd"]) == pytest.approx(8 * float(nckd(S, T, Y, 4.0).mean()), rel=1e-12)
    by_hand = sum(-math.log(softmax(s)[y]) for s, y in zip(S.numpy(), Y, strict=True)) / 9
    assert float(out["label"]) == pytest.approx(0.5 * by_hand, rel=1e-6)


def test_warm_up_is_by_whole_epochs_counted_from_one() -> None:
    full = float(terms(DKD(warmup=0), at=clock(0))["nckd"])
    for epoch, share in ((0, 1 / 20), (1, 2 / 20), (18, 19 / 20), (19, 1.0), (80, 1.0)):
        out = terms(DKD(), at=clock(epoch))
        assert float(out["nckd"]) == pytest.approx(share * full, rel=1e-9)
        assert float(out["tckd"]) == pytest.approx(share * float(terms(DKD())["tckd"]), rel=1e-9)
        assert torch.equal(out["label"], terms(DKD())["label"])
    assert float(terms(DKD(warmup=4), at=clock(2))["nckd"]) == pytest.approx(0.75 * full)


def test_weight_zero_is_not_computed() -> None:
    assert set(terms(DKD(tckd=0, nckd=0), t=None)) == {"label"}
    assert set(terms(DKD(label=0, nckd=0))) == {"tckd"}
    assert set(terms(DKD(label=0, tckd=0))) == {"nckd"}
    with pytest.raises(AttributeError):
        terms(DKD(), t=None)


def test_half_precision_is_widened_first() -> None:
    s, t = S.bfloat16(), T.bfloat16()
    for half in (tckd, nckd):
        assert half(s, t, Y).dtype == torch.float32
        torch.testing.assert_close(half(s, t, Y), half(s.float(), t.float(), Y), rtol=0, atol=0)


def test_what_has_no_target_class_is_refused() -> None:
    off = DKD(label=0)
    with pytest.raises(UsageError, match="same number of classes"):
        terms(off, t=T[:, :4])
    for y in (Y.double(), torch.eye(5)[Y], Y[:4]):
        with pytest.raises(UsageError, match="give one class number for each sample"):
            terms(off, y=y)
    with pytest.raises(UsageError, match="two classes or more"):
        terms(off, s=S[:, :1], t=T[:, :1], y=0 * Y)


@pytest.mark.parametrize("field", ["tckd=-1", "nckd=-1", "tau=0", "warmup=-1", "warmup=0.5"])
def test_fields_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(UsageError):
        make(f"dkd({field})")


def test_a_run_is_the_loop_that_one_would_write() -> None:
    x, y = torch.randn(24, 6, generator=G), torch.arange(24) % 4
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 4), nn.Linear(6, 4)
    budget = Budget(
        steps=6, batch=24, schedule="constant", optimiser=Optimiser("sgd", lr=0.3, momentum=0.0)
    )
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)
    fields = {"label": 0.5, "tckd": 1.0, "nckd": 2.0, "tau": 2.0, "warmup": 4}
    result = limbeck.run("dkd", task, device="cpu", **fields)

    xs, ys = x.double().numpy(), y.numpy()
    w, b = (p.detach().double().numpy().copy() for p in student.parameters())
    wt, bt = (p.detach().double().numpy() for p in teacher.parameters())
    p = softmax((xs @ wt.T + bt) / 2, 1)
    one = np.eye(4)[ys]
    for epoch in range(6):
        z = xs @ w.T + b
        q = softmax(z / 2, 1)
        qy, py = (q * one).sum(1, keepdims=True), (p * one).sum(1, keepdims=True)
        rest_q, rest_p = (1 - one) * q / (1 - qy), (1 - one) * p / (1 - py)
        soft = 1.0 * (qy - py) * (one - rest_q) + 2.0 * (rest_q - rest_p)
        dz = 0.5 * (softmax(z, 1) - one) + min((epoch + 1) / 4, 1) * 2 * soft
        w, b = w - 0.3 * dz.T @ xs / 24, b - 0.3 * dz.mean(0)
    np.testing.assert_allclose(result.model.weight.detach().numpy(), w, atol=1e-5)
    np.testing.assert_allclose(result.model.bias.detach().numpy(), b, atol=1e-5)
    assert np.abs(w - student.weight.detach().numpy()).max() > 0.1
