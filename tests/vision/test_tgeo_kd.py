"""tgeo_kd: the state, class means, both losses, the hypergradient three ways, a loop by hand."""

import copy
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch, Beside, Epochs
from limbeck.core.engine import fit
from limbeck.core.method import Clock
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import Missing, UsageError
from limbeck.registry import make
from limbeck.vision import tgeo_kd
from limbeck.vision.tgeo_kd import Fused, TGeoKD, both_losses, means_of
from limbeck.vision.tgeo_kd.geometry import Fusion, State, state_of
from limbeck.vision.tgeo_kd.virtual import Judges, Rows, Twin, stepped

pytestmark = pytest.mark.xdist_group("tgeo_kd")

C, N, D = 4, 6, 5


def scene(
    seed: int = 0, student: nn.Module | None = None, teacher: nn.Module | None = None, **fields
):
    """A two-layer student in double precision, its teacher, and one batch with five judges."""
    torch.manual_seed(seed)
    student = student or nn.Sequential(nn.Linear(D, 7), nn.Tanh(), nn.Linear(7, C)).double()
    teacher = teacher or nn.Linear(D, C).double()
    x, y = torch.randn(N, D).double(), torch.tensor([0, 1, 2, 3, 1, 2])
    judges = Batch(x=torch.randn(5, D).double(), y=torch.tensor([3, 0, 1, 1, 2]))
    m = TGeoKD(**{"tau": 2.0, "virtual": 0.7, **fields})
    parts = Fusion(torch.rand(C, C).softmax(1), m.hidden, m.state).double()
    batch = Batch(x=x, y=y, judges=judges)
    with torch.no_grad():
        t = SimpleNamespace(logits=teacher(x))
    s = SimpleNamespace(model=student, batch=batch, logits=student(x))
    return Fused(m, parts.means), parts, s, t, batch


def at(phase: str) -> Clock:
    return Clock(0, "fit", 3, 10, 5, phase=phase)


def by_step(m: TGeoKD, parts: Fusion, s, t, batch: Batch) -> float:
    """The judges' loss after one step of torch's own SGD, on a copy, sample by sample."""
    twin = copy.deepcopy(s.model)
    z = twin(batch.x)
    with torch.no_grad():
        a = parts(z, t.logits, batch.y)
    loss = torch.zeros((), dtype=torch.float64)
    for i, y in enumerate(batch.y.tolist()):
        p = (t.logits[i] / m.tau).softmax(0)
        q = (z[i] / m.tau).softmax(0)
        soft = m.tau**2 * sum(p[c] * (p[c] / q[c]).log() for c in range(C))
        hard = -z[i].softmax(0)[y].log()
        loss = loss + (m.label * (1 - a[i]) * hard + m.kd * a[i] * soft) / len(batch.y)
    twin.zero_grad()
    loss.backward()
    torch.optim.SGD(twin.parameters(), lr=m.virtual).step()
    with torch.no_grad():
        out = twin(batch.judges.x).log_softmax(1)
        return -float(torch.stack([out[i, y] for i, y in enumerate(batch.judges.y)]).mean())


def flat(tensors) -> Tensor:
    return torch.cat([g.flatten() for g in tensors])


# -- the state -------------------------------------------------------------------------------------


def test_states_have_their_lengths_and_no_sides_where_all_points_are_one() -> None:
    p = torch.rand(3, C).softmax(1)
    lengths = {k: state_of(p, p, p, p, k).shape[1] for k in get_args(State)}
    assert lengths == {
        "points+sides": 9 * C, "points": 4 * C, "sides": 3 * C, "angles": 2 * C,
        "points+angles": 6 * C, "sides+angles": 5 * C, "all": 9 * C, "summary": 10,
    }  # fmt: skip
    assert not state_of(p, p, p, p)[:, 4 * C :].any()
    assert not state_of(p, p, p, p, "sides+angles").any()
    assert not state_of(p, p, p, p, "summary")[:, :7].any()


