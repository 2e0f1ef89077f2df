"""FT, VID and FSP beside torchdistill's: values and gradients, and where they differ."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.vision.fsp import flow, fsp_loss
from limbeck.vision.ft import Paraphraser, factor_loss
from limbeck.vision.vid import VID

pytestmark = pytest.mark.xdist_group("by torchdistill")
peer = pytest.importorskip("torchdistill.losses.mid_level", reason="needs torchdistill")
wrapper = pytest.importorskip("torchdistill.models.wrapper", reason="needs torchdistill")


def draw(seed: int, *shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def close(one: Tensor, other: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    grads = (torch.autograd.grad(v, inputs, retain_graph=True) for v in (one, other))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def factors(s: Tensor, t: Tensor, p: int) -> Tensor:
    return peer.FTLoss(p=p)({"translator": {"output": s}}, {"paraphraser": {"output": t}})


def test_ft() -> None:
    s, t = draw(0, 5, 6, 4, 3).requires_grad_(), draw(1, 5, 6, 4, 3)
    close(factor_loss(s, t), factors(s, t, 1), s)
    close(factor_loss(s, t, p=2, mean=False), factors(s, t, 2), s)


def test_apart_ft_has_a_mean_for_p_1_and_a_norm_for_others() -> None:
    s, t = draw(2, 5, 6, 4, 3).requires_grad_(), draw(3, 5, 6, 4, 3)
    close(factor_loss(s, t, mean=False), factors(s, t, 1) * 6 * 4 * 3, s)


def test_the_autoencoder_of_ft() -> None:
    for norm in (False, True):
        ours = Paraphraser(8, 4, 0.1, norm).double()
        theirs = wrapper.Paraphraser4FactorTransfer(0.5, 8, uses_bn=norm).double()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            b.data.copy_(a.data)
        x = draw(4, 3, 8, 5, 4).requires_grad_()
        close(ours(x).square().sum(), theirs(x).square().sum(), x)


def test_vid() -> None:
    s, t = draw(5, 4, 3, 5, 5).requires_grad_(), draw(6, 4, 7, 5, 5)
    sides = SimpleNamespace(blocks=[s]), SimpleNamespace(blocks=[t])
    m, batch = VID(label=0.0, hidden=2.0), Batch(x=s, y=torch.zeros(4))
    parts = m.build(*sides, batch, None).double()
    told = parts["told"][0]
    theirs = wrapper.Regressor4VID(3, 14, 7, 1e-5, 5.0).double()
    torch.testing.assert_close(told.a.data, theirs.soft_plus_param.data, rtol=1e-6, atol=0)
    for a, b in zip(told.mu.parameters(), theirs.regressor.parameters(), strict=True):
        b.data.copy_(a.data)
    for a in (told.a, theirs.soft_plus_param):
        a.data.copy_(2 * draw(7, 7))
    ends = {"student": {"io": "output", "path": "s"}, "teacher": {"io": "output", "path": "t"}}
    loss = peer.VIDLoss({"one": {**ends, "weight": 1}})
    other = loss({"s": {"output": theirs(s)}}, {"t": {"output": t}})
    value = m.terms(parts, *sides, batch, Clock(0, "fit", 0, 1, 1))["vid"]
    close(value, other, s)
    (ours,) = torch.autograd.grad(value, told.a)
    (its,) = torch.autograd.grad(other, theirs.soft_plus_param)
    torch.testing.assert_close(ours, its)


def test_the_matrix_of_fsp() -> None:
    for a, b in (((3, 4, 6, 6), (3, 5, 3, 3)), ((3, 4, 3, 3), (3, 5, 6, 4))):
        low, high = draw(8, *a).requires_grad_(), draw(9, *b)
        theirs = peer.FSPLoss.compute_fsp_matrix(low, high)
        close(flow(low, high).square().sum(), theirs.square().sum(), low)
        torch.testing.assert_close(flow(low, high), theirs)


def test_apart_fsp_has_the_norm_of_each_column_and_not_its_square() -> None:
    low, high = draw(10, 3, 4, 3, 3).requires_grad_(), 3 * draw(11, 3, 5, 3, 3)
    t = draw(12, 3, 4, 3, 3), 3 * draw(13, 3, 5, 3, 3)
    names = [f"{side}_{end}" for side in ("student", "teacher") for end in ("first", "second")]
    pairs = {name: {"io": "output", "path": name} for name in names}
    shown = dict(zip(names, ({"output": x} for x in (low, high, *t)), strict=True))
    theirs = peer.FSPLoss({"one": {**pairs, "weight": 1}})(shown, shown)
    gap = flow(low, high) - flow(*t)
    close(gap.norm(dim=1).sum() / 3, theirs, low)
    ours = fsp_loss(flow(low, high), flow(*t))
    torch.testing.assert_close(gap.norm(dim=1).square().sum() / 3, ours)
    assert abs(float(ours.detach() / theirs.detach()) - 1) > 0.1
