"""churn_distill: mixed labels, kinds of flips, the mixture against a solver, and the choice."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.objectives import Labels
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import BlackBox
from limbeck.errors import Missing, UsageError
from limbeck.vision.churn_distill import ChurnDistill, Mixed
from limbeck.vision.churn_distill.choice import Mixture, best_mixture, choose_mixture, flips

pytestmark = pytest.mark.xdist_group("churn_distill")


class Shown:
    """A side that shows fixed entries."""

    def __init__(self, **entries: Any) -> None:
        self.__dict__.update(entries)


def terms(s: Tensor, t: Tensor, y: Tensor, **fields: Any) -> dict[str, Tensor]:
    batch = Batch(x=torch.zeros(len(y), 1), y=y)
    clock = Clock(0, "fit", 0, 1, 1)
    return Mixed(**fields).terms(None, Shown(logits=s), Shown(logits=t), batch, clock)


def some(n: int = 7, c: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, n, c, generator=g)
    return s.requires_grad_(), t, torch.arange(n) % c


# --- the loss ------------------------------------------------------------------------------------


def test_both_terms_are_the_cross_entropy_to_mixed_labels() -> None:
    s, t, y = some()
    lam = 0.3
    h, g = s.softmax(1), t.softmax(1)
    mixed = lam * F.one_hot(y, 4) + (1 - lam) * g
    slow = -sum(mixed[i, c] * h[i, c].log() for i in range(7) for c in range(4)) / 7
    loss = sum(terms(s, t, y, label=lam, churn=1 - lam).values())
    torch.testing.assert_close(loss, slow)
    (slope,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(slope, (h - mixed) / 7)


def test_the_ends_are_labels_alone_and_the_base_model_alone() -> None:
    s, t, y = some()
    alone = terms(s, t, y, label=1.0, churn=0.0)
    assert set(alone) == {"label"}
    torch.testing.assert_close(alone["label"], F.cross_entropy(s, y))
    assert set(terms(s, t, y, label=0.0, churn=1.0)) == {"churn"}
    equal = t.clone().requires_grad_()
    loss = terms(equal, t, y, label=0.0, churn=1.0)["churn"]
    assert float(torch.autograd.grad(loss, equal)[0].abs().max()) < 1e-7  # h = g is the minimum
    entropy = -(t.softmax(1) * t.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss.detach(), entropy)


def test_free_logits_end_at_the_mix_of_label_shares_and_base() -> None:
    # One input whose labels are 0 three times in four, 1 else: p = (3/4, 1/4, 0).
    y, lam = torch.tensor([0, 0, 0, 1]), 0.4
    g = torch.tensor([0.2, 0.3, 0.5])
    best = lam * torch.tensor([0.75, 0.25, 0.0]) + (1 - lam) * g
    z = best.log().requires_grad_()
    loss = sum(terms(z.expand(4, 3), g.log().expand(4, 3), y, label=lam, churn=1 - lam).values())
    assert float(torch.autograd.grad(loss, z)[0].abs().max()) < 1e-6


def test_smoothing_and_anchor_by_loops() -> None:
    s, t, y = some()
    h, g = s.softmax(1), t.softmax(1)
    got = terms(s, t, y, label=0.4, churn=0.6, smoothing=0.1)
    slow = 0.0
    for i in range(7):
        smooth = 0.9 * F.one_hot(y[i], 4) + 0.1 / 4
        slow -= 0.4 * (smooth * h[i].log()).sum() / 7
    torch.testing.assert_close(got["label"], slow)
    right = t.argmax(1) == y
    assert 0 < int(right.sum()) < 7
    total = 0.0
    for i in range(7):
        lam = 0.0 if right[i] else 0.4
        total -= ((lam * F.one_hot(y[i], 4) + (1 - lam) * g[i]) * h[i].log()).sum() / 7
    both = terms(s, t, y, label=0.4, churn=0.6, anchor=True)
    torch.testing.assert_close(sum(both.values()), total)


# --- what changed --------------------------------------------------------------------------------


def test_flips_are_counted_by_kind() -> None:
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 200, 3, generator=g)
    y = torch.randint(3, (200,), generator=g)
    counts = {"churn": 0, "good": 0, "bad": 0, "neutral": 0}
    for i in range(200):
        one, two, truth = int(a[i].argmax()), int(b[i].argmax()), int(y[i])
        if one != two:
            counts["churn"] += 1
            counts["good" if one == truth else "bad" if two == truth else "neutral"] += 1
    found = flips(a, b, y)
    assert found == {k: v / 200 for k, v in counts.items()}
    assert min(counts.values()) > 0
    back = flips(b, a, y)
    assert back["churn"] == found["churn"]
    assert (back["good"], back["bad"]) == (found["bad"], found["good"])
    assert set(flips(a, a, y).values()) == {0.0}


# --- the mixture ---------------------------------------------------------------------------------


def scene(k: int = 4, n: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Members from near the base model to near the labels, all noisy."""
    r = torch.Generator().manual_seed(3)
    y = torch.randint(3, (n,), generator=r)
    base = torch.randn(n, 3, generator=r) + F.one_hot(y, 3)
    ends = torch.linspace(0.1, 1, k)[:, None, None]
    z = ends * 2.5 * F.one_hot(y, 3) + (1 - ends) * base + torch.randn(k, n, 3, generator=r)
    return z.softmax(2).double(), base.softmax(1).double(), y