def test_a_state_by_hand() -> None:
    s, t = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.75, 0.25]])
    g, o = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.25, 0.75]])
    sides = [0.0625, 0.0625, 0.25, 0.25, 0.0625, 0.0625]  # o - s, g - s, t - s
    more = [0.5625, 0.5625, 0.0625, 0.0625]  # t - g, o - g
    angles = [0.125, 0.125, -0.125, -0.125]  # at S, between O and G, and between T and G
    points = [0.5, 0.5, 0.75, 0.25, 0.0, 1.0, 0.25, 0.75]
    assert state_of(s, t, g, o)[0].tolist() == points + sides + more
    assert state_of(s, t, g, o, "all")[0].tolist() == points + sides + angles
    assert state_of(s, t, g, o, "points+angles")[0].tolist() == points + angles
    lengths = [(2 * d) ** 0.5 for d in (0.0625, 0.25, 0.0625, 0.5625, 0.0625)]
    wanted = torch.tensor([*lengths, 0.25, -0.25, 0.5, 0.25, 0.75])
    torch.testing.assert_close(state_of(s, t, g, o, "summary")[0], wanted)


def test_class_means_are_those_of_a_loop_and_a_lone_sample_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def means(*chunks: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        seen = [(Batch(y=y), SimpleNamespace(logits=z)) for z, y in chunks]
        monkeypatch.setattr(tgeo_kd, "look_over", lambda task, rows: seen)
        return tgeo_kd.means_of(None, None)  # type: ignore[arg-type]

    z, y = torch.randn(7, 3), torch.tensor([0, 2, 0, 2, 2, 0, 0])
    found = means((z[:3], y[:3]), (z[3:], y[3:]))
    for c in (0, 2):
        own = [z[i].softmax(0) for i in range(7) if y[i] == c]
        torch.testing.assert_close(found[c], sum(own) / len(own))
    assert not found[1].any()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(means((z[:3], order))[order], z[:3].softmax(1))
    assert means((z[:3], order % 2)).shape == (3, 3)  # nobody is of the last class


# -- both levels -----------------------------------------------------------------------------------


def test_ratios_of_zero_and_one_are_cross_entropy_and_kl() -> None:
    fused, parts, s, t, batch = scene(state="points")
    for bias, left in ((-80.0, "label"), (80.0, "kd")):
        with torch.no_grad():
            parts.net[-2].bias.fill_(bias)
        out = fused.terms(parts, s, t, batch, at("inner"))
        assert list(out) == ["label", "kd"]
        other = out["kd" if left == "label" else "label"]
        assert abs(float(other.detach())) < 1e-30
        wanted = F.cross_entropy(s.logits, batch.y)
        if left == "kd":
            p = (t.logits / 2).softmax(1)
            wanted = 4 * (p * (p.log() - (s.logits / 2).log_softmax(1))).sum(1).mean()
        torch.testing.assert_close(out[left], wanted)


def test_the_ratio_is_in_0_to_1_and_its_state_gives_the_student_no_gradient() -> None:
    _, parts, s, t, batch = scene()
    a = parts(s.logits, t.logits, batch.y)
    assert a.shape == (N,)
    assert 0 < float(a.min().detach()) <= float(a.max().detach()) < 1
    grads = torch.autograd.grad(a.sum(), list(s.model.parameters()), allow_unused=True)
    assert all(g is None for g in grads)
    slope = [layer.negative_slope for layer in parts.net if isinstance(layer, nn.LeakyReLU)]
    assert slope == [0.01, 0.01]
    assert [m.out_features for m in parts.net if isinstance(m, nn.Linear)] == [32, 16, 1]
    assert parts.net[0].in_features == 9 * C


@pytest.mark.parametrize("seed", [0, 1])
def test_the_hypergradient_is_that_of_finite_differences(seed: int) -> None:
    fused, parts, s, t, batch = scene(seed, label=0.8, kd=1.3)
    out = fused.terms(parts, s, t, batch, at("outer"))
    assert list(out) == ["outer"]
    there = by_step(fused.m, parts, s, t, batch)
    assert float(out["outer"].detach()) == pytest.approx(there, rel=1e-12)
    grads = torch.autograd.grad(out["outer"], list(parts.net.parameters()))
    assert float(flat(grads).norm()) > 1e-4
    eps, rng = 1e-5, torch.Generator().manual_seed(seed)
    for p, g in zip(parts.net.parameters(), grads, strict=True):
        for k in torch.randint(p.numel(), (4,), generator=rng).tolist():
            values = []
            for step in (eps, -eps):
                with torch.no_grad():
                    p.view(-1)[k] += step
                values.append(by_step(fused.m, parts, s, t, batch))
                with torch.no_grad():
                    p.view(-1)[k] -= step
            rise = (values[0] - values[1]) / (2 * eps)
            assert float(g.flatten()[k]) == pytest.approx(rise, rel=1e-5, abs=1e-9)


def inner_products(fused: Fused, s, t, batch: Batch, a: Tensor) -> Tensor:
    """dL_val/da_i = -(eta/n) <grad L_val(theta'), grad(tau^2 KL_i) - grad(CE_i)>, one by one."""
    m, params = fused.m, list(s.model.parameters())
    hard, soft = both_losses(s.logits, t.logits, batch.y, m.tau)
    n = len(batch.y)
    loss = (m.label * (1 - a) * hard + m.kd * a * soft).mean()
    step = torch.autograd.grad(loss, params, retain_graph=True)
    moved = copy.deepcopy(s.model)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), step, strict=True):
            p -= m.virtual * g
    judged = F.cross_entropy(moved(batch.judges.x), batch.judges.y)
    v = flat(torch.autograd.grad(judged, list(moved.parameters())))
    each = []
    for i in range(n):
        own = flat(torch.autograd.grad(m.kd * soft[i], params, retain_graph=True))
        own = own - flat(torch.autograd.grad(m.label * hard[i], params, retain_graph=True))
        each.append(-m.virtual / n * (v @ own))
    return torch.stack(each)


