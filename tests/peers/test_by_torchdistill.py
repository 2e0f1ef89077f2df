"""KD, RKD and CRD beside torchdistill's: values and gradients, and where the two differ."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.objectives import Objective
from limbeck.registry import make
from limbeck.vision._kit.banks import moved
from limbeck.vision.crd import nce, similarities
from limbeck.vision.luminet import luminet_loss
from limbeck.vision.rkd import relational

pytestmark = pytest.mark.xdist_group("by torchdistill")
peer = pytest.importorskip("torchdistill.losses.mid_level", reason="needs torchdistill")

CLOCK = Clock(0, "fit", 0, 10, 5)
ENDS = {
    "student_module_path": ".",
    "student_module_io": "output",
    "teacher_module_path": ".",
    "teacher_module_io": "output",
}


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=rng, dtype=torch.float64)


def theirs(loss: nn.Module, s: Tensor, t: Tensor, *more: Any) -> Tensor:
    return loss({".": {"output": s}}, {".": {"output": t}}, *more)


def graded(value: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(value, s)
    return value.detach(), gradient


def total(method: str, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The sum of a method's terms on logits, as a fit adds them."""
    from types import SimpleNamespace as Side

    objective = make(method)
    assert isinstance(objective, Objective)
    batch = Batch(x=s.detach(), y=y)
    terms = objective.terms(nn.Module(), Side(logits=s), Side(logits=t), batch, CLOCK)
    return sum(terms.values())


def close(one: tuple[Tensor, ...], other: tuple[Tensor, ...], rtol: float = 1e-9) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=rtol)


# --- kd -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "tau"), [(0.1, 4.0), (0.5, 1.0), (0.9, 20.0)])
@pytest.mark.parametrize("seed", range(3))
def test_kd(alpha: float, tau: float, seed: int) -> None:
    s, t = draw(seed, 16, 10, scale=3).requires_grad_(), draw(seed + 50, 16, 10, scale=3)
    y = torch.arange(16) % 10
    loss = peer.KDLoss(**ENDS, temperature=tau, alpha=alpha)
    mine = total(f"kd(label={alpha}, kd={1 - alpha}, tau={tau})", s, t, y)
    close(graded(mine, s), graded(theirs(loss, s, t, y), s), 1e-6)  # our cross-entropy is float32


def test_apart_kd_without_labels_lacks_tau_squared() -> None:
    s, t, y = draw(1, 8, 5), draw(2, 8, 5), torch.arange(8) % 5
    loss = peer.KDLoss(**ENDS, temperature=4.0, alpha=0)
    mine = total("kd(label=0, kd=1, tau=4)", s, t, y)
    close((mine,), (16 * theirs(loss, s, t, y),))


# --- rkd ------------------------------------------------------------------------------------------


def rkd_of(distance: float, angle: float) -> nn.Module:
    return peer.RKDLoss(".", ".", distance, angle, "mean")


@pytest.mark.parametrize("seed", range(3))
def test_rkd(seed: int) -> None:
    s, t = draw(seed, 12, 6).requires_grad_(), draw(seed + 50, 12, 9, scale=4)
    for relation, loss in (("distance", rkd_of(1, 0)), ("angle", rkd_of(0, 1))):
        mine = graded(relational(s, t, relation), s)
        close(mine, graded(theirs(loss, s, t), s), 1e-7)  # theirs expands |a - b|^2
    mine = 25 * relational(s, t, "distance") + 50 * relational(s, t, "angle")
    close(graded(mine, s), graded(theirs(rkd_of(25, 50), s, t), s), 1e-6)


def test_apart_rkd_counts_coinciding_embeddings_in_the_mean_distance() -> None:
    s, t = draw(3, 6, 4), draw(4, 6, 4)
    s[1] = s[0]
    gaps = torch.cdist(s, s)
    apart = gaps[~torch.eye(6, dtype=torch.bool)]
    psi_t = torch.cdist(t, t) / torch.cdist(t, t).sum() * 30
    means = {"mine": apart[apart > 1e-9].mean(), "theirs": apart.mean()}  # of 28 and of 30
    assert means["mine"] / means["theirs"] == pytest.approx(30 / 28)
    huber = nn.functional.smooth_l1_loss
    close((relational(s, t, "distance"),), (huber(gaps / means["mine"], psi_t),), 1e-6)
    close((theirs(rkd_of(1, 0), s, t),), (huber(gaps / means["theirs"], psi_t),), 1e-5)


# --- crd ------------------------------------------------------------------------------------------

N, D, B, K, TAU = 40, 8, 6, 12, 0.07


def crd_of(eps: float = 0.0) -> Any:
    torch.manual_seed(0)
    return peer.CRDLoss("n", "e", "n", D, N, K, N, temperature=TAU, eps=eps).double()


