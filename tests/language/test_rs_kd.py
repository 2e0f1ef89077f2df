"""RS-KD: unbiased draws, the targets that it is compared with, and reading caches of draws."""

import dataclasses
import itertools

import pytest
import torch
from toys import CONTEXT, VOCAB, task, texts

import limbeck
from limbeck.core.caching import cache_teacher
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import Divergence, rows
from limbeck.core.method import Clock
from limbeck.core.packing import drawn
from limbeck.core.run import Run
from limbeck.core.signals import Dense, Sampled, TopK
from limbeck.core.text.kept import Keep
from limbeck.core.text.places import IGNORED, labels, wanted
from limbeck.errors import UsageError
from limbeck.language.rs_kd import RSKD, target_of

pytestmark = pytest.mark.xdist_group("language")

P = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
Q = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)


class Shown:
    def __init__(self, signal):
        self.signal = signal


def side(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, CONTEXT, VOCAB, generator=generator, dtype=torch.float64)


def clock(step=0):
    return Clock(0, "fit", step, 10, 4, batch=4)


def loss(q, signal):
    """Value and slope in the student's logits."""
    z = q.log().clone().requires_grad_()
    value = rows(Divergence("forward_kl"), Dense(z), signal).sum()
    return value.detach(), torch.autograd.grad(value, z)[0]


