"""fair_latent_distill: distance covariances, the tables' codes, made rows, and its measures."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor

from limbeck.bench import worlds
from limbeck.bench.worlds import protected
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.rng import generator
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.generative.fair_latent_distill import FairLatentDistill
from limbeck.generative.fair_latent_distill.latents import Adversary, Denoiser, Diffusion, kept
from limbeck.generative.fair_latent_distill.learning import (
    Distil,
    Teach,
    density_dcov,
    gaussian_kl,
    sample_dcov,
)
from limbeck.generative.fair_latent_distill.measures import (
    auroc,
    density_coverage,
    f1,
    odds_ratio,
    parity_ratio,
)
from limbeck.generative.fair_latent_distill.rows import VAE, Columns, drawn, groups_of
from limbeck.runs.door import run

pytestmark = pytest.mark.xdist_group("fair_latent_distill")
HALF = math.log(0.5)


def posteriors(n: int, d: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2 * d, generator=g, dtype=torch.float64)


class Shown:
    """A side that shows fixed entries."""

    def __init__(self, **entries: Any) -> None:
        self.__dict__.update(entries)


# --- the distance covariances --------------------------------------------------------------------


def test_two_rows_by_hand() -> None:
    for a, value in ((1.0, 0.0392429), (100.0, 0.0997356), (0.0, 0.0)):
        two = torch.tensor([[0.0, HALF], [a, HALF]], dtype=torch.float64)
        found = float(density_dcov(two, torch.tensor([0, 1])))
        assert found == pytest.approx(value, abs=1e-6)
        assert found == pytest.approx(0.25 * (norm.pdf(0) - norm.pdf(a)), abs=1e-9)


def test_it_is_the_integral_of_the_squared_gap() -> None:
    rows, s = posteriors(7, 1), torch.tensor([0, 1, 2, 0, 1, 2, 2])

    def density(z: float, some: Tensor) -> float:
        return float(np.mean([norm.pdf(z, m, math.exp(v / 2)) for m, v in some.tolist()]))

    total = 0.0
    for g in range(3):
        mine = rows[s == g]
        area, _ = quad(
            lambda z, x=mine: (density(z, x) - density(z, rows)) ** 2, -12, 12, limit=200
        )
        total += (len(mine) / 7) ** 2 * area
    assert float(density_dcov(rows, s)) == pytest.approx(total, rel=1e-6)


def test_it_is_the_sum_of_overlaps_in_more_dimensions() -> None:
    rows, s, n = posteriors(6, 3), torch.tensor([0, 0, 1, 1, 1, 0]), 6
    mean, var = rows[:, :3].numpy(), rows[:, 3:].exp().numpy()
    k = np.array(
        [
            [multivariate_normal.pdf(mean[i], mean[j], np.diag(var[i] + var[j])) for j in range(n)]
            for i in range(n)
        ]
    )
    total = 0.0
    for g in (0, 1):
        i = np.flatnonzero(s.numpy() == g)
        total += (len(i) / n) ** 2 * (k.mean() + k[np.ix_(i, i)].mean() - 2 * k[i].mean())
    assert float(density_dcov(rows, s)) == pytest.approx(total, rel=1e-9)


def test_it_is_zero_without_groups_and_for_equal_ones_and_never_below() -> None:
    rows = posteriors(5, 2)
    assert float(density_dcov(rows, torch.zeros(5, dtype=torch.long))) == pytest.approx(
        0, abs=1e-15
    )
    twice, s = torch.cat((rows, rows)), torch.arange(10) // 5
    assert float(density_dcov(twice, s)) == pytest.approx(0, abs=1e-15)
    assert float(sample_dcov(twice[:, :2], s)) == pytest.approx(0, abs=1e-12)
    for seed in range(20):
        some = posteriors(9, 2, seed)
        assert float(density_dcov(some, torch.arange(9) % 3)) > 0


def test_it_sees_no_shift_and_no_turn() -> None:
    rows, s = posteriors(8, 2), torch.arange(8) % 2
    rows[:, 2:] = -0.3
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos())).view(2, 2)
    moved = torch.cat((rows[:, :2] @ turn + 5, rows[:, 2:]), 1)
    assert float(density_dcov(moved, s)) == pytest.approx(float(density_dcov(rows, s)), rel=1e-9)
    assert float(density_dcov(moved * 2, s)) != pytest.approx(
        float(density_dcov(rows, s)), rel=1e-3
    )


def test_vanishing_variances_are_held_at_a_bound() -> None:
    rows = torch.cat((posteriors(6, 4).float(), torch.full((6, 8), -50.0)), 1).requires_grad_()
    value = density_dcov(rows, torch.arange(6) % 2)
    (slope,) = torch.autograd.grad(value, rows)
    assert value.isfinite()
    assert slope.isfinite().all()
    assert (slope[:, 8:] == 0).all()


def test_the_samples_covariance_by_loops() -> None:
    z, s = posteriors(6, 1), torch.tensor([0, 1, 1, 0, 2, 2])
    a = [[float((z[i] - z[j]).norm()) for j in range(6)] for i in range(6)]
    b = [[float(s[i] != s[j]) for j in range(6)] for i in range(6)]

    def centred(x: list[list[float]], i: int, j: int) -> float:
        return x[i][j] - sum(x[i]) / 6 - sum(r[j] for r in x) / 6 + sum(map(sum, x)) / 36

    wanted = sum(centred(a, i, j) * centred(b, i, j) for i in range(6) for j in range(6)) / 36
    assert float(sample_dcov(z, s)) == pytest.approx(wanted, rel=1e-9)
    z.requires_grad_()
    assert torch.autograd.grad(sample_dcov(z, s), z)[0].isfinite().all()


def test_the_divergence_of_gaussians() -> None:
    same = posteriors(3, 4)
    assert gaussian_kl(same, same).abs().max() == 0
    one, other = torch.zeros(1, 6), torch.cat((torch.ones(1, 3), torch.zeros(1, 3)), 1)
    assert float(gaussian_kl(one, other)) == pytest.approx(1.5)
    p, q = (
        torch.distributions.Normal(x[:, :4], (x[:, 4:] / 2).exp())
        for x in (same, posteriors(3, 4, 1))
    )
    wanted = torch.distributions.kl_divergence(p, q).sum(1)
    torch.testing.assert_close(gaussian_kl(same, posteriors(3, 4, 1)), wanted)


# --- the objectives ------------------------------------------------------------------------------


def test_the_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    rows, batch = posteriors(5, 3).float(), Batch(index=torch.arange(5), y=torch.arange(5) % 2)
    clock = Clock(0, "encoder", 0, 1, 1)
    for match in ("means", "draws"):
        of = Distil(1.0, 1.0, 0.0, match, "density", 1e-3)
        same = of.terms(None, Shown(logits=rows), Shown(logits=rows), batch, clock)
        assert {n: float(v) for n, v in same.items()} == {"quality": 0.0, "utility": 0.0}
    moved = rows.clone()
    moved[:, :3] += 2  # means by 2 in each of three dimensions
    other = of.terms(None, Shown(logits=moved), Shown(logits=rows), batch, clock)
    assert float(other["quality"]) == pytest.approx(12, rel=1e-5)
    fair = Distil(0.0, 0.0, 3.0, "means", "density", 1e-3)
    (found,) = fair.terms(None, Shown(logits=rows), Shown(logits=rows), batch, clock).values()
    assert float(found) == pytest.approx(3 * float(density_dcov(rows, batch.y)))


def test_the_teachers_terms() -> None:
    torch.manual_seed(0)
    vae, codes = VAE([2, 3], 2, 5, 1), torch.tensor([[0, 2], [1, 0], [1, 1]])
    s, noise = torch.tensor([0, 1, 1]), torch.randn(3, 1)
    out = vae(codes, s, noise)
    posterior, logits = out[:, :2], out[:, 2:]
    torch.testing.assert_close(logits, vae.decode(drawn(posterior, noise), s))
    of = Teach((2, 3), 1, 2.0, 1.0, 10.0, "density", 1e-3)
    side = Shown(logits=out, batch=Shown(x={"noise": noise}))
    terms = of.terms(None, side, None, Batch(x=codes, y=s), Clock(0, "teacher", 0, 1, 1))
    chances = torch.stack([logits[:, :2].softmax(1)[i, codes[i, 0]] for i in range(3)])
    more = torch.stack([logits[:, 2:].softmax(1)[i, codes[i, 1]] for i in range(3)])
    wanted = -2 * (chances.log().mean() + more.log().mean())
    torch.testing.assert_close(terms["recon"], wanted)
    torch.testing.assert_close(terms["beta"], 10 * density_dcov(posterior, s))


def test_only_the_small_encoder_learns_from_the_teacher() -> None:
    task = worlds.make("protected", tiny=True)
    states: list[dict[str, Tensor]] = []
    with Run(task, 0, device="cpu", on_fit=lambda passes: states.append(snapshot(passes))):
        result = FairLatentDistill().run(task)
    before, after = states[1]["teacher"], result.sampler.vae.encoder.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[n], after[n]) for n in after)
    assert any(
        not torch.equal(states[1]["student"][n], p)
        for n, p in result.sampler.student.state_dict().items()  # type: ignore[union-attr]
    )


def snapshot(passes: Any) -> dict[str, Any]:
    teacher = getattr(passes.teacher, "module", None)
    return {
        name: {n: p.clone() for n, p in module.state_dict().items()} if module else {}
        for name, module in (("student", passes.student), ("teacher", teacher))
    }


# --- rows and codes ------------------------------------------------------------------------------


def test_codes_and_values() -> None:
    g = torch.Generator().manual_seed(0)
    wide, rare = torch.randn(200, generator=g), (torch.arange(200) == 7).float() * 3 - 1
    columns = Columns(torch.stack((wide, rare, torch.zeros(200)), 1), 4)
    assert columns.widths == [4, 2, 1]
    table = torch.stack((wide, rare, torch.zeros(200)), 1)
    codes = columns.codes(table)
    assert codes[:, 0].bincount().tolist() == [50] * 4
    assert codes[:, 1].tolist() == [int(i == 7) for i in range(200)]
    back = columns.values(codes, torch.rand(200, 3, generator=g))
    assert torch.equal(back[:, 1:], table[:, 1:])
    assert torch.equal(columns.codes(back), codes)  # within its own stretch
    assert set(back[:, 0].tolist()) <= set(wide.tolist())
    assert not torch.equal(back[:, 0], wide)


def test_groups_must_be_groups() -> None:
    own, s = groups_of(torch.tensor([3.0, -1.0, 3.0]), 8)
    assert (own.tolist(), s.tolist()) == ([-1.0, 3.0], [1, 0, 1])
    for bad in (torch.zeros(5), torch.arange(9.0)):
        with pytest.raises(UsageError, match="sensitive column has"):
            groups_of(bad, 8)


@pytest.mark.parametrize("latents", ["rows", "lsgan", "wgan_gp", "ddpm"])
def test_made_rows_look_like_the_tables(latents: str) -> None:
    task = worlds.make("protected", tiny=True)
    method = FairLatentDistill(latents=latents, sensitive=2, bins=200, samples=50, diffusion=5)
    x = task.train[0].clone()
    x[:, 2] = (torch.arange(len(x)) % 4 == 0).float()
    result = run(method, Task(None, task.student, (x, task.train[1]), budget=task.budget), seed=0)
    rows = result.data["x"]
    assert rows.shape == (50, 10)
    assert set(result.data["y"].tolist()) <= {0, 1}
    for column in range(10):  # every value is one of the table's
        assert set(rows[:, column].tolist()) <= set(x[:, column].tolist())
    many = result.sampler(4000, generator("a"))  # type: ignore[misc]
    assert float(many[:, 2].mean()) == pytest.approx(0.25, abs=0.03)
    assert set(result.report) == {"encoder_parameters", "teacher_encoder_parameters"}  # no test set


def test_apart_keeps_the_attribute_from_the_label() -> None:
    """A decoder whose label is the attribute it is told, and whose rows say it too."""
    task = worlds.make("protected", tiny=True)
    found = {}
    for apart in (True, False):
        sampler: Any = run(FairLatentDistill(apart=apart), task, seed=0).sampler
        last = sampler.vae.decoder[-1]
        with torch.no_grad():
            for p in sampler.vae.decoder.parameters():
                p.zero_()
            first = sampler.vae.decoder[0].weight
            first[0, -1] = 1.0  # hidden unit 0 is 1 for group 1
            last.weight[-1, 0], last.bias[-1] = 40.0, -20.0
        rows = sampler(2000, generator("rows"))
        s, y = rows[:, 9] > 0, rows[:, 10] > 0
        found[apart] = float((s == y).double().mean())
    assert found[False] == 1.0
    assert found[True] == pytest.approx(0.5, abs=0.05)


# --- generators of latents -----------------------------------------------------------------------


def test_the_penalty_wants_slopes_of_one() -> None:
    of, z = Adversary(True, 1.0, 1.0, 10.0), torch.randn(6, 2)
    batch, clock = Batch(x=z, index=torch.arange(6)), Clock(0, "latents", 0, 1, 1, phase="critic")
    side = Shown(logits=torch.randn(6, 2), batch=Shown(real=z))
    weight = torch.tensor([[3.0], [4.0]])  # a slope of 5
    terms = of.terms(lambda x: x @ weight, side, None, batch, clock)
    assert float(terms["penalty"]) == pytest.approx(10 * 16, rel=1e-5)
    wanted = (side.logits @ weight).mean() - (z @ weight).mean()
    torch.testing.assert_close(terms["judge"], wanted)


def test_least_squares() -> None:
    of, batch = Adversary(False, 1.0, 1.0, 10.0), Batch(x=torch.zeros(2, 1), index=torch.arange(2))
    side = Shown(
        logits=torch.tensor([[0.0], [3.0]]), batch=Shown(real=torch.tensor([[1.0], [2.0]]))
    )
    judge = of.terms(lambda x: x, side, None, batch, Clock(0, "", 0, 1, 1, phase="critic"))
    assert float(judge["judge"]) == 0.5 + 4.5  # mean (r - 1)^2 + mean f^2
    fool = of.terms(lambda x: x, side, None, batch, Clock(0, "", 0, 1, 1, phase="maker"))
    assert float(fool["fool"]) == 2.5


def test_diffusion_with_the_true_noise_draws_the_true_latents() -> None:
    """All latents are 2: the noise in z is then known, and sampling must end near 2."""
    left = kept(100)
    assert (left.diff() < 0).all()
    net = Denoiser(1, 100)
    net.forward = lambda z, t: (z - 2 * left[t, None].sqrt()) / (1 - left[t, None]).sqrt()  # type: ignore[method-assign]
    z = net.sample(200, generator("ddpm"))
    torch.testing.assert_close(z, torch.full((200, 1), 2.0), atol=1e-3, rtol=0)
    seen, _ = Diffusion(100, 1.0).prepare(
        Batch(x=torch.full((5, 1), 2.0), index=torch.arange(5)),
        lambda name, index: Clock(0, "", 0, 1, 1).rng(name, index),
    )
    torch.testing.assert_close(net(seen.x["z"], seen.x["t"]), seen.noise, atol=1e-3, rtol=1e-3)


# --- the measures --------------------------------------------------------------------------------


def test_fairness_by_hand() -> None:
    s = torch.tensor([0] * 4 + [1] * 4)
    chosen = torch.tensor([1, 0, 0, 0, 1, 1, 0, 0]).bool()
    true = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0]).bool()
    assert parity_ratio(chosen, s) == 0.5
    assert odds_ratio(chosen, true, s) == 0.5  # true positives 1/2 and 1; no false ones: 1
    assert odds_ratio(~true, true, s) == 1.0
    assert parity_ratio(torch.zeros(8).bool(), s) == 1.0
    swapped = torch.tensor([1, 1, 1, 0, 1, 1, 0, 0]).bool()
    assert odds_ratio(swapped, true, s) == 0.0  # a false positive in one group only


def test_areas_and_f1_as_sklearn_has_them() -> None:
    g = torch.Generator().manual_seed(0)
    score = torch.randint(6, (50,), generator=g).double()  # with ties
    true = torch.rand(50, generator=g) < 0.4
    assert auroc(score, true) == pytest.approx(roc_auc_score(true.numpy(), score.numpy()))
    assert f1(score > 2, true) == pytest.approx(f1_score(true.numpy(), (score > 2).numpy()))
    assert auroc(score, torch.ones(50).bool()) == 0.5
    assert f1(torch.zeros(3).bool(), torch.zeros(3).bool()) == 0.0


def test_density_and_coverage_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # radii for k = 1: 1, 1, 2, 7
    made = torch.tensor([[0.5], [20.0]])
    assert density_coverage(real, made, 1) == (2 / 2, 2 / 4)
    g = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 400, 3, generator=g)
    density, coverage = density_coverage(one, two)
    assert density == pytest.approx(1, abs=0.15)
    assert coverage > 0.9
    assert density_coverage(one, two + 50) == (0, 0)


# --- as a whole ----------------------------------------------------------------------------------


def test_x_must_be_a_table_with_that_column() -> None:
    y = torch.arange(8) % 2
    for x, method, says in (
        (torch.zeros(8, 1, 2, 2), FairLatentDistill(), "takes a table"),
        (torch.zeros(8, 3), FairLatentDistill(sensitive=3), "sensitive is 3, but x has 3"),
        (torch.zeros(8, 1), FairLatentDistill(), "two columns or more"),
    ):
        wide = torch.nn.Linear(x[0].numel(), 2)
        student = torch.nn.Sequential(torch.nn.Flatten(), wide)
        task = Task(None, student, (x, y), budget=Budget(steps=1, batch=4))
        with pytest.raises(UsageError, match=says):
            run(method, task, seed=0)


def test_made_rows_are_fairer_and_the_report_compares() -> None:
    (x, y), test = protected.draw(1500, 0, "train"), protected.draw(1000, 0, "test")
    fast = Budget(steps=150, batch=128, optimiser=Optimiser("adam", lr=1e-2))
    task = Task(None, lambda: torch.nn.Linear(10, 2), (x, y), test=test, budget=fast)
    report: Any = run(FairLatentDistill(compare=True, rate=1e-2, apart=True), task, seed=0).report
    assert report["real_parity_ratio"] < 0.5
    assert report["parity_ratio"] > report["real_parity_ratio"] + 0.2
    assert report["teacher_parity_ratio"] > report["real_parity_ratio"] + 0.2
    assert report["accuracy"] > 0.6
    assert report["encoder_parameters"] < report["teacher_encoder_parameters"] / 3
