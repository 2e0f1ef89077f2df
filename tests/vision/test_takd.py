"""takd: chains and their choice, the plain networks, and edges that are kd's own."""

import copy
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Table
from limbeck.core.evaluate import measure
from limbeck.core.objectives import Labels
from limbeck.core.task import Budget, Optimiser, Task, accuracy, build_model
from limbeck.core.teachers import BlackBox
from limbeck.errors import Missing, UsageError
from limbeck.vision.takd import PLAIN, TAKD, best_chain, chains, midway, plain_cnn

G = torch.Generator().manual_seed(2)
Y = torch.arange(96) % 4
X = torch.randn(96, 6, generator=G) + 0.9 * torch.randn(4, 6, generator=G)[Y]
SEED = 6


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))


def task(**kw: Any) -> Task:
    torch.manual_seed(0)
    sizes = {"large": lambda: net(12), "middle": lambda: net(6)}
    given: dict[str, Any] = {
        "teacher": net(20),
        "student": lambda: net(2),
        "train": (X[:48], Y[:48]),
        "test": (X[72:], Y[72:]),
        "budget": Budget(epochs=3, batch=16, optimiser=Optimiser("adam", lr=0.02)),
        "data": {"assistants": sizes},
    }
    return Task(**{**given, **kw})


def run(method: Any, given: Task, **fields: Any) -> Any:
    return limbeck.run(method, given, seed=SEED, device="cpu", **fields)


def stages(result: Any) -> list[str]:
    return [s["stage"] for s in result.facts["stages"]]


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(n == m and torch.equal(u, v) for (n, u), (m, v) in pairs)


# --- chains --------------------------------------------------------------------------------------


def test_number_of_decreasing_chains() -> None:
    found = chains((8, 6, 4))
    assert len(found) == len(set(found)) == 8
    by_loops = {
        tuple(size for size, taken in zip((8, 6, 4), bits, strict=True) if taken)
        for bits in product((False, True), repeat=3)
    }
    assert set(found) == by_loops
    assert chains(()) == [()]


@pytest.mark.parametrize("between", [0, 1, 2, 4])
def test_dynamic_programming_finds_the_best_chain(between: int) -> None:
    # A node is as good as its teacher, plus what the edge is worth: the better teacher never harms.
    n = between + 2
    for _ in range(20):
        worth = torch.randn(n, n, generator=G).tolist()
        calls = []

        def score(chain: tuple[int, ...], worth: list[list[float]] = worth) -> float:
            return sum(worth[a][b] for a, b in pairwise(chain))

        def teach(chain: tuple[int, ...], node: int, calls: list = calls, f: Any = score) -> float:
            calls.append((chain[-1], node))
            return f((*chain, node))

        found = best_chain(n, teach)
        every = [(0, *some, n - 1) for some in chains(range(1, n - 1))]
        assert score(found) == max(map(score, every))
        assert len(calls) == len(set(calls)) == n * (n - 1) // 2


def test_midway_is_in_score_and_not_in_size() -> None:
    own = {"large": 0.91, "middle": 0.9, "small": 0.7}
    assert midway(own, student=0.5, teacher=0.94) == "small"  # 0.72
    assert midway(own, student=0.85, teacher=0.95) == "middle"
    assert midway({"a": 1.0, "b": 3.0}, student=6.0, teacher=1.0) == "b"  # lower is better


# --- the plain networks --------------------------------------------------------------------------


def layers(model: nn.Module, kind: type) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, kind)]


