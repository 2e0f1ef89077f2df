"""luminet: each column's moments, what it does not see, its gradient, the warm-up, a loop."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from scipy.stats import zscore
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.luminet import LumiNet, luminet_loss, perception

pytestmark = pytest.mark.xdist_group("luminet")

G = torch.Generator().manual_seed(9)
S = torch.randn(8, 5, generator=G, dtype=torch.float64)
T = 3 * torch.randn(8, 5, generator=G, dtype=torch.float64) + torch.arange(5.0)
Y = torch.arange(8) % 5


def clock(epoch: int = 99) -> Clock:
    return Clock(0, "fit", 3 * epoch + 1, 300, 3)


def terms(method: LumiNet, s: Tensor = S, t: Tensor | None = T, at: Clock | None = None):
    sides = [SimpleNamespace(logits=z) if z is not None else SimpleNamespace() for z in (s, t)]
    return method.terms(nn.Module(), *sides, Batch(x=s, y=Y), at or clock())


def slow(s: np.ndarray, t: np.ndarray, tau: float) -> float:
    """By numpy, sample by sample, with the small number beside the variance written out."""
    moved = []
    for z in (s, t):
        v = z.var(0)
        moved.append(zscore(z, axis=0) * np.sqrt(v / (v + 1e-5)) / tau)
    p, q = softmax(moved[1], 1), softmax(moved[0], 1)
    return float(np.mean([rel_entr(p[b], q[b]).sum() for b in range(len(s))]))


def test_each_column_has_mean_zero_and_about_unit_variance() -> None:
    h, v = perception(T), T.var(0, unbiased=False)
    torch.testing.assert_close(h.mean(0), torch.zeros(5).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(h.square().mean(0), v / (v + 1e-5))


def test_a_batch_by_hand() -> None:
    # Columns (1, 3) and (4, 0): deviations 1 and 2, so h = (-1, 1) and (1, -1).
    h = perception(torch.tensor([[1.0, 4.0], [3.0, 0.0]]))
    torch.testing.assert_close(h, torch.tensor([[-1.0, 1.0], [1.0, -1.0]]), atol=1e-4, rtol=0)
    # Against a student who has the columns the other way round, at tau 2: p = sigmoid(-1), ...
    s = torch.tensor([[4.0, 1.0], [0.0, 3.0]])
    p = 1 / (1 + math.e)
    by_hand = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    t = torch.tensor([[1.0, 4.0], [3.0, 0.0]])
    assert float(luminet_loss(s, t, 2.0)) == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("tau", [0.7, 4.0, 8.0])
def test_the_loss_is_scipys(tau: float) -> None:
    assert float(luminet_loss(S, T, tau)) == pytest.approx(
        slow(S.numpy(), T.numpy(), tau), rel=1e-9
    )


def test_a_positive_affine_map_of_each_class_is_not_seen() -> None:
    a = torch.rand(5, generator=G).double() + 0.2
    b = 5 * torch.randn(5, generator=G).double()
    assert float(luminet_loss(a * T + b, T)) < 1e-10
    torch.testing.assert_close(luminet_loss(a * S + b, T), luminet_loss(S, T), rtol=1e-3, atol=0)
    turned = torch.cat((-T[:, :1], T[:, 1:]), 1)
    assert float(luminet_loss(turned, T)) > 1e-3
    # A shift of one sample's logits, which softmax does not see, is seen here.
    shift = torch.zeros(8, 1).double()
    shift[0] = 4
    assert abs(float(luminet_loss(S + shift, T) - luminet_loss(S, T))) > 1e-4


def test_a_batch_of_one_says_nothing() -> None:
    s = S[:1].clone().requires_grad_()
    loss = luminet_loss(s, T[:1])
    assert float(loss.detach()) == 0
    assert float(torch.autograd.grad(loss, s)[0].abs().max()) < 1e-12
    assert torch.equal(perception(T[:1]), torch.zeros(1, 5).double())


def test_the_order_of_the_batch_turns_rows_only() -> None:
    order = torch.randperm(8, generator=G)
    torch.testing.assert_close(perception(S[order]), perception(S)[order])


def test_the_gradient_passes_through_both_moments() -> None:
    s = S.clone().requires_grad_()
    grad = torch.autograd.grad(luminet_loss(s, T, 2.0), s)[0]
    torch.testing.assert_close(grad.sum(0), torch.zeros(5).double(), atol=1e-12, rtol=0)
    # Along the centred column nothing changes but by the small number beside the variance.
    along = (grad * (S - S.mean(0))).sum(0)
    assert float(along.abs().max()) < 1e-4 * float(grad.abs().max())
    for b, c in ((0, 0), (3, 4), (7, 2)):
        step = torch.zeros_like(S)
        step[b, c] = 1e-5
        rise = slow((S + step).numpy(), T.numpy(), 2.0) - slow((S - step).numpy(), T.numpy(), 2.0)
        assert float(grad[b, c]) == pytest.approx(rise / 2e-5, rel=1e-4, abs=1e-9)


def test_a_constant_column_stays_finite() -> None:
    s = S.clone()
    s[:, 1] = 3.0
    s.requires_grad_()
    loss = luminet_loss(s, T)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, s)[0].isfinite().all()
    assert float(perception(s.detach())[:, 1].abs().max()) < 1e-9


def test_terms_are_weighted_and_no_tau_squared_is_among_them() -> None:
    out = terms(LumiNet(label=0.5, perception=9.0, tau=3.0))
    assert float(out["perception"]) == pytest.approx(9 * slow(S.numpy(), T.numpy(), 3.0), rel=1e-9)
    by_hand = sum(-math.log(softmax(s)[y]) for s, y in zip(S.numpy(), Y, strict=True)) / 8
    assert float(out["label"]) == pytest.approx(0.5 * by_hand, rel=1e-6)
    plain = terms(LumiNet())
    assert float(plain["perception"]) == pytest.approx(33**2 * slow(S.numpy(), T.numpy(), 4.0))
    assert float(plain["label"]) == pytest.approx(2 * by_hand, rel=1e-6)


def test_warm_up_is_by_whole_epochs_counted_from_one() -> None:
    full = float(terms(LumiNet(warmup=0), at=clock(0))["perception"])
    for epoch, share in ((0, 1 / 20), (1, 2 / 20), (18, 19 / 20), (19, 1.0), (80, 1.0)):
        out = terms(LumiNet(), at=clock(epoch))
        assert float(out["perception"]) == pytest.approx(share * full, rel=1e-9)
        assert torch.equal(out["label"], terms(LumiNet())["label"])


def test_weight_zero_is_not_computed() -> None:
    assert set(terms(LumiNet(perception=0), t=None)) == {"label"}
    assert set(terms(LumiNet(label=0))) == {"perception"}
    with pytest.raises(AttributeError):
        terms(LumiNet(), t=None)


def test_half_precision_is_widened_first() -> None:
    assert perception(S.bfloat16()).dtype == torch.float32
    wide = luminet_loss(S.bfloat16().float(), T.bfloat16().float())
    assert torch.equal(luminet_loss(S.bfloat16(), T.bfloat16()), wide)


def test_other_classes_and_fields_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="same number of classes"):
        terms(LumiNet(), t=T[:, :4])
    for field in ("perception=-1", "tau=0", "warmup=-1", "label=-1"):
        with pytest.raises(UsageError):
            make(f"luminet({field})")


def test_a_run_is_the_loop_that_one_would_write() -> None:
    x, y = torch.randn(24, 6, generator=G), torch.arange(24) % 4
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 4), nn.Linear(6, 4)
    budget = Budget(
        steps=6, batch=24, schedule="constant", optimiser=Optimiser("sgd", lr=0.3, momentum=0.0)
    )
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)
    fields = {"label": 0.5, "perception": 20.0, "tau": 2.0, "warmup": 4}
    result = limbeck.run("luminet", task, device="cpu", **fields)

    xs, ys = x.double().numpy(), y.numpy()
    w, b = (p.detach().double().numpy().copy() for p in student.parameters())
    zt = teacher.double()(x.double()).detach().numpy()
    ht = (zt - zt.mean(0)) / np.sqrt(zt.var(0) + 1e-5)
    p, one = softmax(ht / 2, 1), np.eye(4)[ys]
    for epoch in range(6):
        z = xs @ w.T + b
        sd = np.sqrt(z.var(0) + 1e-5)
        h = (z - z.mean(0)) / sd
        dh = min((epoch + 1) / 4, 1) * 20 * (softmax(h / 2, 1) - p) / 2 / 24
        soft = (dh - dh.mean(0) - h * (dh * h).mean(0)) / sd  # as of batch normalisation
        dz = 0.5 * (softmax(z, 1) - one) / 24 + soft
        w, b = w - 0.3 * dz.T @ xs, b - 0.3 * dz.sum(0)
    np.testing.assert_allclose(result.model.weight.detach().numpy(), w, atol=1e-5)
    np.testing.assert_allclose(result.model.bias.detach().numpy(), b, atol=1e-5)
    assert np.abs(w - student.weight.detach().numpy()).max() > 0.1
