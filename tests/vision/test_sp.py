"""sp: products of samples by loops, what leaves them alone, the gradient in closed form, a run."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.sp import SP, similarity_loss

pytestmark = pytest.mark.xdist_group("sp")

G = torch.Generator().manual_seed(12)
S = torch.randn(6, 4, generator=G, dtype=torch.float64)
T = torch.randn(6, 9, generator=G, dtype=torch.float64).relu()
Y = torch.arange(6) % 3
CLOCK = Clock(0, "fit", 0, 10, 5)


def slow(s: np.ndarray, t: np.ndarray, norm: str = "rows") -> float:
    """The squares of all differences, with products and lengths number by number."""
    found = []
    for q in (s, t):
        a = [[sum(x * y for x, y in zip(one, two, strict=True)) for two in q] for one in q]
        whole = math.sqrt(sum(v * v for row in a for v in row))
        rows = [math.sqrt(sum(v * v for v in row)) for row in a]
        by = {"rows": rows, "matrix": [whole] * len(q), "none": [1.0] * len(q)}[norm]
        found.append([[v / length for v in row] for row, length in zip(a, by, strict=True)])
    b = len(s)
    return sum((found[0][i][j] - found[1][i][j]) ** 2 for i in range(b) for j in range(b)) / b**2


def terms(method: SP, s: object, t: object, name: str = "feature") -> dict[str, Tensor]:
    z = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    sides = [SimpleNamespace(logits=a, **{name: b}) for a, b in zip(z, (s, t), strict=True)]
    return method.terms(nn.Module(), *sides, Batch(x=torch.zeros(6, 1), y=Y), CLOCK)


@pytest.mark.parametrize("norm", ["rows", "matrix", "none"])
def test_the_loss_is_that_of_the_loops(norm: str) -> None:
    expected = slow(S.tolist(), T.tolist(), norm)
    assert expected > 1e-3
    assert float(similarity_loss(S, T, norm)) == pytest.approx(expected, rel=1e-10)


def test_a_pair_by_hand() -> None:
    s, t = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # products (1 1; 1 2)
    rows = (4 - math.sqrt(2) - 4 / math.sqrt(5)) / 4
    assert rows == pytest.approx(0.199233, abs=1e-6)
    assert float(similarity_loss(s, t)) == pytest.approx(rows)
    matrix = (2 - 6 / math.sqrt(14)) / 4
    assert matrix == pytest.approx(0.099108, abs=1e-6)
    assert float(similarity_loss(s, t, "matrix")) == pytest.approx(matrix)
    assert float(similarity_loss(s, t, "none")) == 0.75


def test_it_is_one_minus_the_cosine_of_rows() -> None:
    cos = nn.functional.cosine_similarity(S @ S.T, T @ T.T)
    loss = similarity_loss(S, T)
    torch.testing.assert_close(loss, 2 * (1 - cos).sum() / 36)
    assert float(loss) < 4 / 6
    opposed = torch.tensor([[1.0, 0.0], [-1.0, 1e-9]])  # rows (1, -1) against (1, 1): cosine 0
    alike = torch.tensor([[1.0], [1.0]])
    assert float(similarity_loss(opposed, alike)) == pytest.approx(1.0)  # 2 / B


def test_scale_and_turns_are_not_seen_but_one_sample_s_scale_is() -> None:
    turn = torch.linalg.qr(torch.randn(12, 9, generator=G, dtype=torch.float64))[0]
    assert float(similarity_loss(0.01 * T @ turn.T, T)) == pytest.approx(0, abs=1e-28)
    torch.testing.assert_close(similarity_loss(50 * S, T), similarity_loss(S, T))
    one = torch.ones(6, 1).double()
    one[2] = 5
    assert abs(float(similarity_loss(one * S, T) - similarity_loss(S, T))) > 1e-3
    order = torch.randperm(6, generator=G)
    torch.testing.assert_close(similarity_loss(S[order], T[order]), similarity_loss(S, T))


def test_the_gradient_in_closed_form() -> None:
    for q, t in ((S, T), (torch.eye(2).double(), torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double())):
        s = q.clone().requires_grad_()
        (grad,) = torch.autograd.grad(similarity_loss(s, t), s)
        a, b = q @ q.T, t @ t.T
        long = a.norm(dim=1, keepdim=True)
        gs, gt = a / long, b / b.norm(dim=1, keepdim=True)
        m = 2 / len(q) ** 2 * ((gs * gt).sum(1, keepdim=True) * gs - gt) / long
        torch.testing.assert_close(grad, (m + m.T) @ q)
    by_hand = -1 / (2 * math.sqrt(2)) - 1 / (2 * math.sqrt(5))
    assert by_hand == pytest.approx(-0.577160, abs=1e-6)
    torch.testing.assert_close(grad, torch.tensor([[0, by_hand], [by_hand, 0]]).double())


def test_dead_samples_stay_finite() -> None:
    for norm in ("rows", "matrix", "none"):
        dead = S.clone()
        dead[1] = 0
        for s in (dead, torch.zeros_like(S)):
            s = s.clone().requires_grad_()
            loss = similarity_loss(s, T, norm)
            assert loss.isfinite()
            assert torch.autograd.grad(loss, s)[0].abs().max() < 1e3


def test_half_precision_is_widened_first() -> None:
    s, t = (x.half() for x in (S, T))
    big = torch.full((2, 9000), 8.0).half()  # 576000 is beyond half precision
    assert float(similarity_loss(big, big)) == 0
    assert torch.equal(similarity_loss(s, t), similarity_loss(s.float(), t.float()))


def test_maps_tokens_and_vectors() -> None:
    maps = torch.rand(6, 3, 2, 2, generator=G)
    tokens = torch.cat((torch.rand(6, 1, 3, generator=G), maps.flatten(2).mT), 1)
    vectors = torch.rand(6, 7, generator=G)
    weighed = 3000 * slow(maps.flatten(1).tolist(), vectors.tolist())
    for x in (maps, tokens, maps[:, :, [1, 0]]):  # a class token and the order of places: unseen
        assert float(terms(SP(), x, vectors)["sp"]) == pytest.approx(weighed, rel=1e-4)
        assert float(terms(SP(), vectors, x)["sp"]) == pytest.approx(weighed, rel=1e-4)
    with pytest.raises(UsageError, match="sp relates the samples of a micro-batch, but a feature"):
        terms(SP(), torch.rand(6, 60, 3), vectors)


def test_layers_in_pairs_are_added() -> None:
    a, b, c, d = S, T, S.exp(), T.sin()
    both = terms(SP(layers="blocks", sp=2.0), [a, c], [b, d], "blocks")["sp"]
    expected = slow(a.tolist(), b.tolist()) + slow(c.tolist(), d.tolist())
    assert float(both) == pytest.approx(2 * expected, rel=1e-9)
    assert SP(layers="blocks").asks() == ("blocks", "student:logits", "y")
    with pytest.raises(UsageError, match="shows 2 and the teacher 1"):
        terms(SP(layers="blocks"), [a, c], [b], "blocks")


def test_terms_are_weighted_and_left_out() -> None:
    out = terms(SP(label=0.5, kd=2.0, tau=3.0, norm="matrix"), S, T)
    assert float(out["sp"]) == pytest.approx(3000 * slow(S.tolist(), T.tolist(), "matrix"))
    z, zt = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    p, q = (zt / 3).softmax(1), (z / 3).softmax(1)
    assert float(out["kd"]) == pytest.approx(2 * 9 * float((p * (p / q).log()).sum() / 6), rel=1e-5)
    ce = -z.log_softmax(1)[torch.arange(6), Y].mean()
    assert float(out["label"]) == pytest.approx(0.5 * float(ce), rel=1e-6)
    assert set(terms(SP(), S, T)) == {"label", "sp"}
    assert set(terms(SP(sp=0), None, None)) == {"label"}


def test_one_sample_is_refused() -> None:
    sides = [SimpleNamespace(feature=x[:1], logits=torch.zeros(1, 3)) for x in (S, T)]
    with pytest.raises(UsageError, match="a micro-batch has 1"):
        SP().terms(nn.Module(), *sides, Batch(x=S[:1], y=Y[:1]), CLOCK)
    for field in ("sp=-1", "norm='columns'", "tau=0"):
        with pytest.raises(UsageError):
            make(f"sp({field})")


def test_a_run_finds_the_teacher_s_similarities() -> None:
    x = torch.randn(32, 6, generator=G)
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    student = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    budget = Budget(steps=80, batch=32, schedule="constant", optimiser=Optimiser("adam", lr=0.02))
    taps = {"feature": ("1", "0")}
    data = (x, torch.arange(32) % 3)
    task = Task(teacher, student, data, test=data, budget=budget, taps=taps)
    q = teacher[:2](x).detach()
    before = float(similarity_loss(student[0](x).detach(), q))
    result = limbeck.run("sp", task, device="cpu", label=0.0)
    after = float(similarity_loss(result.model[0](x).detach(), q))
    assert before > 4e-3
    assert after < before / 4