def test_the_hypergradient_is_that_of_the_inner_products() -> None:
    fused, parts, s, t, batch = scene(label=0.8, kd=1.3)
    found = torch.autograd.grad(
        fused.terms(parts, s, t, batch, at("outer"))["outer"], list(parts.net.parameters())
    )
    a = parts(s.logits, t.logits, batch.y)
    each = inner_products(fused, s, t, batch, a.detach())
    wanted = torch.autograd.grad(a, list(parts.net.parameters()), each)
    torch.testing.assert_close(flat(found), flat(wanted), rtol=1e-9, atol=1e-14)


def test_with_a_teacher_that_is_the_student_only_labels_count() -> None:
    net = nn.Sequential(nn.Linear(D, 7), nn.Tanh(), nn.Linear(7, C)).double()
    fused, parts, s, t, batch = scene(student=net, teacher=net)
    soft = fused.terms(parts, s, t, batch, at("inner"))["kd"]
    assert abs(float(soft.detach())) < 1e-14
    grads = torch.autograd.grad(soft, list(net.parameters()), retain_graph=True)
    assert float(flat(grads).abs().max()) < 1e-14
    a = parts(s.logits, t.logits, batch.y).detach()
    params, eta = list(net.parameters()), fused.m.virtual
    each = F.cross_entropy(s.logits, batch.y, reduction="none")
    step = torch.autograd.grad(((1 - a) * each).mean(), params, retain_graph=True)
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), step, strict=True):
            p -= eta * g
    judged = F.cross_entropy(moved(batch.judges.x), batch.judges.y)
    v = flat(torch.autograd.grad(judged, list(moved.parameters())))
    wanted = [eta / N * v @ flat(torch.autograd.grad(e, params, retain_graph=True)) for e in each]
    torch.testing.assert_close(
        inner_products(fused, s, t, batch, a), torch.stack(wanted), rtol=1e-9, atol=1e-14
    )


