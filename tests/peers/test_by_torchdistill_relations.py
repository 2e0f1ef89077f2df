"""SP, CC, PKT and ICKD beside torchdistill's: values and gradients, and where the two differ."""

from typing import Any

import pytest
import torch
from scipy.special import rel_entr
from torch import Tensor, nn

from limbeck.vision.cc import congruence
from limbeck.vision.ickd import channel_loss
from limbeck.vision.pkt import neighbours, transfer_loss
from limbeck.vision.sp import similarity_loss

pytestmark = pytest.mark.xdist_group("by torchdistill")
peer = pytest.importorskip("torchdistill.losses.mid_level", reason="needs torchdistill")


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=rng, dtype=torch.float64)


def theirs(loss: nn.Module, s: Tensor, t: Tensor) -> Tensor:
    return loss({".": {"output": s}}, {".": {"output": t}})


def graded(value: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(value, s)
    return value.detach(), gradient


def close(one: tuple[Tensor, ...], other: tuple[Tensor, ...], rtol: float = 1e-9) -> None:
    for a, b in zip(one, other, strict=True):
        assert float(b.abs().max()) > 1e-9
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


# --- sp -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_apart_sp_divides_rows_by_their_sums(seed: int) -> None:
    s, t = draw(seed, 8, 3, 4, 4).requires_grad_(), draw(seed + 50, 8, 5, 2, 2).relu()
    value = theirs(peer.SPKDLoss(".", ".", "batchmean"), s, t)
    assert float(similarity_loss(s.flatten(1), t.flatten(1)).detach() / value.detach()) > 2
    rows = [q.flatten(1) @ q.flatten(1).T for q in (s, t)]
    sums = [a / a.abs().sum(1, keepdim=True) for a in rows]
    by_sums = (sums[0] - sums[1]).square().sum() / 64
    # With its lengths in place of its sums it is the same as here.
    lengths = [a / a.norm(dim=1, keepdim=True) for a in rows]
    mine, by_lengths = similarity_loss(s.flatten(1), t.flatten(1)), lengths[0] - lengths[1]
    (there,) = torch.autograd.grad(by_sums, s, retain_graph=True)
    close((by_sums.detach(), there), graded(value, s))
    close(graded(mine, s), graded(by_lengths.square().sum() / 64, s))


# --- cc -------------------------------------------------------------------------------------------


def cc_of(kernel: str, gamma: float = 0.4, order: int = 2) -> nn.Module:
    config = {"type": kernel, "gamma": gamma, "max_p": order}
    return peer.CCKDLoss(".", ".", config, "batchmean")


def cc_loss(s: Tensor, t: Tensor, kernel: Any, gamma: float = 0.4, order: int = 2) -> Tensor:
    one, other = (congruence(e, kernel, gamma, order, normalise=False) for e in (s, t))
    return (one - other).square().mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.0, 4)])
def test_apart_cc_takes_the_root_of_the_sum_of_squares(seed: int, gamma: float, order: int) -> None:
    s, t = draw(seed, 8, 4, scale=0.5).requires_grad_(), draw(seed + 50, 8, 4, scale=0.5)
    for kernel in ("gaussian", "bilinear"):
        value = theirs(cc_of(kernel, gamma, order), s, t)
        squared = 8**2 * value.square()  # root / B^2 to sum / B^2
        close(graded(cc_loss(s, t, kernel, gamma, order), s), graded(squared, s))


def test_apart_cc_leaves_vectors_at_any_length() -> None:
    s, t = draw(1, 6, 4), draw(2, 6, 4)
    loss = cc_of("gaussian")
    assert abs(float(theirs(loss, 3 * s, t) / theirs(loss, s, t)) - 1) > 1
    torch.testing.assert_close(congruence(3 * s), congruence(s))
    unit = nn.functional.normalize(s)
    torch.testing.assert_close(congruence(unit, normalise=False), congruence(s))


# --- pkt ------------------------------------------------------------------------------------------


def pkt_of(eps: float = 1e-7) -> nn.Module:
    return peer.PKTLoss(".", "output", ".", "output", eps)


def pkt_loss(s: Tensor, t: Tensor, own: bool) -> Tensor:
    return transfer_loss(neighbours(s, own=own), neighbours(t, own=own).exp())


@pytest.mark.parametrize("seed", range(3))
def test_pkt_with_own_pairs(seed: int) -> None:
    s, t = draw(seed, 10, 4).requires_grad_(), draw(seed + 50, 10, 6)
    value, gradient = graded(theirs(pkt_of(eps=0.0), s.clone(), t.clone()), s)
    close(graded(pkt_loss(s, t, True), s), (value, gradient), 1e-8)
    value, gradient = graded(theirs(pkt_of(), s.clone(), t.clone()), s)  # its small number
    close(graded(pkt_loss(s, t, True), s), (value, gradient), 1e-4)


def test_apart_pkt_counts_a_sample_as_its_own_neighbour() -> None:
    s, t = draw(1, 10, 4), draw(2, 10, 6)
    loss, mine = theirs(pkt_of(eps=0.0), s.clone(), t.clone()), pkt_loss(s, t, False)
    assert abs(float(mine / loss) - 1) > 0.05
    rows = []
    for e in (s, t):
        k = (nn.functional.cosine_similarity(e[:, None], e[None], dim=2) + 1) / 2
        k.fill_diagonal_(0)
        rows.append(k / k.sum(1, keepdim=True))
    by_scipy = rel_entr(rows[1].numpy(), rows[0].numpy()).sum() / 100
    assert float(mine) == pytest.approx(by_scipy, rel=1e-9)


# --- ickd -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_apart_ickd_divides_by_the_batch_once_more(seed: int) -> None:
    s, t = draw(seed, 5, 6, 3, 3).requires_grad_(), draw(seed + 50, 5, 6, 4, 4).relu()
    end = {"io": "output", "path": "."}
    loss = peer.ChSimLoss({"pair": {"student": end, "teacher": end, "weight": 1}})
    close(graded(channel_loss(s, t), s), graded(5 * theirs(loss, s, t), s))
