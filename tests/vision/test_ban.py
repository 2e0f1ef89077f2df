"""ban: the parts of its gradient, permutations, and generations that are kd, one by one."""

from collections import Counter
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import soft_cross_entropy
from limbeck.core.objectives import Labels
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task, build_model
from limbeck.errors import UsageError
from limbeck.vision.ban import (
    BAN,
    Ensemble,
    Generation,
    confidence,
    cwtm_loss,
    dkpp_loss,
    permuted,
)

pytestmark = pytest.mark.xdist_group("ban")

G = torch.Generator().manual_seed(6)
S, T, Y = torch.randn(7, 5, generator=G), 2 * torch.randn(7, 5, generator=G), torch.arange(7) % 5
SEED = 3


# --- the losses ----------------------------------------------------------------------------------


def test_kds_gradient_is_q_less_p_in_its_two_parts() -> None:
    z = S.clone().requires_grad_()
    (found,) = torch.autograd.grad(soft_cross_entropy(z, T).sum(), z)
    p, q = softmax(T.numpy(), 1), softmax(S.numpy(), 1)
    for b in range(len(S)):
        y = int(Y[b])
        true = q[b, y] - p[b, y]
        dark = [q[b, c] - p[b, c] for c in range(5) if c != y]
        assert float(found[b, y]) == pytest.approx(true, abs=1e-6)
        assert found[b, [c for c in range(5) if c != y]].tolist() == pytest.approx(dark, abs=1e-6)
        assert true + sum(dark) == pytest.approx(0, abs=1e-6)


def test_confidence_is_the_teachers_largest_probability() -> None:
    want = [softmax(row).max() for row in T.double().numpy()]
    assert confidence(T).tolist() == pytest.approx(want, rel=1e-5)


def test_cwtm_weights_by_hand() -> None:
    # maxima 0.9, 0.6, 0.5 weigh 0.45, 0.3, 0.25
    w, ce = torch.tensor([0.9, 0.6, 0.5]), F.cross_entropy(S[:3], Y[:3], reduction="none")
    want = 0.45 * float(ce[0]) + 0.3 * float(ce[1]) + 0.25 * float(ce[2])
    assert float(cwtm_loss(S[:3], Y[:3], w, w.mean())) == pytest.approx(want, rel=1e-5)
    equal = torch.full((7,), 0.7)
    assert float(cwtm_loss(S, Y, equal, equal.mean())) == pytest.approx(
        float(F.cross_entropy(S, Y)), rel=1e-5
    )
    z = S.clone().requires_grad_()  # each sample's gradient is that of its cross-entropy, weighted
    w = confidence(T)
    (found,) = torch.autograd.grad(cwtm_loss(z, Y, w, w.mean()), z)
    for b in range(7):
        share = float(w[b] / w.sum())
        want_row = share * (softmax(S[b].numpy()) - np.eye(5)[int(Y[b])])
        assert found[b].tolist() == pytest.approx(want_row.tolist(), abs=1e-6)


def test_permuted_keeps_the_largest_and_all_values() -> None:
    p = T.softmax(1)
    keys = torch.rand(7, 4, generator=G)
    found = permuted(p, keys)
    for b in range(7):
        top = int(p[b].argmax())
        others = [c for c in range(5) if c != top]
        want = p[b].clone()
        for place, k in zip(others, sorted(range(4), key=lambda i: float(keys[b, i])), strict=True):
            want[place] = p[b, others[k]]
        assert torch.equal(found[b], want)
        assert found[b, top] == p[b, top] == found[b].max()
        assert sorted(found[b].tolist()) == sorted(p[b].tolist())
    assert not torch.equal(found, p)
    assert torch.allclose(found.sum(1), torch.ones(7))


def test_of_two_classes_nothing_is_permuted() -> None:
    p = T[:, :2].softmax(1)
    assert torch.equal(permuted(p, torch.rand(7, 1, generator=G)), p)


def test_all_permutations_are_equally_likely() -> None:
    p = torch.tensor([0.4, 0.1, 0.2, 0.3]).expand(6000, -1)
    seen = Counter(map(tuple, permuted(p, torch.rand(6000, 3, generator=G)).tolist()))
    three = p[0, 1:].tolist()
    assert set(seen) == {(p[0, 0].item(), *some) for some in permutations(three)}
    assert all(abs(n - 1000) < 150 for n in seen.values())  # five deviations of 29


def test_dkpp_is_the_cross_entropy_with_permuted_targets() -> None:
    keys = torch.rand(7, 4, generator=G)
    p, q = permuted(T.softmax(1), keys).double().numpy(), softmax(S.double().numpy(), 1)
    want = -sum(p[b, c] * np.log(q[b, c]) for b in range(7) for c in range(5)) / 7
    assert float(dkpp_loss(S, T, keys)) == pytest.approx(want, rel=1e-5)
    in_order = torch.arange(4.0).expand(7, -1)
    assert float(dkpp_loss(S, T, in_order)) == pytest.approx(
        float(soft_cross_entropy(S, T).mean()), rel=1e-6
    )
    with pytest.raises(UsageError, match="the same number of classes"):
        dkpp_loss(S[:, :4], T, keys)


