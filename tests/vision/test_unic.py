"""UNIC against loops, hand-worked values and first-order conditions."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.crowd import Crowd
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.method import Clock
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.runs.door import run
from limbeck.vision.unic import KINDS, UNIC, distances, kept
from limbeck.vision.unic.ladder import moments, on_grid, pooled, tokens
from limbeck.vision.unic.probe import logistic

SMALL = UNIC(hidden=6, last_hidden=10)


def clock(step: int = 0, steps: int = 10) -> Clock:
    return Clock(5, "fit", step, steps, 5)


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g) for shape in shapes]


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def sides(blocks: list[Tensor], teachers: list[tuple[Tensor, Tensor]]):
    """Views with only what unic needs: blocks, and each teacher's embedding and feature."""
    members = [SimpleNamespace(embedding=e, feature=f) for e, f in teachers]
    return SimpleNamespace(blocks=blocks), SimpleNamespace(members=members)


def batch_of(size: int, first: int = 0) -> Batch:
    return Batch(x=torch.zeros(size), index=torch.arange(first, first + size))


def scene(size: int = 6, seed: int = 0):
    """Three blocks of 1 + 4 tokens, two teachers of other widths, parts away from their start."""
    *blocks, e1, f1, e2, f2 = drawn(
        *[(size, 5, 3)] * 3, (size, 4), (size, 5, 4), (size, 7), (size, 5, 7), seed=seed
    )
    s, t = sides(blocks, [(e1 + 1, f1), (e2, f2 - 1)])
    parts = SMALL.build(s, t, batch_of(size), None)
    g = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in parts.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / 2)
        for b in parts.buffers():
            b.copy_(torch.rand(b.shape, generator=g) + 0.5)
    return s, t, parts


