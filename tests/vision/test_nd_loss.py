"""nd_loss: its values by hand, its radial gradient, the means over a whole set, the map, a run."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.caching import cache_teacher
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision._kit.classes import class_means
from limbeck.vision.nd_loss import Added, NDLoss, means_of
from limbeck.vision.nd_loss.losses import Means, cosine_loss, nd_loss, norm_loss

pytestmark = pytest.mark.xdist_group("nd_loss")

G = torch.Generator().manual_seed(5)
X, Y = torch.randn(30, 6, generator=G), torch.arange(30) % 3
CLOCK = Clock(0, "fit", 0, 10, 5)
TWICE = '''
"""Twice - two phases."""
from dataclasses import dataclass
from limbeck.core.card import Card
from limbeck.core.method import Objective
from limbeck.core.updates import Phase

CARD = Card(
    key="twice", title="t", year=2000, arxiv="", code="", kinds=("feature",), needs=("y",),
    gives="model", world="digits", stages=("fit",), tiny={}, departs="none known",
)

@dataclass(frozen=True)
class Twice(Objective):
    card = CARD
    def terms(self, parts, s, t, batch, clock):
        return {}
    def update(self):
        return Phase("one"), Phase("two")
'''


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def pair(*vectors: list[float]) -> list[Tensor]:
    return [torch.tensor([v], dtype=torch.float64) for v in vectors]


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))


def task(here: int = 4, there: int = 5, **kw: Any) -> Task:
    torch.manual_seed(2)
    given: dict[str, Any] = {
        "teacher": net(there),
        "student": net(here),
        "train": (X, Y),
        "test": (X, Y),
        "taps": {"embedding": ("1", "1")},
        "budget": Budget(
            steps=4, batch=30, schedule="constant", optimiser=Optimiser("sgd", 0.5, momentum=0.0)
        ),
    }
    return Task(**{**given, **kw})


# --- the loss -------------------------------------------------------------------------------------


def test_values_by_hand() -> None:
    t = [3.0, 4.0]  # of length 5
    for s, value in (([3.0, 0.0], 0.4), ([10.0, 0.0], 0.0), ([0.0, 9.0], 1.0), ([-7.0, 0.0], 2.0)):
        assert float(nd_loss(*pair(s, t, [2.0, 0.0]))) == pytest.approx(value, abs=1e-12)
    # cos = 0.6; the shorter of the two has no say: 1 - 2 * 0.6 / 5 and 1 - 0.6.
    assert float(nd_loss(*pair([1.2, 1.6], t, [1.0, 0.0]))) == pytest.approx(0.76)
    assert float(nd_loss(*pair([6.0, 8.0], t, [1.0, 0.0]))) == pytest.approx(0.4)


def test_a_loop_gives_the_same() -> None:
    s, t, mu = draw(20, 7), draw(20, 7), draw(20, 7)
    for b in range(20):
        length = max(math.hypot(*s[b].tolist()), math.hypot(*t[b].tolist()))
        dot = sum(float(a) * float(c) for a, c in zip(s[b], mu[b], strict=True))
        by_hand = 1 - dot / math.hypot(*mu[b].tolist()) / length
        assert float(nd_loss(s, t, mu)[b]) == pytest.approx(by_hand, rel=1e-9)
    longer = s.norm(dim=1) > t.norm(dim=1)
    assert longer.any()
    assert not longer.all()


def test_only_the_means_direction_counts() -> None:
    s, t, mu = draw(9, 4), draw(9, 4), draw(9, 4)
    torch.testing.assert_close(nd_loss(s, t, 7.5 * mu), nd_loss(s, t, mu))


def test_the_radial_gradient_ends_where_the_student_is_longer() -> None:
    s, t, mu = draw(40, 4).requires_grad_(), draw(40, 4), draw(40, 4)
    grad = torch.autograd.grad(nd_loss(s, t, mu).sum(), s)[0]
    s = s.detach()
    radial = (grad * s).sum(1) / s.norm(dim=1)
    longer = s.norm(dim=1) > t.norm(dim=1)
    assert longer.sum() > 5
    assert (~longer).sum() > 5
    assert float(radial[longer].abs().max()) < 1e-12
    by_hand = -F.cosine_similarity(s, mu) / t.norm(dim=1)
    torch.testing.assert_close(radial[~longer], by_hand[~longer])
    torch.testing.assert_close(nd_loss(3 * s, t, mu)[longer], nd_loss(s, t, mu)[longer])


def test_nothing_is_divided_by_zero() -> None:
    s = torch.zeros(1, 3, requires_grad=True)
    loss = nd_loss(s, torch.zeros(1, 3), torch.zeros(1, 3))
    assert float(loss.detach()) == 1
    assert torch.autograd.grad(loss.sum(), s)[0].isfinite().all()


def test_the_losses_that_it_is_compared_with() -> None:
    s, mu = draw(9, 4).requires_grad_(), draw(9, 4)
    grad = torch.autograd.grad(cosine_loss(s, mu).sum(), s)[0]
    assert float((grad * s).sum(1).detach().abs().max()) < 1e-12  # the norm has no say
    torch.testing.assert_close(cosine_loss(2 * mu, mu), torch.zeros(9).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(cosine_loss(-mu, mu), 2 * torch.ones(9).double())
    grad = torch.autograd.grad(norm_loss(s, 0.25).sum(), s)[0]
    torch.testing.assert_close(grad, -2 * 0.25 * F.normalize(s.detach(), dim=1))
    torch.testing.assert_close(norm_loss(s, 0.25).detach(), torch.full((9,), 0.0625).double())


# --- the means ------------------------------------------------------------------------------------


def test_means_are_of_each_class_over_all_chunks() -> None:
    e, y = draw(11, 3).float(), torch.tensor([0, 4, 1, 1, 0, 4, 4, 2, 0, 1, 4])
    chunks = iter([(e[:2], y[:2]), (e[2:7], y[2:7]), (e[7:], y[7:])])
    mu = class_means(chunks)
    assert mu.shape == (5, 3)
    for c in (0, 1, 2, 4):
        mine = [e[i] for i in range(11) if y[i] == c]
        torch.testing.assert_close(mu[c], sum(mine) / len(mine))
    assert float(mu[3].abs().max()) == 0


def test_the_teacher_is_asked_in_eval_mode_over_the_whole_set(tmp_path: Path) -> None:
    x, y = torch.randn(600, 6, generator=G), torch.arange(600) % 3  # more than two chunks
    torch.manual_seed(3)
    inner = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    teacher = nn.Sequential(*inner, nn.Linear(4, 3)).train()
    given = task(teacher=teacher, train=(x, y), taps={"embedding": ("3:in", "1")})
    with Run(given, device="cpu"):
        mu = means_of(given)
    assert teacher.training
    assert not teacher[0]._forward_hooks
    e = inner.eval()(x).detach()
    inner.train()
    for c in range(3):
        torch.testing.assert_close(mu[c], e[y == c].mean(0), rtol=1e-4, atol=1e-6)
    cached = cache_teacher(given, tmp_path / "cache", ("logits", "embedding"))
    with Run(given, device="cpu"):
        again = means_of(replace(given, teacher=cached))
    torch.testing.assert_close(again, mu)


# --- the objective --------------------------------------------------------------------------------


def sides(here: int, there: int) -> tuple[SimpleNamespace, SimpleNamespace]:
    return tuple(
        SimpleNamespace(logits=draw(12, 3).float(), embedding=draw(12, width).float())
        for width in (here, there)
    )


def built(method: NDLoss, s: Any, t: Any, mu: Tensor, y: Tensor) -> tuple[Added, nn.Module]:
    added = Added(method, mu)
    batch = Batch(x=s.logits, y=y)
    return added, added.build(s, t, batch, Facts(12, 3, 10, 5))


def test_terms_are_those_of_the_method_and_the_weighted_mean() -> None:
    (s, t), mu, y = sides(5, 5), draw(3, 5).float(), torch.arange(12) % 3
    method = NDLoss(of="kd(label=0.5, kd=2.0, tau=3.0)", nd=1.5)
    added, parts = built(method, s, t, mu, y)
    out = added.terms(parts, s, t, Batch(x=s.logits, y=y), CLOCK)
    base = make("kd(label=0.5, kd=2.0, tau=3.0)").terms(nn.Module(), s, t, Batch(x=0, y=y), CLOCK)
    assert set(out) == {"label", "kd", "nd"}
    assert torch.equal(out["kd"], base["kd"])
    assert torch.equal(out["label"], base["label"])
    each = [nd_loss(s.embedding[[b]], t.embedding[[b]], mu[y[[b]]]) for b in range(12)]
    torch.testing.assert_close(out["nd"], 1.5 * torch.stack(each).mean())
    assert not list(parts.parameters())  # of one width nothing is mapped
    for loss, fn in (
        ("cosine", lambda e, m: cosine_loss(e, m)),
        ("norm", lambda e, m: norm_loss(e)),
    ):
        other, parts = built(replace(method, loss=loss), s, t, mu, y)
        value = other.terms(parts, s, t, Batch(x=s.logits, y=y), CLOCK)["nd"]
        torch.testing.assert_close(value, 1.5 * fn(s.embedding, mu[y]).mean())


def test_without_weight_it_is_the_method_alone() -> None:
    given = task()
    alone = limbeck.run("kd(label=1.0, kd=1.0, tau=4.0)", given, device="cpu")
    off = limbeck.run("nd_loss(nd=0)", given, device="cpu")
    for one, two in zip(alone.model.parameters(), off.model.parameters(), strict=True):
        assert torch.equal(one, two)
    on = limbeck.run("nd_loss", given, device="cpu")
    assert not torch.equal(next(on.model.parameters()), next(off.model.parameters()))


def test_another_width_is_mapped_for_this_loss_alone() -> None:
    means = Means(torch.zeros(3, 5), (4, 5), 0.5)
    norm, drop, linear = means.fit
    assert isinstance(norm, nn.BatchNorm1d)
    assert drop.p == 0.5
    assert linear.weight.shape == (5, 4)
    assert float(linear.bias.detach().abs().max()) == 0
    assert isinstance(Means(torch.zeros(3, 5), (5, 5), 0.5).fit, nn.Identity)
    (s, t), mu, y = sides(4, 5), draw(3, 5).float(), torch.arange(12) % 3
    added, parts = built(NDLoss(), s, t, mu, y)
    parts.eval()
    out = added.terms(parts, s, t, Batch(x=s.logits, y=y), CLOCK)
    last = parts.means.fit[2]
    mapped = s.embedding / math.sqrt(1 + 1e-5) @ last.weight.T + last.bias
    torch.testing.assert_close(out["nd"], 2 * nd_loss(mapped, t.embedding, mu[y]).mean())
    student = limbeck.run("nd_loss", task(), device="cpu").model
    assert [n for n, _ in student.named_modules() if n] == ["0", "1", "2"]


def test_it_is_added_to_other_methods() -> None:
    log = limbeck.run("nd_loss", task(), device="cpu", of="dkd(warmup=4)", nd=1.0).log
    names = {name for row in log for name in row.get("terms", {})}
    assert names == {"label", "tckd", "nckd", "nd"}
    log = limbeck.run("nd_loss", task(), device="cpu", of="dot(of='kd', delta=0.05)").log
    assert {name for row in log for name in row.get("terms", {})} == {"label", "kd", "nd"}


def test_features_turn_to_the_means_and_grow() -> None:
    given = task(5, 5, budget=Budget(steps=120, batch=30, optimiser=Optimiser("adam", lr=0.02)))

    @torch.no_grad()
    def seen(model: Any) -> tuple[float, float]:
        e = model[:2](X)
        t = given.teacher[:2](X)
        with Run(given, device="cpu"):
            mu = means_of(given)
        return float(F.cosine_similarity(e, mu[Y]).mean()), float(
            (e.norm(dim=1) / t.norm(dim=1)).mean()
        )

    alone = seen(limbeck.run("nd_loss(nd=0)", given, device="cpu").model)
    both = seen(limbeck.run("nd_loss(nd=4)", given, device="cpu").model)
    assert both[0] > alone[0] + 0.05
    turned = seen(limbeck.run("nd_loss(nd=4, loss='cosine')", given, device="cpu").model)
    assert turned[0] > alone[0] + 0.05
    grown = seen(limbeck.run("nd_loss(nd=4, loss='norm')", given, device="cpu").model)
    assert grown[1] > alone[1] + 0.02


# --- what is refused ------------------------------------------------------------------------------


def test_methods_that_it_cannot_be_added_to_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'takd' is not one fit with named terms"):
        NDLoss(of="takd")
    with pytest.raises(UsageError, match="no method"):
        NDLoss(of="nothing_like_it")
    path = tmp_path / "twice.py"
    path.write_text(TWICE)
    with pytest.raises(UsageError, match="trains in several phases"):
        NDLoss(of=str(path))


def test_labels_that_are_no_classes_are_refused() -> None:
    soft = F.one_hot(Y, 3).float()
    with pytest.raises(UsageError, match="give one class number for each sample"):
        limbeck.run("nd_loss(of='kd(label=0)')", task(train=(X, soft)), device="cpu")


def test_another_number_of_samples_is_refused() -> None:
    (s, t), mu, y = sides(5, 5), draw(3, 5).float(), torch.arange(12) % 3
    added, parts = built(NDLoss(of="kd(label=0, kd=0)"), s, t, mu, y)
    with pytest.raises(UsageError, match="shows the student 12 samples for 6 labels"):
        added.terms(parts, s, t, Batch(x=s.logits[:6], y=y[:6]), CLOCK)
