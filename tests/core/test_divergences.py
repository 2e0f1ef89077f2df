"""Divergences against sums written out, and against scipy."""

import math

import pytest
import torch
from scipy.special import rel_entr, softmax

from limbeck.core.losses.divergences import check_classes, kl, soft_cross_entropy
from limbeck.errors import UsageError

S = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
T = torch.tensor([[0.2, 0.1, -1.0], [2.0, 2.0, -3.0]])


@pytest.mark.parametrize("tau", [1.0, 4.0, 0.5])
def test_both_equal_sums_written_out(tau: float) -> None:
    for row, (s, t) in enumerate(zip(S.tolist(), T.tolist(), strict=True)):
        p = [math.exp(z / tau) for z in t]
        q = [math.exp(z / tau) for z in s]
        p, q = [a / sum(p) for a in p], [b / sum(q) for b in q]
        entropy = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
        divergence = tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert float(soft_cross_entropy(S, T, tau)[row]) == pytest.approx(entropy, rel=1e-5)
        assert float(kl(S, T, tau)[row]) == pytest.approx(divergence, rel=1e-4, abs=1e-6)


def test_kl_equals_scipys_relative_entropy() -> None:
    expected = rel_entr(softmax(T.double().numpy(), 1), softmax(S.double().numpy(), 1)).sum(1)
    torch.testing.assert_close(kl(S, T).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.3, 1e3])
def test_kl_of_equal_logits_is_exactly_zero_and_its_gradient_zero_to_rounding(scale: float) -> None:
    s = (scale * S).requires_grad_()
    value = kl(s, (scale * S).clone(), 4.0)
    assert value.tolist() == [0.0, 0.0]
    value.sum().backward()
    assert float(s.grad.abs().max()) < 4 * 2e-7  # tau times some units in the last place


def test_double_precision_stays_double() -> None:
    s, t = S.double(), T.double()
    for f in (kl, soft_cross_entropy):
        assert f(s, t).dtype == torch.float64
    expected = rel_entr(softmax(t.numpy(), 1), softmax(s.numpy(), 1)).sum(1)
    torch.testing.assert_close(kl(s, t), torch.from_numpy(expected), rtol=1e-13, atol=1e-15)


def test_the_gradient_is_tau_times_the_gap_of_probabilities() -> None:
    """d tau^2 KL / d s = tau (softmax(s / tau) - softmax(t / tau)); alike for the cross-entropy."""
    for tau in (1.0, 3.0):
        gap = (S / tau).softmax(1) - (T / tau).softmax(1)
        for f, scale in ((kl, tau), (soft_cross_entropy, 1 / tau)):
            s = S.clone().requires_grad_()
            f(s, T, tau).sum().backward()
            torch.testing.assert_close(s.grad, scale * gap)


def test_shapes_beyond_two_dimensions_and_half_precision() -> None:
    s, t = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    whole = kl(s, t)
    assert whole.shape == (2, 5)
    torch.testing.assert_close(whole[1, 3], kl(s[1, 3], t[1, 3]))
    half = kl(s.bfloat16(), t.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, kl(s.bfloat16().float(), t.bfloat16().float()))


def test_extreme_logits_stay_finite() -> None:
    s, t = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert float(kl(s, t)) == pytest.approx(1e4, rel=1e-4)


def test_other_class_counts_are_refused_and_never_broadcast() -> None:
    for s, t in ((torch.zeros(4, 10), torch.zeros(4, 100)), (torch.zeros(4, 1), torch.zeros(4, 5))):
        with pytest.raises(UsageError, match="the same number of classes"):
            kl(s, t)
        with pytest.raises(UsageError, match="teacher's"):
            check_classes(s, t)