def slow_losses(parts, s, t, cosine: float, smooth: float) -> Tensor:
    """The losses l[i, t] of token networks, one token and one channel at a time."""
    rows = []
    for i in range(len(s.blocks[0])):
        row = []
        for ladders, member in zip(parts, t.members, strict=True):
            kinds = []
            for kind, where in (("cls", [0]), ("patch", [1, 2, 3, 4])):
                ladder, each = ladders[kind], []
                for j in where:
                    p = 0
                    for mlp, block in zip(ladder.rungs, s.blocks, strict=True):
                        p = p + mlp[2](F.gelu(mlp[0](block[i, j])))
                    y = member.embedding[i] if kind == "cls" else member.feature[i, j]
                    y = (y - ladder.mean) / (ladder.sd + 1e-6)
                    cos = (p * y).sum() / (p.square().sum().sqrt() * y.square().sum().sqrt())
                    far = (p - y).abs()
                    bent = sum(d**2 / 2 if d < 1 else d - 0.5 for d in far) / len(far)
                    each.append(cosine * (1 - cos) + smooth * bent)
                kinds.append(sum(each) / len(each))
            row.append(sum(kinds) / 2)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def slow_choice(losses: Tensor, draws: Tensor, drop: float) -> Tensor:
    losses, c = losses.detach(), torch.zeros_like(losses)
    for i in range(len(losses)):
        worst = max(range(losses.shape[1]), key=lambda k: float(losses[i, k]))
        for k in range(losses.shape[1]):
            c[i, k] = float(k == worst or not draws[i, k] < drop)
    return c


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cosine", "smooth", "drop"), [(0.5, 0.5, 0.5), (2.0, 0.05, 0.6), (1, 0, 0)]
)
def test_terms_and_gradients_equal_loops(cosine: float, smooth: float, drop: float) -> None:
    method = replace(SMALL, cosine=cosine, smooth=smooth, drop=drop)
    s, t, parts = scene()
    s.blocks = [b.requires_grad_() for b in s.blocks]
    terms = method.terms(parts, s, t, batch_of(6), clock())
    assert set(terms) == {n for n, w in (("cosine", cosine), ("smooth", smooth)) if w}
    got = torch.autograd.grad(sum(terms.values()), [*s.blocks, *parts.parameters()])

    losses = slow_losses(parts, s, t, cosine, smooth)
    c = slow_choice(losses, clock().rng("drop", batch_of(6).index).rand(2), drop)
    assert len(losses.argmax(1).unique()) == 2  # neither teacher is always the worse one
    unweighed = slow_losses(parts, s, t, 1, 1).argmax(1)
    assert cosine == smooth or bool((losses.argmax(1) != unweighed).any())  # weights matter to it
    assert drop == 0 or 0 < (c == 0).sum() < 6  # some, not all, are dropped
    want = (c * losses).sum() / c.sum()
    torch.testing.assert_close(sum(terms.values()), want, rtol=1e-5, atol=1e-6)
    for a, b in zip(got, torch.autograd.grad(want, [*s.blocks, *parts.parameters()]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def flat_terms(a: list[float], b: list[float], drop: float) -> float:
    """The loss where predictions are zero and targets at the given smooth L1 losses (above 1/2)."""
    targets = [torch.tensor(each)[:, None] + 0.5 for each in (a, b)]
    blocks = [torch.ones(len(a), 2, 3)]
    s, t = sides(blocks, [(y, y[:, None].expand(-1, 2, 1)) for y in targets])
    method = replace(SMALL, cosine=0.0, smooth=1.0, drop=drop)
    parts = method.build(s, t, batch_of(len(a)), None)
    for p in parts.parameters():
        nn.init.zeros_(p)
    return method.terms(parts, s, t, batch_of(len(a)), clock())["smooth"].item()


def test_worked_example_of_dropping() -> None:
    # Means over all four losses, and over each image's worse one: (2 + 3) / 2.
    assert flat_terms([1, 3], [2, 1], drop=0) == pytest.approx(1.75, abs=1e-5)
    assert flat_terms([1, 3], [2, 1], drop=1) == pytest.approx(2.5, abs=1e-5)


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_perfect_predictions_cost_nothing(drop: float) -> None:
    (y,) = drawn((64, 5, 4))
    cosine, smooth = distances(y, y)
    assert cosine.abs().max() < 1e-6
    assert smooth.max() == 0
    losses = torch.stack((cosine, smooth), 1)
    c = kept(losses, uniform(64, 2), drop)
    assert (c * losses).sum() / c.sum() < 1e-6


def test_cosine_knows_direction_and_smooth_l1_size() -> None:
    (y,) = drawn((3, 5, 4))
    assert torch.allclose(distances(7 * y, y)[0], torch.zeros(3), atol=1e-6)
    assert torch.allclose(distances(-y, y)[0], torch.full((3,), 2.0))
    # Within 1 half a square, beyond it linear: (0.5^2 / 2 + (3 - 0.5)) / 2.
    p, q = torch.tensor([[[0.5, 3.0]]]), torch.zeros(1, 1, 2)
    assert distances(p, q)[1].item() == pytest.approx(1.3125)


def test_the_worst_teacher_stays_and_others_go_at_their_rate() -> None:
    losses, draws = uniform(20000, 3), uniform(20000, 3, seed=1)
    for drop in (0.0, 0.25, 0.5, 1.0):
        c = kept(losses, draws, drop)
        worst = c.gather(1, losses.argmax(1, keepdim=True))
        assert bool((worst == 1).all())
        others = (c.sum(1) - 1).mean() / 2
        assert float(others) == pytest.approx(1 - drop, abs=0.02)
    assert bool((kept(losses, draws, 1.0).sum(1) == 1).all())
    assert torch.equal(
        kept(losses[:50], draws[:50], 0.5), slow_choice(losses[:50], draws[:50], 0.5)
    )


def test_choices_do_not_depend_on_the_split_of_a_batch() -> None:
    s, t, parts = scene(8)
    draws = clock().rng("drop", batch_of(8).index).rand(2)
    c = slow_choice(slow_losses(parts, s, t, 0.5, 0.5), draws, 0.5)
    halves = 0
    for rows in (slice(0, 3), slice(3, 8)):
        part, other = sides(
            [b[rows] for b in s.blocks], [(m.embedding[rows], m.feature[rows]) for m in t.members]
        )
        batch = batch_of(rows.stop - rows.start, rows.start)
        terms = SMALL.terms(parts, part, other, batch, clock())
        halves = halves + sum(terms.values()) * c[rows].sum()
    whole = sum(SMALL.terms(parts, s, t, batch_of(8), clock()).values())
    assert 0 < (c == 0).sum() < 8
    torch.testing.assert_close(halves / c.sum(), whole)


# --- the ladder ----------------------------------------------------------------------------------


def test_hidden_sizes_and_start() -> None:
    method = UNIC(hidden=50, last_hidden=400, blocks=(0, -1))
    s, t, _ = scene()
    parts = method.build(s, t, batch_of(6), None)
    for ladders, out in zip(parts, (4, 7), strict=True):
        for kind in KINDS:
            shapes = [[tuple(m.weight.shape) for m in (r[0], r[2])] for r in ladders[kind].rungs]
            assert shapes == [[(50, 3), (out, 50)], [(400, 3), (out, 400)]]
            assert all(m.bias.abs().sum() == 0 for r in ladders[kind].rungs for m in (r[0], r[2]))
    weights = torch.cat([w.flatten() for n, w in parts.named_parameters() if n.endswith("weight")])
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.03)


def test_only_the_last_block_is_the_single_projector() -> None:
    s, t, parts = scene()
    alone = replace(SMALL, blocks=(-1,))
    single = alone.build(s, t, batch_of(6), None)
    for a, b in zip(single, parts, strict=True):
        for kind in KINDS:
            assert len(a[kind].rungs) == 1
            a[kind].rungs[0].load_state_dict(b[kind].rungs[-1].state_dict())
            a[kind].mean.copy_(b[kind].mean)
            a[kind].sd.copy_(b[kind].sd)
            x = s.blocks[-1]
            mlp = b[kind].rungs[-1]
            want = F.gelu(x @ mlp[0].weight.T + mlp[0].bias) @ mlp[2].weight.T + mlp[2].bias
            torch.testing.assert_close(a[kind]([x]), want)
            for rung in b[kind].rungs[:-1]:  # a ladder whose other rungs give zero
                nn.init.zeros_(rung[2].weight)
                nn.init.zeros_(rung[2].bias)
    one = alone.terms(single, s, t, batch_of(6), clock())
    three = SMALL.terms(parts, s, t, batch_of(6), clock())
    torch.testing.assert_close(one, three)


def test_unknown_blocks_are_refused() -> None:
    s, t, _ = scene()
    with pytest.raises(UsageError, match=r"blocks is \(3,\), but the student shows 3"):
        replace(SMALL, blocks=(3,)).build(s, t, batch_of(6), None)


def test_tokens_of_every_kind_of_network() -> None:
    vector, sequence, row, image = drawn((2, 3), (2, 10, 3), (2, 7, 3), (2, 3, 2, 4))
    one, grid = tokens(vector)
    assert torch.equal(one[:, 0], vector)
    assert torch.equal(grid[:, :, 0, 0], vector)
    one, grid = tokens(sequence)
    assert torch.equal(one[:, 0], sequence[:, 0])
    assert torch.equal(grid[1, :, 1, 2], sequence[1, 1 + 1 * 3 + 2])
    assert tokens(row)[1].shape == (2, 3, 1, 6)
    one, grid = tokens(image)
    torch.testing.assert_close(one[:, 0], image.mean((2, 3)))
    assert grid is image


def test_maps_meet_on_the_students_grid() -> None:
    (x,) = drawn((2, 3, 4, 4))
    down = on_grid(x, (2, 2))
    for i in range(2):
        for j in range(2):
            want = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
            torch.testing.assert_close(down[:, 2 * i + j], want)
    assert torch.equal(on_grid(x, (4, 4)), x.flatten(2).transpose(1, 2))
    slope = torch.arange(2.0).expand(1, 1, 2, 2)  # columns 0 1: the middles lie at 0.25 and 0.75
    torch.testing.assert_close(on_grid(slope, (2, 4))[0, :4, 0], torch.tensor([0, 0.25, 0.75, 1]))
    torch.testing.assert_close(
        on_grid(slope.mT, (4, 2))[0, ::2, 0], torch.tensor([0, 0.25, 0.75, 1])
    )
    with pytest.raises(UsageError, match="row"):
        on_grid(drawn((2, 3, 1, 6))[0], (2, 2))


def test_networks_of_other_grids_and_without_any() -> None:
    s, t = sides(
        drawn((4, 2, 8, 8), (4, 3, 4, 4), (4, 5, 2, 2)),
        [tuple(drawn((4, 6), (4, 6, 4, 4))), tuple(drawn((4, 9), (4, 9)))],
    )
    parts = SMALL.build(s, t, batch_of(4), None)
    terms = SMALL.terms(parts, s, t, batch_of(4), clock())
    xs = {
        "cls": [b.mean((2, 3)) for b in s.blocks],
        "patch": [F.avg_pool2d(b, b.shape[2] // 2).permute(0, 2, 3, 1) for b in s.blocks],
    }
    ys = [
        {"cls": t.members[0].embedding, "patch": F.avg_pool2d(t.members[0].feature, 2)},
        {"cls": t.members[1].embedding, "patch": t.members[1].feature[..., None, None]},
    ]
    losses = []
    for ladders, y in zip(parts, ys, strict=True):
        p, q = ladders["cls"](xs["cls"]), y["cls"]
        one = [1 - F.cosine_similarity(p, q), F.smooth_l1_loss(p, q, reduction="none").mean(-1)]
        p = ladders["patch"](xs["patch"])
        q = y["patch"].permute(0, 2, 3, 1).expand_as(p)
        two = [1 - F.cosine_similarity(p, q, -1), F.smooth_l1_loss(p, q, reduction="none").mean(-1)]
        losses.append((sum(one) / 2 + sum(two).mean((1, 2)) / 2) / 2)
    losses = torch.stack(losses, 1)
    c = slow_choice(losses, clock().rng("drop", batch_of(4).index).rand(2), 0.5)
    torch.testing.assert_close(
        sum(terms.values()), (c * losses).sum() / c.sum(), rtol=1e-4, atol=1e-5
    )


# --- the statistics ------------------------------------------------------------------------------


def test_pooled_moments_are_those_of_the_union() -> None:
    few, many = drawn((2, 3, 4), (7, 3, 4))
    few = 1000 + 5 * few
    n, mean, sd = pooled(torch.cat((moments(few), moments(many))))
    both = torch.cat((few, many)).reshape(-1, 4).double()
    assert n.tolist() == [27] * 4
    torch.testing.assert_close(mean, both.mean(0).float())
    torch.testing.assert_close(sd, both.std(0).float())


def test_statistics_move_after_use_by_a_cosine_from_1() -> None:
    method, steps = replace(SMALL, momentum_end=0.1), 4
    s, t, _ = scene()
    parts = method.build(s, t, batch_of(6), None)
    ladder = parts[1]["patch"]
    mean, sd = torch.zeros(7), torch.ones(7)
    for step in range(steps):
        _, t, _ = scene(seed=10 * step)
        y = t.members[1].feature[:, 1:]
        torch.testing.assert_close(ladder.target(y), (y - mean) / (sd + 1e-6))
        seen = method.observe(parts, s, t, batch_of(6))
        method.after_step(parts, seen, clock(step, steps))
        m = 0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2
        mean = (1 - m) * mean + m * y.reshape(-1, 7).mean(0)
        sd = (1 - m) * sd + m * y.reshape(-1, 7).std(0)
        torch.testing.assert_close(ladder.mean, mean)
        torch.testing.assert_close(ladder.sd, sd)
        if step == 0:  # m is 1: they are those of the first step alone
            torch.testing.assert_close(ladder.mean, y.reshape(-1, 7).mean(0))


def test_a_single_token_has_no_deviation() -> None:
    s, t, _ = scene(1)
    parts = SMALL.build(s, t, batch_of(1), None)
    SMALL.after_step(parts, SMALL.observe(parts, s, t, batch_of(1)), clock())
    assert torch.equal(parts[0]["cls"].sd, torch.ones(4))
    assert not torch.equal(parts[0]["patch"].sd, torch.ones(4))


def test_a_teachers_scale_and_offset_do_not_matter() -> None:
    s, t, parts = scene(32)
    loud = sides([], [(100 * m.embedding + 3, 100 * m.feature + 3) for m in t.members])[1]
    found = []
    for teacher in (t, loud):
        SMALL.after_step(parts, SMALL.observe(parts, s, teacher, batch_of(32)), clock())
        found.append(SMALL.terms(parts, s, teacher, batch_of(32), clock()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


# --- a run ---------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, width: int, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def task(labels: bool = True, tap: str = "head:in", **budget) -> Task:
    """Pictures whose class is the place of a bright square; teachers of two widths."""
    (x,) = drawn((96, 1, 4, 4), seed=3)
    y = torch.arange(96) % 3
    for i, k in enumerate(y.tolist()):
        x[i, 0, k : k + 2, k : k + 2] += 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teachers = Crowd([Net(5), Net(7)])
    taps = {
        "embedding": ("head:in", tap),
        "feature": ("body.1", "body.1"),
        "blocks": (None, ["body.0", "body.1"]),
    }
    return Task(
        teachers,
        lambda: Net(4),
        (x[:64], y[:64]) if labels else (x[:64],),
        test=(x[64:], y[64:]) if labels else None,
        budget=Budget(**{"steps": 12, "batch": 16, **budget}),
        taps=taps,
        classes=3,
    )


def test_only_the_head_is_fitted_on_labels() -> None:
    here, method = task(), replace(SMALL, ladder_lr=0.0)
    student = here.new_student(4)
    with Run(here, seed=4, device="cpu"):
        fit(method, student, here.the_teacher(), here.batches(), name="fit")
    unprobed = run(replace(method, probe=0.0), here, seed=4, device="cpu").model
    probed = run(method, here, seed=4, device="cpu")
    for model in (unprobed, probed.model):
        for n, p in model.body.state_dict().items():
            assert torch.equal(p, student.body.state_dict()[n]), n
    assert torch.equal(unprobed.head.weight, here.new_student(4).head.weight)
    with torch.no_grad():
        z = student.body(here.train[0]).mean((2, 3))
    want = logistic(z, here.train[1], 3, 1.0)
    torch.testing.assert_close(dict(probed.model.head.state_dict()), want)
    assert probed.facts["score"] > 0.6  # of three classes


def test_statistics_of_a_step_are_the_same_however_it_is_split() -> None:
    found = []
    for accumulate in (1, 4):
        here = task(steps=1, accumulate=accumulate)
        with Run(here, seed=4, device="cpu"):
            student = here.new_student(4)
            fitted = fit(SMALL, student, here.the_teacher(), here.batches(), name="fit")
        found.append({n: b for n, b in fitted.parts.named_buffers()})
    assert len(found[0]) == 8
    torch.testing.assert_close(found[0], found[1])
    # At step 0 m is 1: they are those of the 16 samples of that step, of all its micro-batches.
    whole = here.batches()(None, None, Clock(4, "fit", 0, 1, 4, batch=16))
    assert len(whole) == 16
    with torch.no_grad():
        z = here.the_teacher().teachers[0].module.body(whole.x).mean((2, 3))
    torch.testing.assert_close(found[1]["0.cls.mean"], z.mean(0))
    torch.testing.assert_close(found[1]["0.cls.sd"], z.std(0))


def test_without_labels_it_learns_the_same() -> None:
    rate = Optimiser(lr=0.01)
    told, untold = (
        run(SMALL, task(labels, steps=60, optimiser=rate), seed=4, device="cpu")
        for labels in (True, False)
    )
    assert told.log == untold.log
    # From step 1 on targets are standardised, so that losses can be compared.
    early, late = (
        [sum(row["terms"].values()) for row in log] for log in (told.log[1:6], told.log[-5:])
    )
    assert sum(late) < 0.85 * sum(early)


@pytest.mark.parametrize("tap", ["body.1", "body.1:in", "head", None])
def test_a_head_that_cannot_be_fitted_is_refused_before_training(tap) -> None:
    with pytest.raises(UsageError, match=rf"{tap!r}; name the linear layer.*probe=0"):
        run(SMALL, task(tap=tap), device="cpu")
    run(replace(SMALL, probe=0.0), task(tap="body.1", steps=1), device="cpu")


def test_nothing_is_measured_on_the_way() -> None:
    here = task(patience=1, evaluate=2)  # which stops where the score of a head does not rise
    here.valid = here.test
    result = run(SMALL, here, seed=4, device="cpu")
    assert result.log[-1]["step"] == 11
    assert not any("valid" in row for row in result.log)


def test_ladders_have_a_rate_of_their_own() -> None:
    def moved(rate: float, **budget) -> list[float]:
        """How far one step brings the student, and the ladders."""
        found = {}
        here = task(steps=1, **budget)

        def begin(passes) -> None:
            found["step"] = passes.step
            found["before"] = {n: p.detach().clone() for n, p in passes.step.named_parameters()}

        with Run(here, seed=4, device="cpu", on_fit=begin):
            replace(SMALL, ladder_lr=rate, probe=0.0).run(here)
        far = {"student": 0.0, "parts": 0.0}
        for n, p in found["step"].named_parameters():
            if n.startswith("parts") or "body" in n:
                side = n.split(".")[0]
                far[side] = max(far[side], float((p.detach() - found["before"][n]).abs().max()))
        return list(far.values())

    # Adam's first step is the rate itself, wherever there is a gradient (and decay is small).
    assert moved(1e-3, optimiser=Optimiser("adam", lr=0.02)) == pytest.approx(
        [0.02, 1e-3], rel=0.01
    )
    assert moved(0.0, optimiser=Optimiser("adam", lr=0.02)) == pytest.approx([0.02, 0.02], rel=0.01)


# --- the probe -----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_meets_its_first_order_condition(classes: int) -> None:
    z, noise = drawn((90, 4), (90, classes), seed=classes)
    y = (z[:, :classes] + noise).argmax(1)
    z = z * torch.tensor([1.0, 20.0, 0.1, 3.0]) + 5
    strength = 0.3
    layer = logistic(z, y, classes, strength)
    mean, sd = z.double().mean(0), z.double().std(0)
    weight = (layer["weight"].double() * sd).requires_grad_()
    bias = (layer["bias"].double() + layer["weight"].double() @ mean).requires_grad_()
    logits = (z.double() - mean) / sd @ weight.T + bias
    # scikit-learn penalises one row of weights for two classes: |w_1 - w_0|^2.
    penalty = weight.square().sum() if classes > 2 else (weight[1] - weight[0]).square().sum()
    loss = F.cross_entropy(logits, y, reduction="sum") + penalty / (2 * strength)
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 0.02, gradient
    assert ((z @ layer["weight"].T + layer["bias"]).argmax(1) == y).float().mean() > 0.6


def test_a_class_without_samples_is_never_given() -> None:
    (z,) = drawn((60, 4))
    y = (z[:, 0] > 0).long() * 2  # classes 0 and 2 of four
    layer = logistic(z, y, 4, 1.0)
    assert layer["weight"].shape == (4, 4)
    assert (z @ layer["weight"].T + layer["bias"]).argmax(1).unique().tolist() == [0, 2]