def ends(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sides' embeddings of length 1, the samples' numbers, and whom they are compared with."""
    s, t = (nn.functional.normalize(draw(seed + k, B, D), dim=1) for k in (0, 50))
    rng = torch.Generator().manual_seed(seed)
    index = torch.randperm(N, generator=rng)[:B]
    rows = torch.cat((index[:, None], torch.randint(N, (B, K), generator=rng)), 1)
    return s.requires_grad_(), t, index, rows


def theirs_crd(loss: Any, s: Tensor, t: Tensor, index: Tensor, rows: Tensor | None) -> Tensor:
    more = {"pos_idx": index} | ({} if rows is None else {"contrast_idx": rows})
    return loss({"n": {"output": s}, "e": {"input": more}}, {"n": {"output": t}}).squeeze()


def mine_crd(loss: Any, s: Tensor, t: Tensor, rows: Tensor, log_z: list[float]) -> Tensor:
    """Of the same banks, with the given log Z."""
    banks = (loss.memory_v2.clone(), loss.memory_v1.clone())
    return sum(
        nce(similarities(anchor, bank, rows), torch.tensor(z, dtype=torch.float64), N, TAU)
        for anchor, bank, z in zip((s, t), banks, log_z, strict=True)
    )


@pytest.mark.parametrize("seed", range(3))
def test_crd_and_how_its_banks_move(seed: int) -> None:
    loss, (s, t, index, rows) = crd_of(), ends(seed)
    loss.params[2], loss.params[3] = 300.0, 500.0
    tau = float(loss.params[1])  # which theirs keeps in single precision
    assert tau == pytest.approx(TAU, rel=1e-7)
    mine = graded(mine_crd(loss, s, t, rows, [math.log(300), math.log(500)]), s)
    banks = {"student": loss.memory_v1.clone(), "teacher": loss.memory_v2.clone()}
    close(mine, graded(theirs_crd(loss, s, t, index, rows), s), 1e-5)
    moved(banks, {"index": index, "student": s.detach(), "teacher": t}, 0.5)
    close((banks["student"], banks["teacher"]), (loss.memory_v1.detach(), loss.memory_v2))
    assert not torch.equal(loss.memory_v1, crd_of().memory_v1)


def test_apart_crd_has_a_small_number_inside_its_logarithms() -> None:
    (s, t, index, rows), log_z = ends(7), [math.log(300), math.log(500)]
    values = []
    for eps in (0.0, 1e-7):
        loss = crd_of(eps)
        loss.params[2], loss.params[3] = 300.0, 500.0
        mine = mine_crd(loss, s, t, rows, log_z).detach()
        values.append(theirs_crd(loss, s, t, index, rows).detach() - mine)
    # Each of 1 + K logarithms is larger by up to eps / (K / N), in both directions.
    more = float(values[1] - values[0])
    assert 0 < more <= 2 * (1 + K) / K * N * 1e-7


def test_apart_crd_takes_z_from_the_first_batch() -> None:
    loss, (s, t, index, rows) = crd_of(), ends(8)
    s, pairs = s.detach(), ((s.detach(), loss.memory_v2), (t, loss.memory_v1))
    whole = [(a @ bank.T / TAU).exp().mean() * N for a, bank in pairs]
    drawn = [similarities(a, bank, rows).div(TAU).exp().mean() * N for a, bank in pairs]
    mine = mine_crd(loss, s, t, rows, [math.log(float(z)) for z in drawn])
    close((mine,), (theirs_crd(loss, s, t, index, rows),), 1e-5)
    close((loss.params[2:4],), (torch.stack(drawn),), 1e-5)
    assert abs(float(whole[0] / drawn[0]) - 1) > 0.05  # ours is of all rows of the banks


def test_apart_crd_cannot_draw_negatives_itself() -> None:
    loss, (s, t, index, _) = crd_of(), ends(9)
    with pytest.raises(AttributeError, match="'prob'"):
        theirs_crd(loss, s, t, index, None)


# --- luminet --------------------------------------------------------------------------------------


def test_apart_luminet_standardises_a_class_over_the_batch_and_not_a_sample() -> None:
    t, loss = draw(5, 12, 7), peer.LogitStdKDLoss(**ENDS, temperature=2.0, alpha=0)
    by_class = t * (1 + torch.arange(7).double()) + torch.arange(7).double()
    by_sample = t * (1 + torch.arange(12).double())[:, None] + torch.arange(12).double()[:, None]
    assert float(luminet_loss(by_class, t)) == pytest.approx(0, abs=1e-6)
    assert float(theirs(loss, by_class, t)) > 0.005
    assert float(theirs(loss, by_sample, t)) == pytest.approx(0, abs=1e-6)
    assert float(luminet_loss(by_sample, t)) > 0.005
