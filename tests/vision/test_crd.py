import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.method import Clock, Facts
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.vision._kit.banks import outside
from limbeck.vision.crd import CRD, WHOLE, nce, similarities

N, CLASSES, TAU = 60, 5, 0.07


class Shown:
    """A side that shows fixed entries."""

    def __init__(self, **entries):
        self.__dict__.update(entries)


def scene(n=N, size=12, seed=0, **fields):
    """A method, its parts, two sides and a batch of the first `size` samples."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    method = CRD(**{"negatives": 20, "dim": 8, **fields})
    s = Shown(embedding=torch.randn(size, 6, generator=g), logits=torch.randn(size, CLASSES))
    t = Shown(embedding=torch.randn(size, 9, generator=g), logits=torch.randn(size, CLASSES))
    batch = Batch(x=torch.zeros(size, 1), y=y[:size], index=torch.arange(size))
    with torch.no_grad(), Run(seed=seed):
        parts = method.build(s, t, batch, Facts(n, CLASSES, 10, 5, y))
    return method, parts, s, t, batch


def clock(step=0):
    return Clock(0, "fit", step, 10, 5)


def some(side, rows):
    return Shown(**{k: v[rows] for k, v in side.__dict__.items()})


# --- the loss ---


def test_nce_is_the_papers_sum_of_logarithms():
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 8, generator=g, dtype=torch.float64) * 2 - 1
    z, samples, k = 40.0, 50, 7
    total = 0.0
    for row in scores.tolist():
        h = [math.exp(x / TAU) / z for x in row]
        total -= math.log(h[0] / (h[0] + k / samples))
        total -= sum(math.log(1 - x / (x + k / samples)) for x in h[1:])
    assert float(nce(scores, torch.tensor(z).log(), samples, TAU)) == pytest.approx(total / 3)


def test_nce_by_hand():
    # K = N, Z = 1 and scores of zero: h = 1 = K / N, so each of the 1 + K decisions costs log 2.
    loss = nce(torch.zeros(2, 6), torch.tensor(0.0), samples=5, tau=TAU)
    assert float(loss) == pytest.approx(6 * math.log(2))
    # Z = N over the mean, as at the start: h = 1 / N everywhere, log(1 + K) + K log(1 + 1 / K).
    loss = nce(torch.zeros(2, 6), torch.tensor(50.0).log(), samples=50, tau=TAU)
    assert float(loss) == pytest.approx(math.log(6) + 5 * math.log(6 / 5))


def test_nce_pulls_the_positive_and_pushes_negatives_by_their_odds():
    bank = F.normalize(torch.randn(30, 4, dtype=torch.float64), dim=1)
    anchor = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1).requires_grad_()
    rows = torch.randint(30, (3, 6))
    log_z = torch.tensor(2.0, dtype=torch.float64)
    nce(similarities(anchor, bank, rows), log_z, 30, TAU).backward()
    for b in range(3):
        slow = torch.zeros(4, dtype=torch.float64)
        for k in range(6):
            h = math.exp(float(anchor[b].detach() @ bank[rows[b, k]]) / TAU - 2)
            slow += (h / (h + 5 / 30) - (k == 0)) * bank[rows[b, k]] / TAU
        torch.testing.assert_close(anchor.grad[b], slow / 3)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_both_roads_give_one_number_and_one_gradient(dtype, within):
    g = torch.Generator().manual_seed(1)
    bank = F.normalize(torch.randn(500, 128, generator=g, dtype=dtype), dim=1)
    start = F.normalize(torch.randn(16, 128, generator=g, dtype=dtype), dim=1)
    rows = torch.randint(500, (16, 100), generator=g)
    weights = torch.randn(16, 100, generator=g, dtype=dtype) / 100
    got = []
    for whole, road in ((True, "Gather"), (False, "Squeeze")):
        anchor = start.clone().requires_grad_()
        scores = similarities(anchor, bank, rows, whole)
        assert road in scores.grad_fn.name()
        (scores * weights).sum().backward()
        got.append((scores.detach(), anchor.grad))
    for a, b in zip(*got, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=within)
    slow = torch.stack(
        [torch.stack([start[b] @ bank[r] for r in rows[b]]) for b in range(len(start))]
    )
    torch.testing.assert_close(got[0][0], slow, rtol=0, atol=within)


def test_the_road_is_chosen_by_size():
    anchor, rows = torch.randn(2, 4, requires_grad=True), torch.zeros(2, 3, dtype=torch.long)
    assert "Gather" in similarities(anchor, torch.randn(3 * WHOLE, 4), rows).grad_fn.name()
    assert "Squeeze" in similarities(anchor, torch.randn(3 * WHOLE + 1, 4), rows).grad_fn.name()


def test_scores_stay_float32_under_autocast():
    anchor, bank = F.normalize(torch.randn(2, 64)), F.normalize(torch.randn(9, 64))
    rows = torch.randint(9, (2, 5))
    for whole in (True, False):
        plain = similarities(anchor, bank, rows, whole)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(similarities(anchor, bank, rows, whole), plain)


# --- who is compared with whom ---


def test_outside_is_uniform_over_all_others_and_holds_none_of_ones_own():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 1])
    ring = labels.argsort(stable=True).repeat(2)
    start, end = torch.tensor([4]), torch.tensor([7])  # class 2 in order: 1 3 | 2 6 | 0 4 5
    bits = ((2 * torch.arange(400) + 1) * 2**31 // 800)[None]  # an even grid over [0, 2^31)
    assert Counter(outside(ring, start, end, bits)[0].tolist()) == {1: 100, 3: 100, 2: 100, 6: 100}
    start, end = torch.tensor([2]), torch.tensor([4])  # class 1, in the middle
    bits = ((2 * torch.arange(500) + 1) * 2**31 // 1000)[None]
    drawn = outside(ring, start, end, bits)[0]
    assert Counter(drawn.tolist()) == {0: 100, 4: 100, 5: 100, 1: 100, 3: 100}
    everything = outside(ring, torch.tensor([0]), torch.tensor([7]), bits)
    assert set(everything[0].tolist()) == set(range(7))  # nothing lies outside: all


def test_negatives_are_of_other_classes_and_the_positive_is_oneself():
    method, parts, _, _, batch = scene(negatives=50)
    rows = method._rows(parts, batch, clock())
    y = torch.arange(N) % CLASSES
    assert rows.shape == (12, 51)
    assert torch.equal(rows[:, 0], batch.index)
    assert bool((y[rows[:, 1:]] != batch.y[:, None]).all())
    assert not torch.equal(rows, method._rows(parts, batch, clock(1)))
    assert torch.equal(rows, method._rows(parts, batch, clock()))


def test_negatives_are_at_most_the_samples():
    method, parts, _, _, batch = scene(negatives=16384)
    assert method._rows(parts, batch, clock()).shape == (12, 1 + N)


def test_other_samples_need_no_labels_and_leave_oneself_out():
    method, parts, _, _, batch = scene(policy="samples", negatives=60)
    blind = batch.replace(y=None)
    seen = torch.cat([method._rows(parts, blind, clock(i))[:, 1:] for i in range(40)], 1)
    for i, row in enumerate(seen):
        assert set(row.tolist()) == set(range(N)) - {i}


def test_relax_takes_the_positive_from_the_class():
    method, parts, _, _, batch = scene(mode="relax")
    y = torch.arange(N) % CLASSES
    drawn = torch.stack([method._rows(parts, batch, clock(i))[:, 0] for i in range(200)], 1)
    assert bool((y[drawn] == batch.y[:, None]).all())
    assert set(drawn[0].tolist()) == set(range(0, N, CLASSES))  # all of class 0


def test_draws_do_not_depend_on_how_a_batch_is_split():
    for fields in ({}, {"mode": "relax"}, {"policy": "samples"}):
        method, parts, s, t, batch = scene(label=0, **fields)
        whole = method.terms(parts, s, t, batch, clock())["crd"]
        halves = [
            method.terms(parts, some(s, r), some(t, r), batch.select(r), clock())["crd"]
            for r in (slice(0, 6), slice(6, 12))
        ]
        torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2)


# --- banks and Z ---


def test_a_fresh_row_has_length_one_in_expectation_and_Z_follows():
    _, parts, s, t, _ = scene(n=4000, size=4, dim=128)
    for bank in (parts.student, parts.teacher):
        assert float(bank.abs().max()) == pytest.approx(1 / math.sqrt(128 / 3), rel=1e-3)
        assert float(bank.square().sum(1).mean()) == pytest.approx(1, rel=0.01)
    for i, (anchor, bank) in enumerate(
        zip(parts.embed(s, t), (parts.teacher, parts.student), strict=True)
    ):
        mean = sum(float((b @ a / TAU).exp()) for a in anchor.detach() for b in bank) / 16000
        assert float(parts.log_z[i]) == pytest.approx(math.log(4000 * mean), abs=1e-4)
        # a . b is nearly normal with variance 1 / D, and E exp(a . b / tau) = exp(1 / (2 D tau^2))
        law = math.log(4000) + 1 / (2 * 128 * TAU**2)
        assert float(parts.log_z[i]) == pytest.approx(law, abs=0.1)


def test_banks_are_drawn_by_the_runs_seed():
    banks = [scene(seed=seed)[1].student for seed in (3, 3, 4)]
    assert torch.equal(banks[0], banks[1])
    assert not torch.equal(banks[0], banks[2])


def test_a_row_moves_half_way_and_back_to_length_one():
    method, parts, *_ = scene(dim=2)
    before = parts.teacher.clone()
    parts.student[7], parts.student[3] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    seen = {
        "index": torch.tensor([7, 3]),
        "own": torch.tensor([2, 3]),
        "student": torch.tensor([[0.0, 1.0], [0.0, -0.2]]),
        "teacher": before[[7, 3]],
    }
    method.after_step(parts, seen, clock())
    half = math.sqrt(0.5)
    torch.testing.assert_close(parts.student[7], torch.tensor([half, half]))
    torch.testing.assert_close(parts.student[3], torch.tensor([0.0, 1.0]))
    rest = [i for i in range(N) if i not in (3, 7)]
    assert torch.equal(parts.teacher[rest], before[rest])
    slow = torch.tensor([0.9, 0.1]) / math.hypot(0.9, 0.1)
    other = scene(dim=2, momentum=0.9)
    other[1].student[7] = torch.tensor([1.0, 0.0])
    other[0].after_step(other[1], {k: v[:1] for k, v in seen.items()}, clock())
    torch.testing.assert_close(other[1].student[7], slow)


def test_of_a_sample_that_comes_twice_the_last_embedding_counts():
    method, parts, *_ = scene(dim=2, momentum=0.0)
    seen = {
        "index": torch.tensor([4, 9, 4]),
        "own": torch.tensor([4, 4, 4]),
        "student": F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=1),
        "teacher": torch.eye(2)[[0, 1, 0]],
    }
    method.after_step(parts, seen, clock())
    torch.testing.assert_close(parts.student[4], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(parts.student[9], torch.tensor([0.5, 0.5]).sqrt())


def test_labels_out_of_memory_are_learnt_as_they_come():
    method, known, s, t, batch = scene(policy="classes", negatives=50)
    with torch.no_grad(), Run():
        parts = method.build(s, t, batch, Facts(N, None, 10, 5, None))
    assert bool((parts.labels == -1).all())
    rows = method._rows(parts, batch, clock())  # nothing is known: over all
    assert bool((rows[:, 1:] == batch.index[:, None]).any())
    everyone = torch.arange(N)
    seen = {"index": everyone, "own": everyone % CLASSES}
    seen |= {"student": parts.student.clone(), "teacher": parts.teacher.clone()}
    method.after_step(parts, {k: v[:30] for k, v in seen.items()}, clock())
    assert torch.equal(parts.labels[:30], everyone[:30] % CLASSES)
    negatives = method._rows(parts, batch, clock())[:, 1:]
    same = (everyone % CLASSES)[negatives] == batch.y[:, None]
    assert bool((negatives[same] >= 30).all())  # of one's own class only rows that never moved
    assert bool(same.any())
    method.after_step(parts, {k: v[30:] for k, v in seen.items()}, clock())
    assert torch.equal(
        method._rows(parts, batch, clock()), method._rows(known, batch, clock())
    )  # as if they had been known


# --- the method ---


def test_terms_are_weighted_and_a_zero_weight_is_not_computed():
    method, parts, s, t, batch = scene()
    one = method.terms(parts, s, t, batch, clock())
    assert set(one) == {"label", "crd"}
    torch.testing.assert_close(one["label"], F.cross_entropy(s.logits, batch.y))
    more = CRD(label=0, crd=1.6, kd=0.5, negatives=20, dim=8, kd_tau=2.0)
    two = more.terms(parts, s, t, batch, clock())
    torch.testing.assert_close(two["crd"], 2 * one["crd"])
    p, q = (t.logits / 2).softmax(1), (s.logits / 2).softmax(1)
    torch.testing.assert_close(two["kd"], 0.5 * 4 * (p * (p / q).log()).sum(1).mean())
    del s.embedding
    off = CRD(crd=0)
    nothing = off.build(s, t, batch, Facts(N, CLASSES, 10, 5, batch.y))
    assert set(off.terms(nothing, s, t, batch, clock())) == {"label"}
    assert off.observe(nothing, s, t, batch) == {}
    off.after_step(nothing, {}, clock())


def test_crd_is_the_sum_of_both_directions():
    method, parts, s, t, batch = scene(label=0, crd=1)
    rows = method._rows(parts, batch, clock())
    total = 0.0
    sides = ((parts.head_s, s, parts.teacher), (parts.head_t, t, parts.student))
    for i, (head, side, bank) in enumerate(sides):
        for b in range(len(batch)):
            a = head.weight @ side.embedding[b] + head.bias
            a = a / a.square().sum().sqrt()
            h = [(a @ bank[r] / TAU).exp() / parts.log_z[i].exp() for r in rows[b]]
            total -= (h[0] / (h[0] + 20 / N)).log()
            total -= sum((20 / N / (x + 20 / N)).log() for x in h[1:])
    torch.testing.assert_close(method.terms(parts, s, t, batch, clock())["crd"], total / 12)


def test_gradients_reach_both_heads_and_no_bank():
    method, parts, s, t, batch = scene(label=0)
    s.embedding.requires_grad_()
    t.embedding.requires_grad_()
    method.terms(parts, s, t, batch, clock())["crd"].backward()
    for p in (*parts.parameters(), s.embedding, t.embedding):
        assert bool(p.grad.abs().sum() > 0)
    assert not any(b.requires_grad for b in parts.buffers())


@pytest.mark.parametrize("y", [torch.rand(12), torch.zeros(12, 3, dtype=torch.long)])
def test_y_that_is_no_class_number_is_refused_in_a_sentence(y):
    method, _, s, t, batch = scene()
    with pytest.raises(UsageError, match="policy='samples'"):
        method.build(s, t, batch.replace(y=y), Facts(N, None, 10, 5, None))


class Pairs(torch.utils.data.Dataset):
    """A data set whose labels are known only by reading it."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __getitem__(self, i):
        return self.x[i], self.y[i]

    def __len__(self):
        return len(self.x)


