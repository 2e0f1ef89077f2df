"""AT and AB beside torchdistill's: values and gradients."""

import pytest
import torch
from torch import Tensor

from limbeck.vision.ab import boundary_loss
from limbeck.vision.at import apart, attention

pytestmark = pytest.mark.xdist_group("by torchdistill")
peer = pytest.importorskip("torchdistill.losses.mid_level", reason="needs torchdistill")

ENDS = {"io": "output", "path": "x"}
PAIRS = {"one": {"teacher": ENDS, "student": ENDS, "weight": 1}}


def draw(seed: int, *shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def shown(x: Tensor) -> dict[str, dict[str, Tensor]]:
    return {"x": {"output": x}}


def close(one: Tensor, other: Tensor, s: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    a, b = (torch.autograd.grad(v, s, retain_graph=True)[0] for v in (one, other))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_at() -> None:
    s, t = draw(0, 8, 6, 5, 4).requires_grad_(), draw(1, 8, 9, 5, 4)
    code = peer.ATLoss(PAIRS, mode="code")(shown(s), shown(t))
    close(apart(attention(s), attention(t)), code, s)


def test_apart_at_halves_the_norm() -> None:
    s, t = draw(2, 8, 6, 5, 4).requires_grad_(), draw(3, 8, 9, 5, 4)
    paper = peer.ATLoss(PAIRS, mode="paper")(shown(s), shown(t))
    close(2 * apart(attention(s), attention(t), "norm"), paper, s)


def test_ab() -> None:
    s, t = draw(4, 8, 6, 5, 4).requires_grad_(), draw(5, 8, 6, 5, 4)
    for margin in (0.5, 1.0):
        peers = peer.AltActTransferLoss(PAIRS, margin, "mean")(shown(s), shown(t))
        close(boundary_loss(s, t, margin).mean(), peers, s)
