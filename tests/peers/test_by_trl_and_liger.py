"""The divergences of language models beside TRL's and Liger's: values and gradients."""

import pytest
import torch
from torch import Tensor

from limbeck.core.losses.divergences import Divergence, rows, summed
from limbeck.core.signals import Dense, Head, Linear
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("by trl")
BETAS = pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])


@pytest.fixture(scope="module")
def trl() -> object:
    patch = pytest.MonkeyPatch()
    patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer = pytest.importorskip("trl.experimental.gkd", reason="needs trl").GKDTrainer
    patch.undo()
    return trainer.generalized_jsd_loss


@pytest.fixture(scope="module")
def liger() -> object:
    return pytest.importorskip("liger_kernel.chunked_loss.jsd_loss", reason="needs liger-kernel")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def named(beta: float) -> Divergence:
    """GKD's divergence at a beta: the ends are the two KLs."""
    ends = {0.0: "forward_kl", 1.0: "reverse_kl"}
    return Divergence(ends[beta]) if beta in ends else Divergence("jsd", beta)


@BETAS
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_gkd(beta: float, tau: float, trl: object) -> None:
    s, t = 2 * draw(1, 2, 5, 11).requires_grad_(), 2 * draw(2, 2, 5, 11)
    labels = torch.tensor([[-100, 1, 1, 1, -100], [-100, -100, 1, 1, 1]])
    mine = rows(named(beta), Dense(s), Dense(t), tau)[labels != -100].mean()
    theirs = trl(s, t, labels, beta, tau)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(v, s, retain_graph=True)[0] for v in (mine, theirs)]
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@BETAS
def test_the_fused_road(beta: float, liger: object) -> None:
    hidden, weight = draw(3, 9, 6).requires_grad_(), draw(4, 11, 6).requires_grad_()
    theirs_hidden, theirs_weight = draw(5, 9, 7), draw(6, 11, 7)
    loss = liger.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False, chunk_size=4
    )
    given = loss(hidden, weight, theirs_hidden, theirs_weight, torch.ones(9, dtype=torch.long))
    student = Linear(hidden, Head(weight))
    teacher = Dense(theirs_hidden @ theirs_weight.T)
    mine = summed(named(beta), student, teacher, torch.full((9,), 1 / 9))
    torch.testing.assert_close(mine, given, rtol=1e-5, atol=1e-6)
    one, other = (torch.autograd.grad(v, (hidden, weight)) for v in (mine, given))
    for a, b in zip(one, other, strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_apart_ends_of_the_jensen_shannon_divergence(beta: float, trl: object) -> None:
    s, t = draw(7, 1, 3, 5), draw(8, 1, 3, 5)
    near = abs(beta - 1e-4)
    assert float(trl(s, t, None, near)) < 1e-3 < 0.05 < float(trl(s, t, None, beta))  # a leap
    with pytest.raises(UsageError, match="the jsd divergence was given"):
        Divergence("jsd", beta)
