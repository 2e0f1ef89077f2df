"""SLA against loops over versions and classes, and what each way of inference delivers."""

import copy
import math
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.runs.door import run
from limbeck.vision.sla import SLA, Joint, aggregated, joint_loss, views

SETS = [(1, 1), (2, 1), (4, 1), (1, 3), (1, 6), (2, 3), (4, 3), (4, 6)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_joint(u: Tensor, y: Tensor, m: int) -> Tensor:
    """(1 / M) sum over j of CE(u(x_j), y M + j), averaged over samples, by -log of a softmax."""
    total = 0.0
    for b in range(len(y)):
        for j in range(m):
            p = u[b * m + j].exp() / u[b * m + j].exp().sum()
            total = total - p[int(y[b]) * m + j].log() / m
    return total / len(y)


def slow_aggregate(u: Tensor, m: int) -> Tensor:
    n = u.shape[1] // m
    return torch.stack(
        [
            torch.stack([sum(u[b * m + j, i * m + j] for j in range(m)) / m for i in range(n)])
            for b in range(len(u) // m)
        ]
    )


# --- the transformations -------------------------------------------------------------------------


@pytest.mark.parametrize(("rotations", "colours"), SETS)
def test_views_are_the_set_identity_first(rotations: int, colours: int) -> None:
    x = drawn(2, 3, 5, 5)
    seen = list(views(x, rotations, colours))
    assert len(seen) == rotations * colours
    assert torch.equal(seen[0], x)
    orders = {1: ["012"], 3: ["012", "120", "201"], 6: map("".join, permutations("012"))}[colours]
    want = []
    for degrees in {1: [0], 2: [0, 180], 4: [0, 90, 180, 270]}[rotations]:
        for order in orders if colours < 6 else ["012", "021", "102", "120", "201", "210"]:
            y = torch.empty_like(x)
            for i in range(5):
                for j in range(5):
                    # counter-clockwise: a quarter turn brings the last column to the first row
                    a, b = {0: (i, j), 90: (j, 4 - i), 180: (4 - i, 4 - j), 270: (4 - j, i)}[
                        degrees
                    ]
                    for c in range(3):
                        y[:, c, i, j] = x[:, int(order[c]), a, b]
            want.append(y)
    assert all(torch.equal(a, b) for a, b in zip(seen, want, strict=True))
    assert len({tuple(v.flatten().tolist()) for v in seen}) == len(seen)


def test_four_quarter_turns_are_none() -> None:
    x = drawn(2, 1, 6, 6)
    turned = x
    for j in range(4):
        assert torch.equal(turned, list(views(x))[j])
        turned = list(views(turned))[1]
    assert torch.equal(turned, x)


def test_versions_lie_interleaved() -> None:
    batch = Batch(x=drawn(3, 1, 4, 4), y=torch.arange(3), index=torch.arange(3))
    seen, teachers = SLA().prepare(batch, None)
    assert seen.x.shape == (12, 1, 4, 4)
    for b in range(3):
        for j in range(4):
            assert torch.equal(seen.x[4 * b + j], torch.rot90(batch.x[b], j, (1, 2)))
    assert torch.equal(seen.x[::4], batch.x)
    assert teachers is seen
    assert batch.x.shape == (3, 1, 4, 4)


@pytest.mark.parametrize(
    ("shape", "fields", "told"),
    [
        ((2, 16), {}, r"pictures \(B, C, H, W\)"),
        ((2, 1, 4, 6), {}, "rotations=2"),
        ((2, 1, 4, 4), {"colours": 3}, "have 1; give colours=1"),
    ],
)
def test_inputs_that_cannot_be_turned_are_refused(shape, fields, told) -> None:
    with pytest.raises(UsageError, match=told):
        SLA(**fields).prepare(Batch(x=drawn(*shape)), None)
    assert len(list(views(drawn(2, 1, 4, 6), rotations=2))) == 2


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 4, 6])
def test_joint_loss_and_aggregate_equal_loops(m: int) -> None:
    u, y = 2 * drawn(5 * m, 3 * m), torch.tensor([2, 0, 1, 1, 2])
    torch.testing.assert_close(joint_loss(u, y), slow_joint(u, y, m))
    torch.testing.assert_close(aggregated(u, m), slow_aggregate(u, m))


def test_with_the_identity_alone_it_is_cross_entropy_and_single_is_aggregated() -> None:
    u, y = drawn(6, 4), torch.arange(6) % 4
    torch.testing.assert_close(joint_loss(u, y), F.cross_entropy(u, y))
    torch.testing.assert_close(aggregated(u, 1), u)
    encoder, head = Embed(), nn.Linear(2, 4)
    x = drawn(3, 1, 4, 4)
    single, average = (Joint(encoder, head, 1, 1, one)(x) for one in (True, False))
    assert torch.equal(single, average)


