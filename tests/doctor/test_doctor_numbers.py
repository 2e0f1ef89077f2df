"""The doctor's measures, each against a slow second derivation."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from limbeck.doctor import limits
from limbeck.doctor.feed import other_order
from limbeck.doctor.numbers import best_order, confusion, entropy, error_of, linear_cka
from limbeck.doctor.on_rate import still_falling
from limbeck.doctor.on_terms import norms_of
from limbeck.doctor.sides import Answers
from limbeck.doctor.words import Finding, again, concluded

pytestmark = pytest.mark.xdist_group("doctor")


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hsic_by_tuples(k: Tensor, m: Tensor) -> float:
    """The mean over quadruples of different samples, which is what the estimator is a sum of."""
    total, count = 0.0, 0
    for i, j, q, r in itertools.permutations(range(len(k)), 4):
        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
        count += 1
    return total / count


def test_cka_is_the_mean_over_quadruples() -> None:
    a = torch.randn(7, 3, generator=rng(0)).double()
    b = (a[:, :2] + torch.randn(7, 2, generator=rng(1))).double()
    k, m = a @ a.T, b @ b.T  # not centred: the estimator does not depend on it
    slow = hsic_by_tuples(k, m) / math.sqrt(hsic_by_tuples(k, k) * hsic_by_tuples(m, m))
    assert linear_cka(a, b) == pytest.approx(slow, rel=1e-6)


def test_cka_knows_a_turned_copy_from_noise_in_many_dimensions() -> None:
    a = torch.randn(64, 500, generator=rng(0))
    turn = torch.linalg.qr(torch.randn(500, 500, generator=rng(1)))[0]
    assert linear_cka(a, 7 * a @ turn + 3) == pytest.approx(1, abs=1e-4)
    assert linear_cka(a.view(64, 5, 10, 10), a) == pytest.approx(1, abs=1e-6)
    noise = torch.randn(64, 500, generator=rng(2))
    assert abs(linear_cka(a, noise)) < 0.1
    assert linear_cka(a, torch.ones(64, 3)) == 0


def test_entropy_is_that_of_the_formula_and_reaches_both_ends() -> None:
    z = 3 * torch.randn(20, 5, generator=rng(0))
    slow = 0.0
    for row in z.tolist():
        e = [math.exp(v / 2) for v in row]
        slow -= sum(v / sum(e) * math.log(v / sum(e)) for v in e) / len(z)
    assert entropy(z, 2.0) == pytest.approx(slow / math.log(5), rel=1e-6)
    assert entropy(z, 1e6) == pytest.approx(1)
    assert entropy(z, 1e-3) == pytest.approx(0, abs=1e-6)
    assert entropy(torch.tensor([[0.0, -float("inf")]]), 1.0) == 0  # of a black box's certainty


@pytest.mark.parametrize("seed", range(12))
def test_the_best_order_is_that_of_all_permutations(seed: int) -> None:
    n = 2 + seed % 5
    counts = torch.randint(0, 6, (n, n), generator=rng(seed))
    slow = max(
        sum(int(counts[i, p]) for i, p in enumerate(order))
        for order in itertools.permutations(range(n))
    )
    found = best_order(counts)
    assert sorted(found.tolist()) == list(range(n))
    assert int(counts[torch.arange(n), found].sum()) == slow


def test_the_best_order_of_many_classes_is_scipys() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="needs scipy")
    counts = torch.randint(0, 50, (60, 60), generator=rng(3))
    rows, columns = optimize.linear_sum_assignment(-counts.numpy())
    found = best_order(counts)
    assert counts[torch.arange(60), found].sum() == counts.numpy()[rows, columns].sum()


def test_confusion_counts_pairs() -> None:
    guess, y = torch.tensor([0, 2, 2, 1, 2]), torch.tensor([0, 1, 1, 1, 2])
    assert confusion(guess, y, 3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 2, 1]]


def test_an_order_must_hold_on_samples_that_did_not_choose_it() -> None:
    classes = 200
    y = torch.arange(400) % classes
    guess = torch.randint(classes, (800,), generator=rng(0))
    z = torch.nn.functional.one_hot(guess, classes).float()
    counts = confusion(guess[:400], y, classes)
    chosen = float(counts[torch.arange(classes), best_order(counts)].sum()) / 400
    assert chosen > 0.3  # by chance alone the best order seems to gain much
    assert other_order(Answers(z[:400], y), Answers(z[400:], y)) is None


def test_error_of_a_share() -> None:
    draws = torch.rand(4000, 100, generator=rng(0)) < 0.3
    assert error_of(0.3, 100) == pytest.approx(float(draws.double().mean(1).std()), rel=0.05)
    assert error_of(1.0, 50) > 0


def rows(loss: list[float], rate: list[float]) -> list[dict[str, object]]:
    pairs = zip(loss, rate, strict=True)
    return [{"step": i, "lr": lr, "terms": {"a": v}} for i, (v, lr) in enumerate(pairs)]


def test_a_loss_that_falls_in_a_straight_line_is_still_falling() -> None:
    cosine = [(1 + math.cos(math.pi * i / 200)) / 2 for i in range(200)]
    way = list(itertools.accumulate(cosine))
    straight = [3 - 2 * w / way[-1] for w in way]
    early = [math.exp(-20 * w / way[-1]) for w in way]
    found = still_falling(rows(straight, cosine))
    assert found == pytest.approx(0.5, abs=0.02)
    assert found > limits.STILL
    assert still_falling(rows(early, cosine)) < 0.05
    assert still_falling(rows([1.0] * 50, [1.0] * 50)) is None
    assert still_falling(rows(straight[:10], cosine[:10])) is None


def test_norms_are_compared_at_each_terms_best_step() -> None:
    log = [
        {"stage": "fit", "norms": {"label": 1.0, "kd": 4.0, "part": 0.0}},
        {"stage": "fit", "terms": {"label": 1.0}},
        {"stage": "fit", "norms": {"label": 0.001, "kd": 2.0, "part": 0.0}},
        {"stage": "hint", "norms": {"hint": 1.0}},
    ]
    fit, hint = norms_of(log)
    assert fit.best == {"label": 0.25, "kd": 1.0}  # what never reaches the student is left out
    assert fit.ratio == 4
    assert fit.median["kd"] == 3
    assert hint.ratio == 1


def test_a_command_is_written_again_with_its_changes() -> None:
    words = ["limbeck", "run", "kd", "--tau=9", "--out", "a b", "--world", "digits(n=64)"]
    assert again(words, {"--tau": 4.0}) == "limbeck run kd --world 'digits(n=64)' --tau 4"
    assert again(words, {}) == "limbeck run kd --tau=9 --world 'digits(n=64)'"


def test_the_worst_comes_first_and_decides() -> None:
    good, watch, bad = (Finding(s, s, "") for s in ("good", "watch", "bad"))
    found = concluded([good, watch, bad], "kd", False)
    assert [f.name for f in found.findings] == ["bad", "watch", "good"]
    assert (found.healthy, found.verdict) == (False, "1 fault (bad), 1 to watch (watch)")
    assert concluded([good], "kd", False).healthy
    assert not concluded([good, watch], "kd", False).healthy
    unknown = Finding("x", "unknown", "")
    assert not concluded([unknown], "kd", False).healthy
