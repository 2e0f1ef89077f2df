"""lskd: Z-scores by scipy and by hand, what they do not see, the gradient, and other methods."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from scipy.stats import pearsonr, zscore
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.lskd import LSKD, Seen, standardised

pytestmark = pytest.mark.xdist_group("lskd")

G = torch.Generator().manual_seed(23)
S = torch.randn(9, 5, generator=G, dtype=torch.float64)
T = 4 * torch.randn(9, 5, generator=G, dtype=torch.float64) + 2
Y = torch.arange(9) % 5
CLOCK = Clock(0, "fit", 297, 300, 3)


def terms(method: Any, s: Tensor = S, t: Tensor = T) -> dict[str, Tensor]:
    sides = [SimpleNamespace(logits=z) for z in (s, t)]
    return method.terms(nn.Module(), *sides, Batch(x=s, y=Y), CLOCK)


def soft(s: Tensor, t: Tensor, tau: float, **kw: Any) -> Tensor:
    return kl(standardised(s, **kw), standardised(t, **kw), tau).mean()


def test_scores_are_scipys() -> None:
    for name, ddof in (("population", 0), ("sample", 1)):
        z = standardised(T, name)
        by_hand = torch.from_numpy(zscore(T.numpy(), axis=1, ddof=ddof))
        torch.testing.assert_close(z, by_hand, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(z.mean(1), torch.zeros(9).double(), atol=1e-12, rtol=0)
        torch.testing.assert_close(z.square().sum(1), torch.full((9,), 5.0 - ddof).double())
        assert torch.equal(z.argsort(1), T.argsort(1))
    spike = standardised(torch.eye(5, dtype=torch.float64), eps=0)
    assert float(spike.max()) == pytest.approx(2)  # sqrt(C - 1), the most there can be


def test_three_classes_by_hand() -> None:
    t, s = torch.tensor([[0.0, 0, 3]]).double(), torch.tensor([[0.0, 3, 0]]).double()
    half, root = math.sqrt(0.5), math.sqrt(1 / 3)
    torch.testing.assert_close(
        standardised(t, eps=0)[0], torch.tensor([-half, -half, 2 * half]).double()
    )
    torch.testing.assert_close(
        standardised(t, "sample", 0)[0], torch.tensor([-root, -root, 2 * root]).double()
    )
    for tau, deviation, value, spread in (
        (1, "population", 1.505978, 3 * half),
        (2, "population", 1.638876, 3 * half),
        (2, "sample", 1.090043, 3 * root),
    ):
        # p has e^(spread / tau) times as much on the third class, q on the second
        e = math.exp(spread / tau)
        by_hand = tau**2 * (e - 1) / (e + 2) * spread / tau
        assert by_hand == pytest.approx(value, abs=1e-6)
        assert float(soft(s, t, tau, deviation=deviation)) == pytest.approx(by_hand, rel=1e-6)
    s.requires_grad_()
    grad = torch.autograd.grad(soft(s, t, 1.0), s)[0][0]
    e = math.exp(3 * half)
    slope = (e - 1) / (e + 2) * half / 2
    assert slope == pytest.approx(0.250996, abs=1e-6)
    torch.testing.assert_close(
        grad, torch.tensor([slope, 0, -slope]).double(), rtol=1e-6, atol=1e-7
    )


def test_a_positive_affine_map_of_a_sample_is_not_seen() -> None:
    a = torch.rand(9, 1, generator=G).double() + 0.2
    b = 5 * torch.randn(9, 1, generator=G).double()
    assert float(soft(a * T + b, T, 2.0)) < 1e-10
    torch.testing.assert_close(soft(a * S + b, T, 2.0), soft(S, T, 2.0), rtol=1e-6, atol=0)
    torch.testing.assert_close(soft(S, a * T + b, 2.0), soft(S, T, 2.0), rtol=1e-6, atol=0)
    assert float(soft(-T, T, 2.0)) > 1


def test_the_gradient_passes_through_both_moments() -> None:
    s = S.clone().requires_grad_()
    grad = torch.autograd.grad(soft(s, T, 2.0, eps=0.0), s)[0]
    sigma = S.std(1, correction=0, keepdim=True)
    z, zt = ((v - v.mean(1, keepdim=True)) / v.std(1, correction=0, keepdim=True) for v in (S, T))
    g = 2 * ((z / 2).softmax(1) - (zt / 2).softmax(1)) / 9
    by_hand = (g - g.mean(1, keepdim=True) - z * (g * z).sum(1, keepdim=True) / 5) / sigma
    torch.testing.assert_close(grad, by_hand)
    torch.testing.assert_close(grad.sum(1), torch.zeros(9).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close((grad * z).sum(1), torch.zeros(9).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("deviation", ["population", "sample"])
def test_at_a_high_temperature_it_is_the_correlation_of_logits(deviation: Any) -> None:
    each = kl(standardised(S, deviation), standardised(T, deviation), 1e3)
    share = 1.0 if deviation == "population" else 4 / 5
    by_hand = [share * (1 - pearsonr(S[b].numpy(), T[b].numpy()).statistic) for b in range(9)]
    torch.testing.assert_close(each, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-2, atol=0)


def test_two_classes_have_an_order_only() -> None:
    s = torch.tensor([[0.3, 2.0], [2.0, 0.3]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[-1.0, 5.0], [-1.0, 5.0]], dtype=torch.float64)
    each = kl(standardised(s, eps=0), standardised(t, eps=0), 1.0)
    other = 2 * (2 / (1 + math.exp(-2)) - 1)
    assert other == pytest.approx(1.523188, abs=1e-6)
    torch.testing.assert_close(each.detach(), torch.tensor([0.0, other]).double())
    assert float(torch.autograd.grad(each.sum(), s)[0].abs().max()) < 1e-12


def test_equal_logits_have_no_gradient() -> None:
    s = torch.zeros(9, 5, dtype=torch.float64, requires_grad=True)
    loss = soft(s, T, 2.0)
    assert float(loss.detach()) > 0.1
    assert float(torch.autograd.grad(loss, s)[0].abs().max()) == 0
    assert torch.equal(standardised(s.detach()), torch.zeros(9, 5).double())
    assert standardised(torch.ones(3, 1), "sample").abs().max() == 0
    assert standardised(S.bfloat16()).dtype == torch.float32
    assert torch.equal(standardised(S.bfloat16()), standardised(S.bfloat16().float()))


def test_the_default_is_kd_of_scores_beside_labels_of_plain_logits() -> None:
    out = terms(LSKD())
    z, zt = (zscore(v.numpy(), axis=1) / 2 for v in (S, T))
    each = [4 * rel_entr(softmax(zt[b]), softmax(z[b])).sum() for b in range(9)]
    assert float(out["kd"]) == pytest.approx(9 * np.mean(each), rel=1e-6)
    label = -np.log(softmax(S.numpy(), 1))[np.arange(9), Y.numpy()].mean()
    assert float(out["label"]) == pytest.approx(0.1 * label, rel=1e-6)
    assert list(out) == ["label", "kd"]
    seen = terms(LSKD(plain=()))
    assert float(seen["label"]) != pytest.approx(0.1 * label, rel=1e-2)
    as_it_is = terms(LSKD(plain=("label", "kd")))
    for name, value in terms(make("kd(label=0.1, kd=9, tau=2)")).items():
        torch.testing.assert_close(as_it_is[name], value)


@pytest.mark.parametrize("of", ["dkd(tckd=9, nckd=72, tau=2)", "wsld()", "dist(tau=2)"])
def test_another_method_sees_scores_and_its_labels_do_not(of: str) -> None:
    out, plain = terms(LSKD(of=of, deviation="sample")), terms(make(of))
    seen = terms(make(of), standardised(S, "sample"), standardised(T, "sample"))
    assert list(out) == list(plain)
    for name, value in out.items():
        torch.testing.assert_close(value, plain[name] if name == "label" else seen[name])
        if name != "label":
            assert abs(float(value - plain[name])) > 1e-4


def test_looks_again_are_shared_by_their_order() -> None:
    made = []

    class Looked:
        def __init__(self, z: Tensor) -> None:
            self.logits, self.mid = z, z + 1

        def __call__(self, batch: Tensor) -> Any:
            made.append(batch)
            return Looked(batch)

    looks: list[Any] = []
    seen, other = (Seen(Looked(S), step, looks) for step in (standardised, None))
    first, second = seen(T), seen(2 * T)
    again, twice = other(T), other(2 * T)
    assert len(made) == 2
    torch.testing.assert_close(first.logits, standardised(T))
    torch.testing.assert_close(second.logits, standardised(T))
    assert torch.equal(again.logits, T)
    assert torch.equal(twice.logits, 2 * T)
    assert torch.equal(seen.mid, S + 1)
    assert seen.logits is seen.logits
    nested, same = first(S), again(S)
    assert len(made) == 3
    torch.testing.assert_close(nested.logits, standardised(S))
    assert torch.equal(same.logits, S)


def test_what_is_no_single_fit_is_refused() -> None:
    for of in ("takd", "fitnets"):
        with pytest.raises(UsageError, match="is not one fit with named terms"):
            LSKD(of=of)
    with pytest.raises(UsageError, match="deviation"):
        make("lskd(deviation='both')")


@pytest.mark.parametrize("of", ["kd(label=0.5, kd=3.0, tau=2.0)", "crd(negatives=4, kd=3.0)"])
def test_it_runs_over_methods_with_and_without_parts(of: str) -> None:
    x, y = torch.randn(24, 6, generator=G), torch.arange(24) % 4
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(6, w), nn.Linear(w, 4)) for w in (9, 5))
    budget = Budget(
        steps=4, batch=24, schedule="constant", optimiser=Optimiser("sgd", lr=0.3, momentum=0.0)
    )
    taps = {"embedding": ("1:in", "1:in")}
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget, taps=taps)
    got = limbeck.run("lskd", task, device="cpu", of=of)
    plain = limbeck.run(of, task, device="cpu")
    gap = max(
        float((a - b).detach().abs().max())
        for a, b in zip(got.model.parameters(), plain.model.parameters(), strict=True)
    )
    assert gap > 1e-3


def test_a_run_is_the_loop_that_one_would_write() -> None:
    x, y = torch.randn(24, 6, generator=G), torch.arange(24) % 4
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 4), nn.Linear(6, 4)
    budget = Budget(
        steps=5, batch=24, schedule="constant", optimiser=Optimiser("sgd", lr=0.1, momentum=0.0)
    )
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)
    result = limbeck.run("lskd", task, device="cpu")

    xs, one = x.double().numpy(), np.eye(4)[y.numpy()]
    w, b = (p.detach().double().numpy().copy() for p in student.parameters())
    p = softmax(zscore(teacher.double()(x.double()).detach().numpy(), axis=1) / 2, 1)
    for _ in range(5):
        z = xs @ w.T + b
        h = zscore(z, axis=1)
        g = 9 * 2 * (softmax(h / 2, 1) - p)
        g = g - g.mean(1, keepdims=True) - h * (g * h).mean(1, keepdims=True)
        dz = (g / z.std(1, keepdims=True) + 0.1 * (softmax(z, 1) - one)) / 24
        w, b = w - 0.1 * dz.T @ xs, b - 0.1 * dz.sum(0)
    np.testing.assert_allclose(result.model.weight.detach().numpy(), w, atol=1e-5)
    np.testing.assert_allclose(result.model.bias.detach().numpy(), b, atol=1e-5)
    assert np.abs(w - student.weight.detach().numpy()).max() > 0.1
