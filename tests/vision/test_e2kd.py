"""e2kd: explanations against closed forms, second-order gradients, crops, and frozen maps."""

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.method import Clock, Facts
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teacher import Setting
from limbeck.core.teachers import BlackBox, Frozen
from limbeck.core.views import Look
from limbeck.errors import Missing, UsageError
from limbeck.vision._kit.keeping import Drawn
from limbeck.vision.e2kd import E2KD, binary_cross_entropy, binary_kl
from limbeck.vision.e2kd.maps import boxes, cut, explanation_loss, grad_cam, input_gradient

pytestmark = pytest.mark.xdist_group("e2kd")


class Pooled(nn.Module):
    """Convolutions, a mean over places and a linear head: where Grad-CAM is the class's map."""

    def __init__(self, width: int, act: type[nn.Module] = nn.ReLU, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), act(), nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1), act(),
        )  # fmt: skip
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


G = torch.Generator().manual_seed(4)
X = torch.randn(60, 1, 8, 8, generator=G)
Y = torch.arange(60) % 3


def clock(step: int = 0) -> Clock:
    return Clock(0, "fit", step, 10, 5)


def sides(
    student: nn.Module, teacher: nn.Module, n: int = 6, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any, Batch]:
    paths = {"feature": "body"}
    batch = Batch(x=X[:n].to(dtype), y=Y[:n], index=torch.arange(n))
    live = Frozen(teacher).attach(Setting(paths, graph=True))
    return Look(student, "student", paths).side_of(batch), live.side(batch, clock()), batch


# --- explanations --------------------------------------------------------------------------------


def test_grad_cam_of_a_pooled_network_is_its_class_map() -> None:
    net = Pooled(5)
    a = net.body(X[:6])
    z = net.head(a.mean((2, 3)))
    c = torch.tensor([0, 1, 2, 2, 1, 0])
    cam = grad_cam(a, z.gather(1, c[:, None])[:, 0])
    slow = torch.zeros(6, 4, 4)
    for i in range(6):
        for k in range(5):
            slow[i] += net.head.weight[c[i], k] * a[i, k] / 16
    torch.testing.assert_close(cam[:, 0], slow.relu())


def test_grad_cam_by_hand() -> None:
    # z = 2 a_0 at one place - a_1 summed: w = (2 / 4, -1), of two maps of 2 x 2.
    a = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [1.0, 3.0]]]], requires_grad=True)
    z = 2 * a[:, 0, 0, 0] - a[:, 1].sum((1, 2))
    torch.testing.assert_close(grad_cam(a, z), torch.tensor([[[[0.0, 1.0], [0.5, 0.0]]]]))


def test_input_gradients_add_up_to_the_logit_where_nothing_is_biased() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 36, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False),
    )  # fmt: skip
    x = X[:5].clone().requires_grad_()
    z = net(x)[:, 1]
    e = input_gradient(x, z)
    torch.testing.assert_close((x * e).sum((1, 2, 3)), z, atol=1e-5, rtol=1e-4)


def test_the_loss_is_of_directions_alone() -> None:
    a, b = torch.rand(2, 3, 1, 4, 4)
    assert abs(float(explanation_loss(7 * a, a))) < 1e-6
    slow = sum(1 - F.cosine_similarity(a[i].flatten(), b[i].flatten(), 0) for i in range(3)) / 3
    torch.testing.assert_close(explanation_loss(a, b), slow)
    torch.testing.assert_close(explanation_loss(3 * a, 0.1 * b), slow)
    right = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 1.0]]]])
    other = torch.tensor([[[[0.0, 1.0]]], [[[1.0, 1.0]]]])
    assert float(explanation_loss(right, other)) == pytest.approx(0.5)


def test_a_map_that_is_zero_counts_one_and_has_no_gradient() -> None:
    a, b = torch.rand(2, 3, 1, 4, 4)
    a[1] = 0
    b[2] = 0
    a.requires_grad_()
    loss = explanation_loss(a, b)
    first = 1 - F.cosine_similarity(a[0].flatten(), b[0].flatten(), 0)
    torch.testing.assert_close(loss, (first + 2) / 3)
    (slope,) = torch.autograd.grad(loss, a)
    assert bool(slope.isfinite().all())
    assert not bool(slope[1:].any())
    assert bool(slope[0].any())


