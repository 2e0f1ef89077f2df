"""dot: its momenta by hand, against torch's SGD and a loop with two backward passes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Objective
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import Missing, UsageError
from limbeck.registry import make
from limbeck.vision.dot import DOT, momenta

G = torch.Generator().manual_seed(8)
X, Y = torch.randn(32, 6, generator=G), torch.arange(32) % 4

# A method with a part that only the distillation term reaches, every hook, and a tap.
HINTED = '''
"""Hinted - a projected hint beside the labels."""
from dataclasses import dataclass
import torch.nn.functional as F
from torch import nn
from limbeck.core.card import Card
from limbeck.core.method import Objective, number
from limbeck.core.updates import Phase

CARD = Card(
    key="hinted", title="t", year=2000, arxiv="", code="", kinds=("feature",), needs=("mid", "y"),
    gives="model", world="digits", stages=("fit",), tiny={}, departs="none known",
)
CALLS = []

@dataclass(frozen=True)
class Hinted(Objective):
    hint: float = number(1.0, least=0)
    card = CARD
    def build(self, s, t, batch, facts):
        CALLS.append("build")
        return nn.ModuleDict({"map": nn.Linear(s.mid.shape[1], t.mid.shape[1])})
    def prepare(self, batch, rng):
        CALLS.append("prepare")
        return batch, batch
    def counts(self, batch):
        CALLS.append("counts")
        return {}
    def terms(self, parts, s, t, batch, clock):
        label = F.cross_entropy(s.logits, batch.y)
        return {"label": label, "hint": self.hint * F.mse_loss(parts["map"](s.mid), t.mid)}
    def observe(self, parts, s, t, batch):
        CALLS.append("observe")
        return {"mid": s.mid}
    def after_step(self, parts, seen, clock):
        CALLS.append(("after_step", clock.phase, *(v.shape[0] for v in seen.values())))
    def deliver(self, student, parts):
        return nn.Sequential(student, nn.Softmax(1))
    def update(self):
        return Phase("look", train=()), Phase("learn")
'''


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))


def task(name: str = "sgd", **kw: Any) -> Task:
    torch.manual_seed(0)
    optimiser = Optimiser(name, lr=0.1, weight_decay=0.01, momentum=0.9 if name == "sgd" else 0.0)
    budget = Budget(steps=6, batch=32, optimiser=optimiser, schedule="constant")
    given: dict[str, Any] = {"teacher": net(9), "student": net(5), "train": (X, Y), "test": (X, Y)}
    return Task(**{**given, "budget": budget, **kw})


def run(method: Any, given: Task, **fields: Any) -> Any:
    return limbeck.run(method, given, seed=1, device="cpu", **fields)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


def moves(mu: float, delta: float, grads: dict[str, Tensor | None], steps: int, decay: float = 0.0):
    """Each step's move of a weight that starts at 2, at rate 1, under gradients that stay."""
    p = nn.Parameter(torch.full((3,), 2.0))
    optimiser = momenta(mu, delta).optimiser(Optimiser("sgd", lr=1.0, weight_decay=decay), [p])
    out = []
    for _ in range(steps):
        before = p.detach().clone()
        optimiser.step_groups({k: [g] for k, g in grads.items()})
        out.append(p.detach() - before)
    return out


# --- the mathematics -----------------------------------------------------------------------------

ONE, TWO = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.1, -1.0])


def test_second_step_under_constant_gradients() -> None:
    mu, delta = 0.9, 0.075
    first, second = moves(mu, delta, {"label": ONE, "": TWO}, 2)
    torch.testing.assert_close(first, -(ONE + TWO))
    torch.testing.assert_close(second, -((mu - delta + 1) * ONE + (mu + delta + 1) * TWO))


def test_steady_state_steps() -> None:
    alone = [
        moves(0.9, 0.075, {"label": a, "": b}, 1000)[-1]
        for a, b in ((ONE, 0 * ONE), (0 * ONE, ONE))
    ]
    torch.testing.assert_close(alone[0], -5.714 * ONE, rtol=1e-3, atol=0)
    torch.testing.assert_close(alone[1], -40.0 * ONE, rtol=1e-3, atol=0)


@pytest.mark.parametrize("only", ["label", ""])
def test_a_weight_that_one_gradient_reaches_has_momentum_mu_and_the_decay(only: str) -> None:
    other = "" if only == "label" else "label"
    w, v = torch.full((3,), 2.0), torch.zeros(3)
    for move in moves(0.9, 0.075, {only: ONE, other: None}, 5, decay=0.1):
        v = 0.9 * v + ONE + 0.1 * w
        w = w - v
        torch.testing.assert_close(move, -v, rtol=1e-4, atol=1e-5)


def test_decay_goes_with_the_label_gradient() -> None:
    w, label, rest = torch.full((3,), 2.0), torch.zeros(3), torch.zeros(3)
    for move in moves(0.8, 0.1, {"label": ONE, "": TWO}, 5, decay=0.1):
        label = 0.7 * label + ONE + 0.1 * w
        rest = 0.9 * rest + TWO
        w = w - label - rest
        torch.testing.assert_close(move, -(label + rest), rtol=1e-4, atol=1e-5)


# --- runs ----------------------------------------------------------------------------------------


