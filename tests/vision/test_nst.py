"""nst: every kernel by loops over pairs and by its closed form, gradients, and what counts not."""

import math
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import limbeck
from limbeck.bench.worlds._models import CNN, ViT
from limbeck.core.data import Batch
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.vision._kit.maps import unit
from limbeck.vision.nst import NST, gaussian_mmd, mmd

pytestmark = pytest.mark.xdist_group("nst")

G = torch.Generator().manual_seed(3)
STUDENT, TEACHER = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def looped(x: np.ndarray, t: np.ndarray, kernel: Any) -> float:
    """The distance of two sets of vectors (C, P), (D, P), over all pairs."""
    within = sum(kernel(a, b) for a in x for b in x) / len(x) ** 2
    beyond = sum(kernel(a, b) for a in t for b in t) / len(t) ** 2
    across = sum(kernel(a, b) for a in x for b in t) / len(x) / len(t)
    return float(within + beyond - 2 * across)


def gaussian(x: np.ndarray, t: np.ndarray) -> Any:
    variance = np.mean([((a - b) ** 2).sum() for a in x for b in t])
    return lambda a, b: math.exp(-((a - b) ** 2).sum() / (2 * variance))


@pytest.mark.parametrize(("c", "d", "places"), [(4, 6, 3), (2, 3, 9), (5, 1, 4)])
def test_distances_are_those_of_loops_over_pairs(c: int, d: int, places: int) -> None:
    x, t = unit(draw(3, c, places)), unit(draw(3, d, places))
    for n in range(3):
        a, b = x[n].numpy(), t[n].numpy()
        for degree, offset in ((1, 0.0), (2, 0.0), (2, 0.7), (3, 0.2)):
            want = looped(a, b, lambda u, v, k=degree, o=offset: (u @ v + o) ** k)
            assert float(mmd(x, t, degree, offset)[n]) == pytest.approx(want, rel=1e-9)
            assert want > 0
        assert float(gaussian_mmd(x, t)[n]) == pytest.approx(looped(a, b, gaussian(a, b)), rel=1e-9)


def test_closed_forms() -> None:
    x, t = unit(draw(2, 4, 7)), unit(draw(2, 9, 7))
    torch.testing.assert_close(mmd(x, t, 1), (x.mean(1) - t.mean(1)).square().sum(1))
    gram = torch.einsum("bcp,bcq->bpq", x, x) / 4 - torch.einsum("bcp,bcq->bpq", t, t) / 9
    torch.testing.assert_close(mmd(x, t), gram.square().sum((1, 2)))
    torch.testing.assert_close(mmd(x, t, 2, 0.5), mmd(x, t) + 2 * 0.5 * mmd(x, t, 1))


def test_both_ways_to_the_polynomial_kernel_agree() -> None:
    wide, narrow = unit(draw(2, 8, 7)), unit(draw(2, 5, 7))
    few = mmd(narrow, unit(narrow.flip(2))), mmd(wide, unit(wide.flip(2)))  # by pairs, by places
    for x, found in ((narrow, few[0]), (wide, few[1])):
        for n in range(2):
            want = looped(x[n].numpy(), x[n].flip(1).numpy(), lambda u, v: (u @ v) ** 2)
            assert float(found[n]) == pytest.approx(want, rel=1e-9)


def value(s: Tensor, t: Tensor, **fields: Any) -> Tensor:
    """The term of vectors over places (B, C, P), as maps of one row."""
    sides = (SimpleNamespace(feature=x[:, :, None]) for x in (s, t))
    method = NST(**{"label": 0, "nst": 1.0, **fields})
    found: Tensor = method.terms(None, *sides, None, None)["nst"]  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"kernel": "linear"}, 1.0),
        ({}, 1.04),
        ({"offset": 1.0}, 3.04),
        ({"kernel": "gaussian"}, 0.577186),
        ({"nst": 50.0}, 52.0),
    ],
)
def test_two_channels_by_hand(fields: dict[str, Any], want: float) -> None:
    assert float(value(STUDENT, TEACHER, **fields)) == pytest.approx(want, abs=2e-6 * want)


KERNELS: tuple[Literal["linear", "polynomial", "gaussian"], ...] = (
    "linear",
    "polynomial",
    "gaussian",
)


