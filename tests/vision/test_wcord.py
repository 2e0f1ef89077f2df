"""wcord: the dual term and its Lipschitz critic, transport plans, banks and their negatives."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.method import Clock, Facts
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.vision._kit.banks import outside
from limbeck.vision.wcord import WCoRD, distance
from limbeck.vision.wcord.distance import Critic, dual_loss, primal_loss, sinkhorn

pytestmark = pytest.mark.xdist_group("wcord")
N, CLASSES = 60, 5


class Shown:
    """A side that shows fixed entries."""

    def __init__(self, **entries: Any) -> None:
        self.__dict__.update(entries)


def scene(size: int = 12, **fields: Any) -> tuple[WCoRD, Any, Any, Any, Batch]:
    """A method, its parts in eval mode, two sides and a batch of the first samples."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(N) % CLASSES
    method = WCoRD(**{"negatives": 20, "dim": 8, "hidden": 6, **fields})
    s, t = (
        Shown(
            embedding=torch.randn(size, w, generator=g),
            logits=torch.randn(size, CLASSES, generator=g),
        )
        for w in (6, 9)
    )
    batch = Batch(x=torch.zeros(size, 1), y=y[:size], index=torch.arange(size))
    torch.manual_seed(0)
    with torch.no_grad(), Run(seed=0):
        parts = method.build(s, t, batch, Facts(N, CLASSES, 10, 5, y))
    return method, parts.eval(), s, t, batch


def clock(step: int = 0) -> Clock:
    return Clock(0, "fit", step, 10, 5)


def unit(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)


# --- the primal term -----------------------------------------------------------------------------


