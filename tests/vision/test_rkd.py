"""rkd: relations by loops, what leaves them alone, coinciding samples, memory, and a run."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.rkd import (
    RKD,
    angles,
    distances,
    negatives,
    relational,
    triplet_loss,
    unit,
)

pytestmark = pytest.mark.xdist_group("rkd")

G = torch.Generator().manual_seed(11)
S = torch.randn(7, 3, generator=G, dtype=torch.float64)
T = torch.randn(7, 5, generator=G, dtype=torch.float64).exp()
Y = torch.arange(7) % 4


def huber(d: float) -> float:
    return d * d / 2 if abs(d) <= 1 else abs(d) - 0.5


def slow_distances(e: np.ndarray) -> np.ndarray:
    pairs = [(i, j) for i in range(len(e)) for j in range(len(e))]
    length = {(i, j): math.sqrt(sum((e[i] - e[j]) ** 2)) for i, j in pairs}
    mu = np.mean([v for v in length.values() if v > 0])
    return np.array([length[p] / mu for p in pairs]).reshape(len(e), len(e))


def slow_angles(e: np.ndarray) -> np.ndarray:
    out = np.zeros((len(e),) * 3)
    for j, i, k in np.ndindex(out.shape):
        u, v = e[i] - e[j], e[k] - e[j]
        if u.any() and v.any():
            out[j, i, k] = sum(u * v) / math.sqrt(sum(u * u) * sum(v * v))
    return out


SLOW = {"distance": slow_distances, "angle": slow_angles}


def slow(s: Tensor, t: Tensor, relation: str) -> float:
    a, b = (SLOW[relation](e.numpy()).ravel() for e in (s, t))
    return float(np.mean([huber(x - y) for x, y in zip(a, b, strict=True)]))


def sides(s: Tensor = S, t: Tensor = T) -> tuple[SimpleNamespace, SimpleNamespace]:
    logits = torch.randn(2, len(s), 4, generator=torch.Generator().manual_seed(0))
    return tuple(
        SimpleNamespace(embedding=e, logits=z) for e, z in zip((s, t), logits, strict=True)
    )


CLOCK = Clock(0, "fit", 0, 10, 5)


def terms(method: RKD, s: Tensor = S, t: Tensor = T) -> dict[str, Tensor]:
    return method.terms(nn.Module(), *sides(s, t), Batch(x=s, y=Y[: len(s)]), CLOCK)


# --- the relations ---


def test_relations_are_those_of_the_loops() -> None:
    for e in (S, T, S.round(), torch.cat((S, S[:2]))):
        np.testing.assert_allclose(distances(e), slow_distances(e.numpy()), atol=1e-12)
        np.testing.assert_allclose(angles(e), slow_angles(e.numpy()), atol=1e-12)
    assert float(distances(torch.cat((S, S[:2])))[0, 7]) == 0  # not in the mean


@pytest.mark.parametrize("relation", ["distance", "angle"])
def test_losses_are_the_mean_huber_of_the_loops(relation: str) -> None:
    far = T**5  # so that the linear part of huber is there
    for t in (T, far):
        assert float(relational(S, t, relation)) == pytest.approx(slow(S, t, relation), rel=1e-10)
    assert np.abs(SLOW[relation](S.numpy()) - SLOW[relation](far.numpy())).max() > 1.1


def test_a_line_by_hand() -> None:
    # (0.5, 1.5, 1) against (0.75, 1.5, 0.75), each twice, and three zeros: 4 * 0.0625 / 2 / 9.
    t, s = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    assert float(relational(s, t, "distance")) == pytest.approx(0.125 / 9, rel=1e-6)
    assert float(relational(s, t, "angle")) == 0  # the order on the line is the same
    # Turned round the middle one: the angle at it goes from pi to 0, twice 2 - 1 / 2 of 27; that
    # at the last point, now between the others, goes the other way.
    turned = torch.tensor([[2.0], [0.0], [1.0]])
    assert float(relational(turned, t, "angle")) == pytest.approx(4 * 1.5 / 27, rel=1e-6)


def test_angles_of_a_right_triangle() -> None:
    cos = angles(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert float(cos[0, 1, 2]) == 0
    assert float(cos[1, 0, 2]) == pytest.approx(math.sqrt(0.5))
    assert torch.equal(cos[0].diagonal(), torch.tensor([0.0, 1.0, 1.0]))


@pytest.mark.parametrize("relation", ["distance", "angle"])
def test_scaling_moving_and_turning_change_nothing(relation: str) -> None:
    turn = torch.linalg.qr(torch.randn(9, 5, generator=G, dtype=torch.float64))[0]
    s = 0.03 * T @ turn.T + torch.randn(9, generator=G, dtype=torch.float64)
    assert s.shape == (7, 9)  # another width
    assert float(relational(s, T, relation)) == pytest.approx(0, abs=1e-20)
    assert float(relational(s * torch.arange(1, 10), T, relation)) > 1e-3


def test_two_samples_have_no_relation_to_learn() -> None:
    for relation in ("distance", "angle"):
        assert float(relational(S[:2], T[:2], relation)) == pytest.approx(0, abs=1e-30)


# --- gradients ---


@pytest.mark.parametrize("relation", ["distance", "angle"])
def test_gradient_is_the_numerical_one(relation: str) -> None:
    s = S.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: relational(s, T, relation), s)
    grad = torch.autograd.grad(relational(s, T, relation), s)[0]
    assert float(grad.norm()) > 1e-3
    # Neither moving nor scaling helps: the second holds only if the gradient passes through mu.
    assert float(grad.sum(0).norm()) == pytest.approx(0, abs=1e-14)
    assert float((grad * S).sum()) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("relation", ["distance", "angle"])
def test_samples_that_coincide_pass_no_gradient_between_them(relation: str) -> None:
    s = torch.cat((S, S[:1])).requires_grad_()
    t = torch.cat((T, T[:1] + 1))
    grad = torch.autograd.grad(relational(s, t, relation), s)[0]

    fixed = t.numpy()
    total = torch.zeros((), dtype=torch.float64)
    pairs = [(i, j) for i in range(8) for j in range(8) if {i, j} != {0, 7} and i != j]
    if relation == "distance":
        length = {p: (s[p[0]] - s[p[1]]).square().sum().sqrt() for p in pairs}
        mu = sum(length.values()) / len(length)
        target = slow_distances(fixed)
        for p in pairs:
            total = total + F.smooth_l1_loss(length[p] / mu, torch.tensor(target[p])) / 64
    else:
        target = slow_angles(fixed)
        for i, j in pairs:
            for k in (k for k in range(8) if (k, j) in pairs):
                cos = F.cosine_similarity(s[i] - s[j], s[k] - s[j], dim=0)
                goal = torch.tensor(target[j, i, k])
                total = total + F.smooth_l1_loss(cos, goal) / 512
    torch.testing.assert_close(grad, torch.autograd.grad(total, s)[0], rtol=1e-6, atol=1e-12)


def test_all_samples_alike_cost_and_move_something_finite() -> None:
    s = torch.ones(5, 3, requires_grad=True)
    for relation in ("distance", "angle"):
        loss = relational(s, T[:5].float(), relation)
        assert 0 < float(loss.detach()) < 1
        assert float(torch.autograd.grad(loss, s)[0].abs().max()) == 0
    zero = torch.zeros(2, 3, requires_grad=True)
    assert float(torch.autograd.grad(unit(zero).sum(), zero)[0].abs().max()) == 0


def test_no_tensor_is_larger_than_triples_or_pairs_of_embeddings() -> None:
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    s = torch.randn(12, 40, generator=G, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        relational(s, s.detach() ** 2, "angle")
    assert max(kept) == 12 * 12 * 40


# --- triplets ---


def slow_weights(e: np.ndarray, y: list[int], a: int) -> np.ndarray:
    """How likely each sample is as a negative of sample a."""
    d, out = e.shape[1], np.zeros(len(e))
    for n in range(len(e)):
        far = max(0.5, math.sqrt(sum((e[a] - e[n]) ** 2)))
        if y[n] != y[a] and far < 1.4:
            out[n] = 1 / (far ** (d - 2) * (1 - far**2 / 4) ** ((d - 3) / 2))
    if not out.any():
        out = np.array([float(y[n] != y[a]) for n in range(len(e))])
    return out / out.sum()


@pytest.mark.parametrize("size", [0.3, 1.0, 9.0])
def test_negatives_are_drawn_by_their_distance(size: float) -> None:
    e = torch.randn(7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    e = size * unit(e + 1)
    e[0] = e[1]  # of two classes, at one place
    ends = (torch.arange(20000) + 0.5) / 20000  # draws that are spread evenly
    found = negatives(e, Y, ends.expand(7, -1))
    for a in range(7):
        want = slow_weights(e.numpy(), Y.tolist(), a)
        share = torch.bincount(found[a], minlength=7).double() / 20000
        np.testing.assert_allclose(share, want, atol=1e-3)
        kinds = {round(w, 6) for w in want if w}
        assert (len(kinds) > 2) == (size == 1)  # all near, or all far, are equally likely


def test_the_end_of_the_draws_is_a_negative_too() -> None:
    last = torch.tensor([0.0, 1 - 2**-24]).expand(7, -1)
    for e in (S, S / S.norm(dim=1, keepdim=True), torch.zeros_like(S)):
        found = negatives(e, Y, last)
        assert bool((Y[found] != Y[:, None]).all())


def test_triplets_by_loops() -> None:
    n = torch.randint(7, (7, 7), generator=G)
    total, pairs = 0.0, 0
    for a in range(7):
        for p in range(7):
            if a != p and Y[a] == Y[p]:
                near, far = (math.dist(S[a].tolist(), S[k].tolist()) for k in (p, int(n[a, p])))
                total, pairs = total + max(near - far + 0.2, 0), pairs + 1
    assert pairs == 6
    assert float(triplet_loss(S, Y, n, 0.2)) == pytest.approx(total / pairs, rel=1e-10)
    # On a line at 0 and 1, the negative at 3: 1 - 3 + m from one end, 1 - 2 + m from the other.
    line, y = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])
    far = torch.full((3, 3), 2)
    assert float(triplet_loss(line, y, far, 0.2)) == 0
    assert float(triplet_loss(line, y, far, 1.5)) == pytest.approx((0 + 0.5) / 2)


def test_the_triplet_term_and_its_gradient() -> None:
    method = RKD(label=0, distance=0, angle=0, triplet=2.0, margin=3.0, normalise="teacher")
    s = S.clone().requires_grad_()
    out = terms(method, s)
    assert set(out) == {"triplet"}
    u = torch.rand(7, 7, generator=CLOCK.rng("negatives"))
    n = negatives(S, Y, u)
    torch.testing.assert_close(out["triplet"], 2 * triplet_loss(S, Y, n, 3.0))
    assert torch.autograd.gradcheck(lambda e: triplet_loss(e, Y, n, 3.0), s)
    grad = torch.autograd.grad(out["triplet"], s)[0]
    assert float((grad * S).sum()) != 0
    unit_s = S / S.norm(dim=1, keepdim=True)
    both = terms(RKD(triplet=1.0))
    assert set(both) == {"label", "distance", "angle", "triplet"}
    n = negatives(unit_s, Y, u)
    torch.testing.assert_close(both["triplet"], triplet_loss(unit_s, Y, n, 0.2))
    for name, value in terms(RKD()).items():
        assert torch.equal(both[name], value)


def test_without_pairs_or_without_negatives_triplets_cost_nothing() -> None:
    for y in (torch.arange(7), torch.zeros(7, dtype=torch.int64)):
        s = S.clone().requires_grad_()
        seen = SimpleNamespace(embedding=s), SimpleNamespace()
        method = RKD(label=0, distance=0, angle=0, triplet=1.0)
        out = method.terms(nn.Module(), *seen, Batch(x=s, y=y), CLOCK)["triplet"]
        assert float(out.detach()) == 0
        assert not bool(torch.autograd.grad(out, s)[0].any())
    for y in (torch.rand(7), torch.zeros(7, 2, dtype=torch.int64)):
        with pytest.raises(UsageError, match="give one class number for each sample"):
            method.terms(nn.Module(), *seen, Batch(x=s, y=y), CLOCK)


def test_a_run_on_triplets_brings_classes_together() -> None:
    y = torch.arange(48) % 3
    x = torch.randn(3, 6, generator=G)[y] + torch.randn(48, 6, generator=G)
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(6, w), nn.Linear(w, 3)) for w in (8, 4))
    budget = Budget(steps=60, batch=24, schedule="constant", optimiser=Optimiser(lr=0.03))
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)
    task.taps = {"embedding": ("0", "0")}

    def recall(model: nn.Module) -> float:
        """How often the nearest other sample is of the same class."""
        with torch.no_grad():
            far = torch.cdist(*[unit(model[0](x))] * 2).fill_diagonal_(9)
        return float((y[far.argmin(1)] == y).double().mean())

    fields = {"label": 0.0, "distance": 0.0, "angle": 0.0, "triplet": 1.0}
    result = limbeck.run("rkd", task, device="cpu", **fields)
    assert recall(result.model) > recall(student) + 0.1


# --- the method ---


def test_terms_are_the_weighted_losses_of_normalised_embeddings() -> None:
    out = terms(RKD())
    s, t = S / S.norm(dim=1, keepdim=True), T / T.norm(dim=1, keepdim=True)
    assert set(out) == {"label", "distance", "angle"}
    assert float(out["distance"]) == pytest.approx(25 * slow(s, t, "distance"), rel=1e-10)
    assert float(out["angle"]) == pytest.approx(50 * slow(s, t, "angle"), rel=1e-10)
    logits = sides()[0].logits
    by_hand = -sum(float(z.log_softmax(0)[y]) for z, y in zip(logits, Y, strict=True)) / 7
    assert float(out["label"]) == pytest.approx(by_hand, rel=1e-6)
    metric = terms(RKD(label=0, distance=1, angle=2, normalise="teacher"))
    assert set(metric) == {"distance", "angle"}
    assert float(metric["distance"]) == pytest.approx(slow(S, t, "distance"), rel=1e-10)
    assert float(metric["angle"]) == pytest.approx(2 * slow(S, t, "angle"), rel=1e-10)
    bare = terms(RKD(normalise="none"))
    assert float(bare["distance"]) == pytest.approx(25 * slow(S, T, "distance"), rel=1e-10)


def test_soft_targets_may_be_added() -> None:
    s, t = (side.logits.double() / 2 for side in sides())
    p, q = t.softmax(1), s.softmax(1)
    out = terms(RKD(kd=0.5, tau=2.0))
    by_hand = 0.5 * 4 * float((p * (p / q).log()).sum(1).mean())
    assert float(out["kd"]) == pytest.approx(by_hand, rel=1e-5)


def test_weight_zero_is_not_computed() -> None:
    blind = SimpleNamespace(logits=sides()[0].logits), SimpleNamespace()
    batch = Batch(x=S, y=Y)
    assert set(RKD(distance=0, angle=0).terms(nn.Module(), *blind, batch, None)) == {"label"}
    with pytest.raises(AttributeError):
        RKD().terms(nn.Module(), *blind, batch, None)
    seen = SimpleNamespace(embedding=S), SimpleNamespace(embedding=T)
    unlabelled = RKD(label=0, angle=0).terms(nn.Module(), *seen, Batch(x=S), None)
    assert set(unlabelled) == {"distance"}
    assert set(RKD(label=0, distance=0).terms(nn.Module(), *seen, batch, None)) == {"angle"}


def test_half_precision_is_widened_and_maps_are_flattened() -> None:
    s, t = S.bfloat16(), T.half()
    out = terms(RKD(), s, t)
    assert out["angle"].dtype == torch.float32
    same = terms(RKD(), s.float(), t.float())
    assert all(torch.equal(out[n], same[n]) for n in ("distance", "angle"))
    maps = terms(RKD(), torch.stack((S, S), 2)[..., None], T)
    assert float(maps["angle"]) == pytest.approx(float(terms(RKD())["angle"]), rel=1e-10)


def test_fewer_than_three_samples_are_refused() -> None:
    assert "angle" in terms(RKD(), S[:3], T[:3])
    with pytest.raises(UsageError, match="but this one has 2; give at least 3"):
        terms(RKD(), S[:2], T[:2])
    assert set(terms(RKD(distance=0, angle=0), S[:2], T[:2])) == {"label"}


@pytest.mark.parametrize(
    "field", ["distance=-1", "angle=-1", "tau=0", "triplet=-1", "margin=-1", "normalise='student'"]
)
def test_fields_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(UsageError):
        make(f"rkd({field})")


def test_a_run_without_labels_brings_the_geometry_over() -> None:
    x, y = torch.randn(48, 6, generator=G), torch.arange(48) % 3
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    student = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    budget = Budget(steps=60, batch=24, schedule="constant", optimiser=Optimiser(lr=0.03))
    taps = {"embedding": ("0", "0")}
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget, taps=taps)
    with torch.no_grad():
        goal, before = teacher[0](x[:12]).double(), student[0](x[:12]).double()
    fields = {"label": 0.0, "distance": 1.0, "angle": 2.0, "normalise": "none"}
    result = limbeck.run("rkd", task, device="cpu", **fields)
    with torch.no_grad():
        after = result.model[0](x[:12]).double()
    for relation in ("distance", "angle"):
        assert slow(after, goal, relation) < 0.5 * slow(before, goal, relation)
    assert torch.equal(result.model[1].weight, student[1].weight)  # no label reached the head
