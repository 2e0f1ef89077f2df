"""ft: worked factors and their gradient, the autoencoder's layers, what each stage trains."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.objectives import Labels
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.vision.ft import FT, Encoder, Paraphraser, Stage, convolutions, factor_loss

pytestmark = pytest.mark.xdist_group("ft")

G = torch.Generator().manual_seed(17)
X, Y = torch.randn(32, 1, 6, 6, generator=G), torch.arange(32) % 4
CLOCK = Clock(0, "student", 0, 1, 1)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def place(*channels: float) -> Tensor:
    return torch.tensor(channels, dtype=torch.float64)[None, :, None, None]


# --- the mathematics -----------------------------------------------------------------------------


def test_the_worked_factors() -> None:
    s, t = place(4, 3), place(3, 4)
    assert float(factor_loss(s, t)) == pytest.approx(0.2)
    assert float(factor_loss(s, t, mean=False)) == pytest.approx(0.4)
    assert float(factor_loss(s, t, p=2, mean=False)) == pytest.approx(0.282843, abs=1e-6)
    assert float(factor_loss(s, t, p=2)) == pytest.approx(0.04)


def test_gradient_of_the_worked_factors() -> None:
    s = place(4, 3).requires_grad_()
    factor_loss(s, place(3, 4)).backward()
    assert s.grad.flatten().tolist() == pytest.approx([0.084, -0.112])
    assert float((s.grad * s.detach()).sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_loss_is_by_loops_what_is_written(p: float) -> None:
    s, t = draw(3, 4, 2, 5), draw(3, 4, 2, 5)
    by_mean = by_norm = 0.0
    for b in range(3):
        length = [math.sqrt(sum(float(v) ** 2 for v in x[b].flatten())) for x in (s, t)]
        pairs = zip(s[b].flatten().tolist(), t[b].flatten().tolist(), strict=True)
        total = sum(abs(u / length[0] - v / length[1]) ** p for u, v in pairs)
        by_mean += total / 40 / 3
        by_norm += total ** (1 / p) / 3
    assert float(factor_loss(s, t, p)) == pytest.approx(by_mean)
    assert float(factor_loss(s, t, p, mean=False)) == pytest.approx(by_norm)


def test_lengths_and_common_orders_do_not_count() -> None:
    s, t = draw(2, 4, 3, 3), draw(2, 4, 3, 3)
    scale = torch.tensor([3.0, 0.2]).double().view(2, 1, 1, 1)
    value = factor_loss(s, t)
    torch.testing.assert_close(factor_loss(scale * s, t / scale), value)
    assert not torch.allclose(factor_loss(-s, t), value)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(factor_loss(s[:, order], t[:, order]), value)
    torch.testing.assert_close(factor_loss(s.mT, t.mT), value)
    assert float(factor_loss(t, t)) == 0
    for n in (2, 7, 30):
        both = torch.randn(100, 2, n, 1, 1, generator=G)
        each = [float(factor_loss(a[None], b[None])) for a, b in both]
        assert max(each) <= 2 / math.sqrt(n) + 1e-6
    even = torch.ones(1, 9, 1, 1)
    assert float(factor_loss(even, -even)) == pytest.approx(2 / 3)


def test_attention_is_the_mean_of_squared_channels() -> None:
    s = torch.tensor([[[[1.0, 0.0]], [[1.0, 2.0]]]]).double()
    as_map = torch.tensor([0.447214, 0.894427]).double()
    t = torch.tensor([1.0, 0.0]).double()
    value = factor_loss(s, t[None, None, None], compare="attention")
    assert float(value) == pytest.approx(float((as_map - t).abs().mean()), abs=1e-6)
    more = torch.cat((t[None, None, None], -t[None, None, None]), 1)  # of any number of channels
    torch.testing.assert_close(factor_loss(s, 3 * more, compare="attention"), value)


def test_a_factor_of_zeros_has_a_finite_gradient() -> None:
    for mean in (True, False):
        s = torch.zeros(2, 3, 2, 2, requires_grad=True)
        value = factor_loss(s, torch.ones(2, 3, 2, 2), mean=mean)
        value.backward()
        assert torch.isfinite(value)
        assert torch.equal(s.grad, torch.zeros_like(s))


def test_the_autoencoders_layers() -> None:
    made = Paraphraser(8, 4, 0.1, False)
    shapes = [
        (m.in_channels, m.out_channels)
        for m in made.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert shapes == [(8, 8), (8, 4), (4, 4), (4, 4), (4, 8), (8, 8)]
    assert sum(p.numel() for p in made.encoder.parameters()) == 584 + 292 + 148
    assert [m.negative_slope for m in made.modules() if isinstance(m, nn.LeakyReLU)] == [0.1] * 6
    assert made(torch.randn(2, 8, 5, 3)).shape == (2, 8, 5, 3)
    assert len(convolutions((3, 3), norm=True)) == 3


def test_the_encoder_stays_still() -> None:
    encoder = Encoder(*convolutions((3, 3), norm=True))
    x = torch.randn(4, 3, 2, 2, generator=G)
    assert encoder.train().training
    encoder.freeze().train()
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    before = encoder[1].running_mean.clone()
    encoder(x)
    assert torch.equal(encoder[1].running_mean, before)


# --- terms ---------------------------------------------------------------------------------------


def sides(s: Tensor, t: Tensor) -> tuple[Any, Any, Batch]:
    z = draw(2, len(s), 3).float()
    batch = Batch(x=s, y=torch.arange(len(s)) % 3)
    return SimpleNamespace(feature=s, logits=z[0]), SimpleNamespace(feature=t, logits=z[1]), batch


def test_terms_of_the_student() -> None:
    s, t, batch = sides(draw(3, 6, 2, 2).float(), draw(3, 8, 4, 4).float())
    m = FT(label=2.0, ft=10.0, kd=0.5)
    parts = Stage("student", m).build(s, t, batch, None)
    shapes = [tuple(p.shape[:2]) for p in parts["translator"].parameters() if p.dim() == 4]
    assert shapes == [(6, 6), (4, 6), (4, 4)]
    out = Stage("student", m).terms(parts, s, t, batch, CLOCK)
    f_s, f_t = parts["translator"](s.feature), parts["encoder"](t.feature)
    expected = 10 * factor_loss(f_s, F.avg_pool2d(f_t, 2))
    torch.testing.assert_close(out["ft"], expected)
    torch.testing.assert_close(out["label"], 2 * F.cross_entropy(s.logits, batch.y))
    log_s, log_t = ((z / 4).log_softmax(1) for z in (s.logits, t.logits))
    soft = 16 * (log_t.exp() * (log_t - log_s)).sum(1).mean()
    torch.testing.assert_close(out["kd"], soft / 2)
    out["ft"].backward()
    assert all(p.grad.abs().sum() > 0 for p in parts["translator"].parameters())
    assert all(p.grad is None for p in parts["encoder"].parameters())
    bare = Stage("student", FT(ft=0.0))
    assert set(bare.terms(bare.build(s, t, batch, None), s, t, batch, CLOCK)) == {"label"}


def test_terms_of_the_paraphraser() -> None:
    _, t, batch = sides(draw(3, 6, 2, 2).float(), draw(3, 8, 4, 4).float())
    for error, power in (("l1", 1), ("l2", 2)):
        m = FT(rec=3.0, error=error)
        parts = Stage("paraphraser", m).build(None, t, batch, None)
        gap = parts["paraphraser"](t.feature) - t.feature
        out = Stage("paraphraser", m).terms(parts, None, t, batch, CLOCK)
        assert set(out) == {"rec"}
        torch.testing.assert_close(out["rec"], 3 * gap.abs().pow(power).mean())


def test_tokens_vectors_and_other_shapes() -> None:
    s, t, batch = sides(draw(2, 17, 6).float(), draw(2, 8).float())
    stage = Stage("student", FT())
    out = stage.terms(stage.build(s, t, batch, None), s, t, batch, CLOCK)
    assert torch.isfinite(out["ft"])
    with pytest.raises(UsageError, match="ft paraphrases maps, but a feature of shape"):
        stage.build(*sides(draw(2, 3, 4, 4, 4), t.feature), None)


# --- the stages ----------------------------------------------------------------------------------


def net(width: int) -> nn.Sequential:
    below = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(below, nn.Flatten(), nn.Linear(9 * width, 4))


def task(**kw: Any) -> Task:
    torch.manual_seed(4)
    given: dict[str, Any] = {
        "teacher": net(6),
        "student": net(3),
        "train": (X, Y),
        "test": (X, Y),
        "taps": {"feature": ("0", "0")},
        "budget": Budget(epochs=10, batch=16, optimiser=Optimiser("adam", lr=0.01)),
    }
    return Task(**{**given, **kw})


def run(given: Task, **kw: Any) -> Any:
    return limbeck.run("ft", given, seed=6, device="cpu", **kw)


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(v, other[k]) for k, v in a.state_dict().items())


def test_both_stages_lower_their_terms_and_ship_the_student() -> None:
    given = task()
    teacher = {k: v.clone() for k, v in given.teacher.state_dict().items()}
    result = run(given)
    stages = result.facts["stages"]
    assert [(s["stage"], s["steps"]) for s in stages] == [("paraphraser", 20), ("student", 20)]
    for name, term in (("paraphraser", "rec"), ("student", "ft")):
        values = [row["terms"][term] for row in result.log if row["stage"] == name]
        assert values[-1] < 0.9 * values[0]
    assert list(result.model.state_dict()) == list(given.student.state_dict())
    assert all(torch.equal(v, teacher[k]) for k, v in given.teacher.state_dict().items())


def test_the_first_stage_moves_no_student_and_sees_no_labels() -> None:
    given = task()
    first, without = (
        next(row for row in run(given, **kw).log if row["stage"] == "student")["terms"]
        for kw in ({}, {"rec": 0.0})
    )
    assert first["label"] == without["label"]  # at the first step, after the paraphraser's training
    assert first["ft"] != without["ft"]
    recs = [
        [row["terms"]["rec"] for row in run(each).log if row["stage"] == "paraphraser"]
        for each in (given, task(train=(X, Y.flip(0))))
    ]
    assert recs[0] == recs[1]


def test_rec_0_leaves_the_paraphraser_untrained_and_ft_0_is_label_training() -> None:
    given = task()
    untrained = run(given, rec=0.0)
    assert [s["stage"] for s in untrained.facts["stages"]] == ["student"]
    assert "ft" in untrained.log[0]["terms"]
    assert not same(untrained.model, run(given).model)
    bare = run(given, ft=0.0)
    assert [s["stage"] for s in bare.facts["stages"]] == ["student"]
    assert same(bare.model, limbeck.run(Labels(), given, seed=6, device="cpu").model)


def test_rate_and_share_are_the_paraphrasers() -> None:
    def moved(**kw: Any) -> tuple[list[int], float]:
        sgd = Budget(steps=4, batch=32, optimiser=Optimiser("sgd", lr=0.05))
        result = run(task(budget=sgd), **kw)
        values = [r["terms"]["rec"] for r in result.log if r["stage"] == "paraphraser"]
        return [s["steps"] for s in result.facts["stages"]], values[0] - values[-1]

    assert moved(share=0.5)[0] == [2, 4]
    slow, fast = moved(rate=1e-3)[1], moved()[1]
    assert 0 < slow < 0.1 * fast
