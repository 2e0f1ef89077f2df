"""ReviewKD, SRD and PAD beside torchdistill's: values and gradients, and where they differ."""

import math

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.losses.divergences import kl
from limbeck.vision.pad import pad_loss
from limbeck.vision.reviewkd import ABF, hcl, reviewed
from limbeck.vision.srd import log_sum, standardised

pytestmark = pytest.mark.xdist_group("by torchdistill")
peer = pytest.importorskip("torchdistill.losses.mid_level", reason="needs torchdistill")
models = pytest.importorskip("torchdistill.models.wrapper", reason="needs torchdistill")


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=rng, dtype=torch.float64)


def close(mine: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """The same value, and the same gradient in each of the inputs."""
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    pairs = [torch.autograd.grad(x, inputs, retain_graph=True) for x in (mine, theirs)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


# --- reviewkd -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 8])
def test_reviewkd_pyramid(side: int) -> None:
    s, t = draw(side, 4, 3, side, side).requires_grad_(), draw(side + 50, 4, 3, side, side)
    loss = peer.HierarchicalContextLoss("s", "output", "t", "output")
    theirs = loss({"s": {"output": (s, None)}}, {"t": {"output": t}})
    close(hcl(s, t), theirs, s)


def test_reviewkd_review_of_three_stages() -> None:
    shapes = [(4, 6, 8), (8, 12, 4), (8, 12, 1)]  # student's and teacher's channels, side
    s = [draw(k, 5, a, n, n).requires_grad_() for k, (a, _, n) in enumerate(shapes)]
    t = [draw(k + 9, 5, b, n, n) for k, (_, b, n) in enumerate(shapes)]
    torch.manual_seed(0)
    mine = [ABF(a, 8, b, k < 2).double() for k, (a, b, _) in enumerate(shapes)]
    theirs = []
    for k, (abf, (a, b, _)) in enumerate(zip(mine, shapes, strict=True)):
        other = models.AttentionBasedFusion(a, 8, b, uses_attention=k < 2).double()
        other.conv1.load_state_dict(abf.enter.state_dict())
        other.conv2.load_state_dict(abf.leave.state_dict())
        if abf.attend is not None:
            other.attention_conv[0].load_state_dict(abf.attend.state_dict())
        theirs.append(other)
    found, deeper = [], None
    for abf, x in zip(theirs[::-1], s[::-1], strict=True):
        out, deeper = abf(x, deeper, x.shape[2])
        found.append(out)
    total = [
        sum(hcl(o, y) for o, y in zip(os, t, strict=True))
        for os in (reviewed(mine, s, t), found[::-1])
    ]
    close(*total, *s)


# --- srd ------------------------------------------------------------------------------------------

NAMES = ("n", "output", "n", "output", ".", "output", ".", "output")


def sides(s: Tensor, t: Tensor, zs: Tensor, zt: Tensor) -> list[dict[str, dict[str, Tensor]]]:
    return [{"n": {"output": e}, ".": {"output": z}} for e, z in ((s, zs), (t, zt))]


def normed(x: Tensor) -> Tensor:
    return nn.BatchNorm1d(x.shape[1], eps=1e-4, affine=False).double()(x)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
def test_srd(alpha: float) -> None:
    s, t = draw(1, 9, 6).requires_grad_(), draw(2, 9, 6, scale=5) + 3
    zs, zt = draw(3, 9, 4).requires_grad_(), draw(4, 9, 4)
    theirs = peer.SRDLoss(*NAMES, exponent=alpha)(*sides(normed(s), normed(t), zs, zt))
    mine = 2 * log_sum(standardised(s), standardised(t), alpha) + kl(zs, zt).mean()
    close(mine + 2 * math.log(9), theirs, s, zs)


def test_apart_srd_takes_the_mean_over_samples() -> None:
    s, t, z = draw(5, 6, 3), draw(6, 6, 3), torch.zeros(6, 2).double()
    loss = peer.SRDLoss(*NAMES, exponent=4.0)
    once = loss(*sides(s, t, z, z))
    twice = loss(*sides(*(x.repeat(2, 1) for x in (s, t, z, z))))
    assert float(twice - once) == pytest.approx(2 * math.log(2))
    assert float(once - 2 * log_sum(s, t)) == pytest.approx(2 * math.log(6))
    torch.testing.assert_close(log_sum(s.repeat(2, 1), t.repeat(2, 1)), log_sum(s, t))


def test_apart_srd_has_tau_squared() -> None:
    s, t, zs, zt = draw(5, 6, 3), draw(6, 6, 3), draw(7, 6, 2), draw(8, 6, 2)
    theirs, none = (
        peer.SRDLoss(*NAMES, exponent=4.0, temperature=3.0)(*sides(s, t, z, zt)) for z in (zs, zt)
    )
    assert float(kl(zs, zt, 3.0).mean()) == pytest.approx(9 * float(theirs - none))


def test_apart_srd_of_sides_that_agree() -> None:
    s, z = draw(5, 6, 3).requires_grad_(), torch.zeros(6, 2).double()
    theirs = peer.SRDLoss(*NAMES, exponent=4.0)(*sides(s, s.detach(), z, z))
    assert float(theirs.detach()) == -math.inf
    assert not torch.autograd.grad(theirs, s)[0].isfinite().any()
    assert float(torch.autograd.grad(log_sum(s, s.detach()), s)[0].abs().max()) == 0


# --- pad ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [5, 1])
def test_pad(columns: int) -> None:
    s, v = draw(1, 8, 5).requires_grad_(), draw(2, 8, columns).requires_grad_()
    t = draw(3, 8, 5, scale=2)
    loss = peer.PADL2Loss("s", "t", module_path="v")
    shown = {"s": {"output": s[:, :, None, None]}, "v": {"output": v}}
    close(pad_loss(s, t, v), loss(shown, {"t": {"output": t[:, :, None, None]}}), s, v)
