"""Divergences over signals: definitions by loops, sparse signals by enumeration, refusals."""

import itertools
import math
from functools import partial

import pytest
import torch
from scipy.special import kl_div

from limbeck.core.losses.divergences import NAMES, Divergence, rows, summed
from limbeck.core.signals import Dense, Head, Linear, Mixture, Sampled, TopK
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("signals")

V = 7


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(x, y):
    return float(sum(kl_div(i, j) + i - j for i, j in zip(x, y, strict=True)))


def mix(w, p, q):
    return [w * i + (1 - w) * j for i, j in zip(p, q, strict=True)]


def most_apart(p, q):
    """The largest difference that two distributions give an event."""
    events = itertools.chain.from_iterable(
        itertools.combinations(range(len(p)), size) for size in range(len(p) + 1)
    )
    return max(sum(p[i] - q[i] for i in event) for event in events)


def order(a, p, q):
    return (sum(i**a * j ** (1 - a) for i, j in zip(p, q, strict=True)) - 1) / (a * (a - 1))


def adaptive(a, p, q):
    head, mass = set(), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if mass >= a:
            break
        head.add(i)
        mass += p[i]
    gap = [abs(i - j) for i, j in zip(p, q, strict=True)]
    w = sum(gap[i] for i in head) / sum(gap)
    return w * kl(p, q) + (1 - w) * kl(q, p)


BY_HAND = {
    "forward_kl": lambda a, p, q: kl(p, q),
    "reverse_kl": lambda a, p, q: kl(q, p),
    "jsd": lambda a, p, q: a * kl(p, mix(a, p, q)) + (1 - a) * kl(q, mix(a, p, q)),
    "skew_kl": lambda a, p, q: kl(p, mix(a, p, q)),
    "skew_reverse_kl": lambda a, p, q: kl(q, mix(1 - a, p, q)),
    "tv": lambda a, p, q: most_apart(p, q),
    "alpha": order,
    "adaptive": adaptive,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("a", [0.1, 0.5, 0.8])
def test_each_divergence_is_the_textbooks(name, a):
    s, t = logits(5, V), logits(5, V, seed=1)
    found = rows(Divergence(name, a), Dense(s), Dense(t), tau=1.5)
    for row in range(5):
        p, q = ((z[row] / 1.5).softmax(-1).tolist() for z in (t, s))
        assert float(found[row]) == pytest.approx(BY_HAND[name](a, p, q), rel=1e-9)


def test_hand_value_of_skew():
    p, q = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    found = Divergence("skew_kl", 0.1)(q.log(), p.log())
    assert float(found) == pytest.approx(-math.log(0.55))


def test_limits_of_the_skews_and_of_alpha():
    s, t = Dense(logits(4, V)), Dense(logits(4, V, seed=1))
    forward, reverse = (rows(Divergence(n), s, t) for n in ("forward_kl", "reverse_kl"))
    close = torch.testing.assert_close
    close(rows(Divergence("skew_kl", 0.0), s, t), forward)
    close(rows(Divergence("skew_reverse_kl", 0.0), s, t), reverse)
    close(rows(Divergence("alpha", 1 - 1e-6), s, t), forward, rtol=1e-5, atol=0)
    close(rows(Divergence("alpha", 1e-6), s, t), reverse, rtol=1e-5, atol=0)
    close(rows(Divergence("jsd", 1e-7), s, t) / 1e-7, forward, rtol=1e-5, atol=0)
    for name in ("skew_kl", "skew_reverse_kl"):
        assert bool((rows(Divergence(name, 0.1), s, t) < -math.log(0.1)).all())


@pytest.mark.parametrize("name", NAMES)
def test_zero_and_without_slope_for_equal_sides(name):
    z = logits(3, V).float().requires_grad_()
    value = rows(Divergence(name, 0.3), Dense(z), Dense(z.detach()))
    assert value.abs().max() <= (1e-6 if name == "alpha" else 0.0)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert slope.abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_finite_where_a_side_forbids_tokens(name):
    s, t = logits(3, V).float(), logits(3, V, seed=1).float()
    t[:, 2] = -torch.inf
    s[:, 2] = -torch.inf
    s.requires_grad_()
    value = rows(Divergence(name, 0.3), Dense(s), Dense(t)).sum()
    (slope,) = torch.autograd.grad(value, s)
    assert bool(value.isfinite())
    assert bool(slope.isfinite().all())


# --- a few of the entries -------------------------------------------------------------------------


def kept(t, k, tau=1.0):
    logp, ids = t.log_p(tau).topk(k)
    return TopK(ids, logp, t.vocab, tau)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "adaptive"])
def test_likeliest_entries_are_k_and_one_outcomes(name):
    s, t, how = Dense(logits(4, V)), Dense(logits(4, V, seed=1)), Divergence(name, 0.3)
    found = rows(how, s, kept(t, 3, 1.5), tau=1.5)
    for row in range(4):
        p, q = ((z.logits[row] / 1.5).softmax(-1) for z in (t, s))
        top = sorted(range(V), key=lambda i: -float(p[i]))[:3]
        few = [[*x[top].tolist(), 1 - float(x[top].sum())] for x in (p, q)]
        assert float(found[row]) == pytest.approx(BY_HAND[name](0.3, *few), rel=1e-9)
    assert bool((found <= rows(how, s, t, tau=1.5) + 1e-12).all())  # merging outcomes loses


