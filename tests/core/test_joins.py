"""How the gradients of terms become one step, against loops and torch's own optimisers."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.core.joins import Gradients, PerTerm, Routed, Surgery, pcgrad
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser
from limbeck.core.updates import Moves, Phase, check_phases
from limbeck.errors import Missing, UsageError

CLOCK = Clock(0, "fit", 0, 10, 5)
NAMES = ["student.a", "student.b", "parts.critic.w", "parts.critics"]


def some(*missing: int, seed: int = 0) -> Gradients:
    g = torch.Generator().manual_seed(seed)
    out: Gradients = [torch.randn(3, generator=g) for _ in NAMES]
    for i in missing:
        out[i] = None
    return out


def test_routed_terms_reach_what_lies_under_their_prefixes() -> None:
    grads = {"tell": some(1), "fool": some(seed=1), "label": some(2, 3, seed=2)}
    routes = {"tell": ("parts.critic",), "fool": ("student",)}
    out = Routed(routes).join(grads, NAMES, CLOCK)
    fool, tell, label = grads["fool"], grads["tell"], grads["label"]
    assert torch.equal(out[0], fool[0] + label[0])
    assert torch.equal(out[1], fool[1] + label[1])
    assert torch.equal(out[2], tell[2])
    assert out[3] is None  # "parts.critics" does not lie under "parts.critic"
    with pytest.raises(Missing, match="told"):
        Routed({"told": ("parts",)}).join(grads, NAMES, CLOCK)


def flat(grads: Gradients, like: Gradients) -> list[float]:
    out: list[float] = []
    for g, other in zip(grads, like, strict=True):
        if g is None and other is None:
            continue
        out += [0.0] * 3 if g is None else g.tolist()
    return out


def test_pcgrad_equals_loops_over_numbers() -> None:
    grads = {"a": some(3), "b": some(1, 3, seed=5), "c": some(0, 3, seed=9)}
    like = some(3)
    rows = {n: flat(g, like) for n, g in grads.items()}
    rng, total = CLOCK.rng("pcgrad"), [0.0] * 9
    for n in grads:
        v = list(rows[n])
        others = [m for m in grads if m != n]
        for k in torch.randperm(2, generator=rng).tolist():
            u = rows[others[k]]
            dot = sum(x * y for x, y in zip(v, u, strict=True))
            if dot < 0:
                v = [x - dot / sum(z * z for z in u) * y for x, y in zip(v, u, strict=True)]
        total = [x + y for x, y in zip(total, v, strict=True)]
    out = Surgery(pcgrad).join(grads, NAMES, CLOCK)
    assert out[3] is None
    assert flat(out, like) == pytest.approx(total, rel=1e-5)


def test_pcgrad_leaves_agreeing_gradients_alone_and_conflicts_no_longer_conflict() -> None:
    a: Gradients = [torch.tensor([1.0, 0.0])]
    b: Gradients = [torch.tensor([1.0, 1.0])]
    assert torch.equal(pcgrad({"a": a, "b": b}, CLOCK)[0], torch.tensor([2.0, 1.0]))
    c: Gradients = [torch.tensor([-1.0, 1.0])]
    out = pcgrad({"a": a, "c": c}, CLOCK)[0]
    torch.testing.assert_close(out, torch.tensor([0.5, 1.5]))  # (0.5, 0.5) + (0, 1)


def moves(join: Any, spec: Optimiser, params: dict[str, nn.Parameter]) -> Moves:
    return Moves(Phase(join=join), params, spec)


def walk(join: PerTerm, spec: Optimiser, steps: int = 6) -> torch.Tensor:
    w = nn.Parameter(torch.tensor([0.3, -1.0, 2.0]))
    m = moves(join, spec, {"student.w": w})
    for k in range(steps):
        label = torch.tensor([1.0, -2.0, 0.1]) * (k + 1)
        kd = torch.tensor([0.5, 0.5, -0.7]) * math.cos(k)
        m.step(join.grouped({"label": [label], "kd": [kd]}))
    return w.detach()


def test_equal_momenta_are_torchs_sgd_on_the_sum() -> None:
    spec = Optimiser("sgd", lr=0.05, weight_decay=0.01)
    mine = walk(PerTerm({"label": 0.9, "": 0.9}, alone=0.9, decay="label"), spec)
    w = nn.Parameter(torch.tensor([0.3, -1.0, 2.0]))
    sgd = torch.optim.SGD([w], lr=0.05, momentum=0.9, weight_decay=0.01)
    for k in range(6):
        w.grad = torch.tensor([1.0, -2.0, 0.1]) * (k + 1)
        w.grad = w.grad + torch.tensor([0.5, 0.5, -0.7]) * math.cos(k)
        sgd.step()
    torch.testing.assert_close(mine, w.detach())


def test_each_group_has_its_own_buffer_by_hand() -> None:
    join = PerTerm({"label": 0.5, "": 0.8}, decay="label")
    mine = walk(join, Optimiser("sgd", lr=0.1, weight_decay=0.2), steps=4)
    w, v, u = [0.3, -1.0, 2.0], [0.0] * 3, [0.0] * 3
    for k in range(4):
        for i, (a, b) in enumerate(zip((1.0, -2.0, 0.1), (0.5, 0.5, -0.7), strict=True)):
            v[i] = 0.5 * v[i] + a * (k + 1) + 0.2 * w[i]
            u[i] = 0.8 * u[i] + b * math.cos(k)
        for i in range(3):
            w[i] -= 0.1 * (v[i] + u[i])
    assert mine.tolist() == pytest.approx(w, rel=1e-5)


def test_a_parameter_that_one_group_reaches_decays_with_alone_and_takes_the_weight_decay() -> None:
    join = PerTerm({"label": 0.5, "": 0.8}, alone=0.6, decay="label")
    p = nn.Parameter(torch.tensor([2.0]))
    m = moves(join, Optimiser("sgd", lr=1.0, weight_decay=0.1), {"student.p": p})
    w, v = 2.0, 0.0
    for g in (1.0, 0.5, -1.0):
        m.step(join.grouped({"label": [None], "kd": [torch.tensor([g])]}))
        v = 0.6 * v + g + 0.1 * w
        w -= v
        assert p.item() == pytest.approx(w, rel=1e-6)


def test_terms_find_the_most_precise_group() -> None:
    join = PerTerm({"label": 0.1, "": 0.2, "crd.label": 0.3})
    found = [join.group(t) for t in ("label", "kd", "ce.label", "crd.label")]
    assert found == ["label", "", "label", "crd.label"]
    with pytest.raises(Missing, match="no momentum for the term 'kd'"):
        PerTerm({"label": 0.1}).group("kd")


def test_momenta_for_terms_are_for_sgd() -> None:
    with pytest.raises(UsageError, match="the budget's optimiser is 'adamw'"):
        moves(PerTerm({"": 0.9}), Optimiser("adamw"), {"student.p": nn.Parameter(torch.ones(1))})


def test_a_phase_trains_what_its_prefixes_name_each_by_the_nearest_optimiser() -> None:
    names = ("student.a", "student.head.w", "parts.critic.w", "parts.other")
    params = {n: nn.Parameter(torch.ones(1)) for n in names}
    fast, slow = Optimiser("sgd", lr=1.0), Optimiser("sgd", lr=0.1, maximise=True)
    phase = Phase(
        train=("student", "parts.critic"), optimisers={"student": fast, "student.head": slow}
    )
    m = Moves(phase, params, Optimiser("sgd", lr=0.5))
    m.zero()
    for p in params.values():
        p.grad = torch.ones(1)
    m.step(None)
    assert [p.item() for p in params.values()] == pytest.approx([0.0, 1.1, 0.5, 1.0])
    m.rate(lambda schedule: 0.5)
    rates = [g["lr"] for _, _, o in m.groups for g in o.param_groups]
    assert sorted(rates) == pytest.approx([0.05, 0.25, 0.5])


def test_wrong_phases_are_refused() -> None:
    params = {"student.a": nn.Parameter(torch.ones(1))}
    with pytest.raises(Missing, match=r"trains 'parts\.critic'"):
        Moves(Phase("p", train=("student", "parts.critic")), params, Optimiser())
    with pytest.raises(Missing, match=r"\['parts'\]"):
        Moves(Phase("p", optimisers={"parts": Optimiser()}), params, Optimiser())
    with pytest.raises(UsageError, match="two phases are called 'p'"):
        check_phases((Phase("p"), Phase("p")))
    with pytest.raises(UsageError, match="repeat=0"):
        check_phases((Phase("p", repeat=0),))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Optimiser("adan"), "did you mean 'adam'"),
        (lambda: Optimiser(lr=0), "must be above 0"),
        (lambda: Budget(steps=3, epochs=2), "both 3 steps and 2 epochs"),
        (lambda: Budget(batch=0), "batch is 0"),
        (lambda: Budget(schedule="cosin"), "did you mean 'cosine'"),
        (lambda: Budget(precision="bf17"), "did you mean 'bf16'"),
        (lambda: Budget(warmup=2), "from 0 to 1"),
    ],
)
def test_wrong_budgets_are_refused_in_a_sentence(make: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make()


def test_a_budget_counts_steps_from_epochs() -> None:
    assert Budget(steps=7).total(4) == 7
    assert Budget(epochs=2.5).total(4) == 10
    assert Budget().total(4) == 40
    assert Budget(epochs=0.01).total(4) == 1
