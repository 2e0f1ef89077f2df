"""ofd: margins by draws and by hand, the partial distance by loops, batch statistics, runs."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.bench.worlds._models import CNN, ResNet, ViT
from limbeck.core.objectives import Labels
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.vision.ofd import (
    OFD,
    Target,
    bn_margin,
    facts,
    measured_margin,
    partial_loss,
    renormalised,
)

pytestmark = pytest.mark.xdist_group("ofd")

G = torch.Generator().manual_seed(3)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


# --- margins -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "scale", "want"),
    [
        (0, 1, -math.sqrt(2 / math.pi)),
        (0, -1, -0.797885),
        (1, 2, -1.282156),
        (-1, 1, -1.287600),
        (3, 1, -0.283099),
        (4, 1, -3.0),
        (4, -2, -0.746431),
        (-2, 0, -2.0),
        (2, 0, 0.0),
    ],
)
def test_margins_by_hand(shift: float, scale: float, want: float) -> None:
    found = bn_margin(torch.tensor([float(scale)]), torch.tensor([float(shift)]))
    assert float(found) == pytest.approx(want, abs=1e-6)


def test_a_margin_is_the_mean_of_the_negative_draws() -> None:
    scale, shift = draw(6) + 2, draw(6) * 0.7
    x = draw(400, 6, 30, 30) * scale[:, None, None] + shift[:, None, None]
    margin = bn_margin(scale, shift)
    measured = measured_margin([x[:100], x[100:]])
    torch.testing.assert_close(measured.double(), margin, rtol=0.01, atol=0.0)
    by_hand = torch.stack([x[:, c][x[:, c] < 0].mean() for c in range(6)])
    torch.testing.assert_close(measured.double(), by_hand, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(bn_margin(3 * scale, 3 * shift), 3 * margin)
    assert (margin < 0).all()
    assert measured_margin([x.abs()]).tolist() == [0.0] * 6


# --- the distance --------------------------------------------------------------------------------


def test_loss_is_that_of_loops_over_three_cases() -> None:
    s, t, m = draw(3, 4, 2, 2), draw(3, 4, 2, 2), -draw(4).abs()
    cases = set()
    for n in range(3):
        want = 0.0
        for c in range(4):
            pairs = zip(s[n, c].flatten().tolist(), t[n, c].flatten().tolist(), strict=True)
            for a, b in pairs:
                low = float(m[c])
                if b > 0:
                    want += (a - b) ** 2
                    cases.add("positive")
                elif b > low:
                    want += max(a - b, 0) ** 2
                    cases.add("between")
                else:
                    want += max(a - low, 0) ** 2
                    cases.add("below")
        assert float(partial_loss(s, t, m)[n]) == pytest.approx(want, rel=1e-9)
    assert len(cases) == 3


def test_four_values_by_hand() -> None:
    m = -torch.tensor([2 / math.pi]).double().sqrt()
    t = torch.tensor([-2.0, -0.5, 1.0, 0.3]).double().view(1, 1, 2, 2)
    s = torch.tensor([-1.0, -0.6, 0.5, 2.0]).double().view(1, 1, 2, 2)
    assert float(partial_loss(s, t, m)) == pytest.approx(3.14)
    s[0, 0, 0, 0] = 0
    assert float(partial_loss(s, t, m)) == pytest.approx(3.776620, abs=1e-6)


def test_gradient_and_where_there_is_none() -> None:
    s, t, m = draw(5, 3, 2, 2).requires_grad_(), draw(5, 3, 2, 2), -draw(3).abs()
    (found,) = torch.autograd.grad(partial_loss(s, t, m).mean(), s)
    with torch.no_grad():
        target = torch.maximum(t, m[:, None, None])
        free = (s <= target) & (target <= 0)
        want = torch.where(free, 0, 2 * (s - target) / 5)
    torch.testing.assert_close(found, want)
    assert free.any()
    assert float(partial_loss(target, t, m).sum()) == 0
    low = -t.abs()
    assert float(partial_loss(torch.maximum(low, m[:, None, None]) - 1, low, m).sum()) == 0
    zero = torch.zeros(3).double()
    plain = (s.relu() - t.relu()).square().flatten(1).sum(1)
    torch.testing.assert_close(partial_loss(s.relu(), t, zero), plain)


# --- batch statistics ----------------------------------------------------------------------------


def norm_of(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).double()
    norm.weight.data, norm.bias.data = draw(channels), draw(channels)
    norm.running_mean, norm.running_var = draw(channels), draw(channels).square() + 0.1
    return norm


def test_renormalised_is_what_the_norm_gives_in_train_mode() -> None:
    norm, h = norm_of(5), 3 * draw(4, 5, 3, 3) + 1
    h[:, 2] *= 1e-3  # so small that eps counts
    with torch.no_grad():
        given = norm.eval()(h)
        target = Target(torch.zeros(5), norm)
        want = F.batch_norm(h, None, None, norm.weight, norm.bias, training=True)
    torch.testing.assert_close(renormalised(given, *facts(norm)), want)
    torch.testing.assert_close(target.double()(given), want)
    assert torch.equal(Target(torch.zeros(5), None)(given), given)
    norm.weight.data[0] = 0
    with torch.no_grad():
        flat = renormalised(norm(h), *facts(norm))[:, 0]
    torch.testing.assert_close(flat, torch.full_like(flat, float(norm.bias[0].detach())))


# --- runs ----------------------------------------------------------------------------------------

X, Y = torch.randn(48, 1, 8, 8, generator=G), torch.arange(48) % 4


def task(teacher: Any, student: Any, steps: int = 25) -> Task:
    return Task(
        teacher=teacher,
        student=student,
        train=(X, Y),
        test=(X, Y),
        taps={"blocks": (teacher.taps["blocks"], student.taps["blocks"])},
        budget=Budget(steps=steps, batch=24, optimiser=Optimiser(lr=0.02)),
    )


def cnn(*widths: int) -> CNN:
    torch.manual_seed(sum(widths))
    return CNN((1, 8, 8), 4, widths)


def test_terms_by_hand() -> None:
    teacher, student = cnn(6, 8), cnn(4, 8)
    with torch.no_grad():
        for stage in teacher.body:
            stage[1].weight.uniform_(0.5, 2)
            stage[1].bias.uniform_(-1, 1)
    given = task(teacher, student, 1)
    given.budget = Budget(steps=1, batch=48)
    for statistics in ("running", "batch"):
        kept: list[Tensor] = []

        def keep(fitter: Any, kept: list[Tensor] = kept) -> None:
            kept.extend(p.detach().clone() for p in fitter.parts.parameters())

        with Run(given, seed=1, device="cpu", on_fit=keep) as run:
            mine = run.student(given).train()
            row = OFD(statistics=statistics).run(given).log[0]["terms"]
        assert set(row) == {"label", "ofd"}
        teacher.eval()
        with torch.no_grad():
            want, s, t = 0.0, X, X
            for k in range(2):
                s, t = mine.body[k][1](mine.body[k][0](s)), teacher.body[k][0](t)
                norm = teacher.body[k][1]
                weight, gain, bias = kept[3 * k : 3 * k + 3]
                r = F.batch_norm(F.conv2d(s, weight), None, None, gain, bias, training=True)
                margin = bn_margin(norm.weight, norm.bias)
                after = norm(t)
                if statistics == "batch":
                    seen = F.batch_norm(t, None, None, norm.weight, norm.bias, training=True)
                else:
                    seen = after
                want += float(partial_loss(r, seen, margin).mean()) * (0.5, 1.0)[k]
                s, t = (F.max_pool2d(x.relu(), 2) for x in (s, after))
        assert row["ofd"] == pytest.approx(0.001 * want, rel=1e-4)


def margins_of(teacher: Any, **fields: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(fitter: Any) -> None:
        found.extend(target.margin.clone() for target in fitter.parts["targets"])

    given = task(teacher, cnn(4, 8), 1)
    with Run(given, seed=1, device="cpu", on_fit=keep):
        OFD(**fields).run(given)
    return found


def test_where_margins_come_from() -> None:
    teacher = cnn(6, 8).eval()
    auto, data, none = (margins_of(teacher, margin=m) for m in ("auto", "data", "none"))
    first = teacher.body[0][1](teacher.body[0][0](X)).detach()
    for k, found in enumerate(auto):
        norm = teacher.body[k][1]
        torch.testing.assert_close(found, bn_margin(norm.weight, norm.bias).detach())
        assert float(none[k].abs().sum()) == 0
    torch.testing.assert_close(data[0], measured_margin([first]))
    assert not torch.allclose(auto[0], data[0])
    torch.manual_seed(4)
    resnet = ResNet((1, 8, 8), 4, (4, 8), (1, 1))  # its ReLU follows a sum
    torch.testing.assert_close(margins_of(resnet), margins_of(resnet, margin="data"))
    assert all((m < 0).any() for m in margins_of(resnet))


def test_more_stages_in_the_teacher() -> None:
    torch.manual_seed(4)
    teacher = ResNet((1, 8, 8), 4, (4, 6, 8), (1, 1, 1))
    assert [len(m) for m in margins_of(teacher)] == [6, 8]  # the second and the last


def test_without_the_term_it_is_plain_training() -> None:
    given = task(cnn(6, 8), cnn(4, 8))
    plain = limbeck.run(Labels(), given, seed=2, device="cpu").model.state_dict()
    same = limbeck.run("ofd", given, seed=2, device="cpu", ofd=0.0).model.state_dict()
    assert all(torch.equal(v, same[k]) for k, v in plain.items())


@pytest.mark.parametrize("pair", ["cnn", "vit teacher", "vit student"])
@pytest.mark.parametrize("fields", [{}, {"statistics": "batch", "margin": "none"}])
def test_a_students_features_come_nearer(pair: str, fields: dict[str, Any]) -> None:
    torch.manual_seed(5)
    vit = ViT((1, 8, 8), 4, 16, 2)
    teacher, student = {
        "cnn": (cnn(6, 8), cnn(4, 8)),
        "vit teacher": (vit, cnn(4, 8)),
        "vit student": (cnn(6, 8), vit),
    }[pair]
    given = task(teacher, student)
    run = limbeck.run("ofd", given, seed=1, device="cpu", label=0.0, ofd=0.01, **fields)
    rows = [row["terms"]["ofd"] for row in run.log]
    assert rows[-1] < 0.9 * rows[0]
    assert set(run.model.state_dict()) == set(student.state_dict())