def test_terms_by_mode_and_weight() -> None:
    s, t = SimpleNamespace(logits=S), SimpleNamespace(logits=T)
    batch = Batch(x=S, y=Y, index=torch.arange(7))
    draws = torch.rand(7, 4, generator=G)
    asked = []

    class Clock:
        def rng(self, name: str, index: Tensor) -> Any:
            asked.append((name, index))
            return SimpleNamespace(rand=lambda n: draws[:, :n])

    def terms(**fields: Any) -> dict[str, Tensor]:
        parts = SimpleNamespace(mean=confidence(T).mean())
        return Generation(BAN(**fields)).terms(parts, s, t, batch, Clock())

    soft = soft_cross_entropy(S, T).mean()
    assert set(terms()) == {"ban"}
    torch.testing.assert_close(terms(ban=0.5)["ban"], 0.5 * soft)
    both = terms(label=0.7)
    torch.testing.assert_close(both["label"], 0.7 * F.cross_entropy(S, Y))
    torch.testing.assert_close(both["ban"], soft)
    w = confidence(T)
    want = cwtm_loss(S, Y, w, w.mean())
    torch.testing.assert_close(terms(mode="cwtm", ban=2.0)["ban"], 2 * want)
    assert not asked
    torch.testing.assert_close(terms(mode="dkpp", ban=2.0)["ban"], 2 * dkpp_loss(S, T, draws))
    assert torch.equal(asked[0][1], batch.index)
    assert set(terms(label=1.0, ban=0.0)) == {"label"}


# --- the ensemble --------------------------------------------------------------------------------


class Given(nn.Module):
    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.z}


def test_the_ensemble_averages_probabilities() -> None:
    U = torch.randn(7, 5, generator=G)
    found = Ensemble([Given(S), Given(T), Given(U)])(S)
    rows = [(softmax(a) + softmax(b) + softmax(c)) / 3 for a, b, c in zip(S, T, U, strict=True)]
    torch.testing.assert_close(found.exp(), torch.tensor(np.stack(rows)))
    assert not torch.allclose(found.softmax(1), ((S + T + U) / 3).softmax(1), atol=0.05)


def test_an_ensemble_of_identical_generations_is_one() -> None:
    for n in (1, 3):
        found = Ensemble([Given(S)] * n)(S)
        torch.testing.assert_close(found, S.log_softmax(1))


# --- generations ---------------------------------------------------------------------------------

LABELS = torch.arange(96) % 4
X = torch.randn(96, 6, generator=G) + torch.randn(4, 6, generator=G)[LABELS]


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))


def task(teacher: Any = None, **more: Any) -> Task:
    given: dict[str, Any] = {
        "student": lambda: net(8),
        "train": (X[:64], LABELS[:64]),
        "test": (X[64:], LABELS[64:]),
        "budget": Budget(epochs=3, batch=16, optimiser=Optimiser("sgd", lr=0.2)),
    }
    return Task(teacher, **{**given, **more})


def other_teacher() -> nn.Module:
    torch.manual_seed(0)
    return net(20)


def run(method: Any, given: Task, **fields: Any) -> Any:
    return limbeck.run(method, given, seed=SEED, device="cpu", **fields)


def stages(result: Any) -> list[str]:
    return [s["stage"] for s in result.facts["stages"]]


def close(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.allclose(u, v, rtol=1e-4, atol=1e-5) for u, v in pairs)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(u, v) for u, v in pairs)


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("taught", [False, True])
def test_each_generation_is_kd_from_the_one_before(label: float, taught: bool) -> None:
    given = task(other_teacher() if taught else None)
    result = run("ban", given, generations=3, label=label, gives="ensemble")
    numbers = list(range(1 if taught else 0, 4))
    assert stages(result) == [f"generation/{k}" for k in numbers]
    assert {row["stage"] for row in result.log} == set(stages(result))
    teacher = given.teacher
    for k, member in zip(numbers, result.model.members, strict=True):
        fresh = build_model(given.student, SEED, "student" if k == 3 else f"generation/{k}")
        alone = replace(given, teacher=teacher, student=fresh)
        method = f"kd(label={label}, kd=1.0, tau=1.0)" if k else Labels()
        teacher = run(method, alone).model
        assert close(member, teacher)
        assert not close(member, fresh)
    last = run("ban", given, generations=3, label=label)
    assert same(last.model, result.model.members[-1])


