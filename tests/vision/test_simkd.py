"""simkd: the projector and its grid, the reused classifier, what is delivered and what is not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

import limbeck
from limbeck.bench.worlds._models import CNN, MLP, ViT
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.simkd import Projector, Reuse, Reused, SimKD

pytestmark = pytest.mark.xdist_group("simkd")

G = torch.Generator().manual_seed(12)
CLOCK = Clock(0, "fit", 0, 10, 5)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G)


X, Y = draw(24, 1, 8, 8), torch.arange(24) % 3


def task(teacher: nn.Module, student: nn.Module, steps: int = 3, lr: float = 0.05) -> Task:
    budget = Budget(steps=steps, batch=12, optimiser=Optimiser("sgd", lr=lr))
    found = Task(teacher, student, (X, Y), test=(X, Y), budget=budget)
    entries = ("feature", "embedding")
    found.taps |= {n: (teacher.taps[n], student.taps[n]) for n in entries}
    return found


def pair(teacher: type = CNN, student: type = CNN) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    wide = {CNN: ((8, 16),), MLP: ((16, 16),), ViT: (16, 2)}[teacher]
    return teacher((1, 8, 8), 3, *wide), student((1, 8, 8), 3)


def top(grid: tuple[int, int] | None = None, pooled: bool = False, relu: bool = True) -> Reuse:
    torch.manual_seed(3)
    return Reuse(Projector(4, 6, 2, relu), nn.Linear(6, 3), grid, pooled)


def side(f: Tensor, e: Tensor | None = None, z: Tensor | None = None) -> SimpleNamespace:
    return SimpleNamespace(feature=f, embedding=e, logits=z)


# --- the projector --------------------------------------------------------------------------------


def test_the_size_of_the_projector() -> None:
    def sizes(factor: int) -> tuple[int, int]:
        ps = list(Projector(16, 64, factor).parameters())
        return sum(p.numel() for p in ps if p.dim() == 4), sum(p.numel() for p in ps if p.dim() < 4)

    assert sizes(2) == (16 * 32 + 9 * 32 * 32 + 32 * 64, 2 * (32 + 32 + 64))
    assert sizes(2) == (11776, 256)
    assert sizes(8) == (16 * 8 + 9 * 8 * 8 + 8 * 64, 2 * (8 + 8 + 64))
    assert [type(m).__name__ for m in Projector(2, 4)] == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    assert Projector(2, 3, 8)[0].weight.shape == (1, 2, 1, 1)


def test_the_projector_by_numpy() -> None:
    project, x = Projector(3, 4).double(), draw(5, 3, 4, 4).double()
    a = x.numpy()
    for k in (0, 3, 6):
        w = project[k].weight.detach().numpy()
        size, p = w.shape[2], w.shape[2] // 2
        padded = np.pad(a, ((0, 0), (0, 0), (p, p), (p, p)))
        a = sum(
            np.einsum("oc,bchw->bohw", w[:, :, i, j], padded[:, :, i : i + 4, j : j + 4])
            for i in range(size)
            for j in range(size)
        )
        mean, var = a.mean((0, 2, 3), keepdims=True), a.var((0, 2, 3), keepdims=True)
        a = np.maximum((a - mean) / np.sqrt(var + 1e-5), 0)
    np.testing.assert_allclose(project(x).detach().numpy(), a, atol=1e-9)


# --- the error ------------------------------------------------------------------------------------


class Given(nn.Module):
    """In a projector's place: what it gives is given."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x: Tensor) -> Tensor:
        return self.value


def test_one_number_of_eight_by_hand() -> None:
    target = draw(1, 2, 2, 2).double()
    value = target.clone()
    value[0, 1, 0, 1] += 1
    parts = Reuse(Given(value), nn.Linear(2, 3).double(), None, False)
    out = SimKD().terms(parts, side(draw(1, 4, 2, 2)), side(target), Batch(x=target), CLOCK)
    assert set(out) == {"align"}
    assert float(out["align"].detach()) == pytest.approx(1 / 8)
    grad = torch.autograd.grad(out["align"], parts.project.value)[0]
    want = torch.zeros(1, 2, 2, 2).double()
    want[0, 1, 0, 1] = 0.25
    torch.testing.assert_close(grad, want)