# -- the virtual step ------------------------------------------------------------------------------


def test_the_virtual_step_leaves_the_student_and_its_statistics() -> None:
    net = nn.Sequential(nn.Linear(D, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, C)).double()
    net[0].weight.requires_grad_(False)
    fused, parts, s, t, batch = scene(student=net)
    before = copy.deepcopy(net.state_dict())
    loss = fused.terms(parts, s, t, batch, at("outer"))["outer"]
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    grads = torch.autograd.grad(
        loss, list(net[3].parameters()), retain_graph=True, allow_unused=True
    )
    assert all(g is None for g in grads)
    assert float(flat(torch.autograd.grad(loss, list(parts.net.parameters()))).norm()) > 0
    twin = Twin(net)
    weights, moving = twin.weights()
    assert moving == ["0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    moved = stepped(twin.logits(weights, batch.x).square().sum(), weights, moving, 0.1)
    assert torch.equal(moved["0.weight"], net[0].weight)
    assert not torch.equal(moved["3.bias"], net[3].bias)


def test_only_the_named_module_takes_the_step() -> None:
    fused, parts, s, t, batch = scene(through="2")
    loss = fused.terms(parts, s, t, batch, at("outer"))["outer"]
    twin = copy.deepcopy(s.model)
    z = twin(batch.x)
    a = parts(z, t.logits, batch.y).detach()
    hard, soft = both_losses(z, t.logits, batch.y, 2.0)
    ((1 - a) * hard + a * soft).mean().backward()
    torch.optim.SGD(twin[2].parameters(), lr=0.7).step()
    torch.testing.assert_close(loss, F.cross_entropy(twin(batch.judges.x), batch.judges.y))
    assert float(flat(torch.autograd.grad(loss, list(parts.net.parameters()))).norm()) > 0
    fused, *rest = scene(through="head")
    with pytest.raises(Missing, match="goes through 'head', but no weights"):
        fused.terms(*rest, at("outer"))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(1, 24), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.into(x[..., None]).view(len(x), 1, -1, 24).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean((1, 2)))


def test_attention_has_a_hypergradient_too() -> None:
    torch.manual_seed(1)
    net = Attends().double()
    fused, parts, s, t, batch = scene(student=net)
    out = fused.terms(parts, s, t, batch, at("outer"))["outer"]
    assert float(out.detach()) == pytest.approx(by_step(fused.m, parts, s, t, batch), rel=1e-9)
    assert float(flat(torch.autograd.grad(out, list(parts.net.parameters()))).norm()) > 0


def test_the_students_reader_stands_before_the_twin_too() -> None:
    fused, parts, s, t, batch = scene()
    task = Task(None, s.model, (batch.x, batch.y), readers={"student": lambda x: 2 * x - 1})
    with Run(task):
        found = fused.terms(parts, s, t, batch, at("outer"))["outer"]
    seen = batch.replace(x=2 * batch.x - 1, judges=batch.judges.replace(x=2 * batch.judges.x - 1))
    s.batch = seen
    torch.testing.assert_close(found, fused.terms(parts, s, t, seen, at("outer"))["outer"])


# -- samples ---------------------------------------------------------------------------------------


def numbers(of: Epochs, batch: int, draws: int, micro: int = 1) -> list[list[int]]:
    found = []
    for draw in range(draws):
        clocks = [
            Clock(3, "fit", 0, 9, 9, batch=batch, draw=draw, n=n, of=micro) for n in range(micro)
        ]
        found.append([int(i) for c in clocks for i in of(nn.Module(), None, c).index])
    return found


def halves(m: TGeoKD, task: Task) -> tuple[Rows, Judges]:
    rows, both = m.batches(task)
    assert isinstance(both, Beside)
    assert torch.equal(both.main.own, rows)
    return both.main, both.others["judges"]