def test_delta_zero_is_sgd_on_the_sum() -> None:
    plain, dot = run("kd", task()), run("dot", task(), delta=0.0)
    for a, b in zip(weights(plain.model), weights(dot.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    moved = run("dot", task())
    gap = max(
        float((a - b).abs().max())
        for a, b in zip(weights(plain.model), weights(moved.model), strict=True)
    )
    assert gap > 1e-3


@pytest.mark.parametrize("delta", [0.075, -0.05])
def test_a_run_is_two_backward_passes_and_two_buffers(delta: float) -> None:
    given = task()
    result = run("dot", given, delta=delta, of="kd(label=0.5, kd=0.5, tau=2.0)")
    teacher, student = given.teacher.double(), given.student.double()
    params = list(student.parameters())
    soft = (teacher(X.double()) / 2).softmax(1).detach()
    buffers: list[list[Tensor | None]] = [[None] * len(params), [None] * len(params)]
    for _ in range(6):
        z = student(X.double())
        ce = 0.5 * F.cross_entropy(z, Y)
        kd = 0.5 * 4 * F.kl_div((z / 2).log_softmax(1), soft, reduction="batchmean")
        both = [torch.autograd.grad(loss, params, retain_graph=True) for loss in (ce, kd)]
        with torch.no_grad():
            for i, p in enumerate(params):
                start = p.clone()
                for k, momentum in ((0, 0.9 - delta), (1, 0.9 + delta)):
                    g = both[k][i] + (0.01 * start if k == 0 else 0)
                    v = buffers[k][i]
                    v = g if v is None else momentum * v + g
                    buffers[k][i] = v
                    p -= 0.1 * v
    for a, b in zip(weights(result.model), params, strict=True):
        torch.testing.assert_close(a.double(), b.detach(), rtol=1e-4, atol=1e-5)
    assert [set(row["terms"]) for row in result.log] == [{"label", "kd"}] * 6


@pytest.fixture
def hinted(tmp_path: Path) -> str:
    (tmp_path / "hinted.py").write_text(HINTED)
    return str(tmp_path / "hinted.py")


def test_any_method_with_a_label_term_can_be_wrapped(hinted: str) -> None:
    given = task(taps={"mid": ("0", "0")})
    plain, dot = run(hinted, given), run("dot", given, of=hinted, delta=0.0)
    for a, b in zip(weights(plain.model), weights(dot.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert [row["terms"].keys() for row in dot.log] == [{"label", "hint"}] * 6
    assert isinstance(dot.model[1], nn.Softmax)  # as `of` delivers it
    assert dot.facts["stages"][0]["parts"] == 5 * 9 + 9


def test_every_hook_is_the_wrapped_methods(hinted: str) -> None:
    given = task(
        taps={"mid": ("0", "0")},
        budget=Budget(steps=2, batch=8, accumulate=2, optimiser=Optimiser("sgd", lr=0.1)),
    )
    method = make("dot", of=hinted)
    calls = []
    for each in (make(hinted), method):
        inner = each if each is not method else method.inner
        log = __import__("sys").modules[type(inner).__module__].CALLS
        log.clear()
        run(each, given)
        calls.append(list(log))
    assert calls[0] == calls[1]
    assert {"build", "prepare", "counts", "observe", ("after_step", "look", 8)} <= set(calls[0])
    for name, hook in vars(Objective).items():
        if callable(hook) and not name.startswith("_") and name != "run":
            assert name in vars(DOT), name


def test_accumulation_changes_nothing_but_rounding() -> None:
    whole, halves = task(), task()
    halves.budget = Budget(**{**vars(halves.budget), "accumulate": 2})
    for a, b in zip(*(weights(run("dot", t).model) for t in (whole, halves)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_budgets_momentum_gives_way_to_mu() -> None:
    other = task()
    other.budget = Budget(
        **{**vars(other.budget), "optimiser": Optimiser("sgd", lr=0.1, weight_decay=0.01)}
    )
    a, b = (weights(run("dot", t).model) for t in (task(), other))
    assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
    c = weights(run("dot", task(), mu=0.5).model)
    assert not any(torch.equal(u, v) for u, v in zip(a, c, strict=True))


# --- what cannot work ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mu": 0.95}, r"DOT.mu \+ DOT.delta is 1.025; a momentum must be at least 0 and below 1"),
        ({"delta": -0.1}, "DOT.mu - DOT.delta is 1;"),
        ({"mu": 0.05}, "DOT.mu - DOT.delta is -0.025"),
        ({"mu": 1.0}, "must be below 1"),
        ({"of": "takd"}, "'takd' is not one fit with named terms"),
        ({"of": "dot"}, "'dot' trains in phases or by a join of its own"),
        ({"of": "fitnet"}, "no method is called 'fitnet'; did you mean 'fitnets'"),
        ({"of": "kd(taw=2)"}, "no field 'taw'; did you mean 'tau'"),
    ],
)
def test_what_cannot_work_is_said(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make("dot", **fields)


def test_a_label_term_and_sgd_are_needed() -> None:
    with pytest.raises(Missing, match=r"'kd\(label=0\)' gives the terms kd; dot needs one called"):
        run("dot", task(), of="kd(label=0)")
    with pytest.raises(UsageError, match="defined for SGD; the budget's optimiser is 'adamw'"):
        run("dot", task("adamw"))


def test_terms_are_the_wrapped_ones() -> None:
    class Side:
        logits = torch.randn(4, 3, generator=G)

    batch = Batch(x=X[:4], y=Y[:4] % 3)
    mine = DOT(of="kd(label=0.2, kd=0.3, tau=2.0)").terms(nn.Module(), Side, Side, batch, None)
    theirs = make("kd(label=0.2, kd=0.3, tau=2.0)").terms(nn.Module(), Side, Side, batch, None)
    assert mine.keys() == theirs.keys() == {"label", "kd"}
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
