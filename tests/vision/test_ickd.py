"""ickd: products of channels by loops, what leaves them alone, the grid, the connector, a run."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.ickd import ICKD, channel_loss, parts_of

pytestmark = pytest.mark.xdist_group("ickd")

G = torch.Generator().manual_seed(14)
S = torch.randn(3, 4, 4, 6, generator=G, dtype=torch.float64)
T = torch.randn(3, 4, 4, 6, generator=G, dtype=torch.float64).relu()
Y = torch.arange(3)
CLOCK = Clock(0, "fit", 0, 10, 5)


def slow(s: Tensor, t: Tensor, norm: str = "rows") -> float:
    """Sample by sample, channel by channel, of whole maps."""
    b, c, total = len(s), s.shape[1], 0.0
    for i in range(b):
        found = []
        for x in (s[i], t[i]):
            a = [[float((x[m] * x[n]).sum()) for n in range(c)] for m in range(c)]
            by = [math.sqrt(sum(v * v for v in row)) if norm == "rows" else 1.0 for row in a]
            found.append([[v / k for v in row] for row, k in zip(a, by, strict=True)])
        total += sum((found[0][m][n] - found[1][m][n]) ** 2 for m in range(c) for n in range(c))
    return total / b / (c if norm == "rows" else c * c)


def sides(s: Tensor | None, t: Tensor | None) -> list[SimpleNamespace]:
    z = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    return [SimpleNamespace(feature=x, logits=a) for x, a in zip((s, t), z, strict=True)]


def terms(method: ICKD, s: Tensor | None, t: Tensor | None, parts: nn.Module | None = None):
    parts = parts or nn.ModuleDict({"connector": nn.Identity()})
    return method.terms(parts, *sides(s, t), Batch(x=torch.zeros(3, 1), y=Y), CLOCK)


@pytest.mark.parametrize("norm", ["rows", "none"])
def test_the_loss_is_that_of_the_loops(norm: str) -> None:
    expected = slow(S, T, norm)
    assert expected > 1e-2
    assert float(channel_loss(S, T, norm)) == pytest.approx(expected, rel=1e-10)


def test_one_sample_by_hand() -> None:
    s = torch.eye(2).reshape(1, 2, 1, 2)
    t = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).reshape(1, 2, 1, 2)  # products (1 1; 1 2)
    rows = (4 - math.sqrt(2) - 4 / math.sqrt(5)) / 2
    assert rows == pytest.approx(0.398466, abs=1e-6)
    assert float(channel_loss(s, t)) == pytest.approx(rows)
    assert float(channel_loss(s, t, "none")) == 0.75


def test_places_may_be_turned_into_others() -> None:
    turn = torch.linalg.qr(torch.randn(24, 24, generator=G, dtype=torch.float64))[0]
    turned = (S.flatten(2) @ turn).view_as(S)
    assert float((turned - S).abs().max()) > 1
    for norm in ("rows", "none"):
        torch.testing.assert_close(channel_loss(turned, T, norm), channel_loss(S, T, norm))
        assert float(channel_loss(turned, S, norm)) == pytest.approx(0, abs=1e-20)
    assert float(channel_loss(S[:, [1, 0, 2, 3]], S)) > 1e-2  # channels may not


def test_scale_size_and_copies_are_not_seen() -> None:
    loss = channel_loss(S, T)
    torch.testing.assert_close(channel_loss(7 * S, T), loss)
    larger = S.repeat_interleave(2, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(channel_loss(larger, T), loss)
    torch.testing.assert_close(channel_loss(T, larger), channel_loss(T, S))
    torch.testing.assert_close(channel_loss(torch.cat((S, S)), torch.cat((T, T))), loss)
    # as it is printed, maps come to one size first: averages of equal numbers
    torch.testing.assert_close(channel_loss(larger, T, "none"), channel_loss(S, T, "none"))
    assert float(channel_loss(2 * S, T, "none")) > float(channel_loss(S, T, "none"))
    assert 0 < float(channel_loss(-S, T)) < 4


def test_a_grid_is_the_mean_over_its_parts() -> None:
    for norm in ("rows", "none"):
        parts = [
            slow(S[:, :, i : i + 2, j : j + 3], T[:, :, i : i + 2, j : j + 3], norm)
            for i in (0, 2)
            for j in (0, 3)
        ]
        assert float(channel_loss(S, T, norm, 2)) == pytest.approx(sum(parts) / 4, rel=1e-10)
    assert abs(float(channel_loss(S, T, grid=2) - channel_loss(S, T))) > 1e-3
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert parts_of(x, 2)[0, :, 0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    within, across = S.clone(), S.clone()
    within[:, :, 0, :3] = S[:, :, 0, [2, 0, 1]]
    across[:, :, 0] = S[:, :, 2]
    across[:, :, 2] = S[:, :, 0]
    torch.testing.assert_close(channel_loss(within, T, grid=2), channel_loss(S, T, grid=2))
    assert abs(float(channel_loss(across, T, grid=2) - channel_loss(S, T, grid=2))) > 1e-4
    with pytest.raises(UsageError, match="3 by 3 equal parts, but one has 4 by 6 places"):
        channel_loss(S, T, grid=3)


def test_the_gradient_in_closed_form() -> None:
    s = S.clone().requires_grad_()
    (grad,) = torch.autograd.grad(channel_loss(s, T), s)
    for i in range(3):
        f, g = S[i].flatten(1), T[i].flatten(1)
        a, b = f @ f.T, g @ g.T
        long = a.norm(dim=1, keepdim=True)
        a, b = a / long, b / b.norm(dim=1, keepdim=True)
        m = 2 / (4 * 3) * ((a * b).sum(1, keepdim=True) * a - b) / long
        torch.testing.assert_close(grad[i].flatten(1), (m + m.T) @ f)


def test_dead_channels_stay_finite() -> None:
    for norm in ("rows", "none"):
        dead = S.clone()
        dead[:, 1] = 0
        for s in (dead, torch.zeros_like(S)):
            s = s.clone().requires_grad_()
            loss = channel_loss(s, T, norm, 2)
            assert loss.isfinite()
            assert float(torch.autograd.grad(loss, s)[0].abs().max()) < 1e3


def test_maps_tokens_and_vectors() -> None:
    square = torch.rand(3, 4, 3, 3, generator=G)
    tokens = torch.cat((torch.rand(3, 1, 4, generator=G), square.flatten(2).mT), 1)
    expected = 2.5 * slow(square, T)
    for x in (square, tokens):
        assert float(terms(ICKD(), x, T.float())["ickd"]) == pytest.approx(expected, rel=1e-4)
    vector = torch.rand(3, 4, generator=G)
    found = float(terms(ICKD(ickd=1.0), vector, T.float())["ickd"])
    assert found == pytest.approx(slow(vector[:, :, None, None], T), rel=1e-4)
    with pytest.raises(UsageError, match="ickd relates the channels of maps, but a feature"):
        terms(ICKD(), torch.rand(3, 60, 4), T)


def test_the_connector_is_a_convolution_and_batch_norm() -> None:
    student, batch = S.float()[:, :2], Batch(x=torch.zeros(3, 1), y=Y)
    parts = ICKD().build(*sides(student, T.float()), batch, Facts(3, 3, 1, 1))
    conv, norm = parts["connector"]
    assert conv.weight.shape == (4, 2, 1, 1)
    assert conv.bias is None
    mixed = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], student).detach()
    mean, var = mixed.mean((0, 2, 3)), mixed.var((0, 2, 3), unbiased=False)
    by_hand = (mixed - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    found = terms(ICKD(ickd=1.0), student, T.float(), parts)["ickd"]
    assert float(found.detach()) == pytest.approx(slow(by_hand, T), rel=1e-4)
    assert isinstance(norm, nn.BatchNorm2d)
    assert not list(ICKD(ickd=0).build(*sides(None, None), batch, Facts(3, 3, 1, 1)).parameters())


def test_terms_are_weighted_and_left_out() -> None:
    out = terms(ICKD(label=0.5, kd=2.0, tau=3.0, norm="none"), S, T)
    assert float(out["ickd"]) == pytest.approx(2.5 * slow(S, T, "none"), rel=1e-9)
    z, zt = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    p, q = (zt / 3).softmax(1), (z / 3).softmax(1)
    assert float(out["kd"]) == pytest.approx(2 * 9 * float((p * (p / q).log()).sum() / 3), rel=1e-5)
    ce = -z.log_softmax(1)[torch.arange(3), Y].mean()
    assert float(out["label"]) == pytest.approx(0.5 * float(ce), rel=1e-6)
    assert set(terms(ICKD(), S, T)) == {"label", "kd", "ickd"}
    assert set(terms(ICKD(ickd=0, kd=0), None, None)) == {"label"}
    for field in ("ickd=-1", "grid=0", "norm='matrix'", "tau=0"):
        with pytest.raises(UsageError):
            make(f"ickd({field})")


def test_a_run_teaches_the_channels_through_the_connector() -> None:
    x = torch.randn(16, 3, 6, 6, generator=G)
    torch.manual_seed(0)

    def net(width: int) -> nn.Module:
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), head)

    teacher, student = net(6), net(4)
    budget = Budget(steps=60, batch=16, schedule="constant", optimiser=Optimiser("adam", lr=0.02))
    data, taps = (x, torch.arange(16) % 3), {"feature": ("1", "1")}
    task = Task(teacher, student, data, test=data, budget=budget, taps=taps)
    result = limbeck.run("ickd", task, device="cpu", label=0.0, kd=0.0)
    values = [row["terms"]["ickd"] for row in result.log if "terms" in row]
    assert values[0] > 0.5
    assert values[-1] < values[0] / 2
    assert {name for name, _ in result.model.named_parameters()} == {
        name for name, _ in student.named_parameters()
    }