def test_another_set_may_judge_but_not_the_one_that_is_reported() -> None:
    x, y = torch.arange(40.0)[:, None], torch.arange(40) % 4
    task = Task(
        None, nn.Linear(1, 4), (x, y), valid=(x[:6] + 100, y[:6]), data={"clean": (x - 50, y)}
    )
    with Run(task):
        train, judges = halves(TGeoKD(judges="clean"), task)
        batch = judges(nn.Module(), None, Clock(3, "fit", 0, 9, 9, batch=6))
        assert len(train.own) == len(judges.own) == 40
        assert torch.equal(batch.y, (batch.x[:, 0] + 50).long() % 4)
        with pytest.raises(UsageError, match="learn from 'valid', which the score is reported on"):
            TGeoKD(judges="valid").batches(task)
        with pytest.raises(Missing, match="no set 'dirty'"):
            TGeoKD(judges="dirty").batches(task)
    task.test = task.valid
    with Run(task):
        assert len(halves(TGeoKD(judges="valid"), task)[1].own) == 6


def test_judges_are_held_out_and_samples_keep_their_numbers() -> None:
    x, y = torch.arange(40.0)[:, None], torch.arange(40) % 4
    task = Task(None, nn.Linear(1, 4), (x, y))
    with Run(task, seed=5):
        train, few = halves(TGeoKD(hold=0.25), task)
    rows, judges = train.own, few.own
    assert len(judges) == 10
    assert sorted([*rows.tolist(), *judges.tolist()]) == list(range(40))
    with Run(task, seed=6):
        assert not torch.equal(judges, halves(TGeoKD(hold=0.25), task)[1].own)
    assert train.per_epoch(7) == 4
    assert torch.equal(train.labels(), y[rows])
    seen = [i for each in numbers(train, 15, 2) for i in each]
    assert sorted(seen) == rows.tolist()
    assert numbers(train, 6, 4) == numbers(Rows((x, y), rows), 6, 4, micro=3)
    batch = train(nn.Module(), None, Clock(3, "fit", 0, 9, 9, batch=6))
    assert torch.equal(batch.x[:, 0].long(), batch.index)
    laps = [i for each in numbers(few, 15, 4) for i in each]
    assert all(sorted(laps[k : k + 10]) == judges.tolist() for k in range(0, 60, 10))
    assert laps[:10] != laps[10:20]
    assert numbers(few, 15, 4) == numbers(few, 15, 4, micro=3)


def test_means_are_of_the_training_rows_alone() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(30, D), torch.arange(30) % C
    teacher = nn.Linear(D, C)
    task = Task(teacher, nn.Linear(D, C), (x, y))
    rows = torch.arange(0, 30, 2)
    with Run(task):
        found = means_of(task, rows)
    for c in range(C):
        own = [teacher(x[i]).softmax(0) for i in rows.tolist() if y[i] == c]
        wanted = sum(own) / len(own) if own else torch.zeros(C)
        torch.testing.assert_close(found[c], wanted)


def test_weights_of_zero_and_mistakes() -> None:
    fused, parts, s, t, batch = scene(label=0.0)
    assert list(fused.terms(parts, s, t, batch, at("inner"))) == ["kd"]
    fused, parts, s, t, batch = scene(kd=0.0)
    assert list(fused.terms(parts, s, t, batch, at("inner"))) == ["label"]
    assert [p.name for p in fused.update()] == ["outer", "inner"]
    assert [p.name for p in Fused(TGeoKD(outer=0.0), parts.means).update()] == ["inner"]
    x = torch.randn(8, D)
    for task, told in (
        (Task(nn.Linear(D, C), nn.Linear(D, C), (x, torch.rand(8, C))), r"y is \(7, 4\)"),
        (Task(nn.Linear(D, C), nn.Linear(D, C), (x[:1], torch.tensor([0]))), "1 of 1 samples"),
    ):
        with pytest.raises(UsageError, match=told), Run(task):
            TGeoKD().run(task)
    for bad in ("hold=1.0", "hidden=(0,)", "virtual=0", "state='edges'"):
        with pytest.raises(UsageError):
            make(f"tgeo_kd({bad})")