def solver(p: Tensor, g: Tensor, y: Tensor, eps: float) -> np.ndarray:
    """The same problem for a general solver of scipy's."""

    def mixed(alpha: np.ndarray) -> np.ndarray:
        return np.einsum("k,knc->nc", alpha, p.numpy())

    def loss(alpha: np.ndarray) -> float:
        return float(-np.log(mixed(alpha)[np.arange(len(y)), y]).mean())

    def room(alpha: np.ndarray) -> float:
        return eps - float((g.numpy() * np.log(g.numpy() / mixed(alpha))).sum(1).mean())

    bounds = [(1e-9, 1)] * len(p)
    held: Any = [
        {"type": "eq", "fun": lambda a: a.sum() - 1},
        {"type": "ineq", "fun": room},
    ]
    found = minimize(
        loss, np.full(len(p), 1 / len(p)), bounds=bounds, constraints=held, method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    assert found.success
    return found.x


def value(alpha: Tensor, p: Tensor, g: Tensor, y: Tensor) -> tuple[float, float]:
    h = torch.einsum("k,knc->nc", alpha, p)
    return float(F.nll_loss(h.log(), y)), float((g * (g / h).log()).sum(1).mean())


def test_the_mixture_is_that_of_a_general_solver() -> None:
    p, g, y = scene()
    free = value(
        best_mixture(p, F.one_hot(y, 3).double(), torch.full((4,), 0.25).double()), p, g, y
    )
    nearest = value(choose_mixture(p, g, y, 1e-9), p, g, y)
    eps = (free[1] + nearest[1]) / 2
    assert nearest[1] < eps < free[1]  # the bound binds and can be kept
    alpha = choose_mixture(p, g, y, eps)
    assert float(alpha.sum()) == pytest.approx(1)
    assert float(alpha.min()) >= 0
    loss, apart = value(alpha, p, g, y)
    reference = value(torch.tensor(solver(p, g, y, eps)), p, g, y)
    assert loss == pytest.approx(reference[0], abs=1e-4)
    assert apart <= eps
    assert apart == pytest.approx(eps, abs=1e-4)
    loose = value(choose_mixture(p, g, y, 10.0), p, g, y)
    assert loose[0] == pytest.approx(
        value(torch.tensor(solver(p, g, y, 10.0)), p, g, y)[0], abs=1e-4
    )
    assert loose[0] == pytest.approx(free[0])


def test_where_no_mixture_keeps_the_bound_the_nearest_is_taken() -> None:
    p, g, y = scene()
    _, apart = value(choose_mixture(p, g, y, 1e-9), p, g, y)
    for k in range(21):
        for j in range(21 - k):
            for i in range(21 - k - j):
                grid = torch.tensor([k, j, i, 20 - k - j - i]).double() / 20
                assert apart <= value(grid, p, g, y)[1] + 1e-6


def test_each_step_of_the_search_lowers_the_loss() -> None:
    p, g, y = scene()
    w, alpha = 0.5 * F.one_hot(y, 3) + 0.5 * g, torch.full((4,), 0.25).double()

    def loss(a: Tensor) -> float:
        return float(-(w * torch.einsum("k,knc->nc", a, p).log()).sum(1).mean())

    done = best_mixture(p, w, alpha)
    h = torch.einsum("k,knc->nc", done, p)
    slopes = torch.stack([(w * p[k] / h).sum(1).mean() for k in range(4)])
    assert float(slopes.max()) < 1 + 1e-6  # no member would help: the optimum
    assert loss(done) < loss(alpha)


def test_a_mixture_is_the_mean_of_probabilities() -> None:
    torch.manual_seed(0)
    members, x = [nn.Linear(5, 3) for _ in range(3)], torch.randn(4, 5)
    alpha = torch.tensor([0.5, 0.3, 0.2])
    slow = sum(a * m(x).softmax(1) for a, m in zip(alpha, members, strict=True))
    torch.testing.assert_close(Mixture(members, alpha)(x).softmax(1), slow)


# --- runs ----------------------------------------------------------------------------------------

G = torch.Generator().manual_seed(2)
Y = torch.arange(600) % 4
X = 1.2 * torch.randn(600, 8, generator=G) + 0.9 * torch.randn(4, 8, generator=G)[Y]


def net(width: int = 24) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def task(**kw: Any) -> Task:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "teacher": net(),
        "student": net,
        "train": (X[:120], Y[:120]),
        "valid": (X[120:300], Y[120:300]),
        "test": (X[300:], Y[300:]),
        "budget": Budget(epochs=40, batch=20, optimiser=Optimiser("adam", lr=0.01)),
    }
    return Task(**{**given, **kw})


