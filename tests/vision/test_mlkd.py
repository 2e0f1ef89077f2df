"""mlkd: each level by a loop and by hand, what it does not see, gradients, masks, the two views."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision._kit.strong import DRAWS, strong
from limbeck.vision.lskd import LSKD, standardised
from limbeck.vision.mlkd import MLKD, gram_loss, upto_median

pytestmark = pytest.mark.xdist_group("mlkd")

G = torch.Generator().manual_seed(25)
S, S2, T2 = (torch.randn(7, 5, generator=G, dtype=torch.float64) for _ in range(3))
T = 2 * torch.randn(7, 5, generator=G, dtype=torch.float64)
X, Y = torch.rand(7, 1, 6, 6, generator=G), torch.arange(7) % 5
CLOCK = Clock(0, "fit", 0, 9, 3)
TAUS = (4.0, 3.0, 5.0, 2.0, 6.0)


class Looked:
    """A side of given logits, and of others for the view that it is shown."""

    def __init__(self, logits: Tensor, other: Tensor | None = None) -> None:
        self.logits, self.other, self.shown = logits, other, list[Tensor]()

    def __call__(self, batch: Batch) -> Any:
        self.shown.append(batch.x)
        return SimpleNamespace(logits=self.other)


def terms(method: Any, s: Tensor = S, t: Tensor = T) -> dict[str, Tensor]:
    batch = Batch(x=X[: len(s)], y=Y[: len(s)], index=torch.arange(len(s)))
    return method.terms(nn.Module(), Looked(s, S2), Looked(t, T2), batch, CLOCK)


def soft(s: Tensor, t: Tensor, k: float) -> np.ndarray:
    """k^2 KL of each sample."""
    p, q = softmax(t.numpy() / k, 1), softmax(s.numpy() / k, 1)
    return k**2 * np.array([rel_entr(p[b], q[b]).sum() for b in range(len(p))])


def gram(s: Tensor, t: Tensor, k: float, *masks: np.ndarray) -> tuple[float, float]:
    """The levels of samples and classes, by loops over pairs; a mask is of the second of each."""
    out = []
    for level, turn in enumerate((np.asarray, np.transpose)):
        p, q = turn(softmax(t.numpy() / k, 1)), turn(softmax(s.numpy() / k, 1))
        keep = masks[level] if masks else np.ones(len(p))
        gaps = [
            keep[j] * (p[i] @ p[j] - q[i] @ q[j]) ** 2 for i in range(len(p)) for j in range(len(p))
        ]
        out.append(float(np.sum(gaps)) / len(p))
    return out[0], out[1]


def test_two_samples_by_hand() -> None:
    t, s = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).double().log(), torch.zeros(2, 2).double()
    method = make(
        "mlkd(label=0, instance=1, samples=1, classes=1, taus=(1,), views='one', masks='none')"
    )
    out = terms(method, s, t)
    one = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert one == pytest.approx(0.130812, abs=1e-6)
    assert float(out["instance"]) == pytest.approx(one)
    # P_t P_t^T has 5/8 and 3/8 where P_s P_s^T has 1/2: four squares of 1/64, over 2
    assert float(out["samples"]) == pytest.approx(1 / 32)
    assert float(out["classes"]) == pytest.approx(1 / 32)


@pytest.mark.parametrize("k", [1.0, 4.0])
def test_levels_are_those_of_loops(k: float) -> None:
    fields = {"taus": (k,), "views": "one", "masks": "none", "label": 0}
    out = terms(MLKD(instance=2.0, samples=3.0, classes=0.5, **fields))
    samples, classes = gram(S, T, k)
    assert float(out["instance"]) == pytest.approx(2 * soft(S, T, k).mean(), rel=1e-9)
    assert float(out["samples"]) == pytest.approx(3 * samples, rel=1e-9)
    assert float(out["classes"]) == pytest.approx(0.5 * classes, rel=1e-9)


def test_several_temperatures_are_added() -> None:
    out = terms(MLKD(views="one", masks="none"))
    assert float(out["instance"]) == pytest.approx(0.9 * sum(soft(S, T, k).mean() for k in TAUS))
    assert float(out["samples"]) == pytest.approx(0.9 * sum(gram(S, T, k)[0] for k in TAUS))
    assert float(out["classes"]) == pytest.approx(0.9 * sum(gram(S, T, k)[1] for k in TAUS))


def test_the_gradients_are_the_closed_forms() -> None:
    p, q = T.softmax(1), S.softmax(1).requires_grad_()
    grad = torch.autograd.grad(gram_loss(q, p, torch.ones(7).double()), q)[0]
    q0 = q.detach()
    torch.testing.assert_close(grad, 4 / 7 * (q0 @ q0.mT - p @ p.mT) @ q0)
    grad = torch.autograd.grad(gram_loss(q.mT, p.mT, torch.ones(5).double()), q)[0]
    torch.testing.assert_close(grad, 4 / 5 * q0 @ (q0.mT @ q0 - p.mT @ p))


def test_what_a_level_does_not_see() -> None:
    one, five = torch.ones(7).double(), torch.ones(5).double()
    p, q, rows, columns = T.softmax(1), S.softmax(1), torch.randperm(7), torch.randperm(5)
    torch.testing.assert_close(gram_loss(q[:, columns], p, one), gram_loss(q, p, one))
    torch.testing.assert_close(gram_loss(q[rows].mT, p.mT, five), gram_loss(q.mT, p.mT, five))
    assert abs(float(gram_loss(q.roll(1, 0), p, one) - gram_loss(q, p, one))) > 1e-3
    # they differ by their cross terms only
    gap = 7 * gram_loss(q, p, one) - 5 * gram_loss(q.mT, p.mT, five)
    cross = 2 * ((p @ q.mT).square().sum() - (p.mT @ q).square().sum())
    torch.testing.assert_close(gap, cross)
    assert abs(float(cross)) > 1e-2


def test_sides_that_are_alike_have_no_loss_and_no_gradient() -> None:
    s = T.clone().requires_grad_()
    out = terms(MLKD(label=0, views="one"), s)
    for value in out.values():
        assert float(value.detach()) == pytest.approx(0, abs=1e-12)
        assert float(torch.autograd.grad(value, s, retain_graph=True)[0].abs().max()) < 1e-9


def test_the_median_keeps_half() -> None:
    assert upto_median(torch.tensor([0.9, 0.8, 0.4, 0.3])).tolist() == [False, False, True, True]
    assert float(upto_median(torch.rand(5, generator=G)).float().mean()) == pytest.approx(0.6)
    assert bool(upto_median(torch.full((4,), 0.25)).all())


def test_masks_leave_out_what_the_teacher_is_sure_of() -> None:
    fields = {"label": 0, "views": "one", "taus": (2.0,), "instance": 1, "samples": 1, "classes": 1}
    p = softmax(T.numpy(), 1)
    m, c = p.max(1) <= np.median(p.max(1)), p.sum(0) <= np.median(p.sum(0))
    assert (int(m.sum()), int(c.sum())) == (4, 3)
    each, share = (terms(MLKD(masks=masks, **fields)) for masks in ("each", "share"))
    assert float(each["instance"]) == pytest.approx((m * soft(S, T, 2)).mean())
    samples, classes = gram(S, T, 2, m, c)
    assert float(each["samples"]) == pytest.approx(samples)
    assert float(each["classes"]) == pytest.approx(classes)
    assert float(share["instance"]) == pytest.approx(4 / 7 * soft(S, T, 2).mean())
    assert float(share["samples"]) == pytest.approx(4 / 7 * gram(S, T, 2)[0])
    assert float(share["classes"]) == pytest.approx(3 / 5 * gram(S, T, 2)[1])


def test_one_level_at_one_temperature_is_kd() -> None:
    fields = "taus=(4,), views='one', masks='none', samples=0, classes=0"
    out = terms(make(f"mlkd({fields})"))
    kd = terms(make("kd"))
    assert set(out) == {"label", "instance"}
    torch.testing.assert_close(out["label"], kd["label"])
    torch.testing.assert_close(out["instance"], kd["kd"])


def test_the_strong_view_has_labels_and_the_first_temperatures() -> None:
    out = terms(MLKD())
    weak, seen = ([soft(*pair, k).mean() for k in TAUS] for pair in ((S, T), (S2, T2)))
    by_hand = 4 / 7 * sum(weak) + sum(seen[:3]) + sum(weak[3:])
    assert float(out["instance"]) == pytest.approx(0.9 * by_hand, rel=1e-9)
    assert float(out["samples"]) == pytest.approx(
        0.9 * 4 / 7 * sum(gram(S, T, k)[0] for k in TAUS), rel=1e-9
    )
    at = (np.arange(7), Y.numpy())
    both = sum(-np.log(softmax(z.numpy(), 1))[at].mean() for z in (S, S2))
    assert float(out["label"]) == pytest.approx(0.1 * both, rel=1e-6)
    whole = terms(MLKD(strong=5, masks="none"))
    assert float(whole["instance"]) == pytest.approx(0.9 * (sum(weak) + sum(seen)), rel=1e-9)


def test_both_sides_see_one_view_that_draws_decide() -> None:
    batch = Batch(x=X, y=Y, index=torch.arange(7))
    s, t = Looked(S, S2), Looked(T, T2)
    MLKD().terms(nn.Module(), s, t, batch, CLOCK)
    assert len(s.shown) == len(t.shown) == 1
    assert torch.equal(s.shown[0], t.shown[0])
    u = CLOCK.rng("strong", batch.index).rand(DRAWS)
    assert torch.equal(s.shown[0], strong(X, u, "a test's"))
    assert float((s.shown[0] - X).abs().max()) > 0.1


def test_weight_zero_is_not_computed() -> None:
    alone = {"label": 0, "instance": 0, "samples": 0, "classes": 0}
    for name in alone:
        assert set(terms(MLKD(**{**alone, name: 1.0}))) == {name}
    assert MLKD(views="one").asks() == ("logits", "y")
    assert "again" in MLKD().asks()


def test_under_lskd_the_instance_level_sees_scores_alone() -> None:
    of = "mlkd(taus=(2, 3, 5, 2, 6), instance=9, samples=9, classes=9)"
    out, plain = terms(LSKD(of=of)), terms(make(of))
    for name in ("label", "samples", "classes"):
        torch.testing.assert_close(out[name], plain[name])
    z, zt, z2, zt2 = (standardised(v) for v in (S, T, S2, T2))
    weak, seen = ([soft(*p, k).mean() for k in (2, 3, 5, 2, 6)] for p in ((z, zt), (z2, zt2)))
    by_hand = 4 / 7 * sum(weak) + sum(seen[:3]) + sum(weak[3:])
    assert float(out["instance"]) == pytest.approx(9 * by_hand, rel=1e-6)


def test_half_precision_is_widened_first() -> None:
    for of in ("views='one'", "views='one', masks='each'"):
        method = make(f"mlkd({of})")
        wide = terms(method, S.bfloat16().float(), T.bfloat16().float())
        for name, value in terms(method, S.bfloat16(), T.bfloat16()).items():
            assert value.dtype == torch.float32
            assert torch.equal(value, wide[name])


def test_other_shapes_and_fields_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="same number of classes"):
        terms(MLKD(label=0), t=T[:, :4])
    batch = Batch(x=S, y=Y, index=torch.arange(7))
    with pytest.raises(UsageError, match="mlkd's strong view is of pictures"):
        MLKD().terms(nn.Module(), Looked(S), Looked(T), batch, CLOCK)
    with pytest.raises(UsageError, match="give one temperature or more, above 0"):
        MLKD(taus=(1.0, 0.0))
    with pytest.raises(UsageError, match="there are 2 taus"):
        MLKD(taus=(1.0, 2.0))
    assert MLKD(taus=(1.0, 2.0), views="one").strong == 3


def test_a_run_is_the_loop_that_one_would_write() -> None:
    x, y = torch.randn(24, 6, generator=G), torch.arange(24) % 4
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 4), nn.Linear(6, 4)
    budget = Budget(
        steps=5, batch=24, schedule="constant", optimiser=Optimiser("sgd", lr=0.1, momentum=0.0)
    )
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)
    result = limbeck.run("mlkd", task, device="cpu", views="one", label=0.5, taus=(1.0, 2.0))

    xs, one = x.double().numpy(), np.eye(4)[y.numpy()]
    w, b = (p.detach().double().numpy().copy() for p in student.parameters())
    zt = teacher.double()(x.double()).detach().numpy()
    for _ in range(5):
        z = xs @ w.T + b
        dz = 0.5 * (softmax(z, 1) - one) / 24
        for k in (1, 2):
            p, q = softmax(zt / k, 1), softmax(z / k, 1)
            g = 4 / 24 * (q @ q.T - p @ p.T) @ q + 4 / 4 * q @ (q.T @ q - p.T @ p)
            soft_part = k * (q - p) / 24 + q * (g - (q * g).sum(1, keepdims=True)) / k
            dz = dz + 0.9 * 0.5 * soft_part
        w, b = w - 0.1 * dz.T @ xs, b - 0.1 * dz.sum(0)
    np.testing.assert_allclose(result.model.weight.detach().numpy(), w, atol=1e-5)
    np.testing.assert_allclose(result.model.bias.detach().numpy(), b, atol=1e-5)
    assert np.abs(w - student.weight.detach().numpy()).max() > 0.1


def test_a_run_of_two_views_of_pictures() -> None:
    x, y = torch.rand(24, 1, 6, 6, generator=G), torch.arange(24) % 4
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 4)) for _ in range(2)]
    task = Task(*nets, (x, y), test=(x, y), budget=Budget(steps=4, batch=12))
    two = limbeck.run("mlkd", task, device="cpu")
    one = limbeck.run("mlkd", task, device="cpu", views="one")
    gaps = [
        float((a - b).detach().abs().max())
        for a, b in zip(two.model.parameters(), one.model.parameters(), strict=True)
    ]
    assert max(gaps) > 1e-4
