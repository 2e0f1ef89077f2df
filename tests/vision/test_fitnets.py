"""fitnets: the regressor by its rule, what each stage trains, the annealing, the early stop."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.objectives import Labels
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import Missing, UsageError
from limbeck.vision.fitnets import FitNets, Regressor, Stage, as_map, hint_loss, kernel_rule

G = torch.Generator().manual_seed(3)
X, Y = torch.randn(32, 1, 6, 6, generator=G), torch.arange(32) % 4


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G)


def net(width: int) -> nn.Sequential:
    """Module "1" gives (B, width, 3, 3); BatchNorm lies below and above that."""
    below = nn.Sequential(nn.Conv2d(1, width, 2, 2), nn.BatchNorm2d(width), nn.ReLU())
    above = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(nn.Identity(), below, above, nn.Flatten(), nn.Linear(width, 4))


def task(**kw: Any) -> Task:
    torch.manual_seed(1)
    given: dict[str, Any] = {
        "teacher": net(6),
        "student": net(3),
        "train": (X, Y),
        "test": (X, Y),
        "taps": {"mid": ("1", "1")},
        "budget": Budget(epochs=3, batch=8, optimiser=Optimiser("sgd", lr=0.05)),
    }
    return Task(**{**given, **kw})


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor], prefix: str = "") -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items() if k.startswith(prefix))


# --- the mathematics -----------------------------------------------------------------------------


def test_kernel_rule() -> None:
    assert kernel_rule(10, 6) == (5, 0)
    assert kernel_rule(8, 8) == (1, 0)
    assert kernel_rule(6, 10) == (5, 4)
    for guided in range(1, 9):
        for hint in range(1, 9):
            k, p = kernel_rule(guided, hint)
            assert guided + 2 * p - k + 1 == hint
            assert p == 0 or guided < hint


@pytest.mark.parametrize(
    ("g", "h"),
    [
        ((2, 3, 10, 10), (2, 5, 6, 6)),
        ((2, 3, 4, 4), (2, 5, 4, 4)),
        ((2, 3, 7, 5), (2, 5, 3, 5)),
        ((2, 3, 3, 6), (2, 5, 5, 4)),
        ((2, 3), (2, 5)),
        ((2, 4, 3), (2, 4, 5)),
        ((2, 3, 4, 4), (2, 5)),
    ],
)
@pytest.mark.parametrize("strided", [False, True])
def test_regressor_goes_from_shape_to_shape(g: tuple, h: tuple, strided: bool) -> None:
    guided, hint = draw(*g), draw(*h)
    r = Regressor(guided, hint, strided=strided)
    assert r(guided).shape == as_map(hint).shape
    assert as_map(hint).numel() == hint.numel()


def test_regressor_is_the_valid_convolution_with_the_hints_nonlinearity() -> None:
    g, h = draw(2, 3, 5, 4), draw(2, 2, 3, 3)
    r = Regressor(g, h.abs())
    assert r.conv.kernel_size == (3, 2)
    by_loops = torch.zeros(2, 2, 3, 3)
    for b, c, i, j in torch.cartesian_prod(*(torch.arange(n) for n in by_loops.shape)).tolist():
        total = float(r.conv.bias[c].detach())
        for k in range(3):
            for u in range(3):
                for v in range(2):
                    total += float(r.conv.weight[c, k, u, v].detach() * g[b, k, i + u, j + v])
        by_loops[b, c, i, j] = max(total, 0.0)
    torch.testing.assert_close(r(g), by_loops)
    assert (by_loops == 0).any()
    assert (by_loops > 0).any()


def test_nonlinearity_is_that_of_the_hint() -> None:
    g, h = draw(4, 3, 2, 2), draw(4, 5, 2, 2)
    linear, relu = Regressor(g, h), Regressor(g, h.relu())
    assert (linear(g) < 0).any()
    assert (relu(g) >= 0).all()
    for name, low, high in (("tanh", -1, 1), ("sigmoid", 0, 1)):
        r = Regressor(g, h, name)
        out = r(g).detach()
        torch.testing.assert_close(out, getattr(torch, name)(r.conv(g)).detach())
        assert low <= float(out.min()) <= float(out.max()) <= high
    maxout = Regressor(g, h, "maxout")
    pieces = maxout.conv(g)
    for c in range(5):
        by_hand = torch.stack((pieces[:, 2 * c], pieces[:, 2 * c + 1])).amax(0)
        assert torch.equal(maxout(g)[:, c], by_hand)


def test_vectors_and_tokens_are_regressed_linearly() -> None:
    for g, h in ((draw(4, 3), draw(4, 5)), (draw(4, 6, 3), draw(4, 6, 5))):
        r = Regressor(g, h)
        by_hand = F.linear(g, r.conv.weight[:, :, 0, 0], r.conv.bias)
        torch.testing.assert_close(r(g), as_map(by_hand))
    with pytest.raises(UsageError, match="maps on both sides, or tokens"):
        Regressor(draw(4, 3, 2, 2), draw(4, 6, 5))
    with pytest.raises(UsageError, match="no map"):
        as_map(draw(2, 3, 4, 4, 4))


def test_one_stage_regressor_strides_where_sides_differ_by_two() -> None:
    down = Regressor(draw(2, 3, 8, 8), draw(2, 5, 4, 4).abs(), strided=True)
    up = Regressor(draw(2, 3, 4, 4), draw(2, 5, 8, 8).abs(), strided=True)
    rule = Regressor(draw(2, 3, 7, 7), draw(2, 5, 4, 4).abs(), strided=True)
    assert (type(down.conv), down.conv.kernel_size, down.conv.stride) == (nn.Conv2d, (3, 3), (2, 2))
    assert (type(up.conv), up.conv.kernel_size, up.conv.stride) == (
        nn.ConvTranspose2d,
        (4, 4),
        (2, 2),
    )
    assert (type(rule.conv), rule.conv.kernel_size) == (nn.Conv2d, (4, 4))
    for r, side in ((down, 8), (up, 4), (rule, 7)):
        out = r(draw(16, 3, side, side)).detach()
        assert isinstance(r.norm, nn.BatchNorm2d)
        assert (out >= 0).all()
        # BatchNorm in train mode, then ReLU: half of a unit normal, whatever went in.
        assert float(out.mean()) == pytest.approx(0.4, abs=0.12)


def test_hint_loss_is_half_the_squared_error_of_a_sample() -> None:
    r, h = draw(3, 2, 4, 4), draw(3, 2, 4, 4)
    for b in range(3):
        pairs = zip(r[b].flatten(), h[b].flatten(), strict=True)
        by_loop = sum((float(u) - float(v)) ** 2 / 2 for u, v in pairs)
        assert float(hint_loss(r, h)[b]) == pytest.approx(by_loop, rel=1e-5)
    torch.testing.assert_close(hint_loss(r, h, mean=True), hint_loss(r, h) / 32)


def test_identity_regressor_and_equal_features_cost_nothing() -> None:
    g = draw(3, 4, 5, 5).relu()
    r = Regressor(g, g)
    assert r.conv.kernel_size == (1, 1)
    with torch.no_grad():
        r.conv.weight.copy_(torch.eye(4)[:, :, None, None])
        r.conv.bias.zero_()
    assert float(hint_loss(r(g), g).sum().detach()) == 0


def kd_weight(method: FitNets, epoch: int, epochs: int, per_epoch: int = 5) -> float:
    """The weight on the soft term, from the terms at the middle of an epoch."""
    z, t = draw(4, 4), draw(4, 4)
    step = epoch * per_epoch + 2
    clock = Clock(0, "kd", step, epochs * per_epoch - 1, per_epoch)
    sides = SimpleNamespace(logits=z), SimpleNamespace(logits=t)
    batch = Batch(x=z, y=Y[:4])
    out = Stage("kd", method).terms(nn.Module(), *sides, batch, clock)
    soft = 0.0  # H(p_t, p_s) at tau, without tau^2
    for a, b in zip(z.double(), t.double(), strict=True):
        p, q = (torch.softmax(v / method.tau, 0) for v in (b, a))
        soft += sum(-float(x) * float(y.log()) for x, y in zip(p, q, strict=True)) / 4
    return float(out["kd"]) / soft if "kd" in out else 0.0


def test_lambda_falls_linearly_from_epoch_to_epoch() -> None:
    weights = [kd_weight(FitNets(), epoch, 7) for epoch in range(7)]
    assert weights == pytest.approx([4, 3.5, 3, 2.5, 2, 1.5, 1], rel=1e-4)
    assert kd_weight(FitNets(kd=2.0, kd_end=0.5, tau=1.0), 1, 2) == pytest.approx(0.5, rel=1e-4)
    assert kd_weight(FitNets(), 0, 1) == pytest.approx(4, rel=1e-4)
    assert kd_weight(FitNets(kd=0.0, kd_end=0.0), 3, 7) == 0.0


# --- the stages ----------------------------------------------------------------------------------


def guided(given: Task, method: FitNets | None = None) -> tuple[dict, dict, Any]:
    """The student before and after the first stage alone, and the fit."""
    with Run(given, seed=4, device="cpu") as run:
        student = run.student(given)
        before = state(student)
        fitted = (method or FitNets()).guide(given, student)
    return before, state(student), fitted


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_first_stage_leaves_everything_above_bit_identical(accumulate: int) -> None:
    given = task()
    given = replace(given, budget=replace(given.budget, accumulate=accumulate))
    taught = state(given.teacher)
    before, after, _ = guided(given)
    above = [k for k in before if not k.startswith("1.")]
    assert any("running_mean" in k for k in above)
    assert all(torch.equal(before[k], after[k]) for k in above)
    below = ("1.0.weight", "1.1.weight", "1.1.bias", "1.1.running_mean", "1.1.num_batches_tracked")
    assert not any(torch.equal(before[k], after[k]) for k in below)
    assert same(taught, given.teacher.state_dict())


def test_first_stage_does_not_see_labels() -> None:
    first = guided(task())[1]
    assert same(first, guided(task(train=(X, Y.flip(0))))[1])
    assert not same(first, guided(task(train=(X.flip(3), Y)))[1])


def test_first_stage_lowers_its_loss_and_takes_its_share() -> None:
    given = task(budget=Budget(epochs=12, batch=8, optimiser=Optimiser("adam", lr=0.01)))
    log = guided(given)[2].log
    assert set(log[0]["terms"]) == {"hint"}
    assert log[-1]["terms"]["hint"] < 0.7 * log[0]["terms"]["hint"]
    half = guided(given, FitNets(share=0.5))[2].log
    assert (log[-1]["step"], half[-1]["step"]) == (47, 23)
    steps = replace(given, budget=replace(given.budget, epochs=None, steps=9))
    assert guided(steps, FitNets(share=0.5))[2].log[-1]["step"] == 3


def test_mean_error_is_the_sum_by_the_hints_size() -> None:
    whole, mean = (
        guided(task(), FitNets(mean=m))[2].log[0]["terms"]["hint"] for m in (False, True)
    )
    assert whole == pytest.approx(mean * 6 * 3 * 3, rel=1e-5)


def test_second_stage_goes_on_from_the_first_and_drops_the_regressor() -> None:
    given = task()
    result = limbeck.run("fitnets", given, seed=4, device="cpu")
    assert [(s["stage"], s["steps"]) for s in result.facts["stages"]] == [("hint", 12), ("kd", 12)]
    assert {row["stage"] for row in result.log} == {"hint", "kd"}
    assert list(result.model.state_dict()) == list(given.student.state_dict())
    # By hand: the same student after the first stage, as the start of a run without one.
    start = copy.deepcopy(given.student)
    start.load_state_dict(guided(given)[1])
    rest = limbeck.run("fitnets", replace(given, student=start), seed=4, device="cpu", hint=0.0)
    assert [s["stage"] for s in rest.facts["stages"]] == ["kd"]
    assert same(state(result.model), state(rest.model))
    assert not same(state(result.model), state(start))
    for model in (given.teacher, result.model):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_without_hint_and_soft_targets_it_is_plain_cross_entropy() -> None:
    plain = limbeck.run(Labels(), task(), seed=4, device="cpu")
    bare = limbeck.run("fitnets", task(), seed=4, device="cpu", hint=0.0, kd=0.0, kd_end=0.0)
    assert same(state(plain.model), state(bare.model))
    soft = limbeck.run("fitnets", task(), seed=4, device="cpu", hint=0.0)
    assert not same(state(plain.model), state(soft.model))


@torch.no_grad()
def test_one_stage_is_cross_entropy_and_a_hundred_times_the_mean_error() -> None:
    student, teacher = net(3), net(6).eval()
    s = SimpleNamespace(logits=student(X), mid=student[1](X))
    t = SimpleNamespace(mid=teacher[1](X))
    batch, clock, method = Batch(x=X, y=Y), Clock(0, "one", 0, 1, 1), FitNets(stages="one")
    parts = Stage("one", method).build(s, t, batch, None)
    out = Stage("one", method).terms(parts, s, t, batch, clock)
    error = (parts.regressor(s.mid) - t.mid) ** 2
    assert set(out) == {"label", "joint"}
    assert float(out["joint"]) == pytest.approx(100 * float(error.sum()) / t.mid.numel(), rel=1e-5)
    assert float(out["label"]) == pytest.approx(float(F.cross_entropy(s.logits, Y)), rel=1e-6)
    bare, only = (Stage("one", replace(method, **{k: 0.0})) for k in ("joint", "label"))
    assert not list(bare.build(s, t, batch, None).parameters())
    assert set(bare.terms(nn.Module(), s, None, batch, clock)) == {"label"}
    assert set(only.terms(parts, s, t, Batch(x=X), clock)) == {"joint"}


def test_one_stage_trains_everything_in_one_fit() -> None:
    given = task()
    result = limbeck.run("fitnets", given, seed=4, device="cpu", stages="one")
    assert [(s["stage"], s["steps"]) for s in result.facts["stages"]] == [("one", 12)]
    assert set(result.log[0]["terms"]) == {"label", "joint"}
    assert result.log[-1]["terms"]["joint"] < result.log[0]["terms"]["joint"]
    before, after = state(given.student), state(result.model)
    assert list(before) == list(after)
    assert not any(torch.equal(before[k], after[k]) for k in before if k.endswith("weight"))


def test_patience_watches_the_hint_on_valid() -> None:
    budget = Budget(
        epochs=60, batch=8, patience=2, keep="best", optimiser=Optimiser("sgd", lr=0.05)
    )
    given = task(valid=(X[:12], Y[:12]), budget=budget)
    _, after, fitted = guided(given)
    values = [row["valid"]["hint"] for row in fitted.log if "valid" in row]
    assert fitted.log[-1]["step"] < 60 * 4 - 1
    assert values[-1] > min(values)
    assert len(values) == values.index(min(values)) + 3
    # What is kept is the best, and its error is the hint loss on valid.
    student = copy.deepcopy(given.student)
    student.load_state_dict(after)
    student.eval(), given.teacher.eval(), fitted.parts.eval()
    with torch.no_grad():
        r, h = fitted.parts.regressor(student[1](X[:12])), given.teacher[1](X[:12])
    assert float(hint_loss(r, h).mean()) == pytest.approx(min(values), rel=1e-5)


class Named(nn.Module):
    """A model of named inputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor, gain: Tensor) -> Tensor:
        return self.inner(image * gain[:, None, None, None])