def test_maps_meet_on_the_smaller_grid() -> None:
    # the student's is larger: the projector sees averages of 2 x 2
    parts, s, t = top((4, 4)).double(), draw(6, 4, 8, 8).double(), draw(6, 6, 4, 4).double()
    small = s.reshape(6, 4, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(parts(s), parts.project(small))
    out = SimKD().terms(parts, side(s), side(t), Batch(x=s), CLOCK)["align"]
    assert float(out) == pytest.approx(float((parts.project(small) - t).square().mean()))
    # the teacher's is larger: its averages are the target
    parts, s, t = top().double(), draw(6, 4, 4, 4).double(), draw(6, 6, 8, 8).double()
    small = t.reshape(6, 6, 4, 2, 4, 2).mean((3, 5))
    out = SimKD(align=3.0).terms(parts, side(s), side(t), Batch(x=s), CLOCK)["align"]
    assert float(out) == pytest.approx(3 * float((parts.project(s) - small).square().mean()))


def test_after_pooling_the_error_is_of_the_mean() -> None:
    parts, s, e = top(pooled=True).double(), draw(6, 4, 3, 3).double(), draw(6, 6).double()
    out = SimKD().terms(parts, side(s), side(None, e), Batch(x=s), CLOCK)["align"]
    mean = parts(s).mean((2, 3))
    assert float(out) == pytest.approx(float((mean - e).square().mean()))


def test_the_error_bounds_what_the_answers_differ_by() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        a, b = (torch.randn(4, 6, 3, 3).double() for _ in range(2))
        classify = nn.Linear(6, 3).double()
        gap = (classify(a.mean((2, 3))) - classify(b.mean((2, 3)))).square().sum()
        norm = torch.linalg.matrix_norm(classify.weight, 2)
        assert float(gap) <= float(norm**2 * 4 * 6 * (a - b).square().mean())


def test_labels_and_soft_targets_see_what_is_delivered() -> None:
    parts, s = top().double(), draw(6, 4, 3, 3).double()
    t, zt, y = draw(6, 6, 3, 3).double(), draw(6, 3).double(), torch.arange(6) % 3
    method = SimKD(align=0, label=0.5, kd=2.0, tau=3.0)
    out = method.terms(parts, side(s), side(t, None, zt), Batch(x=s, y=y), CLOCK)
    assert set(out) == {"label", "kd"}
    z = parts.classifier(parts.project(s).mean((2, 3))).detach().numpy()
    nll = -np.log(softmax(z, 1)[np.arange(6), y]).mean()
    assert float(out["label"]) == pytest.approx(0.5 * nll, rel=1e-6)
    kl = rel_entr(softmax(zt.numpy() / 3, 1), softmax(z / 3, 1)).sum(1).mean()
    assert float(out["kd"]) == pytest.approx(2 * 9 * kl, rel=1e-6)


# --- what is built and delivered ------------------------------------------------------------------


def test_a_perfect_match_gives_the_teachers_logits() -> None:
    teacher, _ = pair()
    teacher.eval()
    f = teacher.body(X)
    model = Reused(lambda x: {"feature": x}, Reuse(Given(f), teacher.head, None, False))
    torch.testing.assert_close(model(X), teacher(X))


def test_the_student_ships_with_projector_and_classifier() -> None:
    teacher, student = pair()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    found = limbeck.run("simkd", task(teacher, student), device="cpu")
    model = found.model
    assert isinstance(model, Reused)
    assert torch.equal(model.top.classifier.weight, before["head.weight"])
    assert torch.equal(model.top.classifier.bias, before["head.bias"])
    assert model.top.classifier is not teacher.head
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    # the student's own classifier is left as it was; its body is not
    shipped = model.encoder.model
    assert torch.equal(shipped.head.weight, student.head.weight)
    assert not torch.equal(shipped.body[0][0].weight, student.body[0][0].weight)
    model.eval()
    z = model(X)
    assert z.shape == (24, 3)
    x = F.adaptive_avg_pool2d(shipped.body(X), model.top.grid or shipped.body(X).shape[2:])
    torch.testing.assert_close(z, teacher.head(model.top.project(x).mean((2, 3))))
    assert not shipped.head._forward_hooks
    assert not model.top.classifier._forward_pre_hooks


def test_labels_are_not_asked_for() -> None:
    teacher, student = pair()
    given = task(teacher, student)
    runs = []
    for y in (Y, (Y + 1) % 3):
        given.train = (X, y)
        runs.append(limbeck.run("simkd", given, device="cpu", seed=1).model.state_dict())
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])


def test_a_run_comes_near_the_teachers_map() -> None:
    teacher, student = pair()
    given = task(teacher, student, steps=100, lr=0.2)
    found = limbeck.run("simkd", given, device="cpu")
    values = [row["terms"]["align"] for row in found.log if "terms" in row]
    assert values[-1] < 0.6 * values[0]


@pytest.mark.parametrize("student", [CNN, ViT, MLP])
@pytest.mark.parametrize("teacher", [CNN, ViT, MLP])
def test_any_pair_of_architectures(student: type, teacher: type) -> None:
    found = limbeck.run("simkd", task(*pair(teacher, student)), device="cpu").model
    assert found.top.pooled == (teacher is ViT)  # its classifier takes the class token
    assert len(found.top.project) == (8 if teacher is ViT else 9)  # which has negative values
    assert found.eval()(X).shape == (24, 3)


def test_a_classifier_on_something_else_is_said() -> None:
    with pytest.raises(
        UsageError, match="at='map' needs a teacher whose classifier takes the mean"
    ):
        limbeck.run("simkd", task(*pair(ViT)), device="cpu", at="map")
    given = task(*pair())
    given.taps["embedding"] = ("body", "head:in")
    with pytest.raises(UsageError, match="the tap of that is 'body'"):
        limbeck.run("simkd", given, device="cpu")

    class Scaled(CNN):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with pytest.raises(UsageError, match="are not the teacher's logits"):
        limbeck.run("simkd", task(Scaled((1, 8, 8), 3), pair()[1]), device="cpu")
    given = task(*pair())
    given.taps["feature"] = ("body", ["body.0", "body.1"])
    with pytest.raises((UsageError, AttributeError)):
        limbeck.run("simkd", given, device="cpu")


def test_defaults_and_fields_out_of_range() -> None:
    assert make("simkd") == SimKD(1.0, 0.0, 0.0, 4.0, 2, "auto")
    for field in ("align=-1", "factor=0", "tau=0"):
        with pytest.raises(UsageError):
            make(f"simkd({field})")
