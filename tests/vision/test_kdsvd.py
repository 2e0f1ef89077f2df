"""kdsvd: a worked pair, vectors and their change by perturbation, alignment, the clip, a run."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.objectives import Labels
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.updates import Total
from limbeck.errors import UsageError
from limbeck.vision.kdsvd import KDSVD, Clipped, aligned, compressed, svd_loss, upright, vectors

pytestmark = pytest.mark.xdist_group("kdsvd")

G = torch.Generator().manual_seed(13)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def place(*channels: float) -> Tensor:
    """One picture of one place."""
    return torch.tensor(channels, dtype=torch.float64)[None, :, None, None]


def loss(s: list[Tensor], t: list[Tensor], k: int = 1, extra: int = 3) -> Tensor:
    pairs = [compressed(a, b, k, extra) for a, b in zip(s, t, strict=True)]
    return svd_loss([a for a, _ in pairs], [b for _, b in pairs])


# --- the mathematics -----------------------------------------------------------------------------


def test_the_worked_pair_of_layers() -> None:
    t, s = [place(3, 4), place(1, 0)], [place(4, 3), place(-2, 0)]
    p_t = [0.980199, 0.955997, 0.995012, 0.923116]
    p_s = [0.995012, 0.923116, 0.980199, 0.955997]
    by_hand = sum((a - b) ** 2 for a, b in zip(p_s, p_t, strict=True))
    assert float(loss(s, t)) == pytest.approx(by_hand, rel=1e-4)
    assert float(loss(s, t)) == pytest.approx(0.00260124, rel=1e-5)
    for value, gap in zip(p_t, (0.4, 0.6, 0.2, 0.8), strict=True):
        assert math.exp(-gap * gap / 8) == pytest.approx(value, abs=1e-6)


def test_loss_is_by_loops_what_is_written() -> None:
    s, t = ([draw(3, 4, 2), draw(3, 5, 2), draw(3, 2, 2)] for _ in range(2))
    total = 0.0
    for n in range(3):
        for a in range(2):
            for j in range(2):
                for i in range(s[a].shape[1]):
                    for m in range(s[a + 1].shape[1]):
                        p = [
                            math.exp(-(float(x[a][n, i, j] - x[a + 1][n, m, j]) ** 2) / 6)
                            for x in (s, t)
                        ]
                        total += (p[0] - p[1]) ** 2 / 3
    assert float(svd_loss(s, t, width=6.0)) == pytest.approx(total)


def test_vectors_are_numpys_and_no_more_than_there_are() -> None:
    for p, d, n in ((6, 4, 2), (3, 7, 3), (1, 5, 4)):
        m = draw(2, p, d)
        found, values = vectors(m, n)
        assert found.shape == (2, d, min(n, p, d))
        for b in range(2):
            _, s, vh = np.linalg.svd(m[b].numpy())
            for j in range(found.shape[2]):
                assert abs(float(found[b, :, j] @ torch.tensor(vh[j]))) == pytest.approx(1)
                assert float(values[b, j]) == pytest.approx(s[j])


def test_first_order_change_of_a_diagonal_matrix() -> None:
    m = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))[None].requires_grad_()
    found, _ = vectors(m, 1)
    (slope,) = torch.autograd.grad(found[0, 1, 0] * torch.sign(found[0, 0, 0].detach()), m)
    # only the entries off the diagonal turn v_1: s_1 / (s_1^2 - s_2^2) and s_2 / (s_1^2 - s_2^2)
    torch.testing.assert_close(slope[0], torch.tensor([[0, 2 / 3], [1 / 3, 0]]).double())


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 3, 7), (1, 1, 5)])
def test_change_of_vectors_is_that_of_a_small_step(shape: tuple) -> None:
    m, step, n = draw(*shape), draw(*shape), 2
    found, _ = vectors(m.requires_grad_(), n)
    weights = draw(*found.shape)
    (slope,) = torch.autograd.grad((found * weights).sum(), m)

    def at(e: float) -> Tensor:
        moved, _ = vectors(m.detach() + e * step, n)
        same = torch.sign((moved * found.detach()).sum(1, keepdim=True))
        return (moved * same * weights).sum()

    by_steps = float(at(1e-5) - at(-1e-5)) / 2e-5
    assert float((slope * step).sum()) == pytest.approx(by_steps, rel=1e-5)


def test_gradient_is_finite_where_vectors_are_not_defined() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    for m in (torch.zeros(1, 3, 3), eye[None], torch.ones(1, 4, 3), torch.zeros(1, 1, 3)):
        m = m.clone().requires_grad_()
        found, _ = vectors(m, 2)
        (slope,) = torch.autograd.grad((found * draw(*found.shape)).sum(), m)
        assert torch.isfinite(slope).all()


def test_places_and_scale_do_not_count() -> None:
    s, t = ([draw(2, 3, 4, 4), draw(2, 5, 2, 3)] for _ in range(2))
    value = loss(s, t, k=2)
    mixed = torch.randperm(16, generator=G)
    other = [s[0].flatten(2)[:, :, mixed].unflatten(2, (2, 8)), s[1]]
    torch.testing.assert_close(loss(other, t, k=2), value)
    torch.testing.assert_close(loss(s, [t[0], t[1].repeat(1, 1, 3, 1)], k=2), value)
    for factor in (7.0, -7.0):
        torch.testing.assert_close(loss([factor * s[0], s[1]], t), loss(s, t))
    assert float(loss(t, t, k=2)) == pytest.approx(0, abs=1e-20)
    assert float(loss(t, [t[0], -t[1]], k=2)) == pytest.approx(0, abs=1e-20)
    for x in s:
        x.requires_grad_()
    for x, slope in zip(s, torch.autograd.grad(loss(s, t, k=2), s), strict=True):
        assert slope.abs().max() > 0
        assert float((x * slope).sum().detach()) == pytest.approx(0, abs=1e-12)


def test_the_students_vectors_are_those_nearest_with_their_sign() -> None:
    e = torch.eye(3, dtype=torch.float64)
    t = e[None, :, :2]
    torch.testing.assert_close(aligned(torch.stack((e[1], -e[0]), 1)[None], t), t)
    # one vector may be given twice; a cosine of 0 counts as positive, and the first is taken
    tilted = torch.tensor([0.6, -0.8, 0.0], dtype=torch.float64)
    found = aligned(torch.stack((e[2], tilted), 1)[None], t)[0]
    torch.testing.assert_close(found, torch.stack((tilted, -tilted), 1))
    assert torch.equal(aligned(e[None, :, 2:], t[:, :, :1])[0, :, 0], e[2])
    for sign in (1, -1):  # a fourth vector of the student is seen only with extra 3
        s = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])).double()[None, :, :, None]
        only_last = sign * place(0, 0, 0, 1)
        near, far = (compressed(s, only_last, 1, extra)[0][0, :, 0] for extra in (3, 2))
        assert float(near[3]) == pytest.approx(1)
        assert float(far[3]) == pytest.approx(0)


def test_the_teachers_vectors_stand_upright() -> None:
    v = torch.tensor([[[-3.0, -3.0], [2.0, 5.0]]])
    assert upright(v).tolist() == [[[3.0, -3.0], [-2.0, 5.0]]]
    t = draw(2, 3, 4, 4)
    for a, b in zip(compressed(t, -t, 2, 3), compressed(t, t, 2, 3), strict=True):
        torch.testing.assert_close(a, b)


def test_weights_are_the_teachers_singular_values_over_their_length() -> None:
    t = torch.diag(torch.tensor([3.0, 4.0])).double()[None, :, :, None]
    ours, theirs = compressed(5 * t, t, 2, 0)
    for side in (ours, theirs):
        assert side.norm(dim=1)[0].tolist() == pytest.approx([0.8, 0.6])
    assert not theirs.requires_grad
    assert compressed(5 * t, t, 1, 0)[1].norm(dim=1)[0].tolist() == pytest.approx([1.0])


# --- the clip ------------------------------------------------------------------------------------


def clock(epoch: int) -> Clock:
    return Clock(0, "fit", 5 * epoch, 500, 5)


def joined(epoch: int, **grads: list[float] | None) -> list[float] | None:
    given = {k: [None if v is None else torch.tensor(v)] for k, v in grads.items()}
    (out,) = Clipped().join(given, ["student.w"], clock(epoch))
    return None if out is None else out.tolist()


def test_the_clip_is_by_the_label_gradient_and_the_epoch() -> None:
    assert joined(0, label=[3.0, 4.0], svd=[0.0, 20.0]) == pytest.approx([3, 6.5])
    assert joined(0, label=[3.0, 4.0], svd=[0.0, 1.0]) == pytest.approx([3, 5])
    assert joined(0, label=[0.0, 0.0], svd=[0.0, 1.0]) == [0, 0]
    assert joined(0, label=[3.0, 4.0], svd=[0.0, 0.0]) == [3, 4]
    share = 1 / (1 + math.exp(-2))
    assert joined(2, label=[3.0, 4.0], svd=[0.0, 20.0]) == pytest.approx([3, 4 + 5 * share])
    assert joined(400, label=[3.0, 4.0], svd=[0.0, 20.0]) == pytest.approx([3, 9])
    both = joined(0, label=[3.0, 0.0], kd=[0.0, 4.0], svd=[0.0, 20.0])
    assert both == pytest.approx([3, 6.5])
    assert joined(0, label=None, svd=[7.0]) == [7]
    assert joined(0, label=[7.0], svd=None) == [7]
    assert joined(0, svd=[9.0]) == [9]
    assert joined(0, label=[9.0]) == [9]


def test_the_clip_is_for_each_parameter_alone() -> None:
    grads = {
        "label": [torch.tensor([1.0]), torch.tensor([10.0])],
        "svd": [torch.tensor([4.0]), torch.tensor([4.0])],
    }
    out = Clipped().join(grads, ["a", "b"], clock(0))
    assert [float(g) for g in out] == pytest.approx([1.5, 14])


def test_clip_is_a_field() -> None:
    assert isinstance(KDSVD().update()[0].join, Clipped)
    assert isinstance(KDSVD(clip=False).update()[0].join, Total)
    assert isinstance(KDSVD(svd=0.0).update()[0].join, Total)


# --- terms and a run -----------------------------------------------------------------------------


def sides(s: list[Tensor], t: list[Tensor]) -> tuple[Any, Any, Batch]:
    z = draw(2, len(s[0]), 3)
    batch = Batch(x=s[0], y=torch.arange(len(s[0])) % 3)
    return (
        SimpleNamespace(blocks=s, logits=z[0]),
        SimpleNamespace(blocks=t, logits=z[1]),
        batch,
    )


def test_terms_and_their_weights() -> None:
    maps = ([draw(2, 3, 4, 4), draw(2, 5, 2, 2)] for _ in range(2))
    s, t, batch = sides(*maps)
    out = KDSVD(label=2.0, svd=3.0, kd=0.5, k=2).terms(None, s, t, batch, clock(0))
    plain = F.cross_entropy(s.logits, batch.y)
    log_s, log_t = ((z / 4).log_softmax(1) for z in (s.logits, t.logits))
    soft = 16 * (log_t.exp() * (log_t - log_s)).sum(1).mean()
    expected = {"label": 2 * plain, "svd": 3 * loss(s.blocks, t.blocks, k=2), "kd": soft / 2}
    assert {k: float(v) for k, v in out.items()} == pytest.approx(
        {k: float(v) for k, v in expected.items()}, rel=1e-5
    )
    assert set(KDSVD(svd=0.0).terms(None, s, t, batch, clock(0))) == {"label"}


def test_other_channels_are_refused_or_projected() -> None:
    s, t, batch = sides(
        [draw(2, 3, 4, 4).float(), draw(2, 4, 2, 2).float()],
        [draw(2, 6, 4, 4).float(), draw(2, 17, 4).float()],
    )
    with pytest.raises(UsageError, match="layer 1 has 3 in the student and 6 in the teacher"):
        KDSVD().build(s, t, batch, None)
    with pytest.raises(UsageError, match="tap at least 2 modules"):
        KDSVD().build(*sides(s.blocks[:1], t.blocks), None)
    m = KDSVD(project=True)
    parts = m.build(s, t, batch, None)
    value = m.terms(parts, s, t, batch, clock(0))["svd"]
    value.backward()
    assert all(p.grad.abs().sum() > 0 for p in parts.parameters())


def net() -> nn.Sequential:
    first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    second = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
    return nn.Sequential(first, second, nn.Flatten(), nn.Linear(96, 4))


def test_a_run_brings_the_vectors_nearer_and_weight_0_is_label_training() -> None:
    x, y = torch.randn(32, 1, 8, 8, generator=G), torch.arange(32) % 4
    torch.manual_seed(3)
    task = Task(
        teacher=net(),
        student=net(),
        train=(x, y),
        test=(x, y),
        taps={"blocks": (["0", "1"], ["0", "1"])},
        budget=Budget(epochs=15, batch=16, optimiser=Optimiser("adam", lr=0.02)),
    )
    plain = limbeck.run(Labels(), task, seed=1, device="cpu")
    bare = limbeck.run("kdsvd", task, seed=1, device="cpu", svd=0.0)
    for a, b in zip(plain.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(a, b)
    log = limbeck.run("kdsvd", task, seed=1, device="cpu", svd=30.0, clip=False).log
    assert log[-1]["terms"]["svd"] < 0.7 * log[0]["terms"]["svd"]
    clipped = limbeck.run("kdsvd", task, seed=1, device="cpu", svd=1e9).log
    assert clipped[-1]["terms"]["label"] < clipped[0]["terms"]["label"]