def test_a_plan_has_even_marginals_and_mass_one() -> None:
    cost = 1 - unit(7, 5) @ unit(9, 5, seed=1).T
    plan = sinkhorn(cost, 0.1, 200)
    torch.testing.assert_close(
        plan.sum(1), torch.full((7,), 1 / 7, dtype=torch.float64), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        plan.sum(0), torch.full((9,), 1 / 9, dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert float(plan.sum()) == pytest.approx(1)
    assert float(plan.min()) > 0


def test_a_plan_is_that_of_plain_scaling() -> None:
    cost = 1 - unit(5, 4) @ unit(5, 4, seed=1).T
    k = [[math.exp(-float(c) / 0.2) for c in row] for row in cost]
    u, v = [1.0] * 5, [1.0] * 5
    for _ in range(3):
        u = [0.2 / sum(k[i][j] * v[j] for j in range(5)) for i in range(5)]
        v = [0.2 / sum(k[i][j] * u[i] for i in range(5)) for j in range(5)]
    slow = torch.tensor([[u[i] * k[i][j] * v[j] for j in range(5)] for i in range(5)])
    torch.testing.assert_close(sinkhorn(cost, 0.2, 3), slow.double(), atol=1e-6, rtol=1e-5)


def test_a_plan_has_the_form_that_is_best() -> None:
    # At the optimum cost + eps log pi is a sum f_i + g_j: all its mixed differences are zero.
    cost = 1 - unit(6, 4) @ unit(6, 4, seed=1).T
    x = cost + 0.1 * sinkhorn(cost, 0.1, 100).log()
    assert float((x - x[:1] - x[:, :1] + x[0, 0]).abs().max()) < 1e-9


def test_by_hand() -> None:
    # Two orthogonal pairs: K = (1, q; q, 1) with q = exp(-1 / eps), so pi_12 = q / (2 (1 + q)).
    h, q = torch.eye(2).double(), math.exp(-1 / 0.5)
    assert float(primal_loss(h, h, 0.5, 50)) == pytest.approx(q / (1 + q))


def test_sharp_plans_are_assignments_and_sets_have_no_order() -> None:
    h = torch.linalg.qr(torch.randn(6, 6).double())[0]
    torch.testing.assert_close(sinkhorn(1 - h @ h.T, 0.01, 50), torch.eye(6).double() / 6)
    assert float(primal_loss(h, h, 0.01, 50)) < 1e-12
    t, s = unit(6, 4), unit(6, 4, seed=1)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    loss = primal_loss(t, s, 0.05, 200)
    torch.testing.assert_close(primal_loss(t, s[order], 0.05, 200), loss)
    cost = (1 - t @ s.T).numpy()
    rows, columns = linear_sum_assignment(cost)
    best = cost[rows, columns].mean()
    assert float(primal_loss(t, s, 0.002, 3000)) == pytest.approx(best, abs=3e-3)
    assert float(loss) > best


def test_small_eps_stays_finite_in_float32() -> None:
    loss = primal_loss(unit(64, 4).float(), unit(64, 4, seed=1).float(), 1e-4, 50)
    assert bool(loss.isfinite())


def test_the_gradient_is_through_the_cost_alone_as_the_envelope_says() -> None:
    # The optimum of <pi, c> - eps H(pi) has the slope pi in c: compare with its differences.
    t, s = unit(4, 3), unit(4, 3, seed=1).requires_grad_()
    (slope,) = torch.autograd.grad(primal_loss(t, s, 0.3, 60), s)

    def value(h: Tensor) -> float:
        cost = 1 - t @ h.T
        plan = sinkhorn(cost, 0.3, 60)
        return float((plan * cost).sum() + 0.3 * (plan * plan.log()).sum())

    for i, d in itertools.product(range(4), range(3)):
        step = torch.zeros(4, 3).double()
        step[i, d] = 1e-6
        slow = (value(s.detach() + step) - value(s.detach() - step)) / 2e-6
        assert float(slope[i, d]) == pytest.approx(slow, abs=1e-6)


# --- the dual term -------------------------------------------------------------------------------


def plain(critic: Critic, t: Tensor, s: Tensor) -> Tensor:
    """g of one pair, on both embeddings side by side."""
    inner = critic.first.weight @ torch.cat((t, s)) + critic.first.bias
    return critic.last.weight[0] @ inner.relu()


def test_the_critic_is_two_layers_on_both_embeddings_by_each_road() -> None:
    torch.manual_seed(0)
    critic = Critic(4, 7).eval()
    t, s, bank = torch.randn(3, 4), torch.randn(3, 4), torch.randn(6, 4)
    rows = torch.tensor([[0, 5], [1, 1], [2, 4]])
    long = torch.cat((bank, torch.randn(30, 4)))  # longer than the rows asked for: rows first
    more = torch.cat((bank.flip(0), torch.randn(30, 4)))
    of_s, of_t = critic(rows, t, bank, more, s)
    again = critic(rows, t, long, bank, s)[0]
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(of_s[i, j], plain(critic, t[i], bank[rows[i, j]]))
            torch.testing.assert_close(of_t[i, j], plain(critic, more[rows[i, j]], s[i]))
    torch.testing.assert_close(again, of_s)


@pytest.mark.parametrize("bank", [30, 400])  # mapped as a whole, and only its rows
def test_the_critic_gives_the_same_in_pieces_and_holds_no_more(monkeypatch, bank: int) -> None:
    torch.manual_seed(0)
    critic = Critic(4, 7).eval()
    rows, t, s = torch.randint(bank, (5, 9)), unit(5, 4).float(), unit(5, 4, seed=1).float()
    banks = [unit(bank, 4, seed=k).float() for k in (2, 3)]
    s.requires_grad_()
    found, kept = [], list[int]()

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel() if x.dim() == 3 else 0)
        return x

    for most in (1, 3 * 9 * 7, 2**24):  # one anchor at a time, three, all
        monkeypatch.setattr(distance, "MOST", most)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            values = torch.stack(critic(rows, t, *banks, s))
        inner = [s, *critic.parameters()]
        found.append([values, *torch.autograd.grad(values.square().sum(), inner)])
    assert max(kept) == 0  # hidden units (B, K, hidden) are made again, not kept
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_the_critic_does_not_climb_faster_than_one() -> None:
    torch.manual_seed(0)
    critic = Critic(4, 7)
    with torch.no_grad():
        for layer in (critic.first, critic.last):
            layer.parametrizations.weight.original.mul_(50)
        for _ in range(200):
            critic.first.weight, critic.last.weight  # noqa: B018 - each look is a power iteration
    critic.eval()
    for layer in (critic.first, critic.last):
        assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) <= 1 + 1e-3
        assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) > 0.999
    a, b = torch.randn(2, 300, 8)
    own = torch.arange(300)[:, None]
    one, two = (critic(own, x[:, :4], x[:, 4:], x[:, :4], x[:, 4:])[0][:, 0] for x in (a, b))
    assert bool(((one - two).abs() <= 1.001 * (a - b).norm(dim=1)).all())


