"""pad: the loss by hand and by loops, its least variance, both stages, what goes between them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.pad import PAD, Stage, pad_loss

pytestmark = pytest.mark.xdist_group("pad")

G = torch.Generator().manual_seed(6)
S = torch.randn(7, 4, generator=G, dtype=torch.float64)
T = 2 * torch.randn(7, 4, generator=G, dtype=torch.float64)
V = torch.randn(7, 4, generator=G, dtype=torch.float64)
Z = torch.randn(7, 3, generator=G, dtype=torch.float64)
Y = torch.arange(7) % 3
CLOCK = Clock(0, "pad", 0, 10, 5)


def side(e: Tensor) -> SimpleNamespace:
    return SimpleNamespace(embedding=e, logits=Z)


def built(stage: Stage, s: Tensor = S, t: Tensor = T) -> nn.Module:
    torch.manual_seed(2)
    return stage.build(side(s), side(t), Batch(x=s, y=Y), Facts(7, 3, 10, 5)).double()


def terms(stage: Stage, parts: nn.Module, s: Tensor = S, t: Tensor = T) -> dict[str, Tensor]:
    return stage.terms(parts, side(s), side(t), Batch(x=s, y=Y), CLOCK)


# --- the loss -------------------------------------------------------------------------------------


def test_one_number_by_hand() -> None:
    s, t = torch.zeros(1, 1), torch.tensor([[2.0]])
    assert float(pad_loss(s, t, torch.tensor([[4.0]]).log(), 0.0)) == pytest.approx(2.386294)
    assert float(pad_loss(s, t, torch.zeros(1, 1), 0.0)) == pytest.approx(4.0)
    small = pad_loss(s, s + 0.1, torch.tensor([[0.01]]).log(), 0.0)
    assert float(small) == pytest.approx(-3.605170)


@pytest.mark.parametrize("v", [V, V[:, :1]])
def test_the_loss_by_loops(v: Tensor) -> None:
    total = 0.0
    for b in range(7):
        for d in range(4):
            log_variance = float(v[b, min(d, v.shape[1] - 1)])
            error = float(T[b, d] - S[b, d]) ** 2
            total += error / (math.exp(log_variance) + 1e-6) + log_variance
    assert float(pad_loss(S, T, v)) == pytest.approx(total / 28, rel=1e-12)


def test_gradients_in_closed_form() -> None:
    s, v = S.clone().requires_grad_(), V.clone().requires_grad_()
    gs, gv = torch.autograd.grad(pad_loss(s, T, v, 0.1), (s, v))
    variance = V.exp() + 0.1
    torch.testing.assert_close(gs, -2 * (T - S) / variance / 28)
    torch.testing.assert_close(gv, (1 - (T - S).square() * V.exp() / variance.square()) / 28)


def test_the_least_is_where_the_variance_is_the_squared_error() -> None:
    best = (T - S).square().log().requires_grad_()
    loss = pad_loss(S, T, best, 0.0)
    assert float(torch.autograd.grad(loss, best)[0].abs().max()) < 1e-12
    loss = loss.detach()
    assert float(loss) == pytest.approx(float((1 + (T - S).square().log()).mean()))
    assert float(loss) < float(pad_loss(S, T, V, 0.0))
    assert float(loss) < float(pad_loss(S, T, best.detach() + 0.1, 0.0))


def test_scale_goes_into_the_variance() -> None:
    moved = pad_loss(S, S + math.sqrt(5) * (T - S), V + math.log(5), 0.0)
    assert float(moved - pad_loss(S, T, V, 0.0)) == pytest.approx(math.log(5))
    assert float(pad_loss(S, S, V)) == pytest.approx(float(V.mean()))
    plain = float((T - S).square().mean())
    assert float(pad_loss(S, T, 0 * V)) == pytest.approx(plain / (1 + 1e-6))


# --- the stages -----------------------------------------------------------------------------------


def test_terms_of_both_stages() -> None:
    m = PAD(label=0.5, l2=3.0, pad=2.0)
    first, second = Stage("l2", m), Stage("pad", m)
    nll = -Z.log_softmax(1)[torch.arange(7), Y].mean()
    out = terms(first, built(first))
    assert float(out["label"]) == pytest.approx(0.5 * float(nll), rel=1e-6)
    assert float(out["l2"]) == pytest.approx(3 * float((S - T).square().mean()))
    parts = built(second)
    out = terms(second, parts)
    linear, norm = parts.branch
    assert linear.weight.shape == (4, 4)
    v = (S @ linear.weight.T + linear.bias).detach().numpy()
    v = (v - v.mean(0)) / np.sqrt(v.var(0) + norm.eps)
    by_hand = ((T - S).numpy() ** 2 / (np.exp(v) + 1e-6) + v).mean()
    assert float(out["pad"]) == pytest.approx(2 * by_hand)
    assert set(out) == {"label", "pad"}


def test_a_variance_for_each_sample() -> None:
    stage = Stage("pad", PAD(label=0, variance="sample"))
    parts = built(stage)
    assert parts.branch[0].weight.shape == (1, 4)
    v = parts.branch(S)
    assert v.shape == (7, 1)
    out = terms(stage, parts)
    by_hand = np.mean(
        [float((T[b] - S[b]).square().mean() / (v[b].exp() + 1e-6)[0] + v[b, 0]) for b in range(7)]
    )
    assert float(out["pad"]) == pytest.approx(by_hand)


def test_the_student_moves_by_its_variance_too() -> None:
    stage = Stage("pad", PAD(label=0))
    parts = built(stage)
    s = S.clone().requires_grad_()
    whole = torch.autograd.grad(terms(stage, parts, s)["pad"], s)[0]
    still = torch.autograd.grad(pad_loss(s, T, parts.branch(S).detach()), s)[0]
    assert float((whole - still).abs().max()) > 0.1 * float(still.abs().max())


def test_another_width_passes_a_linear_layer_that_is_kept() -> None:
    m = PAD()
    wide = torch.cat((T, T[:, :2]), 1)
    first = built(Stage("l2", m), t=wide)
    assert first.project.weight.shape == (6, 4)
    with torch.no_grad():
        first.project.weight.fill_(0.25)
    second = built(Stage("pad", m, first), t=wide)
    assert torch.equal(second.project.weight, first.project.weight)
    assert second.project.weight is not first.project.weight
    assert second.branch[0].weight.shape == (6, 6)
    assert not list(built(Stage("l2", m)).project.parameters())  # equal widths: as it is


def test_weight_zero_is_not_computed() -> None:
    for name in ("l2", "pad"):
        stage = Stage(name, PAD(l2=0, pad=0))
        parts = built(stage)
        assert not list(parts.parameters())
        assert set(terms(stage, parts, t=None)) == {"label"}
        stage = Stage(name, PAD(label=0))
        assert set(terms(stage, built(stage))) == {name}


def test_defaults_and_what_is_refused() -> None:
    assert make("pad") == PAD(1.0, 1.0, 1.0, 0.5, "element", 1e-6)
    with pytest.raises(UsageError, match=r"the student's is \(7, 2, 2\)"):
        built(Stage("pad", PAD()), s=S.reshape(7, 2, 2))
    for field in ("share=1.1", "eps=0", "pad=-1"):
        with pytest.raises(UsageError):
            make(f"pad({field})")


def toy(steps: int = 60) -> Task:
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    student = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    budget = Budget(steps=steps, batch=24, optimiser=Optimiser("sgd", lr=0.1))
    y = torch.arange(48) % 3
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)
    task.taps["embedding"] = ("2:in", "2:in")
    return task


def test_both_stages_share_the_budget() -> None:
    for share, want in ((0.5, [30, 30]), (0.25, [15, 45]), (0.0, [60]), (1.0, [60])):
        with Run(toy(), 1, device="cpu") as run:
            make(f"pad(share={share})").run(run.task)
        assert [row["steps"] for row in run.stages] == want
        names = {0.0: ["pad"], 1.0: ["l2"]}.get(share, ["l2", "pad"])
        assert [row["stage"] for row in run.stages] == names


def test_a_run_goes_on_from_its_first_stage_and_comes_near_the_teacher() -> None:
    task = toy(200)
    found = limbeck.run("pad", task, device="cpu", label=0.0)
    x = task.train[0]
    gaps = [
        float((m[:2](x) - task.teacher[:2](x)).square().mean()) for m in (task.student, found.model)
    ]
    assert gaps[1] < 0.5 * gaps[0]
    rows = [row["terms"] for row in found.log]
    second = next(row["pad"] for row in rows if "pad" in row)
    assert second < 0.5 * rows[0]["l2"]  # not from the start again