def test_the_second_order_gradient_is_that_of_differences() -> None:
    student, teacher = Pooled(3, nn.Softplus, 1).double(), Pooled(4, nn.Softplus, 2).double()

    def loss() -> Tensor:
        s, t, batch = sides(student, teacher, dtype=torch.float64)
        return E2KD(kd=0.0).terms(nn.Module(), s, t, batch, clock())["explain"]

    for p in (student.body[0].weight, student.body[3].bias, student.head.weight):
        (slope,) = torch.autograd.grad(loss(), p)
        at = int(slope.abs().argmax())
        flat, step = p.data.view(-1), 1e-6
        start, ends = float(flat[at]), []
        for sign in (1, -1):
            flat[at] = start + sign * step
            ends.append(float(loss().detach()))
        flat[at] = start
        slow = (ends[0] - ends[1]) / (2 * step)
        assert float(slope.view(-1)[at]) == pytest.approx(slow, rel=1e-5)
        assert abs(slow) > 1e-4


# --- the terms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gradcam", "input"])
def test_terms_by_hand(kind: Any) -> None:
    student, teacher = Pooled(3, seed=1), Pooled(5, seed=2)
    s, t, batch = sides(student, teacher)
    method = E2KD(label=0.5, kd=2.0, explain=3.0, tau=5.0, kind=kind)
    if kind == "input":
        prepared = method.prepare(batch, clock().rng)[0]
        s = Look(student, "student", {"feature": "body"}).side_of(prepared)
    out = method.terms(nn.Module(), s, t, batch, clock())
    torch.testing.assert_close(out["label"], 0.5 * F.cross_entropy(student(X[:6]), Y[:6]))
    p, q = (m(X[:6]).div(5).softmax(1) for m in (teacher, student))
    torch.testing.assert_close(out["kd"], 2 * 25 * (p * (p / q).log()).sum(1).mean())
    first, maps = teacher(X[:6]).argmax(1), []
    for net in (student, teacher):
        rows = []
        for i in range(6):  # one picture at a time
            x = X[i : i + 1].clone().requires_grad_()
            a = net.body(x)
            z = net.head(a.mean((2, 3)))[0, first[i]]
            if kind == "input":
                rows.append(torch.autograd.grad(z, x)[0])
            else:
                w = torch.autograd.grad(z, a)[0].mean((2, 3))
                cam = torch.einsum("bk,bkhw->bhw", w, a).relu()[None]
                rows.append(F.interpolate(cam, (8, 8), mode="bilinear"))
        maps.append(torch.cat(rows).flatten(1))
    slow = (1 - F.cosine_similarity(maps[0], maps[1], 1, 1e-8)).mean()
    torch.testing.assert_close(out["explain"], 3 * slow)
    assert 0.01 < float(slow.detach()) < 1.9


@pytest.mark.parametrize("tau", [1.0, 5.0])
def test_several_labels_by_loops(tau: float) -> None:
    s, t = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    s.requires_grad_()
    p, q = (t / tau).sigmoid(), (s / tau).sigmoid().detach()
    slow = [
        sum(
            float(p[b, c] * (p[b, c] / q[b, c]).log())
            + float((1 - p[b, c]) * ((1 - p[b, c]) / (1 - q[b, c])).log())
            for c in range(4)
        )
        for b in range(5)
    ]
    loss = binary_kl(s, t, tau)
    torch.testing.assert_close(loss.detach(), tau**2 * torch.tensor(slow, dtype=torch.float64))
    (slope,) = torch.autograd.grad(loss.sum(), s)
    torch.testing.assert_close(slope, tau * (q - p))
    assert float(binary_kl(t, t, tau).sum()) == 0
    far = binary_kl(torch.tensor([[200.0, -200.0]]), torch.tensor([[-200.0, 200.0]]))
    assert far.tolist() == [400.0]
    # p = 1/4, q = 1/2: (log(1/2) + 3 log(3/2)) / 4.
    by_hand = (0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log())[None]
    z = torch.tensor([[1 / 3]]).log()
    torch.testing.assert_close(binary_kl(torch.zeros(1, 1), z), by_hand)