def test_equal_logits_know_nothing() -> None:
    n, m = 5, 4
    u = torch.full((3 * m, n * m), 0.7)
    assert joint_loss(u, torch.arange(3)).item() == pytest.approx(math.log(n * m))
    torch.testing.assert_close(aggregated(u, m).softmax(1), torch.full((3, n), 1 / n))


def test_where_versions_agree_the_aggregate_is_the_single_inference() -> None:
    n, m = 3, 4
    u, agreed = drawn(2 * m, n * m), drawn(2, n, seed=1)
    for b in range(2):
        for j in range(m):
            for i in range(n):
                u[b * m + j, i * m + j] = agreed[b, i]
    torch.testing.assert_close(aggregated(u, m), u[::m, ::m])
    # and a student that gives these logits itself has nothing more to learn from them
    s = SimpleNamespace(logits=u[::m, ::m].repeat_interleave(m, 0), embedding=u)
    parts = SimpleNamespace(head=nn.Identity())
    terms = SLA().terms(parts, s, None, Batch(x=u, y=torch.tensor([0, 2])), None)
    assert terms["distil"].item() == pytest.approx(0, abs=1e-7)
    other = SimpleNamespace(logits=1 + 2 * s.logits, embedding=u)
    assert (
        SLA().terms(parts, other, None, Batch(x=u, y=torch.tensor([0, 2])), None)["distil"] > 0.01
    )


def test_the_joint_softmax_of_one_version_renormalised_is_the_softmax_of_its_logits() -> None:
    n, m = 3, 4
    u = drawn(m, n * m)
    for j in range(m):
        p = u[j].softmax(0).view(n, m)[:, j]
        torch.testing.assert_close(p / p.sum(), u[j, j::m].softmax(0))


def test_the_aggregate_averages_logits_not_probabilities() -> None:
    u = torch.zeros(2, 4)  # one picture, two versions, two classes
    u[0, 0], u[1, 3] = 6.0, 2.0  # version 0 says 6 for class 0, version 1 says 2 for class 1
    assert aggregated(u, 2).tolist() == [[3.0, 1.0]]
    log_mean = torch.stack((u[0, 0::2].softmax(0), u[1, 1::2].softmax(0))).mean(0).log()
    assert not torch.allclose(aggregated(u, 2).log_softmax(1)[0], log_mean, atol=0.1)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_terms_of_self_distillation(tau: float) -> None:
    method = SLA(sla=0.3, label=0.5, distil=0.7, tau=tau)
    e, w = drawn(8, 6).requires_grad_(), drawn(4, 6, seed=1).requires_grad_()
    parts = nn.ModuleDict({"head": nn.Linear(6, 16)})
    y = torch.tensor([3, 1])
    s = SimpleNamespace(embedding=e, logits=e @ w.T)
    terms = method.terms(parts, s, None, Batch(x=e, y=y), None)
    u = e @ parts.head.weight.T + parts.head.bias
    torch.testing.assert_close(terms["sla"], 0.3 * slow_joint(u, y, 4))
    own = (e @ w.T)[[0, 4]]
    torch.testing.assert_close(terms["label"], 0.5 * F.cross_entropy(own, y))
    p, q = (slow_aggregate(u, 4) / tau).softmax(1), (own / tau).softmax(1)
    want = 0.7 * tau**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(terms["distil"], want)
    # The backbone learns from all three; the aggregate is a fixed target.
    reach = {
        n: [
            g is not None and bool(g.abs().sum() > 0)
            for g in torch.autograd.grad(
                t, (e, w, parts.head.weight), retain_graph=True, allow_unused=True
            )
        ]
        for n, t in terms.items()
    }
    assert reach == {
        "sla": [True, False, True],
        "label": [True, True, False],
        "distil": [True, True, False],
    }


def test_fields_choose_the_terms() -> None:
    e = drawn(8, 16)
    s = SimpleNamespace(embedding=e, logits=drawn(8, 4, seed=1))
    parts, batch = SimpleNamespace(head=nn.Identity()), Batch(x=e, y=torch.tensor([3, 1]))

    def terms(**fields):
        return SLA(**fields).terms(parts, s, None, batch, None)

    assert set(terms()) == {"sla", "label", "distil"}
    assert set(terms(label=0.0)) == {"sla", "distil"}
    assert set(terms(sla=0.0, distil=0.0)) == {"label"}
    assert set(terms(sla=0.0, label=0.0)) == {"distil"}
    assert set(terms(infer="ag")) == set(terms(infer="si")) == {"sla"}
    torch.testing.assert_close(terms(reduction="sum")["sla"], 4 * terms()["sla"])
    assert terms(reduction="sum")["label"] == terms()["label"]