@pytest.mark.parametrize("u", [1.0, 0.5, 1.2])
def test_unbiased_by_enumeration(u):
    """All pairs of draws, each with its chance under r ~ p^u."""
    r = P[0] ** u / (P[0] ** u).sum()
    middle = (r.cumsum(0) - r / 2).tolist()  # a uniform number that draws each token
    mean, slope = torch.zeros(()).double(), torch.zeros(1, 4).double()
    for pair in itertools.product(range(4), repeat=2):
        at = torch.tensor([[middle[i] for i in pair]], dtype=torch.float64)
        ids, weights = drawn(P.log(), at, u)
        assert ids.tolist() == [sorted(pair)]
        value, gradient = loss(Q, Sampled(ids, weights.double(), 4))
        chance = r[pair[0]] * r[pair[1]]
        mean, slope = mean + chance * value, slope + chance * gradient
    torch.testing.assert_close(mean, -(P * Q.log()).sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(slope, Q - P, rtol=1e-6, atol=1e-7)


def test_many_draws_are_the_whole():
    at = ((torch.arange(20000) + 0.5) / 20000).double()[None]
    ids, weights = drawn(P.log(), at)
    t = torch.zeros(4, dtype=torch.float64).index_add(0, ids[0], weights[0].double())
    torch.testing.assert_close(t, P[0], atol=1e-4, rtol=0)


GOLD = torch.tensor([3])


@pytest.mark.parametrize(
    ("kind", "t"),
    [
        ("topk", [0.4, 0.3, 0.0, 0.0]),
        ("topk_norm", [4 / 7, 3 / 7, 0.0, 0.0]),
        ("top_p", [0.4, 0.0, 0.0, 0.0]),
        ("gold", [0.4, 0.3, 0.0, 0.3]),
    ],
)
def test_targets_by_hand(kind, t):
    found = target_of(kind, Dense(P.log()), GOLD, 2, 0.35)
    spread = torch.zeros(4, dtype=torch.float64).index_add(0, found.ids[0], found.weights[0])
    torch.testing.assert_close(spread, torch.tensor(t, dtype=torch.float64))


def test_only_targets_without_bias_rest_at_the_teacher():
    """The slope at q = p is none with a tail, and none of draws in the mean; of others it is."""
    assert loss(P, target_of("tail", Dense(P.log()), GOLD, 2, 0.9))[1].abs().max() < 1e-9
    for kind in ("topk", "topk_norm", "gold"):
        assert loss(P, target_of(kind, Dense(P.log()), GOLD, 2, 0.9))[1].abs().max() > 0.05
    best = torch.tensor([[4 / 7, 3 / 7, 1e-12, 1e-12]], dtype=torch.float64)
    assert loss(best, target_of("topk_norm", Dense(P.log()), GOLD, 2, 0.9))[1].abs().max() < 1e-9


@pytest.mark.parametrize("kind", ["tail", "topk", "topk_norm", "top_p", "gold"])
def test_the_whole_vocabulary_is_forward_kl(kind):
    found, slope = loss(Q, target_of(kind, Dense(P.log()), GOLD, 4, 1.0))
    entropy = -(P * P.log()).sum()
    kl = (P * (P / Q).log()).sum()
    torch.testing.assert_close(found, kl if kind == "tail" else kl + entropy, rtol=1e-5, atol=0)
    torch.testing.assert_close(slope, Q - P, rtol=1e-4, atol=1e-6)


def test_terms_by_loops_over_places():
    s, t, here = side(0), side(1), Batch(**texts(4), index=torch.arange(4))
    method = RSKD(label=0.5, kd=2.0, draws=3, hard=3.0)
    found = method.terms(None, Shown(Dense(s)), Shown(Dense(t)), here, clock())
    few = method._target(Dense(t[wanted(here.y)]), here, clock())
    total, gold, k = 0.0, 0.0, 0
    for b, i in itertools.product(range(4), range(CONTEXT - 1)):
        if (y := int(here.y[b, i + 1])) == IGNORED:
            continue
        logq = s[b, i].log_softmax(-1)
        said = [(int(v), float(w)) for v, w in zip(few.ids[k], few.weights[k], strict=True)]
        share = sum(w for v, w in said if v == y)
        total += (1 + 2 * (1 - share)) * sum(-w * float(logq[v]) for v, w in said)
        gold -= float(logq[y])
        k += 1
    assert float(found["kd"].sum) == pytest.approx(2 * total, rel=1e-5)
    assert float(found["label"].sum) == pytest.approx(0.5 * gold, rel=1e-5)
    assert int(found["kd"].count) == k == len(labels(here.y))


def test_draws_are_of_the_sample_and_the_step_whatever_the_cut():
    t, here = Dense(side(1)), Batch(**texts(4), index=torch.arange(4))
    method = RSKD(draws=3)
    whole = method._target(t.at(wanted(here.y)), here, clock()).ids
    cut = []
    for rows_ in (slice(0, 2), slice(2, 4)):
        part = here.select(rows_)
        cut.append(method._target(Dense(t.logits[rows_]).at(wanted(part.y)), part, clock()).ids)
    assert torch.equal(torch.cat(cut), whole)
    assert not torch.equal(method._target(t.at(wanted(here.y)), here, clock(1)).ids, whole)


def test_normalised_weights_sum_to_one():
    t, here = Dense(side(1)), Batch(**texts(4), index=torch.arange(4))
    ours, brought = (
        RSKD(draws=5, u=0.5, normalise=n)._target(t.at(wanted(here.y)), here, clock())
        for n in (False, True)
    )
    torch.testing.assert_close(brought.weights.sum(-1), torch.ones(len(brought.ids)))
    assert (ours.weights.sum(-1) - 1).abs().max() > 0.01


@pytest.mark.parametrize(
    ("keep", "fields"),
    [
        (Keep("sampled", 6), {}),
        (Keep("sampled", 6, u=0.7, bits=8), {}),
        (Keep("topk", 12), {"estimate": "tail"}),
    ],
)
def test_runs_from_a_cache(keep, fields, tmp_path):
    made = task(steps=4)
    with Run(made):
        cached = cache_teacher(made, tmp_path / "c", keep=keep, batch=4)
    found = limbeck.run("rs_kd", dataclasses.replace(made, teacher=cached), **fields)
    live = limbeck.run("rs_kd", made, draws=6, u=keep.u, **fields)
    a, b = found.log[0]["terms"]["kd"], live.log[0]["terms"]["kd"]
    assert a == pytest.approx(b, rel=0.3)  # other draws, or values in few bits


def test_what_a_cache_cannot_give(tmp_path):
    made = task(steps=2)
    for kind, estimate, words in (
        ("sampled", "tail", "needs its likeliest tokens"),
        ("topk", "sampled", "no unbiased draws"),
    ):
        with Run(made):
            cached = cache_teacher(made, tmp_path / kind, keep=Keep(kind, 6), batch=4)
        with pytest.raises(UsageError, match=words):
            limbeck.run("rs_kd", dataclasses.replace(made, teacher=cached), estimate=estimate)


def test_likeliest_entries_of_more_are_their_best():
    few = TopK(torch.tensor([[3, 0, 2]]), torch.tensor([[0.1, 0.4, 0.3]]).log(), 4)
    found = target_of("topk", few, GOLD, 2, 1.0)
    assert found.ids.tolist() == [[0, 2]]
