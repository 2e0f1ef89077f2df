"""SSKD beside torchdistill's: both stages, values and gradients."""

from types import SimpleNamespace as Side

import pytest
import torch

from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.vision.sskd import SSKD, Stage, head_loss, head_of, likeness

pytestmark = pytest.mark.xdist_group("by torchdistill")
peer = pytest.importorskip("torchdistill.losses.mid_level", reason="needs torchdistill")

B, C, D = 6, 7, 9


@pytest.mark.parametrize("seed", range(3))
def test_sskd(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    zs, zt = (3 * torch.randn(4 * B, C, generator=rng, dtype=torch.float64) for _ in range(2))
    es, et = (torch.randn(4 * B, D, generator=rng, dtype=torch.float64) for _ in range(2))
    zs.requires_grad_()
    es.requires_grad_()
    y = torch.arange(B) % C
    torch.manual_seed(seed)
    heads = {n: head_of(et, n).double() for n in ("teacher", "student")}
    parts = torch.nn.ModuleDict(heads)
    # all that are wrong: which of equal ranks go is left open there
    method = SSKD(ss_keep=1.0)
    sides = Side(logits=zs, embedding=es), Side(logits=zt, embedding=et)
    batch = Batch(x=zs[:B], y=y)
    out = Stage("student", method).terms(parts, *sides, batch, Clock(0, "s", 0, 9, 3))  # type: ignore[arg-type]
    mine = torch.stack(list(out.values())).sum()
    loss = peer.SSKDLoss(
        "fc", "fc", "ss", "ss", 4.0, 0.5, 4.0, 1.0, 1.0, loss_weights=[0.1, 0.9, 10.0, 2.7]
    )
    shown = [
        {"fc": {"output": z}, "ss": {"output": heads[n](e)}}
        for n, z, e in (("student", zs, es), ("teacher", zt, et))
    ]
    theirs = loss(*shown, y)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    ours, other = (torch.autograd.grad(v, (zs, es)) for v in (mine, theirs))
    torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-7)


def test_the_teachers_head() -> None:
    z = torch.randn(4 * B, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    z.requires_grad_()
    mine, theirs = head_loss(likeness(z)), peer.AuxSSKDLoss()({}, {"ss_module": {"output": z}})
    torch.testing.assert_close(mine, theirs)
    ours, other = (torch.autograd.grad(v, z)[0] for v in (mine, theirs))
    torch.testing.assert_close(ours, other)
