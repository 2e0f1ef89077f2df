"""cc: kernels by loops and closed forms, the gradient, the samplers, a run."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.cc import CC, congruence
from limbeck.vision.cc.sampling import Grouped, clusters

pytestmark = pytest.mark.xdist_group("cc")

G = torch.Generator().manual_seed(15)
S = torch.randn(6, 4, generator=G, dtype=torch.float64)
T = torch.randn(6, 9, generator=G, dtype=torch.float64) + 0.5
Y = torch.arange(6) % 3
CLOCK = Clock(0, "fit", 0, 10, 5)


def slow(e: Tensor, kernel: str, gamma: float, order: int, normalise: bool) -> Tensor:
    rows = e.tolist()
    if normalise:
        rows = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows]

    def k(x: list[float], y: list[float]) -> float:
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        if kernel == "bilinear":
            return dot
        if kernel == "mmd":
            return abs(sum(x) / len(x) - sum(y) / len(y))
        each = ((2 * gamma) ** p / math.factorial(p) * dot**p for p in range(order + 1))
        return math.exp(-2 * gamma) * sum(each)

    return torch.tensor([[k(x, y) for y in rows] for x in rows], dtype=torch.float64)


def terms(method: CC, s: Tensor | None = S, t: Tensor | None = T) -> dict[str, Tensor]:
    z = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    sides = [SimpleNamespace(embedding=e, logits=a) for e, a in zip((s, t), z, strict=True)]
    return method.terms(nn.Module(), *sides, Batch(x=torch.zeros(6, 1), y=Y), CLOCK)


# --- the kernels ---


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("kernel", "gamma", "order"),
    [("gaussian", 0.4, 2), ("gaussian", 1.5, 5), ("bilinear", 0.4, 2), ("mmd", 0.4, 2)],
)
def test_kernels_and_loss_are_those_of_the_loops(
    kernel: str, gamma: float, order: int, normalise: bool
) -> None:
    how = (kernel, gamma, order, normalise)
    c = [slow(e, *how) for e in (S, T)]
    torch.testing.assert_close(congruence(S, *how), c[0])
    method = CC(cc=2.0, kernel=kernel, gamma=gamma, order=order, normalise=normalise)
    expected = 2 * sum(
        (a - b) ** 2 for a, b in zip(*(x.flatten().tolist() for x in c), strict=True)
    )
    assert float(terms(method)["cc"]) == pytest.approx(expected / 36, rel=1e-9)
    assert expected > 1e-3


def test_values_by_hand() -> None:
    e = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    c = congruence(e)
    assert float(c[0, 0]) == pytest.approx(math.exp(-0.8) * 2.12)
    assert float(c[0, 1]) == pytest.approx(math.exp(-0.8))
    assert float(c[0, 2]) == pytest.approx(math.exp(-0.8) * 0.52)
    s, t = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert float(congruence(t)[0, 1]) == pytest.approx(0.775400, abs=1e-6)
    gaussian = (congruence(s) - congruence(t)).square().mean()
    assert float(gaussian) == pytest.approx(0.053161, abs=1e-6)
    unit, plain = (congruence(s, "bilinear", normalise=n) for n in (True, False))
    other, raw = (congruence(t, "bilinear", normalise=n) for n in (True, False))
    assert float((unit - other).square().mean()) == pytest.approx(0.25)
    assert float((plain - raw).square().mean()) == 0.75


def test_a_long_series_is_the_gaussian() -> None:
    u = S / S.norm(dim=1, keepdim=True)
    for gamma in (0.4, 2.0):
        exact = (-gamma * torch.cdist(u, u).square()).exp()
        torch.testing.assert_close(congruence(S, gamma=gamma, order=40), exact)
    flat = congruence(S, order=0)
    assert float((flat - math.exp(-0.8)).abs().max()) < 1e-15


def test_lengths_turns_and_order_are_not_seen() -> None:
    turn = torch.linalg.qr(torch.randn(12, 9, generator=G, dtype=torch.float64))[0]
    lengths = torch.rand(6, 1, generator=G).double() + 0.1
    for kernel in ("gaussian", "bilinear"):
        torch.testing.assert_close(
            congruence(lengths * (T @ turn.T), kernel), congruence(T, kernel)
        )
    assert float((congruence(lengths * T, normalise=False) - congruence(T)).abs().max()) > 0.1
    order = torch.randperm(6, generator=G)
    found = float(terms(CC(), S[order], T[order])["cc"])
    assert found == pytest.approx(float(terms(CC())["cc"]))


def test_the_gradient_in_closed_form() -> None:
    s = S.clone().requires_grad_()
    (grad,) = torch.autograd.grad(terms(CC(cc=1.0), s)["cc"], s)
    long = S.norm(dim=1, keepdim=True)
    u = S / long
    dots = u @ u.T
    slope = math.exp(-0.8) * (0.8 + 0.64 * dots)  # of the series of order 2
    by_unit = 2 * (2 / 36 * (congruence(S) - congruence(T)) * slope) @ u
    by_hand = (by_unit - (by_unit * u).sum(1, keepdim=True) * u) / long
    torch.testing.assert_close(grad, by_hand)
    assert float(grad.abs().max()) > 1e-4


def test_dead_and_equal_embeddings_stay_finite() -> None:
    dead = S.clone()
    dead[1] = 0
    for kernel in ("gaussian", "bilinear", "mmd"):
        for s in (dead, torch.zeros_like(S), S[:1].expand(6, 4)):
            s = s.clone().requires_grad_()
            loss = terms(CC(kernel=kernel), s)["cc"]
            assert loss.isfinite()
            assert float(torch.autograd.grad(loss, s)[0].abs().max()) < 1e4


def test_terms_are_weighted_and_left_out() -> None:
    out = terms(CC(label=0.5, kd=2.0, tau=3.0))
    c = [slow(e, "gaussian", 0.4, 2, True) for e in (S, T)]
    assert float(out["cc"]) == pytest.approx(10 * float((c[0] - c[1]).square().sum()) / 36)
    z, zt = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    p, q = (zt / 3).softmax(1), (z / 3).softmax(1)
    assert float(out["kd"]) == pytest.approx(2 * 9 * float((p * (p / q).log()).sum() / 6), rel=1e-5)
    ce = -z.log_softmax(1)[torch.arange(6), Y].mean()
    assert float(out["label"]) == pytest.approx(0.5 * float(ce), rel=1e-6)
    assert set(terms(CC())) == {"kd", "cc"}
    assert set(terms(CC(cc=0), None, None)) == {"kd"}
    half = terms(CC(), S.half(), T.half())["cc"]
    torch.testing.assert_close(half, terms(CC(), S.half().float(), T.half().float())["cc"])


def test_one_sample_and_fields_out_of_range_are_refused() -> None:
    sides = [SimpleNamespace(embedding=e[:1], logits=torch.zeros(1, 3)) for e in (S, T)]
    with pytest.raises(UsageError, match="a micro-batch has 1"):
        CC().terms(nn.Module(), *sides, Batch(x=S[:1], y=Y[:1]), CLOCK)
    for field in ("cc=-1", "gamma=0", "order=-1", "kernel='linear'", "each=0", "superclasses=1"):
        with pytest.raises(UsageError):
            make(f"cc({field})")


# --- the samplers ---


def drawn(batches: Grouped, draw: int, batch: int, of: int = 1, seed: int = 0) -> list[Tensor]:
    clock = Clock(seed, "fit", 0, 100, 5, of=of, batch=batch)
    return [batches.numbers(clock, draw, n)[1] for n in range(of)]


def test_batches_hold_so_many_samples_of_so_many_classes() -> None:
    y = torch.tensor([0] * 50 + [1] * 20 + [2] * 4 + [3] * 26)
    batches = Grouped((torch.zeros(100, 1), y), y, each=4)
    often: Counter[int] = Counter()
    for draw in range(60):
        (numbers,) = drawn(batches, draw, 8)
        assert len(set(numbers.tolist())) == 8
        found = Counter(y[numbers].tolist())
        assert set(found.values()) == {4}
        assert len(found) == 2
        often.update(found.keys())
    assert all(20 <= often[c] <= 40 for c in range(4))  # 30 each, whatever their size
    assert sorted(Counter(y[drawn(batches, 0, 24)[0]].tolist()).values()) == [4, 4, 8, 8]


def test_a_batch_is_a_function_of_place_and_cut_by_groups() -> None:
    y = torch.arange(40) % 5
    batches = Grouped((torch.zeros(40, 1), y), y, each=2)
    whole, cuts = drawn(batches, 3, 8)[0], drawn(batches, 3, 8, of=2)
    assert torch.equal(torch.cat(cuts), whole)
    assert all(set(Counter(y[cut].tolist()).values()) == {2} for cut in cuts)
    assert torch.equal(drawn(batches, 3, 8)[0], whole)
    assert not torch.equal(drawn(batches, 4, 8)[0], whole)
    assert not torch.equal(drawn(batches, 3, 8, seed=1)[0], whole)


def test_a_small_group_is_drawn_more_than_once() -> None:
    y = torch.tensor([0, 0, 0, 0, 1])
    found = Counter(drawn(Grouped((torch.zeros(5, 1), y), y, each=3), 0, 5)[0].tolist())
    assert found[4] in (2, 3)
    assert max(found[i] for i in range(4)) == 1


def test_clusters_are_found() -> None:
    middle = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    e = (middle[:, None] + torch.rand(3, 20, 2, generator=G)).flatten(0, 1)
    pure = 0
    for seed in range(8):  # a start may have two rows of one cluster
        found = clusters(e, 3, torch.Generator().manual_seed(seed)).view(3, 20)
        pure += bool((found == found[:, :1]).all()) and len(found[:, 0].unique()) == 3
        again = torch.stack([e[found.flatten() == c].mean(0) for c in found.unique()])
        nearest = torch.cdist(e, again).argmin(1)
        assert torch.equal(found.unique()[nearest], found.flatten())  # nothing moves any more
    assert pure >= 2


def task(y: Tensor, steps: int = 60) -> Task:
    x = torch.randn(len(y), 6, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    student = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    budget = Budget(steps, batch=12, schedule="constant", optimiser=Optimiser("adam", lr=0.02))
    taps = {"embedding": ("1", "0")}
    return Task(teacher, student, (x, y), test=(x, y), budget=budget, taps=taps)


@pytest.mark.parametrize("sampler", ["random", "class", "superclass"])
def test_a_run_finds_the_teacher_s_correlations(sampler: str) -> None:
    here = task(torch.arange(48) % 3)
    x = here.train[0]
    c = congruence(here.teacher[:2](x).detach())
    before = float((congruence(here.student[0](x).detach()) - c).square().mean())
    result = limbeck.run("cc", here, device="cpu", kd=0.0, sampler=sampler, each=4, superclasses=4)
    after = float((congruence(result.model[0](x).detach()) - c).square().mean())
    assert before > 3e-3
    assert after < before / 3


def test_without_class_numbers_the_sampler_says_so() -> None:
    with pytest.raises(UsageError, match="cc's class sampler needs one class number"):
        limbeck.run("cc", task(torch.rand(48, 3)), device="cpu", sampler="class")