# -- runs ------------------------------------------------------------------------------------------


def test_a_fit_is_the_loop_that_one_would_write() -> None:
    torch.manual_seed(2)
    x, y = torch.randn(20, D), torch.arange(20) % C
    teacher, student = nn.Linear(D, C), nn.Linear(D, C)
    m = TGeoKD(hold=0.5, tau=2.0, fusion_lr=0.05, virtual=0.5)
    budget = Budget(steps=4, batch=10, schedule="constant", optimiser=Optimiser("sgd", lr=0.3))
    task = Task(teacher, student, (x, y), budget=budget)
    began = []
    with Run(
        task, seed=1, device="cpu", on_fit=lambda f: began.append(copy.deepcopy(f.parts))
    ) as run:
        rows, both = m.batches(task)
        means, judges = means_of(task, rows), both.others["judges"].own
        done = fit(Fused(m, means), run.student(task), task.the_teacher(), both, name="fit")
    mine, w = copy.deepcopy(student), began[0]
    climber = torch.optim.AdamW(w.net.parameters(), lr=0.05, weight_decay=0.0)
    zt = teacher(x[rows]).detach()
    p = (zt / 2).softmax(1)

    def loss(weight: Tensor, bias: Tensor, fixed: bool) -> Tensor:
        z = x[rows] @ weight.T + bias
        a = w(z, zt, y[rows])
        a = a.detach() if fixed else a
        soft = 4 * (p * (p.log() - (z / 2).log_softmax(1))).sum(1)
        return ((1 - a) * F.cross_entropy(z, y[rows], reduction="none") + a * soft).mean()

    for _ in range(4):
        leaves = [q.detach().clone().requires_grad_() for q in mine.parameters()]
        grads = torch.autograd.grad(loss(*leaves, fixed=False), leaves, create_graph=True)
        weight, bias = (q - 0.5 * g for q, g in zip(leaves, grads, strict=True))
        climber.zero_grad()
        F.cross_entropy(x[judges] @ weight.T + bias, y[judges]).backward()
        climber.step()
        leaves = [q.detach().clone().requires_grad_() for q in mine.parameters()]
        grads = torch.autograd.grad(loss(*leaves, fixed=True), leaves)
        with torch.no_grad():
            for q, g in zip(mine.parameters(), grads, strict=True):
                q -= 0.3 * g
    for one, two in zip(done.student.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    for one, two in zip(done.parts.net.parameters(), w.net.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    result = limbeck.run(m, task, seed=1, device="cpu")
    for one, two in zip(result.model.parameters(), done.student.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_teacher_is_believed_less_where_it_is_wrong() -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, D, generator=g)
    truth, teacher = nn.Linear(D, C, bias=False), nn.Linear(D, C, bias=False)
    with torch.no_grad():
        truth.weight.copy_(torch.randn(C, D, generator=g))
        teacher.weight.copy_(truth.weight[[0, 1, 3, 2]])  # it takes two classes for each other
        y = truth(x).argmax(1)
    budget = Budget(steps=60, batch=50, optimiser=Optimiser("sgd", lr=0.1))
    task = Task(teacher, nn.Linear(D, C), (x, y), budget=budget)
    m = TGeoKD(fusion_lr=0.01)
    with Run(task, seed=0, device="cpu") as run:
        rows, both = m.batches(task)
        fused = Fused(m, means_of(task, rows))
        done = fit(fused, run.student(task), task.the_teacher(), both, name="fit")
        with torch.no_grad():
            a, right = done.parts(done.student(x), teacher(x), y), teacher(x).argmax(1) == y
    assert 100 < int(right.sum()) < 300
    assert float(a[~right].mean()) < 0.02
    assert float(a[right].mean()) > 5 * float(a[~right].mean())