def net(width):
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, CLASSES))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_fit_brings_both_embeddings_of_a_sample_together(in_memory):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(100) % CLASSES
    centres = 2 * torch.randn(CLASSES, 10, generator=g)
    x = centres[y] + torch.randn(100, 10, generator=g)
    torch.manual_seed(0)
    task = Task(
        net(32), lambda: net(8), (x, y) if in_memory else Pairs(x, y),
        budget=Budget(epochs=25, batch=20, optimiser=Optimiser(lr=1e-2)),
        taps={"embedding": ("2:in", "2:in")},
    )  # fmt: skip
    with Run(task, seed=1, device="cpu") as run:
        student = run.student(task)
        fitted = fit(
            CRD(negatives=100, dim=16), student, task.the_teacher(), task.batches(), name="fit"
        )
    first, last = fitted.log[0]["terms"], fitted.log[-1]["terms"]
    assert last["crd"] < first["crd"]
    bank_s, bank_t = fitted.parts.student, fitted.parts.teacher
    torch.testing.assert_close(bank_s.norm(dim=1), torch.ones(100))
    scores = bank_s @ bank_t.T
    other = y[:, None] != y
    assert float(scores.diagonal().mean()) > float(scores[other].mean()) + 0.5
    assert torch.equal(fitted.parts.labels, y)


def test_embeddings_of_half_precision_are_taken():
    method, _, s, t, batch = scene()
    s.embedding, t.embedding = s.embedding.bfloat16(), t.embedding.bfloat16()
    with torch.no_grad():
        parts = method.build(s, t, batch, Facts(N, CLASSES, 10, 5, batch.y))
    assert [x.dtype for x in parts.embed(s, t)] == [torch.float32] * 2
