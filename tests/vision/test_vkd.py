"""vkd: orthogonality by construction, both norms by numpy, and what is matched and delivered."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import expm
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import kl
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.vision.vkd import Orthogonal, VkD, columns, gathered, normalised, whitened

pytestmark = pytest.mark.xdist_group("vkd")

G = torch.Generator().manual_seed(4)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=G)


# --- the projector -------------------------------------------------------------------------------


def turned(here: int, there: int) -> Orthogonal:
    """A projector far from its start."""
    p = Orthogonal(here, there, torch.Generator().manual_seed(1))
    with torch.no_grad():
        p.turn.copy_(drawn(*p.turn.shape))
    return p


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize(("n", "k"), [(9, 2), (6, 4), (5, 5), (3, 1)])
def test_columns_are_those_of_scipys_exponential(n: int, k: int, thin: bool) -> None:
    w = drawn(n, k)
    wide = np.zeros((n, n))
    wide[:, :k] = w
    want = torch.tensor(expm(wide - wide.T)[:, :k]).float()
    torch.testing.assert_close(columns(w, thin), want, rtol=1e-4, atol=1e-5)


def test_both_roads_have_one_gradient_and_the_cheaper_is_taken() -> None:
    w, g = drawn(12, 2).double().requires_grad_(), drawn(12, 2).double()
    one, two = (torch.autograd.grad((columns(w, thin) * g).sum(), w)[0] for thin in (False, True))
    torch.testing.assert_close(one, two)
    assert torch.equal(columns(w), columns(w, True))
    tall = drawn(8, 2)
    assert torch.equal(columns(tall), columns(tall, False))


@pytest.mark.parametrize(("here", "there"), [(3, 20), (5, 7), (6, 6), (8, 3)])
def test_inner_products_are_kept(here: int, there: int) -> None:
    for p in (Orthogonal(here, there), turned(here, there)):
        m = p.matrix().detach()
        assert m.shape == (there, here)
        if here > there:
            assert float((m @ m.T - torch.eye(there)).abs().max()) < 1e-5
            continue
        assert float((m.T @ m - torch.eye(here)).abs().max()) < 1e-5
        z = drawn(5, here)
        torch.testing.assert_close(p(z) @ p(z).T, z @ z.T, rtol=1e-4, atol=1e-4)


def test_it_starts_random_and_reaches_any_frame() -> None:
    first, second = (Orthogonal(3, 5, torch.Generator().manual_seed(i)) for i in (1, 2))
    assert not torch.allclose(first.matrix(), second.matrix(), atol=0.1)
    torch.testing.assert_close(first.matrix(), first.base[:, :3])
    want = second.matrix().detach()
    optimiser = torch.optim.Adam(first.parameters(), 0.05)
    for _ in range(200):
        optimiser.zero_grad()
        loss = (first.matrix() - want).square().sum()
        loss.backward()
        optimiser.step()
    assert loss.item() < 1e-3


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_wild_steps_with_decay_leave_it_orthogonal(name: str) -> None:
    p, z, y = Orthogonal(3, 16), drawn(4, 3), drawn(4, 16)
    optimiser = getattr(torch.optim, name)(p.parameters(), lr=0.5, weight_decay=0.3)
    before = p.matrix().detach()
    for _ in range(20):
        optimiser.zero_grad()
        F.smooth_l1_loss(p(z), y).backward()
        optimiser.step()
        m = p.matrix().detach()
        assert float((m.T @ m - torch.eye(3)).abs().max()) < 1e-5
    assert float((m - before).abs().max()) > 0.1


def test_it_is_in_full_precision_under_autocast() -> None:
    p, z = turned(3, 20), drawn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (z @ z.T).dtype == torch.bfloat16  # autocast is on
        assert torch.equal(p(z), p(z.float()))
        found = p(z)
    assert found.dtype == torch.float32
    assert torch.equal(found, p(z))


# --- the target ----------------------------------------------------------------------------------


def test_layer_norm_has_mean_zero_and_mean_square_one() -> None:
    z = 3 * drawn(6, 50) + 7
    found = normalised(z)
    x = z.double().numpy()
    want = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    torch.testing.assert_close(found, torch.tensor(want).float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.square().sum(1), torch.full((6,), 50.0), rtol=1e-4, atol=1e-3)
    assert torch.equal(normalised(z, "none"), z)


def test_whitening_is_zca() -> None:
    z = drawn(200, 6) @ drawn(6, 6) + 5
    found = whitened(z).double()
    torch.testing.assert_close(found.mean(0), torch.zeros(6).double(), rtol=0, atol=1e-5)
    identity = torch.eye(6).double()
    torch.testing.assert_close(found.T @ found / 200, identity, rtol=0, atol=1e-4)
    x = z.double().numpy()
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    want = torch.tensor((x - x.mean(0)) @ root)
    torch.testing.assert_close(found, want, rtol=1e-2, atol=1e-3)


def test_whitening_leaves_directions_without_variance_at_zero() -> None:
    z = torch.cat((drawn(40, 3), torch.full((40, 2), 4.0)), 1)
    found = whitened(z)
    assert float(found[:, 3:].abs().max()) < 1e-5
    want = torch.diag(torch.tensor([1.0, 1, 1, 0, 0]))
    torch.testing.assert_close(found.T @ found / 40, want, rtol=0, atol=1e-4)
    few = whitened(drawn(4, 9))  # of four samples three directions are left
    values = torch.linalg.eigvalsh(few.T @ few / 4)
    torch.testing.assert_close(values, torch.tensor([0.0] * 6 + [1.0] * 3), rtol=0, atol=1e-4)
    assert torch.equal(whitened(torch.ones(3, 2)), torch.zeros(3, 2))


def test_features_are_means_over_places() -> None:
    x = drawn(2, 3, 4, 5)
    slow = torch.stack([sum(x[:, :, i, j] for i in range(4) for j in range(5)) / 20])[0]
    torch.testing.assert_close(gathered(x), slow)
    tokens = torch.stack([x[:, :, i, j] for i in range(4) for j in range(5)], 1)
    assert torch.equal(gathered(x, False), tokens)
    torch.testing.assert_close(gathered(tokens), slow)
    assert torch.equal(gathered(tokens, False), tokens)
    for pooled in (True, False):
        assert torch.equal(gathered(slow, pooled), slow)
    with pytest.raises(UsageError, match=r"no vector \(B, D\)"):
        gathered(drawn(2, 3, 4, 5, 6))


# --- the loss ------------------------------------------------------------------------------------


def sides(s: Tensor, t: Tensor) -> tuple[Any, Any, Batch]:
    logits = drawn(len(s), 4), drawn(len(s), 4), drawn(len(s), 4)
    student = SimpleNamespace(feature=s, logits=logits[0], output1=logits[1])
    teacher = SimpleNamespace(feature=t, logits=logits[2])
    return student, teacher, Batch(x=s, y=torch.arange(len(s)) % 4)


def smooth(a: float) -> float:
    return a * a / 2 if abs(a) < 1 else abs(a) - 0.5


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("normalise", ["layer", "whiten", "none"])
def test_terms(normalise: Any, pooled: bool) -> None:
    method = VkD(label=0.3, vkd=0.5, kl=0.7, tau=2.0, normalise=normalise, pooled=pooled)
    s, t, batch = sides(drawn(6, 3, 2, 2).requires_grad_(), 4 * drawn(6, 5, 2, 2).requires_grad_())
    parts = nn.ModuleDict({"projector": turned(3, 5)})
    terms = method.terms(parts, s, t, batch, None)
    p = parts["projector"].matrix()
    rows = [
        (s.feature[b].mean((1, 2)), t.feature[b].mean((1, 2)))
        if pooled
        else (s.feature[b, :, i, j], t.feature[b, :, i, j])
        for b in range(6)
        for i, j in ([(0, 0)] if pooled else [(0, 0), (0, 1), (1, 0), (1, 1)])
    ]
    z, wide = torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
    norm = {
        "layer": lambda: torch.stack([(r - r.mean()) / r.std(correction=0) for r in wide]),
        "whiten": lambda: whitened(wide),
        "none": lambda: wide,
    }[normalise]()
    entries = (z @ p.T - norm).flatten().tolist()
    assert any(abs(e) > 1 for e in entries)
    assert any(abs(e) < 1 for e in entries)
    want = 0.5 * sum(map(smooth, entries)) / len(entries)
    assert terms["vkd"].item() == pytest.approx(want, rel=1e-4)
    torch.testing.assert_close(terms["label"], 0.3 * F.cross_entropy(s.logits, batch.y))
    torch.testing.assert_close(terms["kl"], 0.7 * kl(s.logits, t.logits, 2.0).mean())
    # The projector and the student learn from it; the target stands still.
    ends = (s.feature, parts["projector"].turn, t.feature)
    reach = torch.autograd.grad(terms["vkd"], ends, allow_unused=True)
    assert [g is not None for g in reach] == [True, True, False]


def test_the_loss_is_zero_at_the_targets_own_coordinates() -> None:
    p = turned(4, 4)  # equal widths: every target lies in the column space
    t = drawn(5, 4)
    z = normalised(t) @ p.matrix()
    s, teacher, batch = sides(z, t)
    terms = VkD().terms(nn.ModuleDict({"projector": p}), s, teacher, batch, None)
    assert terms["vkd"].item() == pytest.approx(0, abs=1e-9)
    s.feature = 1.5 * z
    terms = VkD().terms(nn.ModuleDict({"projector": p}), s, teacher, batch, None)
    assert terms["vkd"].item() > 0.01


def test_weights_of_zero_ask_nothing() -> None:
    s, t, batch = sides(drawn(4, 3), drawn(4, 5))
    del s.feature, t.feature
    parts = VkD(vkd=0.0).build(s, t, batch, None)
    assert set(VkD(vkd=0.0).terms(parts, s, t, batch, None)) == {"label", "kl"}
    assert set(VkD(vkd=0.0, kl=0.0).terms(parts, s, t, batch, None)) == {"label"}
    assert set(VkD(vkd=0.0, label=0.0).terms(parts, s, t, batch, None)) == {"kl"}


def test_with_two_heads_the_second_is_matched() -> None:
    s, t, batch = sides(drawn(4, 3), drawn(4, 5))
    terms = VkD(vkd=0.0, heads=2).terms(nn.Module(), s, t, batch, None)
    torch.testing.assert_close(terms["kl"], kl(s.output1, t.logits).mean())
    torch.testing.assert_close(terms["label"], F.cross_entropy(s.logits, batch.y))


def test_places_that_differ_are_refused_unless_pooled() -> None:
    s, t, batch = sides(drawn(2, 3, 2, 2), drawn(2, 5, 3, 3))
    with pytest.raises(UsageError, match=r"\(2, 4, 3\) and the teacher's \(2, 9, 5\)"):
        VkD(pooled=False).build(s, t, batch, None)
    assert VkD().build(s, t, batch, None)["projector"].matrix().shape == (5, 3)
    linear = VkD(projector="linear").build(s, t, batch, None)["projector"]
    assert (type(linear), linear.bias) == (nn.Linear, None)


# --- runs ----------------------------------------------------------------------------------------

Y = torch.arange(96) % 4
X = drawn(96, 6) + drawn(4, 6)[Y]


class Net(nn.Module):
    """One head, or two that are averaged in eval mode only if asked so."""

    def __init__(self, width: int, heads: int = 1, averages: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(width, 4) for _ in range(heads))
        self.averages = averages

    def forward(self, x: Tensor) -> Any:
        z = self.body(x)
        out = tuple(head(z) for head in self.heads)
        averages = len(out) == 1 or (self.averages and not self.training)
        return sum(out) / len(out) if averages else out


def task(steps: int = 60, lr: float = 0.02, **student: Any) -> Task:
    torch.manual_seed(0)
    return Task(
        Net(24),
        lambda: Net(5, **student),
        (X[:64], Y[:64]),
        test=(X[64:], Y[64:]),
        taps={"feature": ("body", "body")},
        budget=Budget(steps=steps, batch=16, optimiser=Optimiser("adamw", lr=lr, weight_decay=0.1)),
    )


def test_a_fit_matches_the_teacher_under_the_constraint() -> None:
    given, method = task(150), VkD(label=0.0, kl=0.0)
    with Run(given, seed=1, device="cpu"):
        found = fit(method, given.new_student(1), given.the_teacher(), given.batches(), name="fit")
    m = found.parts.projector.matrix().detach()
    assert float((m.T @ m - torch.eye(5)).abs().max()) < 1e-5
    assert float((m - found.parts.projector.base[:, :5]).abs().max()) > 0.1
    losses = [row["terms"]["vkd"] for row in found.log]
    assert losses[-1] < 0.8 * losses[0]
    assert method.deliver(found.student, found.parts) is found.student


@pytest.mark.parametrize("averages", [False, True])
def test_two_heads_are_delivered_averaged(averages: bool) -> None:
    result = limbeck.run(VkD(heads=2), task(10, heads=2, averages=averages), device="cpu")
    model = result.model.eval()
    z = model.student.body(X)
    want = sum(head(z) for head in model.student.heads) / 2
    torch.testing.assert_close(model(X), want)
    right = (want[64:].argmax(1) == Y[64:]).float().mean()
    assert result.facts["score"] == pytest.approx(float(right))


def test_two_heads_of_a_student_with_one_are_refused() -> None:
    with pytest.raises(UsageError, match="output1"):
        limbeck.run(VkD(heads=2), task(2), device="cpu")
