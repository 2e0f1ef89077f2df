"""pkt: chances by loops, what leaves them alone, the gradient in closed form, labels, a run."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.pkt import PKT, labelled, neighbours, transfer_loss

pytestmark = pytest.mark.xdist_group("pkt")

G = torch.Generator().manual_seed(13)
S = torch.randn(7, 4, generator=G, dtype=torch.float64)
T = torch.randn(7, 9, generator=G, dtype=torch.float64) + 1
Y = torch.tensor([0, 1, 0, 2, 1, 0, 3])
CLOCK = Clock(0, "fit", 0, 10, 5)


def chances(e: list[list[float]], kernel: str, width: float, own: bool) -> list[list[float]]:
    n = len(e)
    far = [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in e] for x in e]
    w2 = width**2 * sum(map(sum, far)) / (n * (n - 1))
    out = []
    for i in range(n):
        row = {}
        for j in range(n):
            if i != j or own:
                dot = sum(a * b for a, b in zip(e[i], e[j], strict=True))
                long = math.sqrt(sum(a * a for a in e[i]) * sum(b * b for b in e[j]))
                cosine = (dot / long + 1) / 2
                row[j] = cosine if kernel == "cosine" else math.exp(-far[i][j] / (2 * w2))
        out.append([v / sum(row.values()) for v in row.values()])
    return out


def slow(p: list[list[float]], q: list[list[float]]) -> float:
    pairs = [(a, b) for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a * math.log(a / b) for a, b in pairs if a) / len(p) ** 2


def terms(method: PKT, s: Tensor | None = S, t: Tensor | None = T, y: Tensor = Y):
    z = torch.randn(2, len(y), 7, generator=torch.Generator().manual_seed(0))
    sides = [SimpleNamespace(embedding=e, logits=a) for e, a in zip((s, t), z, strict=True)]
    return method.terms(nn.Module(), *sides, Batch(x=torch.zeros(len(y), 1), y=y), CLOCK)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("kernel", "width"), [("cosine", 1.0), ("gaussian", 1.0), ("gaussian", 3)])
def test_chances_and_loss_are_those_of_the_loops(kernel: str, width: float, own: bool) -> None:
    q, p = (chances(e.tolist(), kernel, width, own) for e in (S, T))
    found = [neighbours(e, kernel, width, own).exp() for e in (S, T)]
    torch.testing.assert_close(found[0], torch.tensor(q).double())
    torch.testing.assert_close(found[0].sum(1), torch.ones(7).double())
    loss = float(terms(PKT(pkt=2.0, kernel=kernel, width=float(width), own=own))["pkt"])
    assert loss == pytest.approx(2 * slow(p, q), rel=1e-9)
    assert loss > 1e-4


def test_three_samples_by_hand() -> None:
    s = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    t = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    q, p = neighbours(s), neighbours(t)
    torch.testing.assert_close(q.exp(), torch.tensor([[1, 2], [1.5, 1.5], [2, 1]]) / 3)
    torch.testing.assert_close(p.exp(), torch.tensor([[2, 1], [2, 1], [1.5, 1.5]]) / 3)
    assert 9 * float(transfer_loss(q, p.exp())) == pytest.approx(math.log(2) / 2, rel=1e-5)


def test_two_samples_by_hand() -> None:
    s, t = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    p = 1 / (1.5 + math.sqrt(0.5) / 2)  # against (1 + sqrt 1/2) / 2
    assert p == pytest.approx(0.539504, abs=1e-6)
    by_hand = 2 * (p * math.log(p / (2 / 3)) + (1 - p) * math.log((1 - p) / (1 / 3)))
    assert by_hand == pytest.approx(0.069267, abs=1e-6)
    found = transfer_loss(neighbours(s, own=True), neighbours(t, own=True).exp())
    assert 4 * float(found) == pytest.approx(by_hand, rel=1e-5)
    assert float(transfer_loss(neighbours(s), neighbours(t).exp())) == 0  # one other only


def test_each_sample_s_length_and_turns_are_not_seen() -> None:
    turn = torch.linalg.qr(torch.randn(11, 9, generator=G, dtype=torch.float64))[0]
    lengths = torch.rand(7, 1, generator=G).double() + 0.1
    s = (lengths * (T @ turn.T)).requires_grad_()
    for own in (False, True):
        loss = transfer_loss(neighbours(s, own=own), neighbours(T, own=own).exp())
        assert float(loss.detach()) == pytest.approx(0, abs=1e-15)
        assert float(torch.autograd.grad(loss, s)[0].abs().max()) < 1e-12
    far = neighbours(5 * T @ turn.T + 3, "gaussian")
    torch.testing.assert_close(far, neighbours(T, "gaussian"))
    assert (
        float((neighbours(lengths * T, "gaussian") - neighbours(T, "gaussian")).abs().max()) > 0.1
    )


def test_the_gradient_in_closed_form() -> None:
    # By the kernel: (q - p) / K / B^2 for j != i, and none at the diagonal.
    cosine = torch.nn.functional.cosine_similarity(S[:, None], S[None], dim=2)
    k = ((cosine + 1) / 2).requires_grad_()
    off = ~torch.eye(7, dtype=torch.bool)
    p = neighbours(T).exp()
    q = (k[off].view(7, 6) / k[off].view(7, 6).sum(1, keepdim=True)).detach()
    by_hand = torch.zeros(7, 7).double()
    by_hand[off] = ((q - p) / k.detach()[off].view(7, 6) / 49).flatten()
    s = S.clone().requires_grad_()
    cosine = torch.nn.functional.cosine_similarity(s[:, None], s[None], dim=2)
    (expected,) = torch.autograd.grad(((cosine + 1) / 2 * by_hand).sum(), s)
    (grad,) = torch.autograd.grad(transfer_loss(neighbours(s), p), s)
    torch.testing.assert_close(grad, expected)
    assert float(grad.abs().max()) > 1e-4
    assert float((grad * S).sum(1).abs().max()) < 1e-14  # along a vector nothing changes


def test_the_divergence_is_of_the_teacher_from_the_student() -> None:
    p, q = neighbours(T), neighbours(S)
    one, other = transfer_loss(q, p.exp()), transfer_loss(p, q.exp())
    assert float(one) > 0
    assert abs(float(one - other)) > 1e-4
    order = torch.randperm(7, generator=G)
    torch.testing.assert_close(transfer_loss(neighbours(S[order]), neighbours(T[order]).exp()), one)


def test_a_wide_gaussian_is_even() -> None:
    torch.testing.assert_close(
        neighbours(S, "gaussian", 1e6), torch.full((7, 6), -math.log(6)).double()
    )
    uneven = neighbours(T, "gaussian", 0.3).exp()
    entropy = -float((uneven * uneven.log()).sum())
    loss = float(transfer_loss(neighbours(S, "gaussian", 1e6), uneven))
    assert 49 * loss == pytest.approx(7 * math.log(6) - entropy)


def test_labels_are_a_teacher() -> None:
    p = labelled(Y)
    rows = [[float(Y[i] == Y[j]) for j in range(7) if j != i] for i in range(7)]
    expected = [[v / max(1, sum(row)) for v in row] for row in rows]
    torch.testing.assert_close(p, torch.tensor(expected))
    assert float(p[3].sum()) == 0  # the only one of its class
    assert torch.equal(labelled(torch.arange(4), own=True), torch.eye(4))
    q = chances(S.tolist(), "cosine", 1, False)
    out = terms(PKT(pkt=0, supervised=5.0), t=None)
    assert float(out["supervised"]) == pytest.approx(5 * slow(expected, q), rel=1e-6)
    alone = terms(PKT(pkt=0, supervised=5.0), t=None, y=torch.arange(7))
    assert float(alone["supervised"]) == 0
    with pytest.raises(UsageError, match="pkt's supervised term is of classes"):
        terms(PKT(label=0, supervised=1.0), y=torch.rand(7, 7))


def test_opposite_dead_and_equal_embeddings_stay_finite() -> None:
    opposite, dead = S.clone(), S.clone()
    opposite[1], dead[1] = -S[0], 0
    for s in (opposite, dead, torch.zeros_like(S), S[:1].expand(7, 4)):
        for kernel in ("cosine", "gaussian"):
            s = s.clone().requires_grad_()
            loss = transfer_loss(neighbours(s, kernel), neighbours(T, kernel).exp())
            assert loss.isfinite()
            assert float(torch.autograd.grad(loss, s)[0].abs().max()) < 1e5


def test_terms_are_weighted_and_left_out() -> None:
    out = terms(PKT(label=0.5, kd=2.0, tau=3.0))
    q, p = (chances(e.tolist(), "cosine", 1, False) for e in (S, T))
    assert float(out["pkt"]) == pytest.approx(30000 * slow(p, q), rel=1e-9)
    z, zt = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(0)).double()
    a, b = (zt / 3).softmax(1), (z / 3).softmax(1)
    assert float(out["kd"]) == pytest.approx(2 * 9 * float((a * (a / b).log()).sum() / 7), rel=1e-5)
    ce = -z.log_softmax(1)[torch.arange(7), Y].mean()
    assert float(out["label"]) == pytest.approx(0.5 * float(ce), rel=1e-6)
    assert set(terms(PKT())) == {"label", "pkt"}
    assert set(terms(PKT(pkt=0), None, None)) == {"label"}
    half = terms(PKT(), S.half(), T.half())["pkt"]
    torch.testing.assert_close(half, terms(PKT(), S.half().float(), T.half().float())["pkt"])
    maps = S.reshape(7, 2, 2, 1)
    torch.testing.assert_close(terms(PKT(), maps)["pkt"], terms(PKT())["pkt"])


def test_one_sample_and_fields_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="a micro-batch has 1"):
        terms(PKT(), S[:1], T[:1], Y[:1])
    for field in ("pkt=-1", "width=0", "kernel='linear'", "supervised=-1"):
        with pytest.raises(UsageError):
            make(f"pkt({field})")


def test_a_run_without_labels_finds_the_teacher_s_neighbours() -> None:
    x = torch.randn(32, 6, generator=G)
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    student = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    budget = Budget(steps=80, batch=32, schedule="constant", optimiser=Optimiser("adam", lr=0.02))
    data = (x, torch.arange(32) % 3)
    taps = {"embedding": ("1", "0")}
    task = Task(teacher, student, data, test=data, budget=budget, taps=taps)
    p = neighbours(teacher[:2](x).detach()).exp()
    before = float(transfer_loss(neighbours(student[0](x).detach()), p))
    result = limbeck.run("pkt", task, device="cpu", label=0.0)
    after = float(transfer_loss(neighbours(result.model[0](x).detach()), p))
    assert before > 1e-4
    assert after < before / 3
