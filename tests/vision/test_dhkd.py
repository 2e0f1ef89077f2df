"""dhkd: both divergences by scipy, who is reached by which loss, and the alignment by hand."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, rel_entr
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.joins import Gradients
from limbeck.core.objectives import Labels
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision.dhkd import DHKD, aligned, auxiliary, bkl, bkl_norm

pytestmark = pytest.mark.xdist_group("dhkd")

G = torch.Generator().manual_seed(3)
S, T = torch.randn(6, 4, generator=G), 3 * torch.randn(6, 4, generator=G)
CLOCK = SimpleNamespace(step=0, steps=10)


# --- the losses ----------------------------------------------------------------------------------


def bernoulli(p: float, q: float) -> float:
    """KL(Bern(p) || Bern(q))."""
    return float(rel_entr(p, q) + rel_entr(1 - p, 1 - q))


@pytest.mark.parametrize("tau", [0.7, 2.0, 5.0])
def test_losses_are_sums_of_binary_divergences(tau: float) -> None:
    norm = plain = 0.0
    for s, t in zip(S.double().numpy(), T.double().numpy(), strict=True):
        for a, b in zip(s, t, strict=True):
            norm += tau**2 * bernoulli(0.5, expit((a - b) / tau)) / len(S)
            plain += tau**2 * bernoulli(expit(b / tau), expit(a / tau)) / len(S)
    assert float(bkl_norm(S, T, tau)) == pytest.approx(norm, rel=1e-5)
    assert float(bkl(S, T, tau)) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(("tau", "value"), [(1.0, 0.433781), (2.0, 0.480458)])
def test_one_logit_by_hand(tau: float, value: float) -> None:
    # d = 2: tau^2 log cosh(1 / tau), and of one logit the plain loss from a teacher's 0 is the same
    assert tau**2 * math.log(math.cosh(1 / tau)) == pytest.approx(value, abs=1e-6)
    two, zero = torch.full((1, 1), 2.0), torch.zeros(1, 1)
    for loss in (bkl_norm, bkl):
        assert float(loss(two, zero, tau)) == pytest.approx(value, abs=1e-6)


def test_the_norm_loss_is_even_and_zero_only_for_equal_logits() -> None:
    assert float(bkl_norm(S, T)) == pytest.approx(float(bkl_norm(T, S)), rel=1e-6)
    assert float(bkl_norm(S, S)) == 0
    for d in (1e-2, 1e-1, 1.0, 30.0):
        assert float(bkl_norm(S + d, S)) > 0
    # A shift that the softmax does not see costs something: what lies in the logits counts.
    assert float(bkl_norm(S + 1, S)) == pytest.approx(16 * math.log(math.cosh(0.25)), rel=1e-4)
    assert float(bkl(S, T)) != pytest.approx(float(bkl(T, S)), rel=1e-3)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_gradients(tau: float) -> None:
    s = S.clone().requires_grad_()
    (found,) = torch.autograd.grad(bkl_norm(s, T, tau), s)
    want = tau / 2 * np.tanh((S - T).numpy() / (2 * tau)) / len(S)
    torch.testing.assert_close(found, torch.tensor(want))
    (found,) = torch.autograd.grad(bkl(s, T, tau), s)
    want = tau * (expit(S.numpy() / tau) - expit(T.numpy() / tau)) / len(S)
    torch.testing.assert_close(found, torch.tensor(want))


def test_far_off_logits_are_finite_with_a_bounded_gradient() -> None:
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = bkl_norm(s, torch.zeros(1, 3), 2.0)
    assert loss.item() == pytest.approx(2 * 4 * (1e4 / 4 - math.log(2)), rel=1e-6)
    assert torch.autograd.grad(loss, s)[0].tolist() == [[1.0, -1.0, 0.0]]


def test_a_large_tau_makes_it_an_eighth_of_the_squared_error() -> None:
    want = float((S - T).square().sum(1).mean()) / 8
    assert float(bkl_norm(S, T, 60.0)) == pytest.approx(want, rel=1e-2)
    assert float(bkl_norm(S, T, 2.0)) < 0.9 * want


def test_other_numbers_of_classes_are_refused() -> None:
    for loss in (bkl_norm, bkl):
        with pytest.raises(UsageError, match="the same number of classes"):
            loss(S, T[:, :1])


# --- the alignment -------------------------------------------------------------------------------


def flat(grads: Gradients, shapes: list[Tensor]) -> Tensor:
    pairs = zip(grads, shapes, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def two_losses(seed: int) -> tuple[dict[str, Gradients], list[Tensor]]:
    """Gradients of two losses on a shared layer, each with a layer of its own besides."""
    g = torch.Generator().manual_seed(seed)
    body, one, two = (torch.randn(3, 3, generator=g).requires_grad_() for _ in range(3))
    z = torch.randn(5, 3, generator=g) @ body
    losses = {
        "label": F.cross_entropy(z @ one, torch.arange(5) % 3),
        "bkl": bkl_norm(z @ two, torch.randn(5, 3, generator=g)),
    }
    params = [body, one, two]
    grads = {
        n: list(torch.autograd.grad(v, params, retain_graph=True, allow_unused=True))
        for n, v in losses.items()
    }
    return grads, params


def test_alignment_projects_in_conflict_and_else_adds() -> None:
    conflicts = 0
    for seed in range(12):
        grads, params = two_losses(seed)
        assert grads["label"][2] is None
        assert grads["bkl"][1] is None
        label, other = (flat(grads[n], params) for n in ("label", "bkl"))
        dot = float(label @ other)
        conflicts += dot < 0
        kept = other - min(0.0, dot) / float(label @ label) * label
        found = aligned(grads, None)
        torch.testing.assert_close(flat(found, params), label + kept)
        left = flat(found, params) - label  # what is left of the second loss
        if dot < 0:
            assert float(left @ label) == pytest.approx(0, abs=1e-5)
        else:
            torch.testing.assert_close(left, other)
    assert 0 < conflicts < 12


def test_alignment_by_hand() -> None:
    label, other = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 4.0])
    (found,) = aligned({"label": [label], "bkl": [other]}, None)
    assert found.tolist() == [2.0, 4.0]
    (found,) = aligned({"label": [label], "bkl": [-other]}, None)
    assert found.tolist() == [5.0, -4.0]


def test_alignment_of_one_term_or_of_strangers_changes_nothing() -> None:
    g = torch.ones(2)
    for name in ("label", "bkl"):
        (found,) = aligned({name: [g]}, None)
        assert torch.equal(found, g)
    apart = aligned({"label": [g, None, None], "bkl": [None, -g, None]}, None)
    assert torch.equal(apart[0], g)
    assert torch.equal(apart[1], -g)
    assert apart[2] is None
    assert aligned({"label": [0 * g], "bkl": [-g]}, None)[0].tolist() == [-1.0, -1.0]


# --- two heads -----------------------------------------------------------------------------------


def test_the_heads_are_the_papers() -> None:
    assert isinstance(auxiliary("linear", 7, 3, 200, 0.1), nn.Linear)
    first, drop, norm, relu, last = auxiliary("mlp", 7, 3, 200, 0.1)
    assert (first.in_features, first.out_features, last.in_features) == (7, 200, 200)
    assert (drop.p, norm.num_features, last.out_features) == (0.1, 200, 3)
    assert isinstance(relu, nn.ReLU)


def views(head: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms, and the tensors that they may reach."""
    e = torch.randn(6, 5, generator=G).requires_grad_()
    main = torch.randn(5, 4, generator=G).requires_grad_()
    s, t = SimpleNamespace(embedding=e, logits=e @ main), SimpleNamespace(logits=T)
    method = DHKD(head=head)
    batch = Batch(x=e, y=torch.arange(6) % 4)
    parts = method.build(s, t, batch, None)
    second = dict(parts.named_parameters())
    terms = method.terms(parts, s, t, batch, CLOCK)
    last = {"second": list(second.values())[-1]} if second else {}
    return terms, {"backbone": e, "main": main, **last}