def test_inputs_may_be_named() -> None:
    budget = Budget(epochs=2, batch=8, patience=3, optimiser=Optimiser("sgd", lr=0.05))
    plain = task(valid=(X, Y), budget=budget)
    dict_of = {"image": X, "gain": torch.ones(32), "y": Y}
    named = replace(
        plain,
        teacher=Named(plain.teacher),
        student=Named(plain.student),
        train=dict_of,
        valid=dict_of,
        test=dict_of,
        taps={"mid": ("inner.1", "inner.1")},
    )
    runs = [limbeck.run("fitnets", given, seed=4, device="cpu") for given in (plain, named)]
    assert any("valid" in row for row in runs[1].log if row["stage"] == "hint")
    assert same(state(runs[0].model), state(runs[1].model.inner))


def test_readers_that_differ_leave_the_first_stage_unwatched() -> None:
    budget = Budget(epochs=3, batch=8, patience=1, optimiser=Optimiser("sgd", lr=0.05))
    given = task(valid=(X, Y), budget=budget, readers={"teacher": lambda x: x * 1.0})
    assert not any("valid" in row for row in guided(given)[2].log)


def test_a_tap_in_the_student_is_needed() -> None:
    with pytest.raises(Missing, match="up to one of its modules"):
        limbeck.run("fitnets", task(taps={}), device="cpu")
    with pytest.raises(Missing, match="no module '9'"):
        limbeck.run("fitnets", task(taps={"mid": ("1", "9")}), device="cpu")
