"""sskd: views, likeness and selection by hand and by loops, the terms, the two stages."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.vision.sskd import (
    SSKD,
    Stage,
    chosen,
    head_loss,
    head_of,
    kept_kl,
    likeness,
    own,
    ranks,
    turned,
    views_of,
)

pytestmark = pytest.mark.xdist_group("sskd")

G = torch.Generator().manual_seed(29)
B, C, D = 4, 5, 6
ZS, ZT = (torch.randn(4 * B, C, generator=G, dtype=torch.float64) for _ in range(2))
ES, ET = (torch.randn(4 * B, D, generator=G, dtype=torch.float64) for _ in range(2))
Y = torch.tensor([0, 3, 1, 4])


def test_defaults_are_the_authors() -> None:
    m = SSKD()
    assert (m.label, m.kd, m.ss, m.tf) == (0.1, 0.9, 10.0, 2.7)
    assert (m.tau, m.ss_tau, m.tf_tau, m.head_tau) == (4.0, 0.5, 4.0, 1.0)
    assert (m.ss_keep, m.tf_keep, m.share) == (0.75, 1.0, 0.25)


def test_views_are_quarter_turns_and_four_are_none() -> None:
    x = torch.arange(2 * 9.0).reshape(2, 1, 3, 3)
    found = turned(x)
    assert found.shape == (8, 1, 3, 3)
    assert found[1, 0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    assert torch.equal(found[::4], x)
    assert torch.equal(turned(found[3:4])[1], x[0])
    assert torch.equal(views_of(torch.arange(8)), torch.tensor([1, 2, 3, 5, 6, 7]))


def test_likeness_is_the_cosine_and_sees_directions_only() -> None:
    a = likeness(ET)
    for i in range(3 * B):
        for j in range(B):
            u, v = ET[4 * (i // 3) + 1 + i % 3], ET[4 * j]
            cos = float(u @ v) / math.sqrt(float(u @ u) * float(v @ v))
            assert float(a[i, j]) == pytest.approx(cos, rel=1e-9)
    scaled = torch.rand(4 * B, 1, generator=G, dtype=torch.float64) + 0.1
    torch.testing.assert_close(likeness(scaled * ET), a)
    assert own(a).tolist() == [j for j in range(B) for _ in range(3)]


def test_the_heads_loss_by_hand() -> None:
    z = torch.eye(2).repeat_interleave(4, 0)
    assert float(head_loss(likeness(z))) == pytest.approx(0.313262, abs=1e-6)
    assert float(head_loss(likeness(torch.ones(8, 3)))) == pytest.approx(math.log(2))


def test_one_view_by_hand() -> None:
    s, t = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[1.0, 0.0]]).double()
    right = torch.tensor([0])
    assert float(kept_kl(s, t, right, 0.5, 0.75)) == pytest.approx(0.081953, abs=1e-6)
    assert float(kept_kl(s, t, 1 - right, 0.5, 0.75)) == 0  # one is wrong, none is kept
    assert float(kept_kl(s, t, 1 - right, 0.5, 1.0)) == pytest.approx(0.081953, abs=1e-6)


@pytest.mark.parametrize(
    ("keep", "want"),
    [(0, [0, 2]), (0.5, [0, 2, 3, 5]), (0.75, [0, 1, 2, 3, 5]), (1, [0, 1, 2, 3, 4, 5])],
)
def test_chosen_by_hand(keep: float, want: list[int]) -> None:
    kept = chosen(torch.tensor([0, 2, 0, 1, 5, 1]), keep)
    assert kept.nonzero().flatten().tolist() == want


def test_of_equal_ranks_the_earlier_stay() -> None:
    assert chosen(torch.tensor([3, 3, 3, 3]), 0.5).tolist() == [True, True, False, False]


def test_ranks_by_sorting() -> None:
    right = torch.arange(16) % C
    for row, y, found in zip(ZT, right, ranks(ZT, right), strict=True):
        order = sorted(range(C), key=lambda c: -float(row[c]))
        assert order.index(int(y)) == int(found)


def slow_kept(s: Tensor, t: Tensor, right: list[int], tau: float, keep: float) -> float:
    """A view at a time."""
    rows = []
    for i in range(len(s)):
        rank = sum(float(v) > float(t[i, right[i]]) for v in t[i])
        p, q = ([math.exp(float(v) / tau) for v in z[i]] for z in (t, s))
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        rows.append((rank, i, sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))))
    good = [r for r in rows if r[0] == 0]
    bad = sorted(r for r in rows if r[0])
    kept = good + bad[: math.floor(keep * len(bad))]
    return tau**2 * sum(r[2] for r in kept) / len(kept)


def parts() -> nn.ModuleDict:
    torch.manual_seed(3)
    both = {"teacher": head_of(ET, "teacher"), "student": head_of(ES, "student")}
    return nn.ModuleDict(both).double()


def terms(method: SSKD, of: nn.Module, s: Any = None, t: Any = None) -> dict[str, Tensor]:
    s = s or SimpleNamespace(logits=ZS, embedding=ES)
    t = t or SimpleNamespace(logits=ZT, embedding=ET)
    return Stage("student", method).terms(of, s, t, Batch(x=ZS[:B], y=Y), Clock(0, "s", 0, 9, 3))


@pytest.mark.parametrize("keep", [0.25, 0.75, 1.0])
def test_the_terms_by_loops(keep: float) -> None:
    of = parts()
    m = SSKD(ss_keep=keep, tf_keep=keep)
    out = terms(m, of)
    mine, theirs = likeness(of["student"](ES)).detach(), likeness(of["teacher"](ET)).detach()
    right = [j for j in range(B) for _ in range(3)]
    y3 = [int(Y[j]) for j in right]
    want = 10 * slow_kept(mine, theirs, right, 0.5, keep)
    assert float(out["ss"].detach()) == pytest.approx(want, rel=1e-6)
    want = 2.7 * slow_kept(views_of(ZS), views_of(ZT), y3, 4.0, keep)
    assert float(out["tf"]) == pytest.approx(want, rel=1e-6)
    every = slow_kept(ZS[::4], ZT[::4], [int(z.argmax()) for z in ZT[::4]], 4.0, 1.0)
    assert float(out["kd"]) == pytest.approx(0.9 * every, rel=1e-6)
    want = 0.1 * float(F.cross_entropy(ZS[::4], Y))
    assert float(out["label"]) == pytest.approx(want, rel=1e-5)


def test_equal_sides_have_no_loss_and_the_teacher_no_gradient() -> None:
    of = parts()
    of["student"].load_state_dict(of["teacher"].state_dict())
    z, e = ZT.clone().requires_grad_(), ET.clone().requires_grad_()
    out = terms(SSKD(), of, SimpleNamespace(logits=z, embedding=e))
    for name in ("kd", "ss", "tf"):
        assert float(out[name].detach()) == pytest.approx(0, abs=1e-9)
    total = out["kd"] + out["ss"] + out["tf"]
    theirs = list(of["teacher"].parameters())
    found = torch.autograd.grad(total, [z, e, *theirs], allow_unused=True)
    assert float(found[0].abs().max()) < 1e-9
    assert float(found[1].abs().max()) < 1e-9
    assert all(g is None for g in found[2:])


def test_the_order_of_pictures_does_not_matter() -> None:
    of, order = parts(), torch.tensor([2, 0, 3, 1])
    a = terms(SSKD(ss_keep=1.0), of)
    rows = (4 * order[:, None] + torch.arange(4)).flatten()
    sides = [SimpleNamespace(logits=z[rows], embedding=e[rows]) for z, e in ((ZS, ES), (ZT, ET))]
    batch = Batch(x=ZS[:B], y=Y[order])
    b = Stage("student", SSKD(ss_keep=1.0)).terms(of, *sides, batch, Clock(0, "s", 0, 9, 3))  # type: ignore[arg-type]
    for name in a:
        torch.testing.assert_close(a[name], b[name])


def test_half_precision_and_a_dead_head_stay_finite() -> None:
    z = torch.zeros(8, 3, dtype=torch.float16, requires_grad=True)
    loss = head_loss(likeness(z))
    (found,) = torch.autograd.grad(loss, z)
    assert loss.dtype == torch.float32
    assert bool(torch.isfinite(loss))
    assert not bool(torch.isnan(found).any())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        e = torch.tanh(self.body(x.flatten(1)))
        return {"logits": self.head(e), "embedding": e}


def task(x: Tensor) -> Task:
    budget = Budget(epochs=8, batch=8, optimiser=Optimiser("adam", lr=0.01))
    return Task(Net(), Net, (x, torch.arange(len(x)) % 3), budget=budget, classes=3)


def test_the_stages_and_what_they_train() -> None:
    on = task(torch.randn(24, 1, 4, 4, generator=G))
    before = [p.clone() for p in on.teacher.parameters()]
    with Run(on, seed=2) as run:
        result = SSKD(share=0.5).run(on)
        assert [(r["stage"], r["steps"]) for r in run.stages] == [("head", 12), ("student", 24)]
    heads = [row["terms"]["head"] for row in result.log if "head" in row["terms"]]
    assert heads[-1] < heads[0]
    assert all(map(torch.equal, before, on.teacher.parameters()))
    assert isinstance(result.model, Net)
    with Run(on, seed=2) as run:
        SSKD(ss=0.0).run(on)
        assert [r["stage"] for r in run.stages] == ["student"]


def test_refusals() -> None:
    with pytest.raises(UsageError, match="square pictures"):
        turned(torch.zeros(2, 1, 4, 5))
    with pytest.raises(UsageError, match="embeddings"):
        head_of(torch.zeros(2, 3, 4, 4), "student")