def test_plain_2_has_two_convolutions_of_16_filters() -> None:
    model = plain_cnn(PLAIN["cifar10"][2])
    assert [c.out_channels for c in layers(model, nn.Conv2d)] == [16, 16]
    (fc,) = layers(model, nn.Linear)
    assert (fc.in_features, fc.out_features) == (16 * 8 * 8, 10)
    parameters = (3 * 9 + 1) * 16 + 32 + (16 * 9 + 1) * 16 + 32 + 1024 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("family", "classes", "wider", "last"), [("cifar10", 10, 1, 128), ("cifar100", 100, 2, 512)]
)
def test_plain_networks_by_their_layers(family: str, classes: int, wider: int, last: int) -> None:
    assert list(PLAIN[family]) == [2, 4, 6, 8, 10]
    for depth, spec in PLAIN[family].items():
        model = plain_cnn(spec, classes=classes)
        convolutions = layers(model, nn.Conv2d)
        widths = [wider * 16 * 2 ** (i // 2) for i in range(depth)]  # two of each width
        if depth == 2:
            widths = [wider * 16] * 2
        if depth == 10:
            widths = [32, 32, 64, 64, 128, 128, 256, 256, 256, 256]
        assert [c.out_channels for c in convolutions] == widths
        assert all(c.kernel_size == (3, 3) and c.padding == (1, 1) for c in convolutions)
        assert len(layers(model, nn.BatchNorm2d)) == depth
        hidden = [f.out_features for f in layers(model, nn.Linear)]
        assert hidden == [*{8: [64], 10: [last]}.get(depth, []), classes]
        assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, classes)


# --- the edges -----------------------------------------------------------------------------------


def test_without_assistants_it_is_kd() -> None:
    plain = run("kd", task())
    assert same(run("takd", task(), path="none").model, plain.model)
    assert same(run("takd", task(data={"assistants": {}})).model, plain.model)
    assert not same(run("takd", task(), path="all").model, plain.model)


def test_lam_weighs_labels_against_the_teacher() -> None:
    flipped = task(train=(X[:48], Y[:48].flip(0)))
    ce = run("takd", task(), path="all", lam=(0.0,)).model
    assert same(ce, run(Labels(), task()).model)
    deaf = [run("takd", given, path="all", lam=(1.0,)).model for given in (task(), flipped)]
    assert same(*deaf)
    heard = [run("takd", given, path="all", lam=(0.5,)).model for given in (task(), flipped)]
    assert not same(*heard)


def test_the_chain_is_kd_from_one_network_to_the_next() -> None:
    given = task()
    result = run("takd", given, path="all", lam=(0.25, 0.5, 0.75), tau=(1.0, 2.0, 3.0))
    assert stages(result) == ["assistant/large", "assistant/middle", "student"]
    teacher = given.teacher
    for k, name in enumerate(("large", "middle", None)):
        student = given.student
        if name:
            student = build_model(given.data["assistants"][name], SEED, f"assistant/{name}")
        kd = f"kd(label={1 - 0.25 * (k + 1)}, kd={0.25 * (k + 1)}, tau={k + 1.0})"
        teacher = run(kd, replace(given, teacher=teacher, student=student)).model
    assert same(result.model, teacher)
    assert {row["stage"] for row in result.log} == set(stages(result))


def test_an_assistant_equal_to_the_teacher_changes_nothing() -> None:
    # Its soft term has no gradient at the start (to rounding), so that it stays what it is.
    given = task(budget=Budget(epochs=3, batch=16, optimiser=Optimiser("sgd", lr=0.2)))
    twin = replace(given, data={"assistants": {"twin": copy.deepcopy(given.teacher)}})
    chain = run("takd", twin, lam=(1.0, 0.8))
    assert stages(chain) == ["assistant/twin", "student"]
    plain = run("kd", given, label=0.2, kd=0.8)
    for a, b in zip(chain.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    other = run("takd", given, assistants=("large",), lam=(1.0, 0.8))
    first, second = other.model[0].weight.detach(), plain.model[0].weight.detach()
    assert float((first - second).abs().max()) > 1e-3


def test_assistants_are_kept_at_their_best_on_valid_and_the_student_as_asked() -> None:
    given = task(valid=(X[48:72], Y[48:72]))
    result = run("takd", given, path="all")
    watched = {row["stage"] for row in result.log if "valid" in row}
    assert watched == {"assistant/large", "assistant/middle"}
    best = replace(given, budget=replace(given.budget, keep="best"))
    teacher = given.teacher
    for name in ("large", "middle"):
        student = build_model(given.data["assistants"][name], SEED, f"assistant/{name}")
        teacher = run("kd", replace(best, teacher=teacher, student=student)).model
    assert same(result.model, run("kd", replace(given, teacher=teacher)).model)


def test_an_assistant_reads_what_the_student_reads() -> None:
    other = X.flip(1).contiguous()
    wide = torch.cat((X, other), 1)  # each side reads its own half
    readers = {"teacher": lambda x: x[:, :6], "student": lambda x: x[:, 6:]}
    given = task(train=(wide[:48], Y[:48]), test=(wide[72:], Y[72:]), readers=readers)
    result = run("takd", given, assistants=("large",))
    student = build_model(given.data["assistants"]["large"], SEED, "assistant/large")
    assistant = run("kd", replace(given, student=student)).model
    by_hand = run("kd", task(teacher=assistant, train=(other[:48], Y[:48]))).model
    for a, b in zip(result.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_taps_of_the_task_are_not_asked_of_assistants() -> None:
    tapped = task(taps={"mid": ("1", "1")}, data={"assistants": {"flat": lambda: nn.Linear(6, 4)}})
    assert stages(run("takd", tapped)) == ["assistant/flat", "student"]


# --- the choice ----------------------------------------------------------------------------------


def test_midway_trains_each_alone_and_takes_the_one_half_way() -> None:
    valid = (X[48:72], Y[48:72])
    given = task(valid=valid, budget=Budget(epochs=12, batch=16, optimiser=Optimiser("adam")))
    given.teacher = run(Labels(), replace(given, student=given.teacher)).model
    result = run("takd", given)
    table, own = Table(valid), {}
    for name in ("", "large", "middle"):
        student = given.student
        if name:
            student = build_model(given.data["assistants"][name], SEED, f"assistant/{name}")
        alone = run(Labels(), replace(given, student=student)).model
        own[name] = measure(alone, table, accuracy)
    target = (own.pop("") + measure(given.teacher, table, accuracy)) / 2
    nearest = min(own, key=lambda name: abs(own[name] - target))
    alone = ["alone/student", "alone/large", "alone/middle"]
    assert stages(result) == [*alone, f"assistant/{nearest}", "student"]
    assert same(result.model, run("takd", given, assistants=(nearest,)).model)


def test_best_keeps_the_chain_whose_student_is_best_on_valid() -> None:
    valid = (X[48:72], Y[48:72])
    given = task(
        valid=valid, budget=Budget(epochs=6, batch=16, optimiser=Optimiser("adam", lr=0.02))
    )
    chosen = set()
    for seed in range(4):
        result = limbeck.run("takd", given, seed=seed, device="cpu", path="best")
        assert stages(result) == [
            "assistant/large/teacher",
            "assistant/middle/teacher",
            "assistant/middle/large",
            "student/teacher",
            "student/large",
            "student/middle",
        ]
        students = {}
        for names in ((), ("large",), ("middle",), ("large", "middle")):
            path = {"assistants": names} if names else {"path": "none"}
            model = limbeck.run("takd", given, seed=seed, device="cpu", **path).model
            students[names] = (measure(model, Table(valid), accuracy), model)
        (names,) = [n for n, (_, m) in students.items() if same(m, result.model)][:1]
        chosen.add(names)
        # Of the two chains that end in "middle" only the better "middle" was let teach.
        ends = [students[()], students[("large",)], students[names]]
        assert students[names][0] == max(score for score, _ in ends)
    assert len(chosen) > 1


# --- what cannot work ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"assistants": ("largo",)}, "no assistant 'largo'; did you mean 'large'"),
        ({"path": "midway"}, "chooses on the valid set, and there is none"),
        ({"path": "best"}, "chooses on the valid set, and there is none"),
        ({"path": "all", "lam": (0.1, 0.2)}, "TAKD.lam has 2 values; give one, or 3"),
        ({"lam": (1.5,)}, "TAKD.lam is .*from 0 to 1"),
        ({"tau": (4.0, 0.0)}, "TAKD.tau is .*above 0"),
        ({"lam": ()}, "TAKD.lam is"),
    ],
)
def test_what_cannot_work_is_said(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        run("takd", task(), **fields)


def test_needs_are_said() -> None:
    with pytest.raises(Missing, match="needs a set 'assistants'"):
        run("takd", task(data={}))
    valid = (X[48:72], Y[48:72])
    with pytest.raises(UsageError, match=r"TAKD.tau has 2 values; give one where"):
        run("takd", task(valid=valid), path="best", tau=(1.0, 2.0))
    deaf = task(valid=valid, teacher=BlackBox(lambda x: torch.zeros(len(x))))
    with pytest.raises(UsageError, match="no module with logits; name the assistants"):
        run("takd", deaf)
    assert TAKD().lam == (0.9,)


def test_it_teaches() -> None:
    given = task(budget=Budget(epochs=40, batch=16, optimiser=Optimiser("adam", lr=0.02)))
    given.teacher = run(Labels(), replace(given, student=given.teacher)).model
    result = run("takd", given, path="all")
    assert isinstance(result.model, nn.Module)
    logits: Tensor = result.model(X[:48])
    assert float((logits.argmax(1) == Y[:48]).float().mean()) > 0.5
