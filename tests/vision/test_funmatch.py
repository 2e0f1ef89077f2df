"""funmatch: crops against slices that are resized, who sees what, and what that does to a fit."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

import limbeck
from limbeck.core.cache import CacheWriter
from limbeck.core.data import Batch, Table
from limbeck.core.method import Clock
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import BlackBox, Cached, fingerprint_of
from limbeck.errors import UsageError
from limbeck.vision.funmatch import FunMatch, agreement, boxes, cropped, mixed

pytestmark = pytest.mark.xdist_group("funmatch")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def clock(step: int = 0, n: int = 0) -> Clock:
    return Clock(3, "fit", step, 10, 5, n=n)


def batch(size: int = 6, side: int = 8) -> Batch:
    return Batch(x=drawn(size, 2, side, side), index=torch.arange(size) + 40)


# --- views ---------------------------------------------------------------------------------------


def test_a_crop_is_a_slice_that_is_resized() -> None:
    x = drawn(4, 3, 9, 12)
    box = torch.tensor([[0, 0, 9, 12], [2, 3, 4, 5], [8, 11, 1, 1], [1, 0, 7, 2]])
    flip = torch.tensor([False, True, False, True])
    got = cropped(x, box.float(), flip)
    for i, (top, left, h, w) in enumerate(box.tolist()):
        cut = x[i : i + 1, :, top : top + h, left : left + w]
        want = F.interpolate(cut, (9, 12), mode="bilinear", align_corners=False)
        want = want.flip(3) if flip[i] else want
        torch.testing.assert_close(got[i : i + 1], want, atol=1e-5, rtol=1e-5)


def test_a_crop_between_pixels_by_hand() -> None:
    # Rows 0 1 2 3, a box from 0.5 of height 2: pixel i reads at 0.5 + clamp(i / 2 - 1 / 4, 0, 1).
    x = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 1, 4, 4)
    got = cropped(x, torch.tensor([[0.5, 0.0, 2.0, 4.0]]), torch.tensor([False]))
    assert got[0, 0, :, 2].tolist() == pytest.approx([0.5, 0.75, 1.25, 1.5])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 20), (31, 7)])
@pytest.mark.parametrize("area", [0.05, 0.6, 1.0])
def test_inception_boxes_lie_in_the_picture(height: int, width: int, area: float) -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1 - 2**-24])] * 4)
    u = torch.cat((corners, uniform(2000, 4)))
    top, left, h, w = boxes(u, height, width, area).double().unbind(1)
    assert bool((top >= -1e-5).all() and (left >= -1e-5).all())
    assert bool((top + h <= height + 1e-4).all() and (left + w <= width + 1e-4).all())
    assert float((w / h).min()) >= 0.75 - 1e-6
    assert float((w / h).max()) <= 4 / 3 + 1e-6
    possible = [
        min(area * height * width, min(height, width / r) ** 2 * r) for r in (w / h).tolist()
    ]
    assert bool((h * w >= torch.tensor(possible, dtype=torch.float64) * (1 - 1e-5)).all())
    if height == width and area == 0.05:
        assert float((h * w).min()) < 0.1 * height * width  # aggressive: small crops do occur
        assert float((h * w).max()) > 0.9 * height * width


def test_mild_crops_have_four_fifths_of_each_side() -> None:
    method = FunMatch(crop="mild", flip=False, teaching="consistent")
    ramp = torch.arange(10.0).view(1, 1, 10, 1).expand(50, 1, 10, 10)
    given = Batch(x=ramp, index=torch.arange(50))
    x = method.prepare(given, clock().rng)[0].x[:, 0, :, 0]
    # Output pixels 2 and 7 of 10 read 5 * 8 / 10 apart, wherever the crop lies.
    torch.testing.assert_close(x[:, 7] - x[:, 2], torch.full((50,), 4.0), atol=1e-4, rtol=0)
    assert float(x[:, 5].min()) < 4.7
    assert float(x[:, 5].max()) > 5.1


def test_half_of_the_pictures_are_mirrored_and_nothing_else_without_a_crop() -> None:
    given = Batch(x=drawn(200, 1, 4, 5), index=torch.arange(200))
    seen = FunMatch(crop="none", teaching="consistent").prepare(given, clock().rng)[0].x
    straight = (seen - given.x).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (seen - given.x.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert bool((straight ^ mirrored).all())
    assert 60 < int(mirrored.sum()) < 140
    bare = FunMatch(crop="none", flip=False, teaching="consistent")
    assert all(side is given for side in bare.prepare(given, clock().rng))


def test_views_are_of_a_sample_and_a_step_and_not_of_a_batch() -> None:
    method, given = FunMatch(teaching="consistent"), batch()
    whole = method.prepare(given, clock().rng)[0].x
    for n, rows in enumerate((slice(0, 3), slice(3, 6))):
        part = method.prepare(given.select(rows), clock(n=n).rng)[0].x
        assert torch.equal(part, whole[rows])
    assert not torch.allclose(method.prepare(given, clock(1).rng)[0].x, whole, atol=0.1)


# --- mixing --------------------------------------------------------------------------------------


def test_mixing_by_loops_and_its_limits() -> None:
    x = uniform(5, 2, 3, 3)
    got = mixed(x, 0.3)
    for i in range(5):
        torch.testing.assert_close(got[i], 0.3 * x[i] + 0.7 * x[(i - 1) % 5])
    assert torch.equal(mixed(x, 1.0), x)
    assert torch.equal(mixed(x, 0.0), x.roll(1, 0))
    pair = x[:2]  # the pair turned round, with 1 - l, is the same picture
    torch.testing.assert_close(mixed(pair, 0.3)[0], mixed(pair.flip(0), 0.7)[0])
    assert float(got.min()) >= float(x.min())
    assert float(got.max()) <= float(x.max())


def share_of(step: int, n: int = 0) -> float:
    """The share with which a step mixes, from two pictures: all 1 and all 0."""
    x = torch.stack((torch.ones(1, 2, 2), torch.zeros(1, 2, 2)))
    given = Batch(x=x, index=torch.tensor([5, 9]) + 10 * n)
    seen = FunMatch(crop="none", flip=False).prepare(given, clock(step, n).rng)[0].x
    assert torch.allclose(seen[0] + seen[1], torch.ones(1, 2, 2))
    return float(seen[0, 0, 0, 0])


def test_the_share_is_one_for_a_step_and_uniform_over_steps() -> None:
    assert share_of(4, n=0) == share_of(4, n=1)
    shares = sorted(share_of(step) for step in range(400))
    gap = max(abs(s - (i + 0.5) / 400) for i, s in enumerate(shares))
    assert gap < 1.63 / math.sqrt(400)  # Kolmogorov and Smirnov at 1 percent


# --- who sees what -------------------------------------------------------------------------------


def test_four_ways_of_teaching() -> None:
    given = batch()

    def seen(teaching: Any) -> tuple[Batch, Batch]:
        return FunMatch(teaching=teaching).prepare(given, clock().rng)

    alike, same = seen("consistent")
    assert alike is same
    assert alike.x.shape == given.x.shape
    mine, theirs = seen("independent")
    assert torch.equal(mine.x, alike.x)
    assert not torch.allclose(mine.x, theirs.x, atol=0.1)
    student, teacher = seen("fixed")
    assert torch.equal(student.x, alike.x)
    assert teacher is given
    both, again = seen("function")
    assert both is again
    x = alike.x
    share = ((both.x - x.roll(1, 0)) * (x - x.roll(1, 0))).sum() / (x - x.roll(1, 0)).square().sum()
    torch.testing.assert_close(both.x, mixed(x, float(share)), atol=1e-5, rtol=1e-5)
    assert torch.equal(given.x, batch().x)


def test_inputs_that_are_no_pictures_are_refused() -> None:
    for x, told in ((drawn(4, 7), r"shape \(4, 7\)"), (["a", "b"], "list")):
        with pytest.raises(UsageError, match=told):
            FunMatch().prepare(Batch(x=x, index=torch.arange(len(x))), clock().rng)
    whole = Batch(x=torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8), index=torch.arange(3))
    assert FunMatch().prepare(whole, clock().rng)[0].x.dtype == torch.float32


@pytest.mark.parametrize("tau", [1.0, 5.0])
def test_the_term_by_scipy(tau: float) -> None:
    s, t = drawn(6, 4), 3 * drawn(6, 4, seed=1)
    want = 0.0
    for a, b in zip(s.double().numpy(), t.double().numpy(), strict=True):
        want += tau**2 * rel_entr(softmax(b / tau), softmax(a / tau)).sum() / 6
    sides = [SimpleNamespace(logits=z) for z in (s, t)]
    terms = FunMatch(funmatch=0.5, tau=tau).terms(nn.Module(), *sides, Batch(x=s), clock())
    assert float(terms["funmatch"]) == pytest.approx(0.5 * want, rel=1e-5)


def test_agreement_by_loops() -> None:
    s, t = drawn(40, 7), drawn(40, 7, seed=1)
    for k in (1, 3, 5, 9):
        want = []
        for a, b in zip(s.tolist(), t.tolist(), strict=True):
            order = sorted(range(7), key=lambda c, a=a: -a[c])
            want.append(b.index(max(b)) in order[:k])
        assert agreement(s, t, k).tolist() == want
    assert bool(agreement(s, 2 * s + 1).all())


# --- runs ----------------------------------------------------------------------------------------


def net(seed: int, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 36, 4),
    )


def task(
    teacher: Any = None, student: Callable[[], nn.Module] | None = None, **budget: Any
) -> Task:
    x, y = 2 * drawn(48, 1, 6, 6), torch.arange(48) % 4
    given = {"steps": 6, "batch": 12, "optimiser": Optimiser("adam", lr=0.01), **budget}
    return Task(
        teacher or net(1),
        student or (lambda: net(2, 3)),
        (x[:36], y[:36]),
        test=(x[36:], y[36:]),
        budget=Budget(**given),
    )


def ran(method: FunMatch, given: Task) -> Any:
    return limbeck.run(method, given, seed=4, device="cpu")


def first(result: Any) -> float:
    return result.log[0]["terms"]["funmatch"]


def bits(result: Any) -> list[Tensor]:
    return list(result.model.state_dict().values())


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(u, v) for u, v in zip(bits(a), bits(b), strict=True))


def test_a_copy_of_the_teacher_has_nothing_to_learn_where_views_are_the_same() -> None:
    costs = {}
    for teaching in ("function", "consistent", "independent", "fixed"):
        result = ran(FunMatch(teaching=teaching), task(student=lambda: net(1), steps=2))
        costs[teaching] = first(result)
    assert costs["function"] == costs["consistent"] == 0
    assert costs["independent"] > 0.01
    assert costs["fixed"] > 0.01


def test_labels_are_never_read() -> None:
    one, other = task(), task()
    other.train = (other.train[0], other.train[1].flip(0))
    bare = task()
    bare.train, bare.classes = bare.train[:1], 4
    results = [ran(FunMatch(), each) for each in (one, other, bare)]
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


def test_without_crops_and_flips_consistent_teaching_is_kd_without_labels() -> None:
    plain = FunMatch(crop="none", flip=False, teaching="consistent", tau=3.0)
    kd = limbeck.run("kd(label=0.0, kd=1.0, tau=3.0)", task(), seed=4, device="cpu")
    assert equal(ran(plain, task()), kd)


def test_a_fixed_teacher_may_be_a_cache_and_the_others_say_why_not(tmp_path: Any) -> None:
    given = task()
    table = Table(given.train)
    made_of = fingerprint_of(given.teacher, table, None)
    with CacheWriter(tmp_path / "cache", made_of, 36) as writer, torch.no_grad():
        writer.write(torch.arange(36), {"logits": given.teacher(given.train[0])})
    fixed, stored = FunMatch(teaching="fixed"), Cached(tmp_path / "cache")
    live = ran(fixed, given)
    read = ran(fixed, task(stored))
    assert [row["terms"]["funmatch"] for row in read.log] == pytest.approx(
        [row["terms"]["funmatch"] for row in live.log], rel=1e-4
    )
    assert read.report is None
    for teaching in ("function", "consistent", "independent"):
        with pytest.raises(UsageError, match="live teacher"):
            ran(FunMatch(teaching=teaching), task(stored))


def test_a_fixed_teacher_gives_the_same_targets_in_every_epoch() -> None:
    def asked(teaching: Any) -> dict[tuple[float, ...], set[tuple[float, ...]]]:
        """For each training picture what the teacher was asked in its place."""
        given, calls = task(steps=9), []

        class Asked(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                calls.extend(tuple(p.flatten().tolist()) for p in x)
                return given.teacher(x)

        box = task(Asked(), steps=9)
        ran(FunMatch(teaching=teaching), box)
        known = {tuple(p.flatten().tolist()) for p in box.train[0]} | {
            tuple(p.flatten().tolist()) for p in box.test[0]
        }
        return known, set(calls)

    known, seen = asked("fixed")
    assert seen <= known
    known, seen = asked("consistent")
    assert len(seen - known) == 9 * 12  # a view is never seen twice


def test_an_averaged_fixed_teacher_by_loops(tmp_path: Any) -> None:
    method, given = FunMatch(teaching="fixed", averaged=3, tau=2.0), task(steps=9)
    x, views = given.train[0], []
    table = Batch(x=x, index=torch.arange(36))
    for k in range(3):
        rng = Clock(4, "fit/targets", k, 3, 3).rng
        views.append(method.view(table, rng, "the teacher's view").x)
    assert not torch.allclose(views[0], views[1], atol=0.1)
    with torch.no_grad():
        p = [softmax(given.teacher(v).double().numpy(), 1) for v in views]
    want = torch.tensor((p[0] + p[1] + p[2]) / 3)
    with Run(given, 4, device="cpu"):
        targets = method.targets(given)
    torch.testing.assert_close(targets.double().exp(), want, atol=1e-5, rtol=1e-4)

    sure = task(nn.Sequential(net(1), nn.Linear(4, 4)))
    with torch.no_grad():
        sure.teacher[1].weight.mul_(1e4)
    with Run(sure, 4, device="cpu"):
        assert bool(method.targets(sure).isfinite().all())  # a class of no probability

    # A fit on them is that of a fixed teacher that says just this of each picture.
    rows = {tuple(r.flatten().tolist()): t for r, t in zip(x, targets, strict=True)}

    class Says(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([rows.get(tuple(r.flatten().tolist()), targets[0]) for r in x])

    alone = ran(FunMatch(teaching="fixed", tau=2.0), task(Says(), steps=9))
    result = limbeck.run(method, given, seed=4, device="cpu", out=tmp_path / "run")
    assert equal(result, alone)
    assert first(result) > 0.01
    with torch.no_grad():  # the report is of the teacher itself
        s, t = result.model.eval()(x), given.teacher(x)
    told = float((s.argmax(1) == t.argmax(1)).float().mean())
    assert result.report["train"]["agree"] == pytest.approx(told)
    # Resumed, the targets are read.
    assert (tmp_path / "run/checkpoints/fit@targets.done.safetensors").exists()
    assert equal(limbeck.run(method, given, seed=4, device="cpu", out=tmp_path / "run"), result)


def test_one_view_of_the_whole_picture_is_the_fixed_teacher() -> None:
    plain = {"teaching": "fixed", "crop": "none", "flip": False}
    one, two = (ran(FunMatch(**plain, averaged=n), task()) for n in (0, 1))
    for a, b in zip(bits(one), bits(two), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_only_a_fixed_teacher_that_is_here_is_averaged(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="averaged is 5, but with teaching='function'"):
        FunMatch(averaged=5)
    given = task()
    made_of = fingerprint_of(given.teacher, Table(given.train), None)
    with CacheWriter(tmp_path / "cache", made_of, 36) as writer, torch.no_grad():
        writer.write(torch.arange(36), {"logits": given.teacher(given.train[0])})
    with pytest.raises(UsageError, match="live teacher"):
        ran(FunMatch(teaching="fixed", averaged=2), task(Cached(tmp_path / "cache")))


def test_the_report_says_how_near_the_sides_are() -> None:
    given = task(steps=30)
    result = ran(FunMatch(), given)
    for name, (x, _) in {"train": given.train, "test": given.test}.items():
        with torch.no_grad():
            s, t = result.model.eval()(x), given.teacher(x)
        p, q = t.softmax(1), s.softmax(1)
        told = result.report[name]
        assert told["kl"] == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4)
        assert told["agree"] == pytest.approx(float((s.argmax(1) == t.argmax(1)).float().mean()))
        assert told["agree5"] == 1  # of four classes
    assert set(result.report) == {"train", "test"}
    assert result.facts["report"] == result.report


def test_the_student_becomes_the_teachers_function() -> None:
    before = ran(FunMatch(), task(steps=1)).report["test"]
    after = ran(FunMatch(), task(steps=150, optimiser=Optimiser("adam", lr=0.02))).report["test"]
    assert after["kl"] < 0.5 * before["kl"]
    assert after["agree"] > before["agree"]


def test_each_side_may_have_its_own_size() -> None:
    given = task(steps=3)
    given.readers = {
        "teacher": lambda x: x,
        "student": lambda x: F.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3),
    }
    other = ran(FunMatch(), given)
    assert not equal(other, ran(FunMatch(), task(steps=3)))
    assert set(other.report["test"]) == {"kl", "agree", "agree5"}


def test_a_black_box_with_labels_cannot_show_its_function() -> None:
    box = BlackBox(lambda x: x.flatten(1).argmax(1) % 4)
    with pytest.raises(UsageError, match="'logits'"):
        ran(FunMatch(), task(box))


def test_views_of_bytes_reach_a_reader_in_the_range_that_it_takes_bytes_to() -> None:
    """Without crop and flip's effect, what a side is shown is what it is shown of the bytes."""
    from limbeck.vision._kit.readers import Reader

    read = Reader(1, mean=(0.4,), std=(0.2,))
    whole = Batch(x=torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8), index=torch.arange(3))
    method = FunMatch(teaching="consistent", crop="none", flip=False)
    seen, _ = method.prepare(whole, Clock(0, "fit", 0, 1, 1).rng)
    torch.testing.assert_close(read(seen.x), read(whole.x))
