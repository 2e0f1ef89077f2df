"""dist: both relations by scipy and by hand, what they do not see, their gradients, a loop."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import pearsonr
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.dist import DIST, correlation, relations

pytestmark = pytest.mark.xdist_group("dist")

G = torch.Generator().manual_seed(21)
S = torch.randn(7, 5, generator=G, dtype=torch.float64)
T = 2 * torch.randn(7, 5, generator=G, dtype=torch.float64)
Y = torch.arange(7) % 5
# 1/2 on the diagonal and 1/4 else, and the same a class further: every correlation is -1/2.
P = torch.tensor([[2.0, 1, 1], [1, 2, 1], [1, 1, 2]], dtype=torch.float64) / 4


def terms(method: DIST, s: Tensor = S, t: Tensor | None = T) -> dict[str, Tensor]:
    sides = [SimpleNamespace(logits=z) if z is not None else SimpleNamespace() for z in (s, t)]
    return method.terms(nn.Module(), *sides, Batch(x=s, y=Y[: len(s)]), Clock(0, "fit", 0, 9, 3))


def slow(s: Tensor, t: Tensor, tau: float) -> tuple[float, float]:
    """By scipy, a row and a column at a time."""
    q, p = softmax(s.numpy() / tau, 1), softmax(t.numpy() / tau, 1)
    rows = [1 - pearsonr(q[i], p[i]).statistic for i in range(len(q))]
    columns = [1 - pearsonr(q[:, c], p[:, c]).statistic for c in range(q.shape[1])]
    return tau**2 * float(np.mean(rows)), tau**2 * float(np.mean(columns))


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_both_relations_are_scipys(tau: float) -> None:
    inter, intra = (float(r.mean()) for r in relations(S, T, tau, 0.0))
    assert (inter, intra) == pytest.approx(slow(S, T, tau), rel=1e-9)


def test_three_samples_by_hand() -> None:
    q = P.roll(1, 1)
    inter, intra = relations(q.log(), P.log(), eps=0)
    torch.testing.assert_close(inter, torch.full((3,), 1.5).double())
    torch.testing.assert_close(intra, torch.full((3,), 1.5).double())
    s = q.log().requires_grad_()
    first = relations(s, P.log(), eps=0)[0][0]
    by_hand = torch.tensor([[-0.75, 0, 0.75], [0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(first, s)[0], by_hand)


def test_equal_logits_have_no_loss_and_no_gradient() -> None:
    s = T.clone().requires_grad_()
    inter, intra = relations(s, T)
    assert float(inter.detach().abs().max()) < 1e-6
    assert float(intra.detach().abs().max()) < 1e-6
    assert float(torch.autograd.grad(inter.sum() + intra.sum(), s)[0].abs().max()) < 1e-6


def test_scale_and_place_are_not_seen() -> None:
    p = T.softmax(1)
    e = torch.rand(7, 1, generator=G, dtype=torch.float64) * 0.8
    mixed = (1 - e) * p + e / 5  # each row a p + b, so log of it are its logits
    inter, intra = relations(mixed.log(), T, eps=0)
    assert float(inter.abs().max()) < 1e-12
    assert float(intra.max()) > 1e-3
    one = p.clone()
    one[:, 0] = 0.5 * p[:, 0] + 0.1  # a column, with the rest of each row rescaled
    one[:, 1:] *= ((1 - one[:, :1]) / p[:, 1:].sum(1, keepdim=True)).expand(-1, 4)
    assert float(relations(one.log(), T, eps=0)[1][0]) == pytest.approx(0, abs=1e-12)
    shifted = relations(S + torch.randn(7, 1, generator=G).double(), T)
    for a, b in zip(shifted, relations(S, T), strict=True):
        torch.testing.assert_close(a, b)
    # Turned round, the largest value there is.
    assert float(1 - correlation(-p, p, 0).max()) == pytest.approx(2)


def test_one_is_the_other_transposed_and_the_order_of_samples_is_no_matter() -> None:
    q, p = S.softmax(1), T.softmax(1)
    torch.testing.assert_close(relations(S, T)[1], 1 - correlation(q.mT, p.mT))
    order = torch.randperm(7, generator=G)
    inter, intra = relations(S[order], T[order])
    torch.testing.assert_close(inter, relations(S, T)[0][order])
    torch.testing.assert_close(intra, relations(S, T)[1])
    assert float((relations(S[order], T)[1] - intra).abs().max()) > 1e-3


def test_the_gradient_is_the_closed_form() -> None:
    u = S.clone().requires_grad_()
    rho = correlation(u, T, 0.0)
    grad = torch.autograd.grad((1 - rho).sum(), u)[0]
    for b in range(7):
        mine, theirs = S[b] - S[b].mean(), T[b] - T[b].mean()
        length = mine.square().sum().sqrt()
        mine, theirs = mine / length, theirs / theirs.square().sum().sqrt()
        by_hand = -(theirs - float(rho[b].detach()) * mine) / length
        torch.testing.assert_close(grad[b], by_hand)
        assert float(grad[b].sum()) == pytest.approx(0, abs=1e-12)
        assert float(grad[b] @ mine) == pytest.approx(0, abs=1e-12)


def test_two_classes_and_two_samples_have_an_order_only() -> None:
    s = S[:, :2].clone().requires_grad_()
    inter, _ = relations(s, T[:, :2], eps=0)
    agree = (S[:, 0] > S[:, 1]) == (T[:, 0] > T[:, 1])
    assert 0 < int(agree.sum()) < 7
    torch.testing.assert_close(inter.detach(), torch.where(agree, 0.0, 2.0).double())
    assert float(torch.autograd.grad(inter.sum(), s)[0].abs().max()) < 1e-12
    s = S[:2].clone().requires_grad_()
    _, intra = relations(s, T[:2], eps=0)
    assert set(intra.detach().round(decimals=9).abs().tolist()) <= {0.0, 2.0}
    assert float(torch.autograd.grad(intra.sum(), s)[0].abs().max()) < 1e-12


def test_what_does_not_vary_has_no_gradient() -> None:
    s = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)  # a head that starts at zero
    for relation in relations(s, T[:4]):
        assert torch.equal(relation.detach(), torch.ones(len(relation)).double())
        grad = torch.autograd.grad(relation.sum(), s, retain_graph=True)[0]
        assert float(grad.abs().max()) == 0
    one = S[:1].clone().requires_grad_()
    _, intra = relations(one, T[:1])
    assert torch.equal(intra.detach(), torch.ones(5).double())
    assert float(torch.autograd.grad(intra.sum(), one)[0].abs().max()) == 0


def test_a_class_that_nobody_comes_near_fades_with_eps() -> None:
    low = torch.tensor([0.0, 0, 0, 0, -14.0]).double()  # probabilities about 1e-6, 1e-12 squared
    kept, faded = (relations(S + low, S + low, eps=eps)[1] for eps in (0.0, 1e-8))
    assert float(kept[4]) == pytest.approx(0, abs=1e-9)
    assert float(faded[4]) > 0.99
    assert float(faded[:4].max()) < 1e-5


def test_at_a_high_temperature_inter_is_of_the_logits_themselves() -> None:
    inter = relations(S, T, 1e4, 0.0)[0] / 1e8
    by_hand = [1 - pearsonr(S[b].numpy(), T[b].numpy()).statistic for b in range(7)]
    torch.testing.assert_close(inter, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-3, atol=0)


def test_terms_are_weighted_and_weight_zero_is_not_computed() -> None:
    out = terms(DIST(label=0.5, inter=3.0, intra=0.25, tau=2.0, eps=0.0))
    inter, intra = slow(S, T, 2.0)
    assert float(out["inter"]) == pytest.approx(3 * inter)
    assert float(out["intra"]) == pytest.approx(0.25 * intra)
    label = -np.log(softmax(S.numpy(), 1))[np.arange(7), Y.numpy()].mean()
    assert float(out["label"]) == pytest.approx(0.5 * label, rel=1e-6)
    plain, (inter, intra) = terms(DIST()), slow(S, T, 1.0)
    assert float(plain["inter"] + plain["intra"]) == pytest.approx(2 * (inter + intra), rel=1e-5)
    assert float(plain["label"]) == pytest.approx(label, rel=1e-6)
    assert set(terms(DIST(inter=0, intra=0), t=None)) == {"label"}
    assert set(terms(DIST(label=0, intra=0))) == {"inter"}
    assert set(terms(DIST(label=0, inter=0))) == {"intra"}


def test_half_precision_is_widened_first() -> None:
    wide = relations(S.bfloat16().float(), T.bfloat16().float())
    for a, b in zip(relations(S.bfloat16(), T.bfloat16()), wide, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_other_shapes_and_fields_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="same number of classes"):
        terms(DIST(), t=T[:, :4])
    with pytest.raises(UsageError, match="relates samples and classes"):
        terms(DIST(label=0), s=S[..., None], t=T[..., None])
    for field in ("inter=-1", "intra=-1", "tau=0", "eps=-1", "label=-1"):
        with pytest.raises(UsageError):
            make(f"dist({field})")


def test_a_run_is_the_loop_that_one_would_write() -> None:
    x, y = torch.randn(24, 6, generator=G), torch.arange(24) % 4
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 4), nn.Linear(6, 4)
    budget = Budget(
        steps=5, batch=24, schedule="constant", optimiser=Optimiser("sgd", lr=0.3, momentum=0.0)
    )
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)
    result = limbeck.run("dist", task, device="cpu", label=0.5, inter=3.0, intra=2.0, tau=2.0)

    xs, w = x.double().numpy(), student.weight.detach().double().numpy().copy()
    b = student.bias.detach().double().numpy().copy()
    p, one = softmax(teacher.double()(x.double()).detach().numpy() / 2, 1), np.eye(4)[y.numpy()]

    def slope(q: np.ndarray, p: np.ndarray) -> np.ndarray:
        u, v = q - q.mean(1, keepdims=True), p - p.mean(1, keepdims=True)
        long = np.linalg.norm(u, axis=1, keepdims=True)
        u, v = u / long, v / np.linalg.norm(v, axis=1, keepdims=True)
        return -(v - (u * v).sum(1, keepdims=True) * u) / long / len(q)

    for _ in range(5):
        z = xs @ w.T + b
        q = softmax(z / 2, 1)
        g = 4 * (3 * slope(q, p) + 2 * slope(q.T, p.T).T)
        dz = q * (g - (q * g).sum(1, keepdims=True)) / 2 + 0.5 * (softmax(z, 1) - one) / 24
        w, b = w - 0.3 * dz.T @ xs, b - 0.3 * dz.sum(0)
    np.testing.assert_allclose(result.model.weight.detach().numpy(), w, atol=1e-5)
    np.testing.assert_allclose(result.model.bias.detach().numpy(), b, atol=1e-5)
    assert np.abs(w - student.weight.detach().numpy()).max() > 0.1