def test_generations_start_apart_and_end_apart() -> None:
    members = run("ban", task(), gives="ensemble").model.members
    assert len(members) == 4
    first = [m[0].weight for m in members]
    assert all(not torch.allclose(a, b) for i, a in enumerate(first) for b in first[:i])


@pytest.mark.parametrize("mode", ["kd", "dkpp", "cwtm"])
def test_only_weighted_labels_and_ban_l_read_the_labels(mode: str) -> None:
    flipped = (X[:64], LABELS[:64].flip(0))
    teacher = other_teacher()
    one, two = (
        run("ban", task(teacher, **more), mode=mode, generations=1).model
        for more in ({}, {"train": flipped})
    )
    assert same(one, two) == (mode != "cwtm")
    heard, other = (
        run("ban", task(teacher, **more), mode=mode, generations=1, label=1.0).model
        for more in ({}, {"train": flipped})
    )
    assert not same(heard, other)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_cwtms_weights_are_those_of_the_whole_step(accumulate: int) -> None:
    teacher, lr = other_teacher(), 0.5
    with torch.no_grad():
        teacher[2].weight.mul_(6)  # so that it is sure of some samples and not of others
    optimiser = Optimiser("sgd", lr=lr)
    budget = Budget(
        steps=1, batch=64, optimiser=optimiser, schedule="constant", accumulate=accumulate
    )
    given = task(teacher, budget=budget)
    found = run("ban", given, mode="cwtm", generations=1).model
    student = build_model(given.student, SEED, "student")
    w = [softmax(row).max() for row in teacher(X[:64]).detach().double().numpy()]
    assert max(w) > 1.5 * min(w)
    each = F.cross_entropy(student(X[:64]), LABELS[:64], reduction="none")
    loss = sum(each[b] * float(w[b] / sum(w)) for b in range(64))
    for p, g, new in zip(
        student.parameters(),
        torch.autograd.grad(loss, list(student.parameters())),
        found.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(new, p - lr * g, rtol=1e-4, atol=1e-6)


def test_permutations_change_with_the_step_and_not_with_the_cut() -> None:
    teacher = other_teacher()
    whole, cut = (
        run(
            "ban",
            task(
                teacher,
                budget=Budget(steps=6, batch=16, optimiser=Optimiser("sgd", lr=0.2), accumulate=n),
            ),
            mode="dkpp",
            generations=1,
        ).model
        for n in (1, 2)
    )
    assert close(whole, cut)
    assert not close(whole, run("ban", task(teacher), generations=1).model)


def test_a_generation_reads_as_the_student_does() -> None:
    # The teacher takes x, the student and with it each later teacher 2 x.
    readers = {"student": lambda x: 2 * x}
    given = task(other_teacher(), readers=readers)
    result = run("ban", given, generations=2, gives="ensemble")
    doubled = (2 * X[:64], LABELS[:64])
    first, second = result.model.members
    alone = task(first, train=doubled)
    want = run("kd(label=0.0, kd=1.0, tau=1.0)", alone).model
    assert close(second, want)


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [("generation/0", 5), ("generation/2", 4)])
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Any, at: tuple[str, int]) -> None:
    method, done = BAN(mode="cwtm", generations=2, gives="ensemble"), []

    def note(stage: str, step: int) -> None:
        done.append((stage, step))
        if (stage, step) == at and len(done) == done.index(at) + 1:
            raise Stop

    def go(folder: Any) -> nn.Module:
        given = task()
        with Run(given, SEED, folder, "cpu", checkpoint=2, after_step=note):
            return method.run(given).model

    with pytest.raises(Stop):
        go(tmp_path)
    done.append(("again", 0))
    resumed = go(tmp_path)
    again = done[done.index(("again", 0)) + 1 :]
    assert min(step for stage, step in again if stage == at[0]) == at[1] // 2 * 2 + 1
    assert all(stage >= at[0] for stage, _ in again)  # what was finished is not trained again
    assert same(resumed, go(None))


def test_later_generations_take_on_what_the_labels_taught_the_first() -> None:
    given = task(budget=Budget(epochs=15, batch=16, optimiser=Optimiser(lr=0.02)))
    result = run("ban", given, gives="ensemble", generations=2)
    first, *later = (m(X[:64]).argmax(1) for m in result.model.members)
    assert (first == LABELS[:64]).float().mean() > 0.7
    assert all((one == first).float().mean() > 0.8 for one in later)
    right = (result.model(X[64:]).argmax(1) == LABELS[64:]).float().mean()
    assert result.facts["score"] == pytest.approx(float(right))
    assert right > 0.4  # of four classes


def test_mistakes_are_told() -> None:
    with pytest.raises(UsageError, match="generations is 0"):
        BAN(generations=0)
    with pytest.raises(UsageError, match="mode is 'soft'"):
        BAN(mode="soft")