def test_all_entries_kept_are_the_whole():
    s, t = Dense(logits(4, V)), Dense(logits(4, V, seed=1))
    for name in ("forward_kl", "jsd", "tv"):
        how = Divergence(name)
        torch.testing.assert_close(rows(how, s, kept(t, V)), rows(how, s, t), rtol=1e-5, atol=1e-6)


def test_scaled_up_entries_would_teach_another_distribution():
    """Without a tail the optimum is p / sum p on the kept entries; with it the optimum is p."""
    t = Dense(logits(1, V, seed=1))
    p = t.log_p().exp()[0]
    top = kept(t, 3)
    at_p = t.logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(rows(Divergence("forward_kl"), Dense(at_p), top).sum(), at_p)
    assert slope.abs().max() < 1e-12
    naive = torch.where(torch.isin(torch.arange(V), top.ids[0]), p, torch.zeros(())).double()
    slope = p - naive / naive.sum()  # of the cross-entropy with the scaled-up entries, at q = p
    assert slope.abs().max() > 0.05


def test_draws_are_unbiased_by_enumeration():
    t, s = logits(4, seed=1), logits(4)
    p = t.softmax(-1)
    mean, slope = torch.zeros(()).double(), torch.zeros(4).double()
    for draw in itertools.product(range(4), repeat=2):
        z = s.clone()[None].requires_grad_()
        signal = Sampled(torch.tensor([draw]), torch.full((1, 2), 0.5).double(), 4)
        value = rows(Divergence("forward_kl"), Dense(z), signal).sum()
        chance = p[draw[0]] * p[draw[1]]
        mean += chance * value.detach()
        slope += chance * torch.autograd.grad(value, z)[0][0]
    torch.testing.assert_close(mean, -(p * s.log_softmax(-1)).sum())
    torch.testing.assert_close(slope, s.softmax(-1) - p)


def test_a_mixture_mixes_probabilities():
    s, a, b = (Dense(logits(4, V, seed=k)) for k in range(3))
    both = Mixture((a, b), (0.3, 0.7))
    p = 0.3 * a.log_p().exp() + 0.7 * b.log_p().exp()
    for name in NAMES:
        found = rows(Divergence(name, 0.3), s, both)
        torch.testing.assert_close(found, rows(Divergence(name, 0.3), s, Dense(p.log())))
    forward = Divergence("forward_kl")
    few = Mixture((kept(a, 3), kept(b, 3)), (0.3, 0.7))
    apart = 0.3 * rows(forward, s, few.of[0]) + 0.7 * rows(forward, s, few.of[1])
    torch.testing.assert_close(rows(forward, s, few), apart)


def test_head_with_scale_cap_and_padding():
    h, w, b = logits(2, 3, 5), logits(V + 3, 5, seed=1), logits(V + 3, seed=2)
    found = Head(w, b, vocab=V, scale=0.5, cap=2.0)(h)
    assert found.shape == (2, 3, V)
    raw = sum(h[1, 2, k] * w[4, k] for k in range(5)) + b[4]
    assert float(found[1, 2, 4]) == pytest.approx(2.0 * math.tanh(float(raw) * 0.5 / 2.0))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Divergence("kl"), "no divergence is called 'kl'"),
        (lambda: Divergence("jsd", 0.0), "goes above 0 and below 1"),
        (lambda: Divergence("skew_kl", 1.0), "goes from 0 and below 1"),
        (lambda: Divergence("skew_kl", -0.1), "given -0.1"),
        (lambda: Mixture((Dense(torch.zeros(2, 3)),), (0.5,)), "sum to 1"),
        (lambda: Mixture((Dense(torch.zeros(2, 3)),), (0.5, 0.5)), "give one each"),
        (
            lambda: Mixture((Dense(torch.zeros(2, 3)), Dense(torch.zeros(2, 4))), (0.5, 0.5)),
            "one vocabulary",
        ),
    ],
)
def test_what_cannot_be_made(make, words):
    with pytest.raises(UsageError, match=words):
        make()


@pytest.mark.parametrize(
    ("name", "teacher", "words"),
    [
        ("forward_kl", Dense(torch.zeros(2, V + 1)), "7 tokens and the teacher 8"),
        ("forward_kl", Dense(torch.zeros(3, V)), "same tokens"),
        ("reverse_kl", Sampled(torch.zeros(2, 1).long(), torch.ones(2, 1), V), "draws"),
        ("adaptive", TopK(torch.zeros(2, 1).long(), -torch.ones(2, 1), V), "whole vocabulary"),
        ("jsd", TopK(torch.zeros(2, 1).long(), -torch.ones(2, 1), V, 2.0), "temperature 2, and 1"),
        (
            "jsd",
            Mixture((TopK(torch.zeros(2, 1).long(), -torch.ones(2, 1), V),), (1.0,)),
            "only forward_kl",
        ),
    ],
)
@pytest.mark.parametrize("road", ["plain", "fused"])
def test_an_empty_cell_is_refused_by_name(name, teacher, words, road):
    how = Divergence(name)
    s = Linear(torch.zeros(2, 3), Head(torch.zeros(V, 3)))
    ask = rows if road == "plain" else partial(summed, weights=torch.ones(2))
    with pytest.raises(UsageError, match=words):
        ask(how, s, teacher)


def test_a_student_without_a_whole_distribution_is_refused():
    few = Sampled(torch.zeros(2, 1).long(), torch.ones(2, 1), V)
    with pytest.raises(UsageError, match="the student shows a Sampled signal"):
        rows(Divergence("forward_kl"), few, Dense(torch.zeros(2, V)))
    with pytest.raises(UsageError, match="no probability to each of its 7 tokens"):
        few.log_p()