def test_several_labels_change_kd_and_label_alone() -> None:
    student, teacher = Pooled(3, seed=1), Pooled(5, seed=2)
    y = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0]]).repeat(2, 1)
    s, t, batch = sides(student, teacher)
    given = {"label": 0.5, "kd": 2.0, "tau": 5.0}
    one = E2KD(**given).terms(nn.Module(), s, t, batch, clock())
    several = E2KD(**given, labels="several")
    out = several.terms(nn.Module(), s, t, batch.replace(y=y), clock())
    assert torch.equal(out["explain"], one["explain"])
    z, z_t = student(X[:6]), teacher(X[:6])
    torch.testing.assert_close(out["kd"], 2 * binary_kl(z, z_t, 5.0).mean())
    assert not torch.allclose(out["kd"], one["kd"], rtol=0.01)
    q, total = z.sigmoid(), torch.zeros(())
    for b in range(6):
        for c in range(3):
            total = total - (q[b, c] if y[b, c] else 1 - q[b, c]).log() / 6
    torch.testing.assert_close(out["label"], 0.5 * total)
    with pytest.raises(UsageError, match="give 0 or 1 for each label"):
        binary_cross_entropy(z, Y[:6])


def test_a_run_on_several_labels_brings_each_ones_probability_nearer() -> None:
    y = torch.stack((Y == 0, Y != 1, Y == 2), 1).long()
    given = task(train=(X, y), budget=Budget(epochs=12, batch=20, optimiser=Optimiser(lr=0.02)))
    fields = {"label": 0.1, "labels": "several"}
    result = limbeck.run("e2kd", given, device="cpu", **fields)
    with torch.no_grad():
        goal, first = given.teacher(X), Pooled(6, seed=1)(X)
        after = result.model.eval()(X)
    assert float(binary_kl(after, goal).mean()) < 0.7 * float(binary_kl(first, goal).mean())


def test_both_sides_alike_explain_alike_and_the_class_is_the_teachers() -> None:
    teacher = Pooled(5)
    s, t, batch = sides(Pooled(5), teacher)
    out = E2KD().terms(nn.Module(), s, t, batch, clock())
    assert abs(float(out["kd"].detach())) < 1e-7
    alive = sum(bool(x.any()) for x in E2KD()._taught(t, batch)[1])
    assert alive > 0
    assert float(out["explain"].detach()) == pytest.approx(1 - alive / 6, abs=1e-6)
    student = Pooled(5)
    with torch.no_grad():
        student.head.bias += torch.tensor([9.0, 0.0, 0.0])  # says 0; its reasons do not change
    s, t, batch = sides(student, teacher)
    again = E2KD().terms(nn.Module(), s, t, batch, clock())["explain"]
    torch.testing.assert_close(again, out["explain"])


def test_without_explanations_it_is_kd_and_asks_no_graph() -> None:
    student, teacher = Pooled(3, seed=1), Pooled(5, seed=2)
    method = E2KD(explain=0.0, tau=5.0)
    s, t, batch = sides(student, teacher)
    out = method.terms(nn.Module(), s, t, batch, clock())
    assert set(out) == {"kd"}
    from limbeck.registry import make

    same = make("kd", label=0, kd=1, tau=5).terms(nn.Module(), s, t, batch, clock())
    torch.testing.assert_close(out["kd"], same["kd"])
    assert "teacher_graph" not in method.asks()
    assert "teacher_graph" in E2KD().asks()


def test_maps_are_compared_at_every_so_many_steps() -> None:
    student, teacher = Pooled(3, seed=1), Pooled(5, seed=2)
    s, t, batch = sides(student, teacher)
    method = E2KD(every=4)
    found = [method.terms(nn.Module(), s, t, batch, clock(i))["explain"] for i in range(9)]
    each = [float(e.detach()) for e in found]
    assert [e > 0 for e in each] == [i % 4 == 0 for i in range(9)]
    assert each[0] == each[4]


