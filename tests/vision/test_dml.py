"""dml: the mutual loss by hand and by loops, turns and together step by step, BatchNorm, ends."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task, build_model
from limbeck.core.views import Look
from limbeck.errors import UsageError
from limbeck.vision.dml import DML, Cohort, Ensemble, ensemble, mutual_loss, still

pytestmark = pytest.mark.xdist_group("dml")

G = torch.Generator().manual_seed(23)
ZS = [2 * torch.randn(7, 5, generator=G, dtype=torch.float64) for _ in range(4)]
LOG3 = math.log(3)
ONE, TWO, THREE = (torch.tensor([[z, w]]).double() for z, w in ((LOG3, 0), (0, 0), (0, LOG3)))


def test_defaults_are_the_papers() -> None:
    m = DML()
    assert (m.label, m.dml, m.tau, m.cohort) == (1.0, 1.0, 1.0, 2)
    assert (m.towards, m.update_in, m.gives) == ("each", "turns", "student")


def test_two_and_three_networks_by_hand() -> None:
    assert float(mutual_loss(ONE, [TWO])) == pytest.approx(0.143841, abs=1e-6)
    assert float(mutual_loss(TWO, [ONE])) == pytest.approx(0.130812, abs=1e-6)
    assert float(mutual_loss(TWO, [ONE, THREE])) == pytest.approx(0.130812, abs=1e-6)
    assert float(mutual_loss(TWO, [ONE, THREE], 1, "ensemble")) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_both_forms_by_loops(tau: float) -> None:
    p = [softmax(z.numpy() / tau, 1) for z in ZS]
    each = [tau**2 * (p[k] * np.log(p[k] / p[0])).sum(1).mean() for k in (1, 2, 3)]
    mean = sum(p[1:]) / 3
    one = tau**2 * (mean * np.log(mean / p[0])).sum(1).mean()
    found, towards = (mutual_loss(ZS[0], ZS[1:], tau, how) for how in ("each", "ensemble"))
    assert float(found) == pytest.approx(float(np.mean(each)), rel=1e-6)
    assert float(towards) == pytest.approx(float(one), rel=1e-5)
    # they part by the Jensen-Shannon divergence of the others
    entropy = [-(q * np.log(q)).sum(1).mean() for q in (mean, *p[1:])]
    apart = tau**2 * (entropy[0] - np.mean(entropy[1:]))
    assert float(found - towards) == pytest.approx(float(apart), rel=1e-4)


def test_both_forms_have_one_gradient_and_the_others_none() -> None:
    zs = [z.clone().requires_grad_() for z in ZS]
    want = (ZS[0].softmax(1) - sum(z.softmax(1) for z in ZS[1:]) / 3) / 7
    for how in ("each", "ensemble"):
        loss = mutual_loss(zs[0], zs[1:], 1.0, how)
        found = torch.autograd.grad(loss, zs, allow_unused=True)
        torch.testing.assert_close(found[0], want, atol=1e-6, rtol=1e-5)
        assert found[1:] == (None, None, None)


def test_equal_networks_have_nothing_to_say() -> None:
    for how in ("each", "ensemble"):
        z = ZS[0].float().requires_grad_()
        loss = mutual_loss(z, [ZS[0].float()] * 2, 1.0, how)
        assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
        assert float(torch.autograd.grad(loss, z)[0].abs().max()) < 1e-7


def test_half_precision_stays_finite() -> None:
    a, b = ((300 * z).half().requires_grad_() for z in ZS[:2])
    loss = mutual_loss(a, [b], 1.0, "ensemble")
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(a.grad).all())  # type: ignore[arg-type]


# --- a cohort that learns ------------------------------------------------------------------------


def made() -> nn.Module:
    return nn.Linear(4, 3)


def task(steps: int = 3, lr: float = 0.5, student: Any = made, **more: Any) -> Task:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    budget = Budget(
        epochs=steps, batch=6, optimiser=Optimiser("sgd", lr=lr), schedule="constant", warmup=0
    )
    return Task(None, student, (x, torch.arange(6) % 3), budget=budget, classes=3, **more)


def run(method: DML, on: Task, seed: int = 4) -> Any:
    with Run(on, seed=seed):
        return method.run(on)


def slow(on: Task, steps: int, lr: float, turns: bool, cohort: int, dml: float) -> list[Any]:
    """Linear networks by numpy: W <- W - lr x^T (p - y + dml (p - mean of the others' p)) / B."""
    names = ["student", *(f"peer/peer{k}" for k in range(1, cohort))]
    nets = [build_model(on.student, 4, n) for n in names]
    ws = [[m.weight.detach().double().numpy(), m.bias.detach().double().numpy()] for m in nets]  # type: ignore[union-attr,operator]
    x, y = on.train[0].double().numpy(), np.eye(3)[on.train[1].numpy()]
    for _ in range(steps):
        ps = [softmax(x @ w.T + b, 1) for w, b in ws]
        for k in range(cohort):
            if turns:
                ps = [softmax(x @ w.T + b, 1) for w, b in ws]
            others = [p for i, p in enumerate(ps) if i != k]
            g = (ps[k] - y + dml * (ps[k] - sum(others) / len(others))) / len(x)
            ws[k] = [ws[k][0] - lr * g.T @ x, ws[k][1] - lr * g.sum(0)]
    return ws


@pytest.mark.parametrize("cohort", [2, 3])
@pytest.mark.parametrize("update_in", ["turns", "together"])
def test_the_cohort_moves_as_by_numpy(update_in: Any, cohort: int) -> None:
    on, turns = task(), update_in == "turns"
    method = DML(update_in=update_in, cohort=cohort, dml=2.0, gives="ensemble")
    model = run(method, on).model
    want = slow(on, 3, 0.5, turns, cohort, 2.0)
    other = slow(on, 3, 0.5, not turns, cohort, 2.0)
    assert len(model.members) == cohort
    for net, (w, b) in zip(model.members, want, strict=True):
        np.testing.assert_allclose(net.weight.detach().numpy(), w, atol=1e-5)
        np.testing.assert_allclose(net.bias.detach().numpy(), b, atol=1e-5)
    assert np.abs(want[1][0] - other[1][0]).max() > 1e-4  # the two orders differ


def test_the_student_is_the_first_and_the_ensemble_the_mean() -> None:
    on = task()
    student = run(DML(), on).model
    both = run(DML(gives="ensemble"), on).model
    assert torch.equal(student.weight, both.members[0].weight)
    x = on.train[0]
    mean = sum(m(x).softmax(1) for m in both.members) / 2
    torch.testing.assert_close(both(x).exp(), mean)


def test_without_the_mutual_term_the_student_is_alone() -> None:
    on = task()
    alone = slow(on, 3, 0.5, True, 2, 0.0)
    model = run(DML(dml=0.0), on).model
    np.testing.assert_allclose(model.weight.detach().numpy(), alone[0][0], atol=1e-5)


def test_peers_of_the_task_and_its_reader() -> None:
    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    seen = []

    def reader(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x + 1

    on = task(1, data={"peers": {"wide": wide, "other": made}}, readers={"student": reader})
    result = run(DML(gives="ensemble"), on)
    assert [type(m).__name__ for m in result.model.members] == ["Linear", "Sequential", "Linear"]
    names = {"label", "dml", "wide.label", "wide.dml", "other.label", "other.dml"}
    assert set(result.log[0]["terms"]) == names
    assert len(seen) >= 9  # three networks in three turns


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.norm(x))
        return out


def test_running_statistics_move_once_a_step() -> None:
    on = task(1, student=Normed)
    model = run(DML(cohort=3, gives="ensemble"), on).model
    mean = 0.1 * on.train[0].mean(0)
    for net in model.members:
        torch.testing.assert_close(net.norm.running_mean, mean)
        assert int(net.norm.num_batches_tracked) == 1


def test_still_uses_the_batch_and_keeps_nothing() -> None:
    net = Normed().train()
    x = on_x()
    before = copy.deepcopy(net)
    with still(net):
        z = net(x)
    assert torch.equal(net.norm.running_mean, before.norm.running_mean)  # type: ignore[arg-type]
    assert torch.equal(z, net(x))
    assert not torch.equal(net.norm.running_mean, before.norm.running_mean)  # type: ignore[arg-type]


def on_x() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(5)) + 2


def test_a_turn_has_the_terms_of_one_network() -> None:
    peers = nn.ModuleDict({"peer1": Normed()})
    student = Normed()
    side = Look(student, "student").side_of(Batch(x=on_x()))
    clock = Clock(0, "fit", 0, 9, 3)
    batch = Batch(x=on_x(), y=torch.arange(8) % 3)
    for phase, names in (("student", ["label", "dml"]), ("peer1", ["peer1.label", "peer1.dml"])):
        out = Cohort(DML(), peers).terms(peers, side, side, batch, replace(clock, phase=phase))
        assert list(out) == names


def test_refusals() -> None:
    with pytest.raises(UsageError, match="starts with the student's weights"):
        run(DML(), task(student=made()))
    with pytest.raises(UsageError, match="is called so"):
        run(DML(), task(data={"peers": {"student": made}}))


def test_the_ensemble_of_one_is_itself() -> None:
    torch.testing.assert_close(ensemble([ZS[0]]).double(), ZS[0].log_softmax(1), atol=1e-5, rtol=0)
    net = made()
    torch.testing.assert_close(Ensemble([net])(on_x()), net(on_x()).log_softmax(1))