def test_a_constant_in_the_critic_cancels() -> None:
    joint, product = torch.randn(4), torch.randn(4, 9)
    slow = -(joint.sum() / 4 - product.sum() / 36)
    torch.testing.assert_close(dual_loss(joint, product), slow)
    torch.testing.assert_close(dual_loss(joint + 3, product + 3), slow)
    assert float(dual_loss(torch.full((4,), 2.5), torch.full((4, 9), 2.5))) == 0


def test_negatives_are_others_and_even() -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 1])
    ring = labels.argsort(stable=True).repeat(2)  # 1 3 | 2 6 | 0 4 5
    bits = ((2 * torch.arange(500) + 1) * 2**31 // 1000)[None]
    drawn = outside(ring, torch.tensor([2]), torch.tensor([4]), bits)[0]
    assert sorted(drawn.tolist()) == sorted([0, 4, 5, 1, 3] * 100)
    drawn = outside(ring, torch.tensor([4]), torch.tensor([7]), bits)[0]
    assert sorted(drawn.tolist()) == sorted([1, 3, 2, 6] * 125)
    assert set(outside(ring, torch.tensor([0]), torch.tensor([7]), bits)[0].tolist()) == set(
        range(7)
    )


@pytest.mark.parametrize("policy", ["classes", "samples"])
def test_who_is_drawn(policy: Any) -> None:
    _, parts, _, _, batch = scene(policy=policy)
    bits = clock().rng("negatives", batch.index).randint(2**31, 3000)
    drawn = outside(parts.ring, *parts.span[batch.index].unbind(1), bits)
    for i, row in enumerate(drawn.tolist()):
        own = {i} if policy == "samples" else set(range(i % CLASSES, N, CLASSES))
        assert set(row) == set(range(N)) - own


def test_terms_by_loops() -> None:
    method, parts, s, t, batch = scene(label=0.5, gckt=2.0, lckt=3.0, kd=0.7, kd_tau=2.0, eps=0.2)
    out = method.terms(parts, s, t, batch, clock())
    torch.testing.assert_close(out["label"], 0.5 * F.cross_entropy(s.logits, batch.y))
    p, q = (t.logits / 2).softmax(1), (s.logits / 2).softmax(1)
    torch.testing.assert_close(out["kd"], 0.7 * 4 * (p * (p / q).log()).sum(1).mean())
    h = []
    for head, side in ((parts.head_s, s), (parts.head_t, t)):
        z = side.embedding @ head.weight.T + head.bias
        h.append(z / z.square().sum(1, keepdim=True).sqrt())
    bits = clock().rng("negatives", batch.index).randint(2**31, 20)
    rows = outside(parts.ring, *parts.span[batch.index].unbind(1), bits)
    total = torch.zeros(())
    for i in range(12):
        total -= plain(parts.critic, h[1][i], parts.student[i]) / 12
        total -= plain(parts.critic, parts.teacher[i], h[0][i]) / 12
        for k in rows[i]:
            total += plain(parts.critic, h[1][i], parts.student[k]) / 240
            total += plain(parts.critic, parts.teacher[k], h[0][i]) / 240
    torch.testing.assert_close(out["gckt"], 2 * total)
    cost = 1 - F.cosine_similarity(h[1][:, None], h[0][None], 2)
    torch.testing.assert_close(out["lckt"], 3 * (sinkhorn(cost, 0.2, 50) * cost).sum())


def test_weights_of_zero_leave_plain_labels() -> None:
    method, parts, s, t, batch = scene(gckt=0.0, lckt=0.0)
    assert not list(parts.parameters())
    assert set(method.terms(parts, s, t, batch, clock())) == {"label"}
    assert method.observe(parts, s, t, batch) == {}
    method.after_step(parts, {}, clock())
    method, parts, s, t, batch = scene(gckt=0.0)
    assert {n.split(".")[0] for n, _ in parts.named_parameters()} == {"head_s", "head_t"}
    assert set(method.terms(parts, s, t, batch, clock())) == {"label", "lckt"}


def test_critic_heads_and_student_go_down_together_and_no_bank_moves() -> None:
    method, parts, s, t, batch = scene(label=0.0)
    parts.train()
    s.embedding.requires_grad_()
    for name in ("gckt", "lckt"):
        loss = method.terms(parts, s, t, batch, clock())[name]
        loss.backward()
        assert bool(s.embedding.grad.any())
        assert bool(parts.head_s.weight.grad.any())
        assert bool(parts.head_t.weight.grad.any())
        s.embedding.grad = None
    assert bool(parts.critic.first.parametrizations.weight.original.grad.any())
    assert not any(b.requires_grad for b in parts.buffers())


def test_rows_move_by_momentum_back_to_length_one() -> None:
    method, parts, *_ = scene(dim=2)
    assert torch.allclose(parts.teacher.norm(dim=1), torch.ones(N))
    before = parts.teacher.clone()
    parts.student[7] = torch.tensor([1.0, 0.0])
    seen = {
        "index": torch.tensor([7, 3, 3]),
        "student": torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]),
        "teacher": before[[7, 3, 3]],
    }
    third = F.normalize(parts.student[3] + torch.tensor([0.0, 1.0]), dim=0)
    method.after_step(parts, seen, clock())
    torch.testing.assert_close(parts.student[7], torch.tensor([0.5, 0.5]).sqrt())
    torch.testing.assert_close(parts.student[3], third)  # the last of two
    torch.testing.assert_close(parts.teacher, before)