class Counted(Pooled):
    """A network with the authors' mode, which says when it is looked at in it."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__(width, seed=seed)
        self.inside, self.seen = False, list[bool]()

    @contextlib.contextmanager
    def explanation_mode(self) -> Any:
        self.inside = True
        yield
        self.inside = False

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.inside)
        return super().forward(x)


def test_a_b_cos_network_is_explained_in_its_own_mode() -> None:
    for kind, mode in (("input", True), ("gradcam", False)):
        student, teacher = Counted(3, 1), Counted(4, 2)
        method = E2KD(kind=kind)
        _, t, batch = sides(student, teacher)
        seen = method.prepare(batch, clock().rng)[0]
        s = Look(student, "student", {"feature": "body"}).side_of(seen)
        method.terms(nn.Module(), s, t, batch, clock())
        assert student.seen == teacher.seen == [mode]


# --- crops and frozen maps -----------------------------------------------------------------------


def test_crops_are_parts_of_the_picture() -> None:
    x = torch.arange(64.0).view(1, 1, 8, 8)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(cut(x, whole), x, atol=1e-4, rtol=0)
    mirrored = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(cut(x, mirrored), x.flip(3), atol=1e-4, rtol=0)
    quarter = torch.tensor([[0.5, 0.25, 0.5, 0.5, 0.0]])  # rows 4 to 7, columns 2 to 5
    part = cut(x, quarter)
    # Within the part, pixel centres are enlarged as by interpolation of the part alone.
    slow = F.interpolate(x[..., 4:, 2:6], (8, 8), mode="bilinear")
    torch.testing.assert_close(part[..., 1:-1, 1:-1], slow[..., 1:-1, 1:-1], atol=1e-4, rtol=0)


def test_a_map_moves_with_its_picture() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[..., 2, 6] = 1
    box = torch.tensor([[0.125, 0.5, 0.5, 0.5, 1.0]])  # rows 1 to 4, columns 4 to 7, mirrored
    at = cut(x, box)[0, 0].flatten().argmax().item()
    assert divmod(at, 8) in {(i, j) for i in (2, 3) for j in (2, 3)}  # row 1, column 1 of 4
    both = cut(torch.cat((x, 3 * x), 1), box)
    torch.testing.assert_close(both[:, 1], 3 * both[:, 0])


def test_boxes_lie_inside_and_have_the_areas_that_were_asked_for() -> None:
    u = torch.rand(2000, 5, generator=G)
    box = boxes(u, 0.3, True)
    assert float(box[:, :4].min()) >= 0
    assert float((box[:, 0] + box[:, 2]).max()) <= 1 + 1e-6
    assert float((box[:, 1] + box[:, 3]).max()) <= 1 + 1e-6
    inside = (box[:, 2] < 1) & (box[:, 3] < 1)
    area = box[:, 2] * box[:, 3]
    torch.testing.assert_close(area[inside], (0.3 + 0.7 * u[:, 0])[inside])
    ratio = (box[:, 3] / box[:, 2])[inside]
    assert 0.75 - 1e-6 <= float(ratio.min()) < 0.78
    assert 1.28 < float(ratio.max()) <= 4 / 3 + 1e-6
    assert 0.45 < float((box[:, 4] > 0.5).double().mean()) < 0.55
    still = boxes(u, 1.0, False)
    torch.testing.assert_close(still, torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]]).expand(2000, 5))


def task(**kw: Any) -> Task:
    given: dict[str, Any] = {
        "teacher": Pooled(8, seed=3),
        "student": lambda: Pooled(6, seed=1),
        "train": (X, Y),
        "budget": Budget(epochs=2, batch=12, optimiser=Optimiser("adam", lr=0.02)),
        "taps": {"feature": ("body", "body")},
    }
    return Task(**{**given, **kw})


def test_frozen_maps_are_those_of_the_pictures_as_they_are() -> None:
    teacher = Pooled(8, seed=3)
    method = E2KD(frozen=True, crop=0.4, flip=True)
    student = Pooled(6, seed=1)
    s, t, batch = sides(student, teacher)
    with Run(task()), torch.no_grad():
        parts = method.build(s, t, batch, Facts(60, 3, 10, 5, Y))
    torch.testing.assert_close(parts.logits, teacher(X).detach())
    x = X.clone().requires_grad_()
    a = teacher.body(x)
    z = teacher.head(a.mean((2, 3)))
    w = torch.autograd.grad(z.amax(1).sum(), a)[0].mean((2, 3), keepdim=True)
    whole = (w * a).sum(1, keepdim=True).relu().detach()
    torch.testing.assert_close(parts.maps, whole)
    assert not parts.state_dict()  # remade when a run is resumed
    # A step: the student sees a crop, and the kept map gets the same.
    seen = method.prepare(batch, clock().rng)[0]
    assert not torch.equal(seen.x, X[:6])
    s = Look(student, "student", {"feature": "body"}).side_of(seen)
    t._look.model = None  # nobody asks the teacher again
    out = method.terms(parts, s, t, batch, clock())
    a = student.body(seen.x)
    z = student.head(a.mean((2, 3)))
    first = parts.logits[:6].argmax(1)
    cam = grad_cam(a, z.gather(1, first[:, None])[:, 0])
    e_s = F.interpolate(cam, (8, 8), mode="bilinear")
    e_t = cut(F.interpolate(whole[:6], (8, 8), mode="bilinear"), seen.box)
    torch.testing.assert_close(out["explain"], explanation_loss(e_s, e_t))
    p, q = parts.logits[:6].softmax(1), z.softmax(1)
    torch.testing.assert_close(out["kd"], (p * (p / q).log()).sum(1).mean())


def test_live_both_sides_see_one_crop_and_draws_do_not_depend_on_the_split() -> None:
    method = E2KD(crop=0.4)
    batch = Batch(x=X[:6], index=torch.arange(6))
    mine, theirs = method.prepare(batch, clock().rng)
    assert torch.equal(mine.x, theirs.x)
    half = method.prepare(batch.select(slice(3, 6)), clock().rng)[0]
    torch.testing.assert_close(half.x, mine.x[3:])
    pixels = batch.replace(x=(X[:6].sigmoid() * 255).to(torch.uint8))
    assert float(method.prepare(pixels, clock().rng)[0].x.max()) <= 1


@pytest.mark.parametrize("fields", [{}, {"frozen": True}, {"frozen": True, "kind": "input"}])
def test_explanations_come_nearer_over_a_fit(fields: dict[str, Any]) -> None:
    given = task(budget=Budget(epochs=12, batch=20, optimiser=Optimiser("adam", lr=0.02)))
    with Run(given, device="cpu") as run:
        teacher = given.the_teacher()
        ends = []
        for explain in (0.0, 5.0):
            name = f"at/{explain:g}"
            method = E2KD(**fields, explain=explain)
            net = fit(method, run.student(given), teacher, given.batches(), name=name).student
            _, t, batch = sides(net, given.teacher, 60)
            probe = E2KD(kind=method.kind)
            seen = probe.prepare(batch, clock().rng)[0]
            s = Look(net, "student", {"feature": "body"}).side_of(seen)
            ends.append(float(probe.terms(nn.Module(), s, t, batch, clock())["explain"].detach()))
    assert ends[1] < 0.7 * ends[0]


# --- what cannot work ----------------------------------------------------------------------------


def test_what_cannot_work_is_said() -> None:
    def flat() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

    vectors = task(teacher=flat(), student=flat, taps={"feature": ("2", "2")})
    with pytest.raises(UsageError, match="which is no map"):
        limbeck.run("e2kd", vectors, device="cpu")
    assert limbeck.run("e2kd", vectors, device="cpu", kind="input").model is not None
    unread = task(taps={"feature": ("body", "body")}, student=lambda: Deaf(6))
    with pytest.raises(UsageError, match="respect to the feature map, but none reaches it"):
        limbeck.run("e2kd", unread, device="cpu")
    rows = task(train=(X.flatten(1), Y), teacher=nn.Linear(64, 3), student=lambda: nn.Linear(64, 3))
    rows.taps = {}
    with pytest.raises(UsageError, match=r"explains pictures \(B, C, H, W\)"):
        limbeck.run("e2kd", rows, device="cpu")
    box = BlackBox(lambda x: torch.full((len(x), 3), 1 / 3), "probabilities")
    with pytest.raises(Missing, match="black box"):
        limbeck.run("e2kd", task(teacher=box), device="cpu")
    drawn = task(train=Drawn((X, Y), "flip", 8)) if has_torchvision() else None
    if drawn is None:
        pytest.skip("needs torchvision")
    with pytest.raises(UsageError, match=r"leave augment out \(--augment none\)"):
        limbeck.run("e2kd", drawn, device="cpu", frozen=True)


class Deaf(Pooled):
    """Its logits do not hear its feature map."""

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return self.head(x.mean((2, 3)).expand(-1, self.head.in_features))


def has_torchvision() -> bool:
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return False
    return True
