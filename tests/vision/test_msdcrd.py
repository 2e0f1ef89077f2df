"""msdcrd: windows, groups by the teacher's classifier, both contrasts by loops, masks, the cap."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.msdcrd import MSDCRD
from limbeck.vision.msdcrd.windows import (
    as_map,
    feature_wise,
    head_of,
    local,
    on_one_grid,
    sample_wise,
    unit,
)

pytestmark = pytest.mark.xdist_group("msdcrd")

G = torch.Generator().manual_seed(4)
B, D, C = 5, 6, 3


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def slow_samples(s: Tensor, t: Tensor, image: list[int], tau: float, mask: bool) -> float:
    total = 0.0
    for i in range(len(s)):
        cosines = [float(F.cosine_similarity(s[i], t[j], dim=0)) for j in range(len(s))]
        others = [j for j in range(len(s)) if j == i or not mask or image[j] != image[i]]
        total -= cosines[i] / tau - math.log(sum(math.exp(cosines[j] / tau) for j in others))
    return total / len(s)


def slow_features(s: Tensor, t: Tensor, tau: float) -> float:
    columns = list(range(s.shape[1]))
    return slow_samples(s.T, t.T, columns, tau, mask=False)


def scene(here: int = D, there: int = D, grids: tuple[int, int] = (4, 4), **fields):
    """A method, its parts, both sides with maps, and a batch."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(9, there), nn.ReLU(), nn.Linear(there, C))
    s = SimpleNamespace(feature=randn(B, here, *2 * (grids[0],)).float().requires_grad_())
    t = SimpleNamespace(feature=randn(B, there, *2 * (grids[1],)).float(), model=teacher)
    s.logits, t.logits = randn(B, C).float().requires_grad_(), randn(B, C).float()
    batch = Batch(x=torch.zeros(B, 9), y=torch.arange(B) % C, index=torch.arange(B) * 7)
    method = MSDCRD(**fields)
    parts = method.build(s, t, batch, Facts(50, C, 10, 5))
    return method, parts.eval(), s, t, batch


def clock(step: int = 2) -> Clock:
    return Clock(0, "fit", step, 10, 5)


# -- windows ---------------------------------------------------------------------------------------


def test_windows_are_averages_and_the_whole_is_their_mean() -> None:
    x = randn(2, 3, 8, 8)
    u = local(x, (1, 2, 4))
    assert u.shape == (2, 21, 3)
    torch.testing.assert_close(u[:, 0], x.mean((2, 3)))
    torch.testing.assert_close(u[1, 1 + 2], x[1, :, 4:, :4].mean((1, 2)))  # lower left of 2 x 2
    torch.testing.assert_close(u[0, 5 + 4 * 1 + 3], x[0, :, 2:4, 6:].mean((1, 2)))
    for first, last in ((1, 5), (5, 21)):
        torch.testing.assert_close(u[:, first:last].mean(1), u[:, 0])
    odd = local(randn(1, 2, 3, 3), (2,))
    assert odd.shape == (1, 4, 2)
    x = randn(1, 2, 3, 3)  # windows of 2 x 2 overlap where 2 does not divide 3
    torch.testing.assert_close(local(x, (2,))[0, 3], x[0, :, 1:, 1:].mean((1, 2)))


def test_grids_without_places_are_left_out() -> None:
    x = randn(2, 3, 2, 3)
    assert local(x, (1, 2, 4)).shape == (2, 5, 3)
    with pytest.raises(UsageError, match="has 2 x 3 places"):
        local(x, (4,))


def test_the_larger_map_is_averaged_to_the_smaller_grid() -> None:
    s, t = randn(2, 3, 4, 2), randn(2, 5, 2, 4)
    one, two = on_one_grid(s, t)
    assert one.shape == (2, 3, 2, 2) and two.shape == (2, 5, 2, 2)  # noqa: PT018
    torch.testing.assert_close(one[:, :, 1, 0], s[:, :, 2:, 0].mean(2))
    torch.testing.assert_close(two[:, :, 0, 1], t[:, :, 0, 2:].mean(2))
    assert on_one_grid(s, s)[0] is s