def test_draws_do_not_depend_on_how_a_batch_is_split() -> None:
    method, parts, s, t, batch = scene(label=0.0, lckt=0.0)
    whole = method.terms(parts, s, t, batch, clock())["gckt"]
    halves = []
    for rows in (slice(0, 6), slice(6, 12)):
        some = [Shown(**{k: v[rows] for k, v in side.__dict__.items()}) for side in (s, t)]
        halves.append(method.terms(parts, *some, batch.select(rows), clock())["gckt"])
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_labels_that_are_not_known_are_said() -> None:
    method, _, s, t, batch = scene()
    for y, told in ((None, "not in memory"), (torch.rand(N, 3), r"\(60, 3\) torch.float32")):
        with pytest.raises(UsageError, match=f"labels are {told}.*policy='samples'"), Run():
            method.build(s, t, batch, Facts(N, None, 10, 5, y))
    with Run():
        free = WCoRD(policy="samples").build(s, t, batch, Facts(N, None, 10, 5, None))
    assert torch.equal(free.span, torch.stack((torch.arange(N), torch.arange(N) + 1), 1))


def test_a_fit_tells_own_rows_from_others() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(100) % CLASSES
    x = 2 * torch.randn(CLASSES, 10, generator=g)[y] + torch.randn(100, 10, generator=g)

    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, CLASSES))

    torch.manual_seed(0)
    given = Task(
        net(32), lambda: net(8), (x, y), taps={"embedding": ("2:in", "2:in")},
        budget=Budget(epochs=25, batch=20, optimiser=Optimiser(lr=1e-2)),
    )  # fmt: skip
    method = WCoRD(label=0.0, gckt=1.0, lckt=0.1, dim=16, negatives=50)
    with Run(given, seed=1, device="cpu") as run:
        student = run.student(given)
        done = fit(method, student, given.the_teacher(), given.batches(), name="fit", task=given)
    values = [row["terms"]["gckt"] for row in done.log if "terms" in row]
    assert abs(values[0]) < 0.1
    assert sum(values[-10:]) / 10 < -0.4
    with torch.no_grad():
        s, t = (Shown(embedding=m[:2](x)) for m in (done.student, given.teacher))
        for h in done.parts.embed(s, t):
            assert float(h.std(0).mean()) > 0.1  # and they did not fall together
