"""DIST and LSKD beside torchdistill's: values and gradients, and where the two differ."""

from types import SimpleNamespace as Side
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.registry import make

pytestmark = pytest.mark.xdist_group("by torchdistill")
peer = pytest.importorskip("torchdistill.losses.mid_level", reason="needs torchdistill")

ENDS = {
    "student_module_path": ".",
    "student_module_io": "output",
    "teacher_module_path": ".",
    "teacher_module_io": "output",
}
Y = torch.arange(16) % 10


def draw(seed: int, *shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=rng, dtype=torch.float64)


def pair(seed: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    return draw(seed, 16, classes).requires_grad_(), draw(seed + 50, 16, classes)


def theirs(loss: nn.Module, s: Tensor, t: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
    value = loss({".": {"output": s}}, {".": {"output": t}}, *more)
    return value.detach(), torch.autograd.grad(value, s)[0]


def ours(method: str, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of a method's terms on logits, as a fit adds them, and its gradient."""
    batch = Batch(x=s.detach(), y=Y)
    terms = make(method).terms(
        nn.Module(), Side(logits=s), Side(logits=t), batch, Clock(0, "fit", 0, 10, 5)
    )
    value = sum(terms.values())
    return value.detach(), torch.autograd.grad(value, s)[0]


def close(one: tuple[Tensor, ...], other: tuple[Tensor, ...], rtol: float = 1e-9) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_dist(seed: int, tau: float) -> None:
    s, t = pair(seed)
    loss = peer.DISTLoss(**ENDS, beta=2.0, gamma=0.5, tau=tau)
    method = f"dist(label=0, inter=2, intra=0.5, tau={tau}, eps=0)"
    close(ours(method, s, t), theirs(loss, s, t))


def test_apart_dist_counts_classes_that_no_sample_comes_near() -> None:
    low = torch.zeros(40, dtype=torch.float64)
    low[20:] = -14  # half of the classes have lengths above 1e-8, with products far below it
    t = draw(51, 16, 40) / 3 + low
    s = (t + draw(1, 16, 40) / 30).requires_grad_()  # nearly the teacher
    there = theirs(peer.DISTLoss(**ENDS, beta=0, gamma=1), s, t)
    close(ours("dist(label=0, inter=0, intra=1, eps=0)", s, t), there, 1e-6)
    # With eps added to the product of both lengths those classes have correlation 0.
    assert float(there[0]) < 0.05
    assert float(ours("dist(label=0, inter=0, intra=1)", s, t)[0]) > 0.45


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_lskd(seed: int, tau: float) -> None:
    s, t = pair(seed)
    loss = peer.LogitStdKDLoss(**ENDS, temperature=tau, alpha=0.1, beta=9)
    method = f"lskd(of='kd(label=0.1, kd=9, tau={tau})', deviation='sample')"
    close(ours(method, s, t), theirs(loss, s, t, Y), 1e-6)  # our cross-entropy is float32


def test_apart_lskd_divides_by_the_number_of_classes() -> None:
    s, t = pair(4)
    loss = peer.LogitStdKDLoss(**ENDS, temperature=2.0, alpha=0.1, beta=9)
    mine, there = ours("lskd()", s, t)[0], theirs(loss, s, t, Y)[0]
    assert abs(float(mine / there - 1)) > 1e-3
    # Its deviation has one class less below it: the same at a temperature larger by that share.
    tau = 2 * (10 / 9) ** 0.5
    bare = peer.LogitStdKDLoss(**ENDS, temperature=2.0, alpha=0)
    method = f"lskd(of='kd(label=0, kd={1 / tau**2}, tau={tau})')"
    close(ours(method, s, t), theirs(bare, s, t), 1e-6)


def test_apart_lskd_without_labels_lacks_tau_squared() -> None:
    s, t = pair(5)
    bare = peer.LogitStdKDLoss(**ENDS, temperature=3.0, alpha=0)
    mine = ours("lskd(of='kd(label=0, kd=1, tau=3)', deviation='sample')", s, t)[0]
    close((mine,), (9 * theirs(bare, s, t)[0],), 1e-6)