def test_tokens_are_laid_out_without_those_before_the_patches() -> None:
    x = randn(2, 1 + 9, 4)
    found = as_map(x)
    assert found.shape == (2, 4, 3, 3)
    assert torch.equal(found[1, :, 2, 0], x[1, 1 + 6])
    assert as_map(randn(2, 7)).shape == (2, 7, 1, 1)
    with pytest.raises(UsageError, match="is no map"):
        as_map(randn(2, 3, 4, 4, 4))


# -- both contrasts --------------------------------------------------------------------------------


def test_four_unit_vectors_by_hand() -> None:
    eye, wanted = torch.eye(4), math.log(1 + 3 * math.exp(-1))
    assert wanted == pytest.approx(0.743668, abs=1e-6)
    assert float(sample_wise(eye, eye, torch.arange(4), 1.0)) == pytest.approx(wanted, rel=1e-6)
    assert float(feature_wise(eye, eye, 1.0)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_both_losses_are_those_of_loops(tau: float) -> None:
    s, t, image = randn(8, D), randn(8, D), [0, 0, 0, 1, 1, 2, 3, 3]
    for mask in (True, False):
        found = sample_wise(s, t, torch.tensor(image) if mask else None, tau)
        assert float(found) == pytest.approx(slow_samples(s, t, image, tau, mask), rel=1e-9)
    assert float(feature_wise(s, t, tau)) == pytest.approx(slow_features(s, t, tau), rel=1e-9)
    assert float(sample_wise(s, t, torch.zeros(8), tau)) == 0  # of one picture there are no others


def test_what_the_losses_do_not_see() -> None:
    s, t, image = randn(8, D), randn(8, D), torch.arange(8) // 2
    rows, columns = 5 * torch.rand(8, 1).double() + 0.1, 5 * torch.rand(1, D).double() + 0.1
    order = torch.randperm(8, generator=G)
    one, two = sample_wise(s, t, image), feature_wise(s, t)
    torch.testing.assert_close(sample_wise(s * rows, t, image), one)
    torch.testing.assert_close(feature_wise(s * columns, t), two)
    torch.testing.assert_close(sample_wise(s[order], t[order], image[order]), one)
    torch.testing.assert_close(feature_wise(s[order], t[order]), two)
    assert abs(float(sample_wise(s * columns, t, image) - one)) > 1e-3
    assert abs(float(feature_wise(s * rows, t) - two)) > 1e-3


def test_dead_channels_and_few_rows_stay_finite() -> None:
    s, t = randn(4, D), randn(4, D)
    s[:, 2] = 0
    s[1] = 0
    s.requires_grad_()
    for loss in (sample_wise(s, t, torch.arange(4)), feature_wise(s, t)):
        grad = torch.autograd.grad(loss, s)[0]
        assert bool(loss.isfinite())
        assert 0 < float(grad.abs().max()) < 1e3
    assert not unit(s, 0)[:, 2].any()
    for n in (0, 1):
        few = s[:n]
        loss = sample_wise(few, t[:n], torch.arange(n)) + feature_wise(few, t[:n])
        assert float(loss.detach()) == 0
        assert not torch.autograd.grad(loss, s)[0].any()


# -- groups ----------------------------------------------------------------------------------------


def test_groups_are_by_the_class_of_window_and_whole() -> None:
    method, parts, s, t, batch = scene()
    agree, other = method.groups(parts, s, t, batch, clock())
    u_s, u_t = local(s.feature, (1, 2, 4)), local(t.feature, (1, 2, 4))
    head = t.model[-1]
    wanted: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for b in range(B):
        whole = int(head(t.feature[b].mean((1, 2))).argmax())
        for m in range(21):
            wanted[int(head(u_t[b, m]).argmax()) != whole].append((b, m))
    assert len(wanted[1]) > 10
    assert {(b, 0) for b in range(B)} <= set(wanted[0])
    for found, places in zip((agree, other), wanted, strict=True):
        assert found[2].tolist() == [b for b, _ in places]
        torch.testing.assert_close(found[0], torch.stack([u_s[p] for p in places]))
        torch.testing.assert_close(found[1], torch.stack([u_t[p] for p in places]))
    out = method.terms(parts, s, t, batch, clock())
    rows = [slow_samples(a.detach(), b, i.tolist(), 0.1, True) for a, b, i in (agree, other)]
    columns = [slow_features(a.detach(), b, 0.1) for a, b, _ in (agree, other)]
    assert float(out["sample_wise"].detach()) == pytest.approx(sum(rows), rel=1e-4)
    assert float(out["feature_wise"].detach()) == pytest.approx(sum(columns), rel=1e-4)


def test_a_constant_map_has_one_group_of_equal_windows() -> None:
    method, parts, s, t, batch = scene()
    t.feature = t.feature[:, :, :1, :1].expand(-1, -1, 4, 4).contiguous()
    agree, other = method.groups(parts, s, t, batch, clock())
    assert len(agree[1]) == 21 * B
    assert len(other[1]) == 0
    torch.testing.assert_close(agree[1].view(B, 21, D), agree[1][::21, None].expand(-1, 21, -1))
    out = method.terms(parts, s, t, batch, clock())
    assert all(bool(v.isfinite()) for v in out.values())


def test_one_group_without_categories_and_one_scale_is_plain_contrast() -> None:
    method, parts, s, t, batch = scene(scales=(1,), feature_wise=0.0)
    out = method.terms(parts, s, t, batch, clock())
    assert list(out) == ["label", "sample_wise"]
    a, b = s.feature.detach().mean((2, 3)), t.feature.mean((2, 3))
    wanted = slow_samples(a, b, list(range(B)), 0.1, mask=False)
    assert float(out["sample_wise"].detach()) == pytest.approx(wanted, rel=1e-5)
    kept, *rest = scene(categorise=False, keep_same_image=True)
    rest[2].model = None  # it is not asked for
    (only,) = kept.groups(*rest, clock())
    assert len(only[0]) == 21 * B
    value = float(kept.terms(*rest, clock())["sample_wise"].detach())
    assert value == pytest.approx(slow_samples(only[0].detach(), only[1], [], 0.1, False), rel=1e-4)


def test_the_cap_draws_the_same_rows_of_both_sides_whatever_the_order() -> None:
    method, parts, s, t, batch = scene(cap=10)
    whole = MSDCRD().groups(parts, s, t, batch, clock())
    some = method.groups(parts, s, t, batch, clock())
    for few, all_ in zip(some, whole, strict=True):
        assert len(all_[0]) > 10
        assert len(few[0]) == 10
        for a, b, image in zip(*few, strict=True):
            place = int((all_[0] == a).all(1).nonzero())
            assert torch.equal(all_[1][place], b)
            assert int(all_[2][place]) == int(image)
    other = method.groups(parts, s, t, batch, clock(3))
    assert not torch.equal(some[0][0], other[0][0])
    flip = torch.arange(B).flip(0)
    turned = [SimpleNamespace(**{**v.__dict__, "feature": v.feature[flip]}) for v in (s, t)]
    again = method.groups(parts, *turned, batch.select(flip), clock())
    rows = [sorted(g[0][:, 0].tolist()) for g in (some[0], again[0])]
    assert rows[0] == pytest.approx(rows[1])


# -- parts and sides -------------------------------------------------------------------------------


def test_a_projector_only_where_widths_differ() -> None:
    assert not list(scene()[1].parameters())
    method, parts, s, t, batch = scene(here=4, grids=(2, 4))
    assert [n for n, _ in parts.named_parameters()] == [
        "project.0.weight", "project.1.weight", "project.1.bias",
    ]  # fmt: skip
    assert not parts.state_dict().keys() & {"weight", "bias"}
    groups = method.groups(parts, s, t, batch, clock())
    assert sum(len(g[0]) for g in groups) == 5 * B  # 1 + 4 windows of 2 x 2 places
    assert {g[0].shape[1] for g in groups} == {D}
    terms = method.terms(parts, s, t, batch, clock())
    total = terms["sample_wise"] + terms["feature_wise"]
    grads = torch.autograd.grad(total, [s.feature, *parts.parameters()])
    assert all(float(g.abs().max()) > 0 for g in grads)


def test_tokens_against_a_map_and_against_a_vector() -> None:
    method, parts, s, t, batch = scene()
    maps = method.terms(parts, s, t, batch, clock())
    tokens = F.pad(s.feature.flatten(2).transpose(1, 2), (0, 0, 1, 0), value=9.0)
    mixed = SimpleNamespace(feature=tokens, logits=s.logits)
    again = method.terms(parts, mixed, t, batch, clock())
    for name, value in maps.items():
        torch.testing.assert_close(again[name], value)
    vector = SimpleNamespace(feature=s.feature.mean((2, 3)), logits=s.logits)
    found = method.terms(parts, vector, t, batch, clock())
    wanted = MSDCRD(scales=(1,)).terms(parts, s, t, batch, clock())
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_the_classifier_is_the_last_layer_that_fits() -> None:
    first, last = nn.Linear(6, 6), nn.Linear(6, 3)
    model = nn.Sequential(first, nn.ReLU(), last)
    assert head_of(model, 6) is last
    with pytest.raises(UsageError, match="no linear layer of it takes their 5 channels"):
        head_of(model, 5)


def test_weights_of_zero_ask_for_nothing_more() -> None:
    method, parts, s, t, batch = scene(kd=0.5, kd_tau=2.0)
    out = method.terms(parts, s, t, batch, clock())
    p, q = (t.logits / 2).softmax(1), (s.logits / 2).softmax(1)
    torch.testing.assert_close(out["kd"], 0.5 * 4 * (p * (p / q).log()).sum(1).mean())
    bare = SimpleNamespace(logits=s.logits)
    method = MSDCRD(sample_wise=0.0, feature_wise=0.0)
    parts = method.build(bare, SimpleNamespace(), batch, Facts(50, C, 10, 5))
    found = method.terms(parts, bare, SimpleNamespace(), batch, clock())
    torch.testing.assert_close(found["label"], F.cross_entropy(s.logits, batch.y))
    assert list(found) == ["label"]
    for bad in ("scales=()", "scales=(2,2)", "scales=(0,)", "tau=0", "cap=1"):
        with pytest.raises(UsageError):
            make(f"msdcrd({bad})")


class Small(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, width, 3, padding=1), nn.Linear(width, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


def test_a_student_takes_on_the_teachers_features() -> None:
    torch.manual_seed(0)
    teacher = Small(6)
    x = torch.randn(64, 1, 4, 4, generator=G)
    budget = Budget(steps=60, batch=32, optimiser=Optimiser(lr=2e-2))
    task = Task(
        teacher, lambda: Small(6), (x, torch.arange(64) % C),
        taps={"feature": ("body", "body")}, budget=budget,
    )  # fmt: skip
    result = limbeck.run("msdcrd", task, device="cpu", label=0.0, scales=(1, 2))
    with torch.no_grad():
        pooled = [F.relu(m.body(x)).mean((2, 3)) for m in (result.model, teacher)]
        fresh = [F.relu(m.body(x)).mean((2, 3)) for m in (task.new_student(0), teacher)]
    near, far = (float(F.cosine_similarity(*p).mean()) for p in (pooled, fresh))
    assert near > far + 0.2
    assert near > 0.9
