"""Joins and optimisers inside a fit, against steps taken by hand."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.data import Batch, Batches
from limbeck.core.engine import fit
from limbeck.core.method import Given, Objective
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser
from limbeck.core.teachers import Nobody
from limbeck.core.updates import Moves, PerTerm, Phase, Routed, Surgery
from limbeck.errors import Missing, UsageError

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])


class Whole(Batches):
    """All samples at each step, cut in the order of n."""

    samples = 8

    def first(self):
        return Batch(x=X, y=Y)

    def __call__(self, student, teacher, clock):
        size = 8 // clock.of
        return self.first().select(slice(clock.n * size, (clock.n + 1) * size))


@dataclass(frozen=True)
class Terms(Objective):
    """Two losses on a linear student, one of them through a part; and a ready gradient."""

    phases: Any = None
    given: Any = None

    def build(self, s, t, batch, facts):
        parts = nn.Module()
        parts.map = nn.Linear(2, 2)
        nn.init.eye_(parts.map.weight)
        nn.init.zeros_(parts.map.bias)
        return parts

    def update(self):
        return self.phases or (Phase(),)

    def terms(self, parts, s, t, batch, clock):
        out = {"label": F.cross_entropy(s.logits, batch.y), "far": far(parts.map(s.logits))}
        if self.given is not None:
            out["given"] = Given(self.given(clock))
        return out


def far(z):
    return (z - 1).square().mean()


def student():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def train(objective, steps=4, **budget):
    spec = budget.pop("optimiser", Optimiser("sgd", 0.1))
    plan = Budget(steps=steps, batch=8, optimiser=spec, schedule="constant", **budget)
    with Run(device="cpu"):
        fitted = fit(objective, student(), Nobody(), Whole(), name="fit", budget=plan)
    return [p.detach() for p in (*fitted.student.parameters(), *fitted.parts.parameters())]


class ByHand:
    """Weight, bias of the student; weight, bias of the map; and gradients of single terms."""

    def __init__(self):
        first = student()
        self.p = [first.weight.detach(), first.bias.detach(), torch.eye(2), torch.zeros(2)]

    def gradients(self):
        w, b, m, c = leaves = [p.clone().requires_grad_() for p in self.p]
        z = X @ w.T + b
        terms = {"label": F.cross_entropy(z, Y), "far": far(z @ m.T + c)}
        grads = {
            k: torch.autograd.grad(v, leaves, retain_graph=True, allow_unused=True)
            for k, v in terms.items()
        }
        return {
            k: [torch.zeros_like(p) if g is None else g for g, p in zip(v, self.p, strict=True)]
            for k, v in grads.items()
        }

    def move(self, step, rate=0.1):
        self.p = [p - rate * g for p, g in zip(self.p, step, strict=True)]

    def check(self, found):
        for p, q in zip(self.p, found, strict=True):
            torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)


def test_the_total_is_the_sum_of_the_terms():
    mine = ByHand()
    for _ in range(4):
        g = mine.gradients()
        mine.move([a + b for a, b in zip(g["label"], g["far"], strict=True)])
    mine.check(train(Terms()))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("join", [None, Routed({"label": ("student",)})])
def test_a_ready_gradient_is_added_in_its_place_and_averaged_over_micro_batches(join, accumulate):
    def given(clock):  # the mean over micro-batches is (1, 2)
        return {"student.bias": torch.tensor([1.0, 2.0]) * 2 * (clock.n + 1) / (clock.of + 1)}

    mine = ByHand()
    for _ in range(4):
        g = mine.gradients()
        step = [a + b for a, b in zip(g["label"], g["far"], strict=True)]
        step[1] = step[1] + torch.tensor([1.0, 2.0])
        mine.move(step)
    phases = (Phase(join=join),) if join else None
    mine.check(train(Terms(phases, given), accumulate=accumulate))


def test_a_ready_gradient_alone_moves_its_parameter_and_no_other():
    class Alone(Objective):
        def terms(self, parts, s, t, batch, clock):
            return {"given": Given({"student.bias": torch.ones(2)}, torch.tensor(7.0))}

    plan = Budget(steps=3, batch=8, optimiser=Optimiser("sgd", 0.1), schedule="constant")
    with Run(device="cpu"):
        fitted = fit(Alone(), student(), Nobody(), Whole(), name="fit", budget=plan)
    torch.testing.assert_close(fitted.student.bias, student().bias - 0.3)
    assert torch.equal(fitted.student.weight, student().weight)
    assert [row["terms"] for row in fitted.log] == [{"given": 7.0}] * 3


def test_routed_terms_reach_what_they_are_sent_to():
    mine = ByHand()
    for _ in range(4):
        g = mine.gradients()
        mine.move([*g["label"][:2], *g["far"][2:]])
    routes = Routed({"label": ("student",), "far": ("parts.map",)})
    mine.check(train(Terms((Phase(join=routes),))))
    with pytest.raises(Missing, match=r"Routed names the terms \['fra'\], but .* label, far"):
        train(Terms((Phase(join=Routed({"fra": ("parts",)})),)))


def test_surgery_projects_what_conflicts():
    mine = ByHand()
    flips = 0
    for _ in range(6):
        g = {k: torch.cat([x.flatten() for x in v]) for k, v in mine.gradients().items()}
        dot = (g["label"] * g["far"]).sum()
        one, two = g["label"], g["far"]
        if dot < 0:
            flips += 1
            one = g["label"] - dot / g["far"].square().sum() * g["far"]
            two = g["far"] - dot / g["label"].square().sum() * g["label"]
        flat, step = one + two, []
        for p in mine.p:
            step.append(flat[: p.numel()].view_as(p))
            flat = flat[p.numel() :]
        mine.move(step)
    assert flips  # the premise: gradients did conflict
    mine.check(train(Terms((Phase(join=Surgery()),)), steps=6))


def test_momenta_by_term_with_decay_and_clipping():
    mine = ByHand()
    label, both = [None] * 4, [None] * 4
    for _ in range(5):
        g = mine.gradients()
        total = [a + b for a, b in zip(g["label"], g["far"], strict=True)]
        norm = torch.cat([x.flatten() for x in total]).norm()
        scale = min(1.0, 0.3 / (norm.item() + 1e-6))
        step = []
        for i, p in enumerate(mine.p):
            decayed = 0.05 * p
            if i < 2:  # both terms reach the student
                one = g["label"][i] * scale + decayed
                two = g["far"][i] * scale
                label[i] = one if label[i] is None else 0.5 * label[i] + one
                both[i] = two if both[i] is None else 0.9 * both[i] + two
                step.append(label[i] + both[i])
            else:  # only one the map
                two = g["far"][i] * scale + decayed
                both[i] = two if both[i] is None else 0.7 * both[i] + two
                step.append(both[i])
        mine.move(step)
    join = PerTerm({"label": 0.5, "": 0.9}, alone=0.7, decay="label")
    spec = Optimiser("sgd", 0.1, weight_decay=0.05)
    mine.check(train(Terms((Phase(join=join),)), steps=5, clip=0.3, optimiser=spec))


def test_equal_momenta_are_torch_s_sgd():
    spec = Optimiser("sgd", 0.1, weight_decay=0.05, momentum=0.9)
    plain = train(Terms(), steps=6, optimiser=spec)
    join = PerTerm({"label": 0.9, "far": 0.9}, decay="far")
    each = train(Terms((Phase(join=join),)), steps=6, optimiser=spec)
    for a, b in zip(plain, each, strict=True):
        torch.testing.assert_close(a, b)
    other = train(Terms((Phase(join=PerTerm({"": 0.5})),)), steps=6, optimiser=spec)
    assert not torch.allclose(plain[0], other[0], rtol=1e-3)  # the premise: momentum matters


def test_one_optimiser_climbs_while_another_falls():
    own = {"parts": Optimiser("sgd", 0.2, maximise=True)}
    mine = ByHand()
    for _ in range(3):
        g = mine.gradients()
        total = [a + b for a, b in zip(g["label"], g["far"], strict=True)]
        mine.p = [
            p - (0.1 if i < 2 else -0.2) * x
            for i, (p, x) in enumerate(zip(mine.p, total, strict=True))
        ]
    mine.check(train(Terms((Phase(optimisers=own),)), steps=3))


def test_a_clip_is_of_what_the_phase_trains():
    found = train(Terms((Phase(train=("student.bias",)),)), steps=1, clip=0.01)
    moved = [a - b for a, b in zip(found, ByHand().p, strict=True)]
    assert [bool(m.any()) for m in moved] == [False, True, False, False]
    assert moved[1].norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "rmsprop"])
def test_an_optimiser_s_state_comes_back(kind):
    layer = student()
    named = dict(layer.named_parameters(prefix="student"))
    spec = Optimiser(kind, 0.1, momentum=0.0 if kind != "rmsprop" else 0.5)
    one, two = (Moves(Phase(), named, spec) for _ in range(2))

    def step(moves, seed):
        torch.manual_seed(seed)
        for p in layer.parameters():
            p.grad = torch.randn_like(p)
        moves.step(None)

    step(one, 0)
    then = [p.detach().clone() for p in layer.parameters()]
    state = {k: v.clone() for k, v in one.state("0").items()}
    step(one, 1)
    expected = [p.detach().clone() for p in layer.parameters()]
    with torch.no_grad():
        for p, old in zip(layer.parameters(), then, strict=True):
            p.copy_(old)
    two.load("0", state)
    assert bool(state) == (kind != "sgd")
    step(two, 1)
    for p, q in zip(layer.parameters(), expected, strict=True):
        assert torch.equal(p, q)


def test_momenta_by_term_need_sgd_and_a_group_for_each_term():
    with pytest.raises(UsageError, match="are defined for SGD; the budget's optimiser is 'adamw'"):
        train(Terms((Phase(join=PerTerm({"": 0.9})),)), optimiser=Optimiser("adamw"))
    with pytest.raises(Missing, match="no momentum for the term 'far'"):
        train(Terms((Phase(join=PerTerm({"label": 0.9})),)))
