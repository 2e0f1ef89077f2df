"""pld: the Plackett-Luce likelihood by counting, its special cases, convexity, and a run."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.pld import PLD, by_position, choices, ranking, standardised

pytestmark = pytest.mark.xdist_group("pld")

G = torch.Generator().manual_seed(9)
S = torch.randn(8, 5, generator=G, dtype=torch.float64)
T = 3 * torch.randn(8, 5, generator=G, dtype=torch.float64)
Y = torch.arange(8) % 5


def loss(method: PLD, s: Tensor = S, t: Tensor = T, y: Tensor = Y) -> Tensor:
    sides = SimpleNamespace(logits=s), SimpleNamespace(logits=t)
    out = method.terms(nn.Module(), *sides, Batch(x=s, y=y), None)
    assert set(out) == {"pld"}
    return out["pld"]


def slow_order(t: list[float], y: int) -> list[int]:
    return [y, *sorted((c for c in range(len(t)) if c != y), key=lambda c: -t[c])]


def slow_loss(s: np.ndarray, t: np.ndarray, y: int, tau: float) -> float:
    """Choose one class after the other among those that are left."""
    order, trust, total = slow_order(t.tolist(), y), softmax(t / tau), 0.0
    for k, chosen in enumerate(order):
        left = [math.exp(s[c]) for c in order[k:]]
        total -= trust[chosen] * math.log(math.exp(s[chosen]) / sum(left))
    return total


def test_the_label_comes_first_then_the_teachers_order() -> None:
    for row, t, y in zip(ranking(T, Y).tolist(), T.tolist(), Y.tolist(), strict=True):
        assert row == slow_order(t, y)
    assert bool((T.argmax(1) != Y).any())  # the label is not always what the teacher holds best
    equal = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]])
    assert ranking(equal, torch.tensor([4])).tolist() == [[4, 1, 3, 0, 2]]
    assert sorted(ranking(torch.zeros(1, 200), torch.tensor([7]))[0].tolist()) == list(range(200))


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_loss_is_that_of_the_loops(tau: float) -> None:
    rows = zip(S.numpy(), T.numpy(), Y.tolist(), strict=True)
    by_hand = np.mean([slow_loss(s, t, y, tau) for s, t, y in rows])
    assert float(loss(PLD(tau=tau))) == pytest.approx(by_hand, rel=1e-10)
    assert float(loss(PLD(tau=tau, pld=0.3))) == pytest.approx(0.3 * by_hand, rel=1e-10)


def test_choices_are_a_distribution_over_all_orders() -> None:
    s = S[0, :4]
    likely = {
        order: float((-choices(s[list(order)][None], torch.ones(4, dtype=s.dtype))).exp())
        for order in itertools.permutations(range(4))
    }
    assert sum(likely.values()) == pytest.approx(1, rel=1e-12)
    assert max(likely, key=likely.get) == tuple(s.argsort(descending=True).tolist())
    # The chance that class c comes first is its softmax.
    first = [sum(v for order, v in likely.items() if order[0] == c) for c in range(4)]
    np.testing.assert_allclose(first, s.softmax(0), rtol=1e-12)


def test_numbers_by_hand() -> None:
    # A uniform teacher, s = 0: choices among 3, 2 and 1, each with weight 1/3.
    zero, y = torch.zeros(1, 3), torch.tensor([0])
    by_hand = (math.log(3) + math.log(2)) / 3
    assert float(loss(PLD(), zero, zero, y)) == pytest.approx(by_hand, rel=1e-6)
    # t = (2, 1, 0), s = (1, 0, 0).
    e = math.e
    alpha = [e**2 / (e**2 + e + 1), e / (e**2 + e + 1)]
    by_hand = alpha[0] * (math.log(e + 2) - 1) + alpha[1] * math.log(2)
    assert by_hand == pytest.approx(0.536476, abs=1e-6)
    t, s = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert float(loss(PLD(), s, t, y)) == pytest.approx(by_hand, rel=1e-6)


def test_special_weights() -> None:
    order = ranking(T, Y)
    sorted_s = S.gather(1, order)
    one = torch.eye(5, dtype=S.dtype)[0]
    torch.testing.assert_close(choices(sorted_s, one).mean(), F.cross_entropy(S, Y))
    # ListMLE, by its definition, divided by C.
    mle = [
        -sum(math.log(math.exp(s[k]) / sum(map(math.exp, s[k:]))) for k in range(5))
        for s in sorted_s.tolist()
    ]
    assert float(loss(PLD(alpha="uniform"))) == pytest.approx(np.mean(mle) / 5, rel=1e-10)
    # Position weights 15, 7, 3, 1, 0 of 26.
    fixed = torch.tensor([15.0, 7.0, 3.0, 1.0, 0.0], dtype=S.dtype) / 26
    torch.testing.assert_close(by_position(5), fixed)
    by_hand = sum(
        float(a) * (math.log(sum(map(math.exp, s[k:]))) - s[k])
        for s in sorted_s.tolist()
        for k, a in enumerate(fixed)
    )
    assert float(loss(PLD(alpha="position"))) == pytest.approx(by_hand / 8, rel=1e-10)
    thousand = by_position(3000)
    assert float(thousand.sum()) == pytest.approx(1)
    assert thousand[:3].tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 8])
    torch.testing.assert_close(by_position(2), torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_two_classes_are_weighted_cross_entropy() -> None:
    s, t, y = S[:, :2], T[:, :2], Y % 2
    trust = (t / 2).softmax(1)[torch.arange(8), y]
    by_hand = (trust * F.cross_entropy(s, y, reduction="none")).mean()
    torch.testing.assert_close(loss(PLD(tau=2.0), s, t, y), by_hand)


def test_tau_acts_on_the_weights_only() -> None:
    # However warm the teacher, the student's logits are taken as they are: uniform weights.
    hot = loss(PLD(tau=1e7))
    torch.testing.assert_close(hot, loss(PLD(alpha="uniform")), rtol=1e-6, atol=0)
    # And of a teacher that agrees with the labels, in the cold, cross-entropy is left.
    sure = T.scatter(1, Y[:, None], T.amax(1, keepdim=True) + 1)
    torch.testing.assert_close(loss(PLD(tau=0.01), t=sure), F.cross_entropy(S, Y))


def test_shifts_do_not_count() -> None:
    shift = torch.randn(8, 1, generator=G, dtype=S.dtype)
    torch.testing.assert_close(loss(PLD(), S + shift, T - 2 * shift), loss(PLD()))


@pytest.mark.parametrize("alpha", ["teacher", "uniform", "position"])
def test_gradient_is_the_closed_form(alpha: str) -> None:
    s = S.clone().requires_grad_()
    grad = torch.autograd.grad(loss(PLD(alpha=alpha), s), s)[0]
    for b in range(8):
        order = slow_order(T[b].tolist(), int(Y[b]))
        weights = {
            "teacher": softmax(T[b].numpy())[order],
            "uniform": np.full(5, 0.2),
            "position": np.array([15, 7, 3, 1, 0]) / 26,
        }[alpha]
        for rank, c in enumerate(order):
            total = -weights[rank]
            for k in range(rank + 1):
                left = sum(math.exp(S[b, i]) for i in order[k:])
                total += weights[k] * math.exp(S[b, c]) / left
            assert float(grad[b, c]) == pytest.approx(total / 8, abs=1e-12)
    assert float(grad.sum(1).abs().max()) < 1e-14
    assert bool((grad.gather(1, Y[:, None]) < 0).all())  # a larger logit of the label is better


def test_gradient_stays_right_where_logits_lie_far_apart() -> None:
    # s falls by 1000 a rank in the right order, so every choice but the last pair's is certain.
    order = torch.tensor([[0.0, -1000.0, -2000.0, -2000.0]], requires_grad=True)
    alpha = torch.full((4,), 0.25)
    grad = torch.autograd.grad(choices(order, alpha).sum(), order)[0]
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0, -0.125, 0.125]]))
    # And in the wrong order: each choice wants all from the last class, which is far above.
    wrong = torch.tensor([[-3000.0, -2000.0, -1000.0, 0.0]], requires_grad=True)
    grad = torch.autograd.grad(choices(wrong, alpha).sum(), wrong)[0]
    torch.testing.assert_close(grad, torch.tensor([[-0.25, -0.25, -0.25, 0.75]]))


def test_it_is_convex() -> None:
    hessian = torch.autograd.functional.hessian(
        lambda s: loss(PLD(), s, T[:2], Y[:2]), S[:2].clone()
    ).reshape(10, 10)
    roots = torch.linalg.eigvalsh(hessian)
    assert float(roots.min()) > -1e-12
    assert int((roots > 1e-9).sum()) == 8  # flat only along the shift of each sample


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_standardised_logits_are_those_of_the_loops(tau: float) -> None:
    def scores(z: Tensor) -> np.ndarray:
        return np.stack([(row - row.mean()) / row.std(ddof=1) for row in z.numpy()])

    s, t = scores(S), scores(T)
    for who, sides in {"teacher": (S.numpy(), t), "both": (s, t)}.items():
        rows = zip(*sides, Y.tolist(), strict=True)
        by_hand = np.mean([slow_loss(*row, tau) for row in rows])
        assert float(loss(PLD(tau=tau, standardise=who))) == pytest.approx(by_hand, rel=1e-10)
        # Neither the size of standardised logits nor a constant in them counts.
        moved = loss(PLD(tau=tau, standardise=who), 7 * S + 2 if who == "both" else S, 3 * T - 1)
        assert float(moved) == pytest.approx(by_hand, rel=1e-10)
        assert abs(by_hand - float(loss(PLD(tau=tau)))) > 1e-3
    # (2, 0, 1): mean 1, deviation 1.
    by_hand = torch.tensor([[1.0, -1.0, 0.0]])
    torch.testing.assert_close(standardised(torch.tensor([[2.0, 0.0, 1.0]])), by_hand)


def test_equal_logits_have_nothing_to_standardise() -> None:
    s = torch.ones(2, 4, requires_grad=True)
    out = loss(PLD(standardise="both"), s, torch.ones(2, 4), torch.tensor([0, 3]))
    assert float(out.detach()) == pytest.approx((math.log(4) + math.log(3) + math.log(2)) / 4)
    assert torch.equal(torch.autograd.grad(out, s)[0], torch.zeros(2, 4))


def test_weight_zero_is_not_computed() -> None:
    nothing = SimpleNamespace()
    assert PLD(pld=0).terms(nn.Module(), nothing, nothing, Batch(x=S), None) == {}


def test_half_precision_is_widened_first() -> None:
    s, t = S.half(), T.bfloat16()
    for alpha in ("teacher", "uniform", "position"):
        out = loss(PLD(alpha=alpha), s, t)
        assert out.dtype == torch.float32
        assert torch.equal(out, loss(PLD(alpha=alpha), s.float(), t.float()))


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(UsageError, match="same number of classes"):
        loss(PLD(), t=T[:, :4])
    for y in (Y.double(), torch.eye(5)[Y], Y[:4]):
        with pytest.raises(UsageError, match="give one class number for each sample"):
            loss(PLD(), y=y)
    with pytest.raises(UsageError, match="two classes or more"):
        loss(PLD(), S[:, :1], T[:, :1], 0 * Y)


@pytest.mark.parametrize("field", ["pld=-1", "tau=0", "alpha='student'", "standardise='student'"])
def test_fields_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(UsageError):
        make(f"pld({field})")


def test_a_run_teaches_the_order_of_the_other_classes() -> None:
    x = torch.randn(60, 6, generator=G)
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 6), nn.Linear(6, 6)
    with torch.no_grad():
        teacher.weight.mul_(6)
        y = teacher(x).argmax(1)
    budget = Budget(steps=80, batch=60, schedule="constant", optimiser=Optimiser(lr=0.05))
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)

    def agreement(model: nn.Module) -> float:
        """The share of pairs of classes, the label apart, that lie as the teacher has them."""
        with torch.no_grad():
            s, t = model(x).tolist(), teacher(x).tolist()
        same = [
            (s[i][a] > s[i][b]) == (t[i][a] > t[i][b])
            for i in range(60)
            for a, b in itertools.combinations([c for c in range(6) if c != y[i]], 2)
        ]
        return sum(same) / len(same)

    got = {
        tau: agreement(limbeck.run("pld", task, tau=tau, device="cpu").model) for tau in (0.05, 4.0)
    }
    assert got[4.0] > 0.9  # trust is spread over the ranks
    assert got[4.0] > got[0.05] + 0.05  # in the cold only the first choice counts