def taught() -> Task:
    """With a base model that was trained on half of the training set, from another seed."""
    given = task()
    before = replace(given, train=(X[:60], Y[:60]))
    given.teacher = limbeck.run(Labels(), before, seed=5, device="cpu").model
    return task(teacher=given.teacher)


def run(given: Task, **fields: Any) -> Any:
    return limbeck.run("churn_distill", given, seed=6, device="cpu", **fields)


def test_less_weight_on_labels_is_less_churn_and_the_choice_keeps_the_cold_score() -> None:
    given = taught()
    result = run(given, lam=(0.0, 0.3, 0.6, 1.0))
    told = result.facts["report"]
    assert [s["stage"] for s in result.facts["stages"]] == ["lam/0", "lam/0.3", "lam/0.6", "lam/1"]
    churn = [told["valid"][k]["churn"] for k in ("0.0", "0.3", "0.6", "1.0")]
    assert churn[0] < churn[1] < churn[3]
    assert churn[2] < churn[3]
    cold = told["valid"]["1.0"]["score"]
    able = {k: v["churn"] for k, v in told["valid"].items() if v["score"] >= cold}
    assert told["valid"][str(told["lam"])]["churn"] == min(able.values())
    assert str(told["lam"]) in able
    a, b = result.model(X[300:]).argmax(1), given.teacher(X[300:]).argmax(1)
    assert told["of"] == "test"
    assert told["churn"] == pytest.approx(float((a != b).double().mean()))
    assert told["churn"] == pytest.approx(told["good"] + told["bad"] + told["neutral"])


def test_a_mixture_keeps_its_bound_on_valid() -> None:
    given = taught()
    short = replace(given, budget=replace(given.budget, epochs=20))
    told = run(short, lam=(0.0, 0.5, 1.0), choose="mixture", eps=0.05)
    weights = told.facts["report"]["weights"]
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    assert isinstance(told.model, Mixture)
    g, h = (m(X[120:300]).softmax(1) for m in (given.teacher, told.model))
    apart = float((g * (g / h).log()).sum(1).mean().detach())
    assert apart == pytest.approx(0.05, abs=1e-4)  # it binds
    assert told.facts["report"]["kl"] == pytest.approx(apart, abs=1e-5)
    assert 0 < weights["1.0"] < 1


def test_one_value_is_the_plain_student() -> None:
    given = task(valid=None)
    one = run(given, lam=(1.0,))
    plain = limbeck.run(Labels(), given, seed=6, device="cpu").model
    for a, b in zip(one.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("warm", [1.0, 0.25])
def test_a_start_between_fresh_weights_and_the_base_models(warm: float) -> None:
    given = task(valid=None, budget=Budget(steps=1, batch=20, optimiser=Optimiser("sgd", lr=1e-12)))
    fresh, base = (run(given, lam=(1.0,), warm=w).model.state_dict() for w in (0.0, 1.0))
    for name, theirs in given.teacher.state_dict().items():
        torch.testing.assert_close(base[name], theirs)
        assert not torch.allclose(fresh[name], theirs)
        mixed = run(given, lam=(1.0,), warm=warm).model.state_dict()[name]
        torch.testing.assert_close(mixed, warm * theirs + (1 - warm) * fresh[name])


def test_what_cannot_work_is_said() -> None:
    for lam in ((), (0.5, 0.3, 1.0), (0.5, 1.5), (0.5, 0.5)):
        with pytest.raises(UsageError, match=r"ChurnDistill\.lam"):
            ChurnDistill(lam=lam)
    with pytest.raises(UsageError, match=r"without 1\.0, whose score"):
        ChurnDistill(lam=(0.2, 0.8))
    assert ChurnDistill(lam=(0.2, 0.8), choose="mixture").eps == 0.1
    short = Budget(steps=1, batch=20)
    with pytest.raises(Missing, match=r"there is none; give one, or one value \(--lam 0.5\)"):
        run(task(valid=None, budget=short))
    deaf = task(teacher=BlackBox(lambda x: torch.full((len(x), 4), 0.25), "probabilities"))
    deaf.budget = short
    with pytest.raises(UsageError, match="this teacher is no module; give one value"):
        run(deaf, lam=(0.5, 1.0))
    assert "churn" not in (run(deaf, lam=(0.5,)).facts["report"] or {})
    with pytest.raises(UsageError, match="architecture; give one that is, or warm=0"):
        run(task(teacher=net(5), budget=short), lam=(0.5,), warm=0.5)