@pytest.mark.parametrize("head", ["linear", "mlp", "none"])
def test_each_loss_reaches_its_own_head_and_both_the_backbone(head: str) -> None:
    terms, ends = views(head)
    reach = {
        n: {
            end
            for end, x in ends.items()
            if torch.autograd.grad(v, x, retain_graph=True, allow_unused=True)[0] is not None
        }
        for n, v in terms.items()
    }
    single = {"backbone", "main"}
    assert reach == {"label": single, "bkl": single if head == "none" else {"backbone", "second"}}


def test_terms_are_weighted_and_end_at_until() -> None:
    s, t = SimpleNamespace(logits=S, embedding=S), SimpleNamespace(logits=T)
    batch = Batch(x=S, y=torch.arange(6) % 4)
    parts = SimpleNamespace(head=nn.Identity())

    def terms(step: int = 0, **fields: Any) -> dict[str, Tensor]:
        clock = SimpleNamespace(step=step, steps=10)
        return DHKD(**fields).terms(parts, s, t, batch, clock)

    found = terms(label=0.3, bkl=0.7, tau=3.0)
    torch.testing.assert_close(found["label"], 0.3 * F.cross_entropy(S, batch.y))
    torch.testing.assert_close(found["bkl"], 0.7 * bkl_norm(S, T, 3.0))
    torch.testing.assert_close(terms(loss="plain")["bkl"], bkl(S, T, 2.0))
    assert "label" not in terms(label=0.0)
    assert "bkl" not in terms(bkl=0.0)
    on = [terms(step, until=0.5)["bkl"].item() > 0 for step in range(10)]
    assert on == [True] * 5 + [False] * 5
    assert terms(9)["bkl"] == terms()["bkl"]