@pytest.mark.parametrize("kernel", KERNELS)
def test_order_number_and_length_of_channels_do_not_count(kernel: str) -> None:
    s, t = draw(2, 4, 6), draw(2, 5, 6)
    plain = value(s, t, kernel=kernel)
    for other in (s[:, [3, 1, 0, 2]], s * draw(2, 4, 1).abs(), s.repeat(1, 3, 1)):
        torch.testing.assert_close(value(other, t, kernel=kernel), plain)
    assert float(plain) > 0
    torch.testing.assert_close(value(t, s, kernel=kernel), plain)
    same = torch.cat((s[:, [2, 0, 3, 1]], s), 1)
    assert float(value(same, s, kernel=kernel)) == pytest.approx(0, abs=1e-12)
    negative = value(-s, t, kernel=kernel)
    assert torch.allclose(negative, plain) == (kernel == "polynomial")
    one = value(s[:1], t[:1], kernel=kernel), value(s[1:], t[1:], kernel=kernel)
    torch.testing.assert_close(plain, (one[0] + one[1]) / 2)
    place = value(s[:, :, :1].abs(), t[:, :, :1].abs(), kernel=kernel)
    assert float(place) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients(kernel: str) -> None:
    s, t = draw(1, 4, 3).requires_grad_(), draw(1, 5, 3)
    (found,) = torch.autograd.grad(value(s, t, kernel=kernel), s)
    with torch.no_grad():
        x, y, length = unit(s)[0], unit(t)[0], s[0].norm(dim=1, keepdim=True)
        if kernel == "linear":
            slope = (2 / 4 * (x.mean(0) - y.mean(0))).expand(4, 3)
        elif kernel == "polynomial":
            slope = 4 / 4 * x @ (x.mT @ x / 4 - y.mT @ y / 5)
        else:
            sigma2 = torch.cdist(x, y).square().mean()
            near = (-torch.cdist(x, x).square() / (2 * sigma2)).exp()
            far = (-torch.cdist(x, y).square() / (2 * sigma2)).exp()
            pull = (near[..., None] * (x - x[:, None])).sum(1) / 16
            push = (far[..., None] * (y - x[:, None])).sum(1) / 20
            slope = 2 * (pull - push) / sigma2
        along = (slope * x).sum(1, keepdim=True)
        torch.testing.assert_close(found[0], (slope - along * x) / length)


@pytest.mark.parametrize("kernel", KERNELS)
def test_dead_channels_have_no_gradient(kernel: str) -> None:
    s, t = draw(2, 3, 4), draw(2, 2, 4)
    s[:, 1] = 0
    s.requires_grad_()
    (grad,) = torch.autograd.grad(value(s, t, kernel=kernel), s)
    assert torch.equal(grad[:, 1], torch.zeros(2, 4, dtype=torch.float64))
    assert (grad[:, 0] != 0).all()
    dead = torch.zeros(2, 3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(value(dead, torch.zeros(2, 2, 4), kernel=kernel), dead)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_terms_are_of_the_last_maps_or_of_all_stages() -> None:
    blocks = [draw(4, 3, 4, 4), draw(4, 5, 2, 2)], [draw(4, 2, 2, 2), draw(4, 6, 4, 4)]
    logits = draw(4, 3), draw(4, 3)
    s, t = (
        SimpleNamespace(blocks=b, feature=b[-1], logits=z)
        for b, z in zip(blocks, logits, strict=True)
    )
    batch = Batch(x=torch.zeros(4, 1), y=torch.tensor([0, 1, 2, 0]))
    found = NST(kd=2.0).terms(None, s, t, batch, None)  # type: ignore[arg-type]
    assert set(found) == {"label", "nst", "kd"}
    each = []
    for a, b in zip(*blocks, strict=True):
        a, b = (F.avg_pool2d(m, 2) if m.shape[2] == 4 else m for m in (a, b))
        x, y = (F.normalize(m.flatten(2), dim=2).numpy() for m in (a, b))
        pairs = zip(x, y, strict=True)
        each.append(np.mean([looped(u, v, lambda p, q: (p @ q) ** 2) for u, v in pairs]))
    assert float(found["nst"]) == pytest.approx(50 * each[1], rel=1e-9)
    both = NST(at="blocks").terms(None, s, t, batch, None)["nst"]  # type: ignore[arg-type]
    assert float(both) == pytest.approx(50 * (each[0] + each[1]), rel=1e-9)
    p, q = (t.logits / 4).log_softmax(1), (s.logits / 4).log_softmax(1)
    soft = 16 * (p.exp() * (p - q)).sum(1).mean()
    assert float(found["kd"]) == pytest.approx(2 * float(soft), rel=1e-5)
    with pytest.raises(UsageError, match="nst compares the patterns"):
        value(draw(2, 3, 4, 2, 1)[:, :, None], draw(2, 3, 4))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("models", ["cnn", "vit"])
def test_a_students_patterns_come_nearer(kernel: str, models: str) -> None:
    torch.manual_seed(2)
    x, y = torch.randn(48, 1, 8, 8), torch.arange(48) % 4
    teacher = ViT((1, 8, 8), 4, 24, 2)
    student = CNN((1, 8, 8), 4, (4, 8)) if models == "cnn" else ViT((1, 8, 8), 4, 16, 2)
    task = Task(
        teacher=teacher,
        student=student,
        train=(x, y),
        test=(x, y),
        taps={"feature": (teacher.taps["feature"], student.taps["feature"])},
        budget=Budget(steps=25, batch=24, optimiser=Optimiser(lr=0.02)),
    )
    run = limbeck.run("nst", task, seed=1, device="cpu", label=0.0, kernel=kernel)
    rows = [row["terms"]["nst"] for row in run.log]
    assert rows[-1] < 0.7 * rows[0]
