"""Losses beside those that torch brings: values and gradients on random inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence

from limbeck.core.losses.divergences import kl, soft_cross_entropy
from limbeck.vision.crd import nce
from limbeck.vision.dhkd import bkl, bkl_norm
from limbeck.vision.dkd import nckd, tckd
from limbeck.vision.e2kd.maps import explanation_loss
from limbeck.vision.fitnets import hint_loss
from limbeck.vision.kd import kd_loss
from limbeck.vision.luminet import EPS, luminet_loss, perception
from limbeck.vision.nd_loss.losses import cosine_loss, nd_loss
from limbeck.vision.ofa_kd import ofa_loss
from limbeck.vision.pld import choices
from limbeck.vision.rkd import distances
from limbeck.vision.sla import joint_loss
from limbeck.vision.trg import context, contrast_loss

pytestmark = pytest.mark.xdist_group("by torch")
seeds = pytest.mark.parametrize("seed", range(3))
taus = pytest.mark.parametrize("tau", [1.0, 4.0, 20.0])


def draw(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=rng, dtype=torch.float64)


def logits(seed: int, rows: int = 12, classes: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    s = draw(seed, rows, classes).requires_grad_()
    return s, draw(seed + 50, rows, classes), torch.arange(rows) % classes


def same(one: Tensor, other: Tensor, s: Tensor, tolerance: float = 1e-9) -> None:
    """The same values, and the same gradients of their weighted sums."""
    given = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(one, other, **given)
    weights = torch.linspace(1, 2, one.numel()).view(one.shape)
    gradients = [
        torch.autograd.grad((weights * value).sum(), s, retain_graph=True)[0]
        for value in (one, other)
    ]
    assert gradients[0].abs().max() > 1e-6
    torch.testing.assert_close(*gradients, **given)


@seeds
@taus
def test_kd(seed: int, tau: float) -> None:
    s, t, _ = logits(seed)
    p, q = Categorical(logits=t / tau), Categorical(logits=s / tau)
    same(kl(s, t, tau), tau**2 * kl_divergence(p, q), s)
    same(kd_loss(s, t, tau), tau**2 * kl_divergence(p, q).mean(), s, 1e-6)
    same(soft_cross_entropy(s, t, tau), F.cross_entropy(s / tau, p.probs, reduction="none"), s)


def test_apart_mean_of_kl_is_over_samples_and_not_over_classes() -> None:
    s, t, _ = logits(1)
    with pytest.warns(UserWarning, match="batchmean"):
        theirs = F.kl_div(s.log_softmax(1), t.softmax(1), reduction="mean")
    torch.testing.assert_close(kl(s, t).mean(), 7 * theirs)


@seeds
@taus
def test_dkd(seed: int, tau: float) -> None:
    s, t, y = logits(seed)
    one = torch.arange(12)
    hit = [(z / tau).softmax(1)[one, y] for z in (s, t)]
    halves = [Bernoulli(p) for p in hit]
    same(tckd(s, t, y, tau), tau**2 * kl_divergence(halves[1], halves[0]), s, 1e-8)
    mask = F.one_hot(y, 7).bool()
    rest = [z[~mask].view(12, 6) / tau for z in (s, t)]
    others = kl_divergence(Categorical(logits=rest[1]), Categorical(logits=rest[0]))
    same(nckd(s, t, y, tau), tau**2 * others, s)


@seeds
def test_dhkd(seed: int) -> None:
    s, t, _ = logits(seed)
    p, q = Bernoulli(logits=t / 2), Bernoulli(logits=s / 2)
    same(bkl(s, t, 2.0), 4 * kl_divergence(p, q).sum(1).mean(), s, 1e-5)  # ours is in float32
    half = Bernoulli(torch.full_like(t, 0.5))
    gap = Bernoulli(logits=(s - t) / 2)
    same(bkl_norm(s, t, 2.0), 4 * kl_divergence(half, gap).sum(1).mean(), s, 1e-5)


@seeds
def test_fitnets(seed: int) -> None:
    r, h = draw(seed, 5, 3, 4, 4).requires_grad_(), draw(seed + 50, 5, 3, 4, 4)
    each = F.mse_loss(r, h, reduction="none").flatten(1)
    same(hint_loss(r, h), each.sum(1) / 2, r, 1e-5)
    same(hint_loss(r, h, mean=True), each.mean(1) / 2, r, 1e-5)


@seeds
def test_luminet_standardises_as_batch_norm_does(seed: int) -> None:
    s, t, _ = logits(seed)
    same(perception(s), F.batch_norm(s, None, None, training=True, eps=EPS), s)
    p, q = (
        Categorical(logits=F.batch_norm(z, None, None, training=True, eps=EPS) / 4) for z in (t, s)
    )
    same(luminet_loss(s, t, 4.0), kl_divergence(p, q).mean(), s)


@seeds
def test_ofa_kd(seed: int) -> None:
    s, t, y = logits(seed)
    soft = F.cross_entropy(s, t.softmax(1), reduction="none")
    same(ofa_loss(s, t, y), soft, s)
    hard = F.cross_entropy(s, y, reduction="none")
    same(ofa_loss(s, t, y, form="paper"), soft + hard, s)


@seeds
def test_pld_of_equal_weights_is_one_cross_entropy_after_the_other(seed: int) -> None:
    s = draw(seed, 6, 5).requires_grad_()
    first = torch.zeros(6, dtype=torch.long)
    each = [F.cross_entropy(s[:, k:], first, reduction="none") for k in range(5)]
    same(choices(s, torch.ones(5, dtype=torch.float64)), torch.stack(each).sum(0), s)


@seeds
def test_rkd(seed: int) -> None:
    e = draw(seed, 9, 4).requires_grad_()
    gaps = F.pdist(e)
    upper = torch.triu_indices(9, 9, 1)
    same(distances(e)[*upper], gaps / gaps.mean(), e)


@seeds
def test_sla(seed: int) -> None:
    u, y = draw(seed, 12, 20).requires_grad_(), torch.tensor([3, 0, 4])
    joint = torch.tensor([[4 * c + j for j in range(4)] for c in y.tolist()]).flatten()
    same(joint_loss(u, y), F.cross_entropy(u, joint), u, 1e-6)


@seeds
def test_crd(seed: int) -> None:
    scores = draw(seed, 6, 9, scale=0.3).requires_grad_()
    z = torch.tensor(5.0, dtype=torch.float64)
    odds = scores / 0.07 - z - torch.tensor(8 / 40).double().log()
    truth = torch.zeros(6, 9, dtype=torch.float64)
    truth[:, 0] = 1
    theirs = F.binary_cross_entropy_with_logits(odds, truth, reduction="sum") / 6
    same(nce(scores, z, 40, 0.07), theirs, scores, 1e-7)


@seeds
def test_nd_loss(seed: int) -> None:
    s, mu = draw(seed, 8, 5).requires_grad_(), draw(seed + 50, 8, 5)
    ones = torch.ones(8)
    same(cosine_loss(s, mu), F.cosine_embedding_loss(s, mu, ones, reduction="none"), s)
    short = s.detach() / 100  # the student is the longer one: only the direction counts
    same(nd_loss(s, short, mu), 1 - F.cosine_similarity(s, mu), s)


@seeds
def test_e2kd(seed: int) -> None:
    s, t = draw(seed, 6, 1, 4, 4).requires_grad_(), draw(seed + 50, 6, 1, 4, 4)
    same(explanation_loss(s, t), 1 - F.cosine_similarity(s.flatten(1), t.flatten(1)).mean(), s)


@seeds
def test_trg(seed: int) -> None:
    s, t = draw(seed, 8, 5).requires_grad_(), draw(seed + 50, 8, 5)
    alike = F.cosine_similarity(s[:, None], t[None], dim=2)
    theirs = F.nll_loss((alike / 0.3).log_softmax(1), torch.arange(8))
    same(contrast_loss(s, t, 0.3), theirs, s)
    f = draw(seed, 2, 6, 4).requires_grad_()
    eye = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    same(context(f), F.scaled_dot_product_attention(f, f, eye), f)