# --- a run ---------------------------------------------------------------------------------------


class Embed(nn.Module):
    """A stand-in for an encoder: the mean of a picture's upper and of its left half."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        halves = (
            x[:, :, : x.shape[2] // 2].mean((1, 2, 3)),
            x[..., : x.shape[3] // 2].mean((1, 2, 3)),
        )
        return {"embedding": torch.stack(halves, 1)}


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def task(classes: int = 3, taps: bool = True, **budget) -> Task:
    """Pictures whose class is the place of a bright square on the diagonal."""
    x, y = drawn(96, 1, 4, 4), torch.arange(96) % 3
    for i, k in enumerate(y.tolist()):
        x[i, 0, k : k + 2, k : k + 2] += 3
    return Task(
        None,
        lambda: Net(classes),
        (x[:64], y[:64]),
        test=(x[64:], y[64:]),
        budget=Budget(**{"steps": 40, "batch": 16, "optimiser": Optimiser(lr=0.02), **budget}),
        taps={"embedding": (None, "head:in")} if taps else {},
    )


def fitted(method: SLA):
    """A trained student, its joint head, and what is delivered of them."""
    here = task(steps=10)
    with Run(here, seed=2, device="cpu"):
        found = fit(method, here.new_student(2), here.the_teacher(), here.batches(), name="fit")
        return found.student, found.parts.head, method.deliver(found.student, found.parts)


def test_self_distillation_delivers_the_student_alone() -> None:
    student, head, model = fitted(SLA())
    assert model is student
    assert head.weight.shape == (12, 24)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("infer", ["ag", "si"])
def test_joint_inference_is_delivered_as_a_plain_module(infer: str, colours: int) -> None:
    student, head, model = fitted(SLA(infer=infer))
    x = drawn(5, 1, 4, 4)
    if colours == 3:  # the same joint module over colours, on a student of three channels
        torch.manual_seed(0)
        head, x = nn.Linear(2, 9), drawn(5, 3, 4, 4)
        model = Joint(Embed(), head, 1, 3, infer == "si")
    model.eval()

    def u(v: Tensor) -> Tensor:
        return head(Embed()(v)["embedding"] if colours == 3 else student.body(v))

    versions = (
        [x, x[:, [1, 2, 0]], x[:, [2, 0, 1]]]
        if colours == 3
        else [torch.rot90(x, j, (2, 3)) for j in range(4)]
    )
    m = len(versions)
    want = (
        sum(u(v)[:, j::m] for j, v in enumerate(versions)) / m if infer == "ag" else u(x)[:, 0::m]
    )
    torch.testing.assert_close(model(x), want)
    again = copy.deepcopy(
        model
    )  # it stands alone: no hook of a run is left on it, weights go along
    for p in model.parameters():
        nn.init.zeros_(p)
    torch.testing.assert_close(again(x), want)
    again.load_state_dict(model.state_dict())
    assert again(x).abs().sum() == 0
    assert not any(k._forward_hooks or k._forward_pre_hooks for k in model.modules())


def test_every_way_learns_and_is_scored_as_delivered() -> None:
    scores = {}
    for infer in ("sd", "ag", "si"):
        result = run(SLA(infer=infer), task(), seed=1, device="cpu")
        logits = result.model.eval()(task().test[0])
        assert logits.shape == (32, 3)
        right = (logits.argmax(1) == task().test[1]).float().mean()
        assert result.facts["score"] == pytest.approx(float(right))
        scores[infer] = result.facts["score"]
    assert min(scores.values()) > 0.7, scores


def test_half_batches_accumulate() -> None:
    method, e = SLA(), drawn(16, 6)
    parts = nn.ModuleDict({"head": nn.Linear(6, 12)})
    logits, y = drawn(16, 3, seed=1), torch.tensor([2, 0, 1, 1])

    def terms(rows: slice):
        wide = slice(rows.start * 4, rows.stop * 4)
        s = SimpleNamespace(embedding=e[wide], logits=logits[wide])
        return method.terms(parts, s, None, Batch(x=e, y=y[rows]), None)

    a, b, whole = terms(slice(0, 2)), terms(slice(2, 4)), terms(slice(0, 4))
    for name in whole:
        torch.testing.assert_close((a[name] + b[name]) / 2, whole[name])


def test_classes_beyond_the_students_and_a_missing_tap_are_refused() -> None:
    with pytest.raises(UsageError, match="3 classes, but the student has 2 logits"):
        run(SLA(), task(classes=2), device="cpu")
    with pytest.raises(UsageError, match="embedding"):
        run(SLA(), task(taps=False), device="cpu")
    with pytest.raises(UsageError, match="rotations is 3"):
        replace(SLA(), rotations=3)
