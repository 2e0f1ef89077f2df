"""vid: the Gaussian's surprise by scipy, its gradients by hand, what a variance learns, a run."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.method import Clock
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.vision.vid import VID, start, surprise, variance

pytestmark = pytest.mark.xdist_group("vid")

G = torch.Generator().manual_seed(7)
CLOCK = Clock(0, "fit", 0, 1, 1)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def one(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


# --- the mathematics -----------------------------------------------------------------------------


def test_the_worked_number_and_its_gradients() -> None:
    mu, a = one(0.0).requires_grad_(), torch.tensor([start(5.0)], dtype=torch.float64)
    a.requires_grad_()
    v = variance(a)
    value = surprise(mu, one(2.0), v)
    assert float(value.detach()) == pytest.approx(0.5 * (math.log(5) + 0.8))
    assert float(value.detach()) == pytest.approx(1.204719, abs=1e-6)
    by_mu, by_v, by_a = torch.autograd.grad(value.sum(), (mu, v, a))
    assert float(by_mu) == pytest.approx(-0.4)
    assert float(by_v) == pytest.approx(0.02)
    assert float(by_a) == pytest.approx(0.02 * (1 - math.exp(1e-5 - 5)))
    assert float(by_a) == pytest.approx(0.019865, abs=1e-6)


def test_surprise_is_minus_the_log_density_but_for_a_constant() -> None:
    mu, t, v = draw(2, 3, 2, 4), draw(2, 3, 2, 4), draw(3).exp()
    value = surprise(mu, t, v)
    for b, c, y, x in torch.cartesian_prod(*(torch.arange(n) for n in mu.shape)).tolist():
        density = stats.norm.logpdf(t[b, c, y, x], mu[b, c, y, x], math.sqrt(v[c]))
        by_scipy = -density - 0.5 * math.log(2 * math.pi)
        assert float(value[b, c, y, x]) == pytest.approx(by_scipy)


def test_the_best_variance_is_the_mean_squared_error() -> None:
    mu, t = draw(50, 2, 2, 2), draw(50, 2, 2, 2)
    error = (mu - t).square().mean((0, 2, 3))
    best = surprise(mu, t, error).mean()
    assert float(best) == pytest.approx(float(0.5 * (1 + error.log()).mean()))
    for factor in (0.9, 1.1):
        assert float(surprise(mu, t, factor * error).mean()) > float(best)
    assert float(surprise(one(0), one(2), torch.tensor([4.0]))) == pytest.approx(1.193147, abs=1e-6)


def test_at_a_variance_of_one_it_is_half_the_squared_error() -> None:
    mu, t = draw(3, 2, 4, 4), draw(3, 2, 4, 4)
    torch.testing.assert_close(surprise(mu, t, torch.ones(2)), 0.5 * (mu - t).square())
    assert float(surprise(t, t, torch.tensor([0.1, 0.1])).max()) < 0


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 1.0])
@pytest.mark.parametrize("v", [5.0, 1.5, 40.0, 800.0])
def test_variances_start_where_they_are_told(v: float, eps: float) -> None:
    a = torch.tensor([start(v, eps)], dtype=torch.float64)
    assert float(variance(a, eps)) == pytest.approx(v)


def test_start_of_the_default() -> None:
    assert start(5.0) == pytest.approx(4.993229, abs=1e-6)
    assert start(5.0) == pytest.approx(math.log(math.exp(5 - 1e-5) - 1))


def test_far_variances_are_finite_with_finite_gradient() -> None:
    a = torch.tensor([1000.0, -1000.0], requires_grad=True)
    v = variance(a)
    assert v.tolist() == pytest.approx([1000, 1e-5])
    value = surprise(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1), v).sum()
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(a.grad).all()


def test_half_precision_is_compared_in_float32() -> None:
    mu, t = torch.full((1, 1, 1, 1), 300.0).half(), torch.zeros(1, 1, 1, 1).half()
    assert float(surprise(mu, t, torch.ones(1))) == 45000.0
    assert float(surprise(2 * mu, t, torch.ones(1))) == 180000.0  # beyond float16


# --- layers --------------------------------------------------------------------------------------


def sides(s: list[Tensor], t: list[Tensor]) -> tuple[Any, Any, Batch]:
    logits = {"logits": torch.zeros(len(s[0]), 3)}
    batch = Batch(x=s[0], y=torch.zeros(len(s[0]), dtype=torch.long))
    return SimpleNamespace(blocks=s, **logits), SimpleNamespace(blocks=t, **logits), batch


def value(m: VID, parts: Any, s: Any, t: Any, batch: Batch) -> Tensor:
    return m.terms(parts, s, t, batch, CLOCK)["vid"]


def test_a_sum_over_layers_by_loops_and_the_factor_of_the_mean() -> None:
    s, t, batch = sides([draw(4, 3, 4, 4).float()], [draw(4, 5, 4, 4).float()])
    m = VID(hidden=2.0, vid=3.0)
    parts = m.build(s, t, batch, None)
    told = parts["told"][0]
    weights = [p for p in told.mu.parameters()]
    assert [tuple(w.shape) for w in weights] == [(10, 3, 1, 1), (10, 10, 1, 1), (5, 10, 1, 1)]
    x = s.blocks[0].permute(0, 2, 3, 1)
    for k, w in enumerate(weights):
        x = x @ w[:, :, 0, 0].mT
        x = x.relu() if k < 2 else x
    error = (x.permute(0, 3, 1, 2) - t.blocks[0]).square()
    by_hand = 3 * 0.5 * (math.log(5) + error / 5).mean()
    torch.testing.assert_close(value(m, parts, s, t, batch), by_hand, rtol=1e-5, atol=1e-6)
    whole = VID(hidden=2.0, vid=3.0, mean=False)
    torch.testing.assert_close(value(whole, parts, s, t, batch), 5 * 16 * by_hand)
    twice = sides([*s.blocks, *s.blocks], [*t.blocks, *t.blocks])
    doubled = nn.ModuleDict({"told": nn.ModuleList([told, told])})
    torch.testing.assert_close(value(m, doubled, *twice), 2 * by_hand, rtol=1e-5, atol=1e-6)


def test_the_larger_map_is_averaged_down() -> None:
    for a, b in (((2, 3, 8, 8), (2, 5, 4, 4)), ((2, 3, 2, 2), (2, 5, 6, 6))):
        s, t, batch = sides([draw(*a).float()], [draw(*b).float()])
        m = VID()
        parts = m.build(s, t, batch, None)
        small = min(a[2], b[2])
        pooled = [F.avg_pool2d(x[0], x[0].shape[2] // small) for x in (s.blocks, t.blocks)]
        other = sides(*([x] for x in pooled))
        torch.testing.assert_close(
            value(m, parts, s, t, batch), value(m, parts, *other), rtol=1e-5, atol=1e-6
        )


def test_vectors_and_asked_maps_have_a_linear_mean() -> None:
    s, t, batch = sides([draw(4, 3).float()], [draw(4, 5).float()])
    parts = VID().build(s, t, batch, None)
    (layer,) = parts["told"][0].mu
    by_hand = F.linear(s.blocks[0], layer.weight[:, :, 0, 0], layer.bias) - t.blocks[0]
    expected = 0.5 * (math.log(5) + by_hand.square().mean() / 5)
    torch.testing.assert_close(value(VID(), parts, s, t, batch), expected, rtol=1e-5, atol=1e-6)
    maps = sides([draw(4, 3, 2, 2).float()], [draw(4, 5, 2, 2).float()])
    assert len(VID().build(*maps, None)["told"][0].mu) == 5
    assert len(VID(norm=True).build(*maps, None)["told"][0].mu) == 7
    assert len(VID(mu="linear").build(*maps, None)["told"][0].mu) == 1


def test_tokens_and_maps_and_their_mistakes() -> None:
    s, t, batch = sides([draw(2, 17, 6).float()], [draw(2, 5, 2, 2).float()])
    parts = VID().build(s, t, batch, None)
    assert torch.isfinite(value(VID(), parts, s, t, batch))
    with pytest.raises(UsageError, match="vid tells layers, but a feature of shape"):
        VID().build(*sides([draw(2, 3, 4, 4, 4)], t.blocks), None)


def test_terms_and_who_gets_a_gradient() -> None:
    s, t, batch = sides([draw(2, 3, 2, 2).float()], [draw(2, 5, 2, 2).float()])
    assert not list(VID(vid=0.0).build(s, t, batch, None).parameters())
    assert set(VID(vid=0.0).terms(nn.Module(), s, t, batch, CLOCK)) == {"label"}
    parts = VID().build(s, t, batch, None)
    assert set(VID(label=0.0, kd=1.0).terms(parts, s, t, batch, CLOCK)) == {"vid", "kd"}
    value(VID(), parts, s, t, batch).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parts.parameters())
    fixed = VID(fixed=True).build(s, t, batch, None)
    assert [n for n, p in fixed.named_parameters() if not p.requires_grad] == ["told.0.a"]


# --- a run ---------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Two channels of the picture, and two that tell nothing of it."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.sin(1e4 * x) * 3
        return torch.cat((x, noise), 1)


def test_channels_that_cannot_be_told_get_a_large_variance() -> None:
    x, y = torch.randn(64, 2, 4, 4, generator=G), torch.arange(64) % 4

    def net(first: nn.Module, width: int) -> nn.Sequential:
        return nn.Sequential(first, nn.Flatten(), nn.Linear(16 * width, 4))

    torch.manual_seed(0)
    task = Task(
        teacher=net(Noisy(), 4),
        student=net(nn.Conv2d(2, 6, 1), 6),
        train=(x, y),
        test=(x, y),
        taps={"blocks": (["0"], ["0"])},
        budget=Budget(epochs=60, batch=16, optimiser=Optimiser("adam", lr=0.05)),
    )
    with Run(task, seed=3, device="cpu") as run:
        student = run.student(task)
        fitted = fit(VID(), student, task.the_teacher(), task.batches(), name="fit")
    v = variance(fitted.parts["told"][0].a.detach())
    assert float(v[:2].max()) < 1 < 3 < float(v[2:].min())  # 5 at the start; the noise has 4.5
    assert fitted.log[-1]["terms"]["vid"] < fitted.log[0]["terms"]["vid"]
    shipped = limbeck.run("vid", task, seed=3, device="cpu").model
    assert list(shipped.state_dict()) == list(student.state_dict())
