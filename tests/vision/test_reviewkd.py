"""reviewkd: the pyramid by hand, fusion against loops, which stage sees which, forms of stages."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.bench.worlds._models import CNN, MLP, ViT
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.reviewkd import ABF, ReviewKD, hcl, reviewed

pytestmark = pytest.mark.xdist_group("reviewkd")

G = torch.Generator().manual_seed(8)
Y = torch.arange(6) % 3


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


SHAPES = [((4, 8, 8), (6, 8, 8)), ((8, 4, 4), (12, 4, 4)), ((16, 2, 2), (24, 4, 4))]
S = [draw(6, *one) for one, _ in SHAPES]
T = [draw(6, *two) for _, two in SHAPES]
ES, ET, ZS, ZT = draw(6, 16), draw(6, 24), draw(6, 3), draw(6, 3)


def side(blocks: list[Tensor], e: Tensor, z: Tensor) -> SimpleNamespace:
    return SimpleNamespace(blocks=blocks, embedding=e, logits=z)


def clock(epoch: int = 99) -> Clock:
    return Clock(0, "fit", 3 * epoch + 1, 300, 3)


def built(method: ReviewKD, s: object = None, t: object = None) -> nn.Module:
    torch.manual_seed(5)
    s, t = s or side(S, ES, ZS), t or side(T, ET, ZT)
    return method.build(s, t, Batch(x=ZS, y=Y), Facts(6, 3, 10, 5)).double()


def terms(method: ReviewKD, parts: nn.Module, at: Clock | None = None) -> dict[str, Tensor]:
    s, t = side(S, ES, ZS), side(T, ET, ZT)
    return method.terms(parts, s, t, Batch(x=ZS, y=Y), at or clock())


# --- the pyramid ----------------------------------------------------------------------------------


def test_one_place_of_four_by_hand() -> None:
    o = torch.zeros(1, 1, 2, 2).double()
    o[0, 0, 0, 0] = 1
    o.requires_grad_()
    loss = hcl(o, torch.zeros(1, 1, 2, 2).double())
    assert float(loss.detach()) == pytest.approx(0.1875)  # (1/4 + 1/2 * 1/16) / 1.5
    grad = torch.autograd.grad(loss, o)[0].flatten().tolist()
    assert grad == pytest.approx([0.375, 1 / 24, 1 / 24, 1 / 24])


def test_one_place_of_sixty_four_by_hand() -> None:
    o = torch.zeros(1, 1, 8, 8).double()
    o[0, 0, 5, 2] = 1
    want = (1 / 64 + 1 / 512 + 1 / 4096 + 1 / 32768) / 1.875
    assert float(hcl(o, 0 * o)) == pytest.approx(want)
    assert want == pytest.approx(0.00952148, abs=1e-8)


@pytest.mark.parametrize("side_", [1, 2, 3, 4, 5, 8, 16])
def test_a_constant_difference_is_its_square_at_every_size(side_: int) -> None:
    t = draw(2, 3, side_, side_)
    assert float(hcl(t + 1.5, t)) == pytest.approx(2.25)
    o = t.clone().requires_grad_()
    loss = hcl(o, t)
    assert float(loss.detach()) == 0
    assert float(torch.autograd.grad(loss, o)[0].abs().max()) == 0


def test_what_averages_out_counts_at_full_size_only() -> None:
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double().repeat(2, 2)[None, None]
    assert float(hcl(checks, 0 * checks)) == pytest.approx(1 / 1.75)  # levels 2 and 1 are there
    assert float(hcl(checks, 0 * checks, ())) == pytest.approx(1.0)
    assert float(hcl(checks, 0 * checks, (1,))) == pytest.approx(1 / 1.5)


def test_the_pyramid_by_loops() -> None:
    o, t = draw(2, 3, 8, 6), draw(2, 3, 8, 6)
    total, weights, weight = float((o - t).square().mean()), 1.0, 1.0
    for level in (4, 2, 1):
        weight /= 2
        error = 0.0
        for i in range(level):
            for j in range(level):
                rows = slice(i * 8 // level, -(-(i + 1) * 8 // level))
                columns = slice(j * 6 // level, -(-(j + 1) * 6 // level))
                gap = (o - t)[:, :, rows, columns].mean((2, 3))
                error += float(gap.square().mean()) / level**2
        total, weights = total + weight * error, weights + weight
    assert float(hcl(o, t)) == pytest.approx(total / weights)


# --- the fusion -----------------------------------------------------------------------------------


def norm(x: np.ndarray) -> np.ndarray:
    """BatchNorm of a map by the batch, fresh scale and shift."""
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5)


def nearest(x: np.ndarray, h: int, w: int) -> np.ndarray:
    rows = [i * x.shape[2] // h for i in range(h)]
    columns = [j * x.shape[3] // w for j in range(w)]
    return x[:, :, rows][:, :, :, columns]


def slow(parts: nn.Module, s: list[Tensor], t: list[Tensor]) -> list[np.ndarray]:
    """The whole review by numpy, from the deepest stage on."""
    found, deeper = [], None
    for abf, x, y in reversed(list(zip(parts, s, t, strict=True))):
        w = abf.enter[0].weight.detach().numpy()[:, :, 0, 0]
        a = norm(np.einsum("oc,bchw->bohw", w, x.numpy()))
        if deeper is not None:
            deeper = nearest(deeper, *a.shape[2:])
            w, b = (p.detach().numpy() for p in abf.attend.parameters())
            z = np.einsum("oc,bchw->bohw", w[:, :, 0, 0], np.concatenate((a, deeper), 1))
            gate = 1 / (1 + np.exp(-z - b[:, None, None]))
            a = a * gate[:, :1] + deeper * gate[:, 1:]
        deeper = nearest(a, *y.shape[2:])
        padded = np.pad(deeper, ((0, 0), (0, 0), (1, 1), (1, 1)))
        w, (h, v) = abf.leave[0].weight.detach().numpy(), deeper.shape[2:]
        out = sum(
            np.einsum("oc,bchw->bohw", w[:, :, i, j], padded[:, :, i : i + h, j : j + v])
            for i in range(3)
            for j in range(3)
        )
        found.append(norm(out))
    return found[::-1]


def test_the_review_by_loops() -> None:
    parts = built(ReviewKD())
    s, t = [*S, ES[:, :, None, None]], [*T, ET[:, :, None, None]]
    mine = reviewed(parts, s, t)
    for o, want, y in zip(mine, slow(parts, s, t), t, strict=True):
        assert o.shape == y.shape
        np.testing.assert_allclose(o.detach().numpy(), want, atol=1e-9)
    total = sum(float(hcl(torch.tensor(o), y)) for o, y in zip(slow(parts, s, t), t, strict=True))
    mine = terms(ReviewKD(), parts)["review"]
    assert float(mine.detach()) == pytest.approx(5 * total, rel=1e-6)


def test_gates_without_weights_give_the_mean() -> None:
    parts = built(ReviewKD())
    abf = parts[0]
    for p in abf.attend.parameters():
        nn.init.zeros_(p)
    deeper = draw(6, 16, 4, 4)
    _, fused = abf(S[0], deeper, (8, 8))
    up = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(fused, (abf.enter(S[0]) + up) / 2)


def test_a_stage_sees_itself_and_what_is_deeper() -> None:
    parts = built(ReviewKD()).eval()
    s, t = [*S, ES[:, :, None, None]], [*T, ET[:, :, None, None]]
    before = reviewed(parts, s, t)
    for moved in range(4):
        now = [x + (k == moved) for k, x in enumerate(s)]
        changed = [
            bool((a != b).any()) for a, b in zip(before, reviewed(parts, now, t), strict=True)
        ]
        assert changed == [k <= moved for k in range(4)]
    alone = built(ReviewKD(fuse="none")).eval()
    before = reviewed(alone, s, t)
    after = reviewed(alone, [*s[:3], s[3] + 1], t)
    changed = [bool((a != b).any()) for a, b in zip(before, after, strict=True)]
    assert changed == [False, False, False, True]


def test_channels_inside_are_the_students_deepest_up_to_a_bound() -> None:
    assert [abf.enter[0].weight.shape[:2] for abf in built(ReviewKD())] == [
        (16, 4),
        (16, 8),
        (16, 16),
        (16, 16),
    ]
    assert built(ReviewKD(width=5))[0].enter[0].weight.shape == (5, 4, 1, 1)
    assert len(built(ReviewKD(pooled=False))) == 3
    bound = ABF(3, 4, 5, True, torch.Generator()).attend
    assert bound is not None
    assert bound.weight.shape == (2, 8, 1, 1)


# --- stages ---------------------------------------------------------------------------------------


def stages(s: list[Tensor], t: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    sides = (SimpleNamespace(blocks=blocks) for blocks in (s, t))
    return ReviewKD(pooled=False)._stages(*sides)  # type: ignore[arg-type]


def test_the_side_with_more_stages_gives_those_at_the_same_depth() -> None:
    many = [torch.full((1, 2), float(k)) for k in range(12)]
    one, two = stages(many, many[:3])
    assert [float(x.flatten()[0]) for x in one] == [3, 7, 11]
    assert [float(x.flatten()[0]) for x in two] == [0, 1, 2]
    assert all(x.shape == (1, 2, 1, 1) for x in one)


@pytest.mark.parametrize("student", [CNN, ViT, MLP])
@pytest.mark.parametrize("teacher", [CNN, ViT, MLP])
def test_any_pair_of_architectures(student: type, teacher: type) -> None:
    x, y = torch.randn(16, 1, 8, 8, generator=G), torch.arange(16) % 3
    torch.manual_seed(0)
    models = [teacher((1, 8, 8), 3), student((1, 8, 8), 3)]
    budget = Budget(steps=2, batch=16, optimiser=Optimiser("sgd", lr=0.01))
    task = Task(*models, (x, y), test=(x, y), budget=budget)
    task.taps |= {n: (models[0].taps[n], models[1].taps[n]) for n in ("blocks", "embedding")}
    found = limbeck.run("reviewkd", task, device="cpu", warmup=0)
    assert type(found.model) is student
    assert all(p.isfinite().all() for p in found.model.parameters())


def test_other_stages_are_refused() -> None:
    with pytest.raises(UsageError, match="reviewkd fuses maps"):
        stages([draw(2, 3, 4, 4, 4)], [draw(2, 3, 4, 4)])


# --- the terms ------------------------------------------------------------------------------------


def test_warm_up_is_by_whole_epochs_counted_from_one() -> None:
    parts = built(ReviewKD())
    full = float(terms(ReviewKD(warmup=0), parts, clock(0))["review"])
    for epoch, share in ((0, 1 / 20), (1, 2 / 20), (18, 19 / 20), (19, 1.0), (80, 1.0)):
        value = terms(ReviewKD(), parts, clock(epoch))["review"]
        assert float(value) == pytest.approx(share * full)


def test_terms_are_weighted_and_weight_zero_is_not_computed() -> None:
    out = terms(ReviewKD(label=0.5, review=0, kd=2.0, tau=3.0), nn.Module())
    assert set(out) == {"label", "kd"}
    nll = -ZS.log_softmax(1)[torch.arange(6), Y].mean()
    assert float(out["label"]) == pytest.approx(0.5 * float(nll), rel=1e-6)
    p, q = (ZT / 3).softmax(1), (ZS / 3).softmax(1)
    soft = (p * (p / q).log()).sum(1).mean()
    assert float(out["kd"]) == pytest.approx(2 * 9 * float(soft), rel=1e-6)
    assert not list(built(ReviewKD(review=0)).parameters())
    assert set(terms(ReviewKD(label=0), built(ReviewKD()))) == {"review"}


def test_defaults_and_fields_out_of_range() -> None:
    assert make("reviewkd") == ReviewKD(1.0, 5.0, 0.0, 4.0, 20, 512, (4, 2, 1), "attention", True)
    for field in ("review=-1", "warmup=-1", "width=0", "levels=(0,)"):
        with pytest.raises(UsageError):
            make(f"reviewkd({field})")


def test_a_run_brings_stages_together() -> None:
    x, y = torch.randn(32, 1, 8, 8, generator=G), torch.arange(32) % 3
    torch.manual_seed(0)
    teacher, student = CNN((1, 8, 8), 3, (8, 16)), CNN((1, 8, 8), 3, (4, 8))
    budget = Budget(steps=80, batch=16, optimiser=Optimiser("sgd", lr=0.2))
    task = Task(teacher, student, (x, y), test=(x, y), budget=budget)
    task.taps |= {n: (teacher.taps[n], student.taps[n]) for n in ("blocks", "embedding")}
    found = limbeck.run("reviewkd", task, device="cpu", label=0.0, warmup=0, review=1.0)
    values = [row["terms"]["review"] for row in found.log if "terms" in row]
    assert values[-1] < 0.6 * values[0]
    assert math.isfinite(values[-1])
    assert torch.equal(found.model.head.weight, student.head.weight)  # which only labels move
