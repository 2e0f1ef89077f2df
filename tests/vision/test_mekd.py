"""mekd: the networks rebuilt by hand, the losses by loops, and every question that is asked."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch, Epochs, Table
from limbeck.core.engine import fit
from limbeck.core.method import Clock
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import BlackBox
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.mekd import (
    MEKD,
    Deprivatise,
    Distil,
    align_loss,
    answers,
    critic_loss,
    fool_loss,
)
from limbeck.vision.mekd.gan import Critic, Latent, Painter, Rounds, Span, started

pytestmark = pytest.mark.xdist_group("mekd")
ONE = Span(torch.full((1, 1, 1), -1.0), torch.full((1, 1, 1), 1.0))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def clock(draw: int = 0, phase: str = "", n: int = 0, of: int = 1) -> Clock:
    return Clock(3, "student", draw, 9, 3, phase, n=n, of=of, draw=draw, batch=8)


# --- the networks --------------------------------------------------------------------------------


def normed(x: Tensor, norm: nn.BatchNorm2d, eps: float) -> Tensor:
    """Batch normalisation in eval mode, written out."""
    mean, var, w, b = (
        v[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (var + eps).sqrt() * w + b


def shaken(module: nn.Module) -> nn.Module:
    """A module whose running statistics are not those of the start, in eval mode."""
    for i in range(3):
        module(drawn(6, *SHAPES[type(module)], seed=i))
    return module.eval()


SHAPES: dict[type, tuple[int, ...]] = {Painter: (5,), Critic: (2, 12, 20)}


def test_the_generator_by_its_layers() -> None:
    g = shaken(seeded(lambda: Painter(5, (2, 12, 20))))
    z = drawn(3, 5, seed=9)
    conv = [m for m in g.modules() if isinstance(m, nn.Conv2d)]
    norm = [m for m in g.modules() if isinstance(m, nn.BatchNorm2d)]
    h = (z @ g.linear.weight.T + g.linear.bias).reshape(3, 128, 3, 5)
    h = normed(h, norm[0], 1e-5)
    for i in (0, 1):
        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = normed(F.conv2d(h, conv[i].weight, conv[i].bias, padding=1), norm[i + 1], 0.8)
        h = torch.where(h > 0, h, 0.2 * h)
    want = torch.tanh(F.conv2d(h, conv[2].weight, conv[2].bias, padding=1))
    torch.testing.assert_close(g(z), want)
    assert [tuple(c.weight.shape[:2]) for c in conv] == [(128, 128), (64, 128), (2, 64)]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 30, 17), (3, 1, 5)])
def test_pictures_of_every_size(shape: tuple[int, int, int]) -> None:
    g, d = Painter(10, shape), Critic(shape)
    made = g(3 * drawn(4, 10)).detach()
    assert made.shape == (4, *shape)
    assert float(made.abs().max()) <= 1
    assert d(made).shape == (4,)


def test_the_critic_by_its_layers() -> None:
    d = shaken(seeded(lambda: Critic((2, 12, 20))))
    conv = [m for m in d.modules() if isinstance(m, nn.Conv2d)]
    norm = [m for m in d.modules() if isinstance(m, nn.BatchNorm2d)]
    h = x = drawn(3, 2, 12, 20)
    for i, by in enumerate([(2, 2), (2, 2), (2, 2), (1, 2)]):  # 12 6 3 2 2 and 20 10 5 3 2
        h = F.conv2d(h, conv[i].weight, conv[i].bias, stride=by, padding=1)
        h = torch.where(h > 0, h, 0.2 * h)
        h = normed(h, norm[i - 1], 0.8) if i else h
    assert h.shape == (3, 128, 2, 2)
    want = h.reshape(3, -1) @ d.head.weight[0] + d.head.bias
    torch.testing.assert_close(d(x), want)
    assert [m.p for m in d.modules() if isinstance(m, nn.Dropout2d)] == [0.25] * 4


def means(d: nn.Module, *batches: Tensor) -> list[float]:
    for m in d.modules():
        if isinstance(m, nn.Dropout2d):
            m.p = 0.0
    return [float(d.train()(x).detach().mean()) for x in batches]


def test_a_critic_keeps_two_places_since_on_one_it_is_blind() -> None:
    bright, dark = drawn(64, 1, 8, 8) + 1, drawn(64, 1, 8, 8, seed=1) - 1
    mine = seeded(lambda: Critic((1, 8, 8)))
    one, two = means(mine, bright, dark)
    assert abs(one - two) > 1e-3
    paper = seeded(lambda: Critic((1, 8, 8)))  # as in the code: each convolution halves
    for m in paper.modules():
        if isinstance(m, nn.Conv2d):
            m.stride = (2, 2)
    paper.head = nn.Linear(128, 1)
    one, two = means(paper, bright, dark)
    assert one == pytest.approx(paper.head.bias.item(), abs=1e-5)
    assert two == pytest.approx(one, abs=1e-5)  # so its loss is at least 2 log 2, by Jensen
    for side in range(1, 40):
        assert Critic((1, side, 32)).head.in_features >= 128 * 2


def test_the_start_is_drawn_from_the_generator_that_is_given() -> None:
    def made(seed: int) -> nn.Module:
        return started(seeded(lambda: Critic((3, 32, 32))), torch.Generator().manual_seed(seed))

    d, again, other = made(1), made(1), made(2)
    assert all(torch.equal(a, b) for a, b in zip(d.parameters(), again.parameters(), strict=True))
    assert not torch.equal(d.body[3].weight, other.body[3].weight)
    for conv in (m for m in d.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 16):
        assert conv.weight.mean().item() == pytest.approx(0, abs=1e-3)
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    norms = torch.cat([m.weight.detach() for m in d.modules() if isinstance(m, nn.BatchNorm2d)])
    assert float(norms.mean()) == pytest.approx(1, abs=0.01)
    assert float(norms.std()) == pytest.approx(0.02, rel=0.3)
    assert torch.equal(d.head.weight, seeded(lambda: Critic((3, 32, 32))).head.weight)


# --- the losses ----------------------------------------------------------------------------------


def test_the_gans_losses_are_binary_cross_entropies() -> None:
    real, fake = 3 * drawn(9), 3 * drawn(9, seed=1)
    ones, zeros = torch.ones(9), torch.zeros(9)
    p, q = real.sigmoid(), fake.sigmoid()
    want = F.binary_cross_entropy(p, ones) + F.binary_cross_entropy(q, zeros)
    torch.testing.assert_close(critic_loss(real, fake), want)
    torch.testing.assert_close(fool_loss(fake), F.binary_cross_entropy(q, ones))


def test_confidence_weighs_each_picture_by_itself() -> None:
    fake, sure = drawn(7).requires_grad_(), torch.linspace(0.1, 1, 7)
    want = 0.0
    for c, d in zip(sure.tolist(), fake.tolist(), strict=True):
        want -= c * math.log(1 / (1 + math.exp(-d)))
    loss = fool_loss(fake, sure)
    assert loss.item() == pytest.approx(want / 7, rel=1e-5)
    (g,) = torch.autograd.grad(loss, fake)
    torch.testing.assert_close(g, -sure * torch.sigmoid(-fake.detach()) / 7)
    torch.testing.assert_close(fool_loss(fake, torch.ones(7)), fool_loss(fake))


def test_the_terms_of_the_first_stage() -> None:
    made, real, t = drawn(5, 1, 2, 2), drawn(5, 1, 2, 2, seed=1), 2 * drawn(5, 4, seed=2)
    method = MEKD(critic=0.5, fool=0.25, im=0.75)
    parts = SimpleNamespace(critic=lambda x: 3 * x.mean((1, 2, 3)))
    sides = [SimpleNamespace(logits=z) for z in (made, t)]

    def terms(phase: str, answered: bool = True) -> dict[str, float]:
        batch = Batch(x=drawn(5, 4), real=real)
        given = Deprivatise(method, answered).terms(parts, *sides, batch, clock(phase=phase))
        return {name: float(v) for name, v in given.items()}

    critic = fool = im = 0.0
    for x, g, z in zip(real, made, t.tolist(), strict=True):
        p, q = (1 / (1 + math.exp(-3 * float(v.mean()))) for v in (x, g))
        sure = max(math.exp(v) for v in z) / sum(math.exp(v) for v in z)
        critic -= (math.log(p) + math.log(1 - q)) / 5
        fool -= math.log(q) / 5
        im -= sure * math.log(q) / 5
    assert terms("critic") == pytest.approx({"critic": 0.5 * critic})
    assert terms("generator") == pytest.approx({"fool": 0.25 * fool, "im": 0.75 * im})
    assert terms("generator", False) == pytest.approx({"fool": 0.25 * fool, "im": 0.75 * fool})


def test_where_the_critic_doubts_the_losses_are_known() -> None:
    none = torch.zeros(3)
    assert float(critic_loss(none, none)) == pytest.approx(2 * math.log(2))
    assert float(fool_loss(none, torch.tensor([1.0, 0.5, 0.0]))) == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize(("distance", "power"), [("l1", 1), ("l2", 2)])
def test_alignment_by_loops(distance: str, power: int) -> None:
    g = seeded(lambda: Painter(4, (1, 8, 8))).eval()
    s, t = 3 * drawn(3, 4), 3 * drawn(3, 4, seed=1)
    total = 0.0
    with torch.no_grad():
        for a, b in zip(s, t, strict=True):
            gap = g(a[None] / 2.5) - g(b[None] / 2.5)
            total += sum(abs(v) ** power for v in gap.flatten().tolist())
    assert float(align_loss(g, s, t, 2.5, distance)) == pytest.approx(total / (3 * 64), rel=1e-4)
    assert float(align_loss(g, s, s, 2.5, distance)) == 0


def distil(method: MEKD, s: Tensor, t: Tensor, hard: bool = False) -> dict[str, Tensor]:
    g = seeded(lambda: Painter(4, (1, 8, 8))).eval().requires_grad_(False)
    sides = [SimpleNamespace(logits=z) for z in (s, t)]
    return Distil(method, g, 4, hard, False).terms(nn.Module(), *sides, Batch(x=s), clock())


def test_the_gradient_goes_through_the_generator_into_the_student_alone() -> None:
    s, t = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    pulled = distil(MEKD(kl=0.0), s, t)["align"]
    one, two = torch.autograd.grad(pulled, (s, t), allow_unused=True)
    assert float(one.abs().sum()) > 0
    assert two is None


def test_the_terms_of_distillation() -> None:
    s, t = drawn(6, 4), 4 * drawn(6, 4, seed=1)
    terms = distil(MEKD(align=0.5, kl=0.25, tau=3.0), s, t)
    soft = F.kl_div((s / 3).log_softmax(1), (t / 3).softmax(1), reduction="batchmean") * 3
    assert float(terms["kl"]) == pytest.approx(0.25 * float(soft), rel=1e-5)
    g = seeded(lambda: Painter(4, (1, 8, 8))).eval()
    assert float(terms["align"]) == pytest.approx(0.5 * float(align_loss(g, s, t, 5.0)), rel=1e-5)
    same = distil(MEKD(), s, s)
    assert float(same["align"]) == float(same["kl"]) == 0
    assert set(distil(MEKD(align=0.0), s, t)) == {"kl"}


def test_hard_responses_are_one_hot_logits() -> None:
    t = torch.tensor([[2.0, 5.0, 1.0, 0.0], [9.0, 8.0, 7.0, 6.0]])
    want = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert torch.equal(answers(SimpleNamespace(logits=t), True, False, 4), want)
    assert torch.equal(answers(SimpleNamespace(labels=torch.tensor([1, 0])), True, True, 4), want)
    # At tau 5 the target is e^(1/5) against three times 1; against equal logits, by hand:
    top = math.exp(0.2) / (math.exp(0.2) + 3)
    rest = (1 - top) / 3
    by_hand = 5 * (top * math.log(4 * top) + 3 * rest * math.log(4 * rest))
    terms = distil(MEKD(align=0.0), torch.zeros(2, 4), t, hard=True)
    assert float(terms["kl"]) == pytest.approx(by_hand, rel=1e-4)


# --- the data ------------------------------------------------------------------------------------


def test_the_span_is_the_datas_own_by_channel() -> None:
    x = drawn(700, 2, 4, 4) * torch.tensor([3.0, 0.1])[:, None, None] + 5
    x[:, 1, 0, 0] = 4
    span = Span.of(Table(x))
    u = span.unit(x)
    assert u.amin((0, 2, 3)).tolist() == pytest.approx([-1, -1])
    assert u.amax((0, 2, 3)).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(span.data(u), x, atol=1e-5, rtol=1e-5)
    flat = Span.of(Table(torch.full((3, 1, 2, 2), 7.0)))
    assert bool((flat.data(drawn(2, 1, 2, 2)) == 7).all())
    assert bool(torch.isfinite(flat.unit(torch.full((1, 1, 2, 2), 7.0))).all())


def test_latent_points_are_a_function_of_their_number() -> None:
    g = seeded(lambda: Painter(4, (1, 8, 8))).eval()
    points = Latent(4, ONE, 24, g)
    whole = points(nn.Module(), None, clock())
    halves = [points(nn.Module(), None, clock(n=n, of=2)) for n in (0, 1)]
    for name in ("x", "made", "index"):
        joined = torch.cat([half.columns[name] for half in halves])
        torch.testing.assert_close(joined, whole.columns[name])
    assert torch.equal(whole.x, points(nn.Module(), None, clock()).x)
    torch.testing.assert_close(whole.made, g(whole.x))
    assert not whole.made.requires_grad
    many = torch.cat([points.points(clock(draw)).x for draw in range(500)])
    assert len(many.unique(dim=0)) == len(many) == 4000
    assert many.mean(0).tolist() == pytest.approx([0] * 4, abs=0.06)
    torch.testing.assert_close(many.T.cov(), torch.eye(4), atol=0.08, rtol=0)
    assert points.per_epoch(8) == 3


def test_rounds_give_the_critic_real_pictures_and_the_generator_its_own() -> None:
    x = drawn(24, 1, 8, 8)
    span = Span.of(Table(x))
    rounds = Rounds(4, span, Epochs(x), asks=True)
    g = seeded(lambda: Painter(4, (1, 8, 8)))
    twin = copy.deepcopy(g)
    shown = []
    for step in range(3):  # an epoch: a step draws twice
        of_critic = rounds(g.eval(), None, clock(2 * step))
        own = rounds(g.eval(), None, clock(2 * step + 1, "generator"))
        shown.append(span.data(of_critic.real))
        assert "made" not in of_critic
        assert "real" not in own
        assert not torch.equal(of_critic.x, own.x)
        # The teacher is asked about what the loss is of: in train mode, by the batch's statistics.
        torch.testing.assert_close(own.made, span.data(copy.deepcopy(twin).train()(own.x)))
    assert rounds.per_epoch(8) == 6
    key = lambda p: tuple(round(v, 3) for v in p.flatten().tolist())  # noqa: E731
    assert sorted(map(key, torch.cat(shown))) == sorted(map(key, x))
    assert all(torch.equal(a, b) for a, b in zip(g.buffers(), twin.buffers(), strict=True))
    assert "made" not in Rounds(4, span, Epochs(x), asks=False)(g, None, clock(1, "generator"))


# --- runs ----------------------------------------------------------------------------------------


class Quadrants(nn.Module):
    """A teacher: the logits are the means of the four quarters of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(6.0))
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x.detach().clone())
        return self.scale * F.adaptive_avg_pool2d(x, 2).flatten(1)[:, :4]


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures with one bright quarter."""
    x, y = 0.3 * drawn(n, 1, 8, 8, seed=seed), torch.arange(n) % 4
    for i, k in enumerate(y.tolist()):
        x[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 2
    return x, y


def task(teacher: Any = None, logits: int = 4, **budget: Any) -> Task:
    given = {"steps": 4, "batch": 12, "optimiser": Optimiser("adam", lr=0.01), **budget}
    return Task(
        Quadrants() if teacher is None else teacher,
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, logits)),
        pictures(36, 0),
        test=pictures(40, 1),
        budget=Budget(**given),
    )


def ran(method: MEKD, given: Task) -> Any:
    """The method alone, so that no score asks the teacher too."""
    with Run(given, 5, device="cpu"):
        return method.run(given)


def equal(a: Any, b: Any) -> bool:
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return all(torch.equal(u, v) for u, v in pairs)


def test_every_question_is_counted() -> None:
    given = task(steps=5)
    result = ran(MEKD(share=0.6), given)
    assert result.report == {"queries": 96, "queries_generator": 36, "queries_student": 60}
    asked = torch.cat(given.teacher.calls)
    assert len(asked) == 96
    assert len(asked.unique(dim=0)) == 96
    local = {tuple(p.flatten().tolist()) for p in given.train[0]}
    assert not local & {tuple(p.flatten().tolist()) for p in asked}  # they stay private
    assert ran(MEKD(im=0.0), task(steps=5)).report["queries_generator"] == 0
    stopped = task(steps=40, patience=1, evaluate=3, optimiser=Optimiser("sgd", lr=1e-9))
    stopped.valid = pictures(12, 2)
    report = ran(MEKD(share=0.1), stopped).report
    assert report["queries_student"] == 6 * 12  # the first evaluation is the best, then no gain
    assert sum(map(len, stopped.teacher.calls)) == report["queries"]


def test_a_black_box_of_labels_teaches_as_hard_responses_do() -> None:
    model, calls = Quadrants(), []

    def ask(x: Tensor) -> Tensor:
        calls.append(len(x))
        with torch.no_grad():
            return model(x).argmax(1)

    boxed = ran(MEKD(), task(BlackBox(ask)))
    assert sum(calls) == boxed.report["queries"] == 48
    assert boxed.report["queries_generator"] == 0
    hard = ran(MEKD(responses="hard"), task())
    assert hard.report == boxed.report
    assert equal(hard, boxed)
    assert not equal(hard, ran(MEKD(), task()))


def test_a_black_box_of_probabilities_teaches_softly() -> None:
    model, calls = Quadrants(), []

    def ask(x: Tensor) -> Tensor:
        calls.append(len(x))
        with torch.no_grad():
            return model(x).softmax(1)

    # Probabilities hide what all logits have in common, which only the alignment can see.
    boxed, open_ = (ran(MEKD(align=0.0), task(t)) for t in (BlackBox(ask, "probabilities"), None))
    assert sum(calls) == boxed.report["queries"] == open_.report["queries"] == 96
    pairs = zip(boxed.model.parameters(), open_.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in pairs)
    both = [ran(MEKD(), task(t)).log for t in (BlackBox(ask, "probabilities"), None)]
    one, two = (log[-1]["terms"]["align"] for log in both)
    assert abs(one - two) > 1e-6


def test_labels_and_local_pictures_are_not_read_where_they_need_not_be() -> None:
    whole, bare = task(), task()
    bare.train, bare.classes = bare.train[:1], 4
    assert equal(ran(MEKD(), whole), ran(MEKD(), bare))


def test_the_generator_is_frozen_while_the_student_learns() -> None:
    given, kept = task(), {}

    def begin(passes: Any) -> None:
        if passes.stage == "student":
            kept["generator"] = passes.batches.generator
            kept["then"] = copy.deepcopy(passes.batches.generator.state_dict())

    with Run(given, 5, device="cpu", on_fit=begin):
        MEKD().run(given)
    now = kept["generator"].state_dict()
    assert all(torch.equal(now[n], v) for n, v in kept["then"].items())
    assert not any(m.training for m in kept["generator"].modules())
    assert all(p.grad is None for p in given.teacher.parameters())


def test_without_alignment_it_is_kd_on_made_pictures() -> None:
    method = MEKD(align=0.0, kl=0.5, tau=2.0)
    given, kept = task(), {}
    run = Run(given, 5, device="cpu", on_fit=lambda p: kept.update({p.stage: p.batches}))
    with run:
        mine = method.run(given)
    with Run(given, 5, device="cpu") as again:
        kd = make("kd", label=0.0, kd=0.25, tau=2.0)  # 0.25 tau^2 = 0.5 tau

        class Shown(Latent):
            def __call__(self, student: Any, teacher: Any, clock: Clock) -> Batch:
                batch = super().__call__(student, teacher, clock)
                return batch.replace(x=batch.made)

        inner = kept["student"]
        shown = Shown(4, inner.span, inner.samples, inner.generator)
        theirs = fit(kd, again.student(given), given.the_teacher(), shown, name="student")
    torch.testing.assert_close(
        list(mine.model.parameters()), list(theirs.student.parameters()), atol=1e-5, rtol=1e-4
    )


def test_the_student_learns_what_it_was_never_shown() -> None:
    accuracy = {}
    for steps in (1, 60):
        method = MEKD(rate=0.002, share=0.5)
        result = limbeck.run(method, task(steps=steps), seed=5, device="cpu")
        accuracy[steps] = result.facts["score"]
    assert accuracy[60] > 0.7 > 0.5 > accuracy[1]


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    bare = task()
    bare.train = bare.train[:1]
    with pytest.raises(UsageError, match=r"classes=N"):
        ran(MEKD(), bare)
    flat = replace(task(), train=(drawn(24, 64), torch.arange(24) % 4))
    with pytest.raises(UsageError, match=r"'train' holds inputs of shape \(24, 64\)"):
        ran(MEKD(), flat)
    with pytest.raises(UsageError, match="4 classes, but the student has 3 logits"):
        ran(MEKD(), task(logits=3))


def test_made_pictures_of_bytes_are_in_the_range_that_a_reader_takes_bytes_to() -> None:
    from limbeck.vision._kit.readers import Reader

    x = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    span, read = Span.of(Table((x, torch.arange(5)))), Reader(3, mean=(0.4,) * 3, std=(0.2,) * 3)
    assert float(span.unit(x).min()) == -1
    torch.testing.assert_close(read(span.data(span.unit(x))), read(x))
