"""Transport by scipy's linear programming and by Sinkhorn's rounds written out; further numbers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.losses.divergences import NAMES, Divergence
from limbeck.language.uld import distance
from limbeck.runs.measures import agreements, of_rows
from limbeck.vision.vkd import columns
from limbeck.vision.wcord.distance import primal_loss, sinkhorn

pytestmark = pytest.mark.xdist_group("by scipy")
optimize = pytest.importorskip("scipy.optimize", reason="needs scipy")
stats = pytest.importorskip("scipy.stats", reason="needs scipy")
special = pytest.importorskip("scipy.special", reason="needs scipy")
linalg = pytest.importorskip("scipy.linalg", reason="needs scipy")
seeds = pytest.mark.parametrize("seed", range(3))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(seed: int, *shape: int) -> Tensor:
    return F.normalize(draw(seed, *shape), dim=-1)


# --- wcord ----------------------------------------------------------------------------------------


def cheapest(cost: np.ndarray) -> float:
    """The cost of the best plan with even marginals, by a linear programme."""
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m))
    sums = np.kron(np.ones(n), np.eye(m))
    even = np.r_[np.full(n, 1 / n), np.full(m, 1 / m)]
    found = optimize.linprog(cost.ravel(), A_eq=np.r_[rows, sums], b_eq=even, bounds=(0, None))
    assert found.success
    return float(found.fun)


def rounds_of(cost: np.ndarray, eps: float, rounds: int) -> np.ndarray:
    """Sinkhorn's plan as textbooks and POT's `sinkhorn_knopp` write it, without logarithms."""
    n, m = cost.shape
    k = np.exp(-cost / eps)
    v = np.ones(m)
    for _ in range(rounds):
        u = 1 / n / (k @ v)
        v = 1 / m / (k.T @ u)
    return u[:, None] * k * v


@seeds
@pytest.mark.parametrize(("n", "m"), [(6, 6), (5, 9)])
def test_wcord_plan_is_that_of_rounds_without_logarithms(seed: int, n: int, m: int) -> None:
    cost = 1 - unit(seed, n, 4) @ unit(seed + 50, m, 4).T
    for eps, rounds in ((0.05, 10), (0.2, 3), (1.0, 50)):
        plan = sinkhorn(cost, eps, rounds).numpy()
        np.testing.assert_allclose(plan, rounds_of(cost.numpy(), eps, rounds), rtol=1e-9)
        np.testing.assert_allclose(plan.sum(0), np.full(m, 1 / m), rtol=1e-12)


@seeds
@pytest.mark.parametrize(("n", "m"), [(6, 6), (5, 9)])
def test_wcord_cost_is_the_linear_programmes_as_eps_falls(seed: int, n: int, m: int) -> None:
    cost = 1 - unit(seed, n, 4) @ unit(seed + 50, m, 4).T
    least = cheapest(cost.numpy())
    gaps = []
    for eps in (0.2, 0.05, 0.01):
        plan = sinkhorn(cost, eps, 600)
        gaps.append(float((plan * cost).sum()) - least)
        # The entropy of a plan is between 0 and log(n m).
        assert -1e-4 <= gaps[-1] <= eps * math.log(n * m)
    assert gaps[0] > gaps[1] > gaps[2] - 1e-6


@seeds
def test_wcord_gradient_is_that_of_the_cost_less_entropy(seed: int) -> None:
    t, s = unit(seed, 5, 4), unit(seed + 50, 5, 4).requires_grad_()
    eps, rounds, step = 0.3, 400, 1e-5

    def value(at: np.ndarray) -> float:
        cost = 1 - t.numpy() @ at.T
        plan = rounds_of(cost, eps, rounds)
        return float((plan * cost).sum() - eps * special.entr(plan).sum())

    gradient = torch.autograd.grad(primal_loss(t, s, eps, rounds), s)[0].numpy()
    at = s.detach().numpy()
    for place in np.ndindex(at.shape):
        move = np.zeros_like(at)
        move[place] = step
        slope = (value(at + move) - value(at - move)) / (2 * step)
        assert gradient[place] == pytest.approx(slope, abs=1e-7)


def test_apart_wcord_holds_its_plan_fixed() -> None:
    t, s = unit(1, 5, 4), unit(51, 5, 4).requires_grad_()
    fixed = torch.autograd.grad(primal_loss(t, s, 0.3, 400), s)[0]
    cost = 1 - t @ s.T
    through = torch.autograd.grad((sinkhorn(cost, 0.3, 400) * cost).sum(), s)[0]
    assert (fixed - through).norm() > 0.1 * fixed.norm()
    with torch.no_grad():  # the values are one
        assert torch.equal((sinkhorn(cost, 0.3, 400) * cost).sum(), primal_loss(t, s, 0.3, 400))


# --- others ---------------------------------------------------------------------------------------


@seeds
@pytest.mark.parametrize(("v", "w"), [(7, 7), (5, 8)])
def test_uld_is_the_cheapest_renaming_of_tokens(seed: int, v: int, w: int) -> None:
    q, p = (draw(seed + k, 4, size).softmax(1) for k, size in ((0, v), (50, w)))
    wide = max(v, w)
    for b in range(4):
        one, other = (np.pad(x[b].numpy(), (0, wide - len(x[b]))) for x in (q, p))
        cost = np.abs(one[:, None] - other[None])
        i, j = optimize.linear_sum_assignment(cost)
        assert float(distance(q, p)[b]) == pytest.approx(cost[i, j].sum(), rel=1e-9)


@seeds
def test_vkd_columns_are_orthonormal_and_differentiable_as_the_exponential(seed: int) -> None:
    w = draw(seed, 6, 3).requires_grad_()
    wide = F.pad(w, (0, 3)).detach().numpy()
    found = columns(w)
    np.testing.assert_allclose(found.detach(), linalg.expm(wide - wide.T)[:, :3], atol=1e-12)
    give = draw(seed + 9, 6, 3)
    gradient = torch.autograd.grad((found * give).sum(), w)[0]
    move = draw(seed + 5, 6, 3)
    turn = F.pad(move, (0, 3)).numpy()
    slope = linalg.expm_frechet(wide - wide.T, turn - turn.T, compute_expm=False)[:, :3]
    assert float((gradient * move).sum()) == pytest.approx((slope * give.numpy()).sum(), rel=1e-9)


@seeds
@pytest.mark.parametrize("name", [name for name in NAMES if name != "adaptive"])
def test_divergences(seed: int, name: str) -> None:
    q, p = (draw(seed + k, 3, 9).log_softmax(1) for k in (0, 50))
    a, b = p.exp().numpy(), q.exp().numpy()

    def kl(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return special.rel_entr(x, y).sum(1)

    half = 0.3 * a + 0.7 * b
    given = {
        "forward_kl": stats.entropy(a, b, axis=1),
        "reverse_kl": stats.entropy(b, a, axis=1),
        "jsd": 0.3 * kl(a, half) + 0.7 * kl(b, half),
        "skew_kl": kl(a, half),
        "skew_reverse_kl": kl(b, 0.7 * a + 0.3 * b),
        "tv": np.abs(a - b).sum(1) / 2,
        "alpha": ((a**0.3 * b**0.7).sum(1) - 1) / (0.3 * -0.7),
    }
    np.testing.assert_allclose(Divergence(name, 0.3)(q, p).numpy(), given[name], rtol=1e-9)


@seeds
def test_entropies_and_agreement_of_a_report(seed: int) -> None:
    z, t = draw(seed, 30, 5), draw(seed + 50, 30, 5)
    p, q = (special.softmax(x.numpy(), axis=1) for x in (t, z))
    np.testing.assert_allclose(of_rows(z)[2].numpy(), stats.entropy(q, axis=1), rtol=1e-9)
    told = agreements({"teacher": t, "student": z})["student"]
    assert told["kl"] == pytest.approx(stats.entropy(p, q, axis=1).mean(), rel=1e-9)
    assert told["top1"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