# --- runs ----------------------------------------------------------------------------------------

Y = torch.arange(96) % 4
X = torch.randn(96, 6, generator=G) + torch.randn(4, 6, generator=G)[Y]


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.ReLU())
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


SGD = Optimiser("sgd", lr=0.1)


def task(optimiser: Optimiser = SGD, steps: int = 30, **more: Any) -> Task:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "teacher": Net(32),
        "taps": {"embedding": (None, "head:in")},
        "budget": Budget(steps=steps, batch=16, optimiser=optimiser),
    }
    train, test = (X[:64], Y[:64]), (X[64:], Y[64:])
    return Task(student=lambda: Net(5), train=train, test=test, **{**given, **more})


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(u, v) for u, v in pairs)


def test_without_the_second_loss_it_is_plain_cross_entropy() -> None:
    plain = limbeck.run(Labels(), task(), device="cpu").model
    assert same(limbeck.run("dhkd", task(), device="cpu", bkl=0.0).model, plain)
    assert not same(limbeck.run("dhkd", task(), device="cpu").model, plain)


def test_the_student_is_delivered_alone_and_the_second_head_learns_the_teachers_logits() -> None:
    given = task(Optimiser(lr=0.02), 150)
    method = make("dhkd(label=0.0, head='linear')")
    with Run(given, seed=1, device="cpu"):
        found = fit(method, given.new_student(1), given.the_teacher(), given.batches(), name="fit")
    model = method.deliver(found.student, found.parts)
    assert model is found.student
    assert set(model.state_dict()) == set(Net(5).state_dict())
    losses = [row["terms"]["bkl"] for row in found.log]
    assert losses[-1] < 0.3 * losses[0]
    # The main head, which only the labels would train, stays where it was.
    assert torch.equal(model.head.weight, given.new_student(1).head.weight)


def test_one_step_is_the_projected_sum() -> None:
    lr, conflicts = 0.5, 0
    budget = Budget(steps=1, batch=64, optimiser=Optimiser("sgd", lr=lr), schedule="constant")
    for seed in range(8):
        given, first = task(budget=budget), []

        def keep(fitter: Any, first: list[Tensor] = first) -> None:
            first += [p.detach().clone() for p in fitter.step.parameters()]

        with Run(given, seed=seed, device="cpu", on_fit=keep):
            student, batches = given.new_student(seed), given.batches()
            found = fit(DHKD(head="linear"), student, given.the_teacher(), batches, name="fit")
        w = [p.requires_grad_() for p in first]
        z = (X[:64] @ w[0].T + w[1]).relu()
        label = F.cross_entropy(z @ w[2].T + w[3], Y[:64])
        other = bkl_norm(z @ w[4].T + w[5], given.teacher(X[:64]).detach())
        g1, g2 = (
            flat(list(torch.autograd.grad(v, w, retain_graph=True, allow_unused=True)), w)
            for v in (label, other)
        )
        if g1 @ g2 < 0:
            conflicts += 1
            g2 = g2 - (g1 @ g2) / (g1 @ g1) * g1
        moved = [*found.student.parameters(), *found.parts.parameters()]
        want = flat(w, w) - lr * (g1 + g2)
        torch.testing.assert_close(flat(moved, w), want, rtol=1e-4, atol=1e-5)
    assert 0 < conflicts < 8


def test_without_alignment_the_gradients_are_added() -> None:
    on, off = (
        limbeck.run(DHKD(align=a), task(), seed=1, device="cpu").model for a in (True, False)
    )
    assert not same(on, off)


def test_an_embedding_that_is_no_vector_and_a_missing_tap_are_refused() -> None:
    s = SimpleNamespace(embedding=torch.zeros(2, 3, 4, 4), logits=S[:2])
    with pytest.raises(UsageError, match=r"takes an embedding \(B, D\).*\(2, 3, 4, 4\)"):
        DHKD().build(s, SimpleNamespace(logits=T[:2]), Batch(x=S[:2]), None)
    with pytest.raises(UsageError, match="embedding"):
        limbeck.run("dhkd", task(taps={}), device="cpu")
    limbeck.run("dhkd", task(taps={}, steps=2), device="cpu", head="none")
    with pytest.raises(UsageError, match=r"until is 1\.5"):
        DHKD(until=1.5)
