"""srd: values by hand and by loops, the gradient of the logarithm, what standardising hides."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.srd import SRD, log_sum, standardised

pytestmark = pytest.mark.xdist_group("srd")

G = torch.Generator().manual_seed(3)
S = torch.randn(9, 6, generator=G, dtype=torch.float64)
T = 3 * torch.randn(9, 4, generator=G, dtype=torch.float64) + 5
ZS = torch.randn(9, 5, generator=G, dtype=torch.float64)
ZT = 2 * torch.randn(9, 5, generator=G, dtype=torch.float64)
Y = torch.arange(9) % 5
CLOCK = Clock(0, "fit", 0, 10, 5)


def side(e: Tensor, z: Tensor | None = None) -> SimpleNamespace:
    return SimpleNamespace(embedding=e, **({} if z is None else {"logits": z}))


def built(method: SRD, s: Tensor = S, t: Tensor = T) -> nn.Module:
    torch.manual_seed(1)
    return method.build(side(s), side(t), Batch(x=s, y=Y), Facts(9, 5, 10, 5)).double()


def slow(u: np.ndarray, v: np.ndarray, alpha: float, eps: float, form: str) -> float:
    """Number by number."""
    a, b = ((x - x.mean(0)) / np.sqrt(x.var(0) + eps) for x in (u, v))
    total = 0.0
    for d in range(u.shape[1]):
        if form == "correlation":
            total += abs(sum(a[k, d] * b[k, d] for k in range(len(a))) / len(a) - 1) ** alpha
        else:
            total += sum(abs(a[k, d] - b[k, d]) ** alpha for k in range(len(a))) / len(a)
    return math.log(total + 1e-12)


def test_two_samples_by_hand() -> None:
    u = standardised(torch.tensor([[0.0], [2.0]]).double(), 1e-15)
    v = standardised(torch.tensor([[3.0], [1.0]]).double(), 1e-15)
    torch.testing.assert_close(u, torch.tensor([[-1.0], [1.0]]).double())
    torch.testing.assert_close(v, -u)
    assert float(log_sum(u, v)) == pytest.approx(math.log(16))  # (16 + 16) / 2 of the batch
    assert float(log_sum(u, v, 2.0)) == pytest.approx(math.log(4))
    # the correlation is -1, so its error -2
    assert float(log_sum(u, v, 4.0, "correlation")) == pytest.approx(math.log(16))


def test_two_differences_by_hand() -> None:
    u = torch.tensor([[1.0, 2.0]]).double().requires_grad_()
    loss = log_sum(u, torch.zeros(1, 2).double())
    assert float(loss.detach()) == pytest.approx(2.833213, abs=1e-6)  # log 17
    grad = torch.autograd.grad(loss, u)[0]
    assert grad.flatten().tolist() == pytest.approx([4 / 17, 32 / 17])


@pytest.mark.parametrize("form", ["differences", "correlation"])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0, 4.5])
def test_the_loss_by_loops(form: str, alpha: float) -> None:
    u, v = S[:, :4], T
    mine = log_sum(standardised(u), standardised(v), alpha, form)
    assert float(mine) == pytest.approx(slow(u.numpy(), v.numpy(), alpha, 1e-4, form), rel=1e-10)


def test_the_gradient_does_not_grow_with_the_errors_nor_fall() -> None:
    v = torch.randn(5, 3, generator=G).double()
    e = torch.randn(5, 3, generator=G).double()
    grads, values = [], []
    for c in (1.0, 0.1, 7.0):
        u = (v + c * e).requires_grad_()
        values.append(log_sum(u, v))
        grads.append(torch.autograd.grad(values[-1], u)[0])
    torch.testing.assert_close(grads[1], grads[0] * 10, rtol=1e-6, atol=0)
    torch.testing.assert_close(grads[2], grads[0] / 7, rtol=1e-6, atol=0)
    assert float(values[2] - values[0]) == pytest.approx(4 * math.log(7))
    top = 4 * math.log(float(e.abs().max()))
    assert top - math.log(5) <= float(values[0]) <= top + math.log(3)
    # in closed form: alpha |e|^(alpha - 1) sign(e) / sum |e|^alpha
    closed = 4 * e.pow(3) / e.pow(4).sum()
    torch.testing.assert_close(grads[0], closed)


def test_positive_affine_maps_of_a_number_are_not_seen() -> None:
    a = torch.rand(4, generator=G).double() + 0.2
    b = 5 * torch.randn(4, generator=G).double()
    torch.testing.assert_close(
        log_sum(standardised(a * T + b, 1e-15), standardised(S[:, :4], 1e-15)),
        log_sum(standardised(T, 1e-15), standardised(S[:, :4], 1e-15)),
    )
    method = SRD(label=0, kd=0, eps=1e-15)
    parts = built(method)
    method.terms(parts, side(S), side(T), Batch(x=S, y=Y), CLOCK)["srd"].backward()
    linear = parts.project
    assert float(linear.bias.grad.abs().max()) < 1e-12
    along = (linear.weight.grad * linear.weight.detach()).sum(1)
    assert float(along.abs().max()) < 1e-12
    assert float(linear.weight.grad.abs().max()) > 0.01


def test_two_standardised_vectors_differ_by_their_correlation() -> None:
    u, v = standardised(S[:, :4], 1e-15), standardised(T, 1e-15)
    rho = sum(np.corrcoef(S[:, d].numpy(), T[:, d].numpy())[0, 1] for d in range(4))
    assert float(log_sum(u, v, 2.0).exp()) == pytest.approx(2 * (4 - rho))


def test_a_batch_twice_over_counts_as_once() -> None:
    once = log_sum(standardised(S[:, :4]), standardised(T))
    twice = log_sum(standardised(S[:, :4].repeat(2, 1)), standardised(T.repeat(2, 1)))
    torch.testing.assert_close(twice, once)


@pytest.mark.parametrize("form", ["differences", "correlation"])
def test_sides_that_agree_have_a_value_and_no_gradient(form: str) -> None:
    for alpha in (1.0, 4.0):
        u = torch.randn(6, 3, generator=G).double().requires_grad_()
        loss = log_sum(u, u.detach() if form == "differences" else u * 0 + 1 / u.detach(), alpha)
        grad = torch.autograd.grad(loss, u)[0]
        assert grad.isfinite().all()
        if form == "differences":
            assert float(loss) == pytest.approx(math.log(1e-12))
            assert float(grad.abs().max()) == 0


def test_a_batch_of_one_and_a_dead_number_stay_finite() -> None:
    assert torch.equal(standardised(S[:1]), torch.zeros(1, 6).double())
    t = T.clone()
    t[:, 2] = 0
    s = S[:, :4].clone().requires_grad_()
    grad = torch.autograd.grad(log_sum(standardised(s), standardised(t)), s)[0]
    assert grad.isfinite().all()


def test_terms_are_weighted() -> None:
    method = SRD(label=0.5, srd=3.0, kd=0.7, tau=2.0, alpha=2.0)
    parts = built(method)
    assert [p.shape for p in parts.parameters()] == [(4, 6), (4,)]
    out = method.terms(parts, side(S, ZS), side(T, ZT), Batch(x=S, y=Y), CLOCK)
    u = parts.project(S).detach().numpy()
    assert float(out["srd"]) == pytest.approx(3 * slow(u, T.numpy(), 2, 1e-4, ""), rel=1e-9)
    p, q = softmax(ZT.numpy() / 2, 1), softmax(ZS.numpy() / 2, 1)
    assert float(out["kd"]) == pytest.approx(0.7 * 4 * rel_entr(p, q).sum(1).mean(), rel=1e-6)
    nll = -np.log(softmax(ZS.numpy(), 1)[np.arange(9), Y]).mean()
    assert float(out["label"]) == pytest.approx(0.5 * nll, rel=1e-6)


def test_defaults_are_those_of_the_code_for_imagenet() -> None:
    assert make("srd") == SRD(label=1.0, srd=2.0, kd=1.0, tau=1.0, alpha=4.0, eps=1e-4)


def test_weight_zero_is_not_computed() -> None:
    nothing = SRD(label=1, srd=0, kd=0)
    assert not list(nothing.build(side(S), side(T), Batch(x=S, y=Y), None).parameters())
    out = nothing.terms(nn.Module(), side(S, ZS), SimpleNamespace(), Batch(x=S, y=Y), CLOCK)
    assert set(out) == {"label"}
    only = SRD(label=0, kd=0)
    assert set(only.terms(built(only), side(S), side(T), Batch(x=S), CLOCK)) == {"srd"}


def test_embeddings_that_are_no_vectors_and_fields_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the teacher's is \(9, 2, 2, 1\)"):
        built(SRD(), t=T.reshape(9, 2, 2, 1))
    with pytest.raises(UsageError, match=r"the student's is \(9, 2, 3\)"):
        built(SRD(), s=S.reshape(9, 2, 3))
    for field in ("alpha=0.5", "eps=0", "tau=0", "srd=-1"):
        with pytest.raises(UsageError):
            make(f"srd({field})")


def test_half_precision_is_widened_first() -> None:
    assert standardised(S.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(standardised(S.half()), standardised(S.half().float()))


def test_a_run_brings_embeddings_together_up_to_a_linear_map() -> None:
    x = torch.randn(64, 6, generator=G)
    y = torch.arange(64) % 3
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    student = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    budget = Budget(steps=80, batch=32, optimiser=Optimiser("sgd", lr=0.05))
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)
    task.taps["embedding"] = ("2:in", "2:in")
    found = limbeck.run("srd", task, device="cpu", label=0.0, kd=0.0)
    assert type(found.model) is type(student)  # the projector does not ship

    def unexplained(model: nn.Sequential) -> float:
        e = torch.cat((model[:2](x), torch.ones(64, 1)), 1).detach()
        t = teacher[:2](x).detach()
        rest = t - e @ torch.linalg.lstsq(e, t).solution
        return float(rest.square().mean() / (t - t.mean(0)).square().mean())

    assert unexplained(found.model) < 0.7 * unexplained(student)
