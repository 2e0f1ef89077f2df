import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.compress.diswot import DisWOT, Likeness
from limbeck.compress.diswot.distances import (
    awake_,
    channel_distance,
    class_distance,
    classifier_gradient,
    gaussian_,
    gram,
    relation_distance,
    scaled,
)
from limbeck.compress.diswot.pool import Pool
from limbeck.compress.diswot.search import choices, evolve, neighbours
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.rng import generator
from limbeck.core.run import Run
from limbeck.core.task import Budget, Task
from limbeck.errors import NonFinite, UsageError
from limbeck.runs.door import run

CLASSES = 4


def close(a, b):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double())


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- distances ---


def unit(row):
    return [x / math.hypot(*row) if any(row) else 0.0 for x in row]


def outer(vector):
    return [[a * b for b in vector] for a in vector]


def slow_channels(s, t):
    """The paper's sum over classes, rows and columns, by plain numbers."""
    total = 0.0
    for g_s, g_t in zip(s.tolist(), t.tolist(), strict=True):
        for p, q in zip(outer(g_s), outer(g_t), strict=True):
            total += sum((a - b) ** 2 for a, b in zip(unit(p), unit(q), strict=True))
    return total / s.numel()


def test_channel_distance_is_the_papers_sum():
    s, t = draw(5, 7), draw(5, 7, seed=1)
    s[0, 2] = t[1, 3] = s[2, 4] = t[2, 4] = 0.0
    s[3] = 0.0
    close(channel_distance(s, t), slow_channels(s, t))
    close(channel_distance(s, s), 0.0)
    close(channel_distance(s, -s), slow_channels(s, -s))  # blind to the sign of a whole row


def test_channel_distance_by_hand():
    # rows of M: (.6, -.8), (-.6, .8) against (.8, .6), (.8, .6); each pair of rows differs by 2
    close(channel_distance(torch.tensor([[3.0, -4.0]]), torch.tensor([[4.0, 3.0]])), 2.0)
    close(channel_distance(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]])), 1.0)


def test_both_roads_of_channel_distance_agree_in_value_and_gradient():
    s, t = draw(6, 9), draw(6, 9, seed=1)
    s[0, :4] = 0.0
    got = []
    for shape in ((6, 9), (6, 9, 1)):
        x = s.clone().requires_grad_()
        value = channel_distance(x.view(shape), t.view(shape))
        value.backward()
        got.append((value.detach(), x.grad[1:]))  # zeros have no gradient in the product's road
    close(got[0][0], got[1][0])
    close(got[0][1], got[1][1])


def test_channel_distance_of_maps_is_inter_channel_correlation():
    s, t = draw(2, 3, 4, 4), draw(2, 3, 5, 5, seed=1)  # maps may differ in size
    total = 0.0
    for f_s, f_t in zip(s, t, strict=True):
        for i in range(3):
            a, b = (
                torch.stack([f[i].ravel() @ f[j].ravel() for j in range(3)]) for f in (f_s, f_t)
            )
            total += float((a / a.norm() - b / b.norm()).square().sum())
    close(channel_distance(s, t), total / 6)


def test_relation_distance_is_the_papers_sum():
    s, t = draw(5, 3, 2, 2), draw(5, 8, seed=1)
    total = 0.0
    for i in range(5):
        a, b = ([float(f[i].ravel() @ f[j].ravel()) for j in range(5)] for f in (s, t))
        total += sum((x - y) ** 2 for x, y in zip(*map(unit, (a, b)), strict=True))
    close(relation_distance(s, t), total / 25)


def test_relation_distance_sees_neither_scale_nor_rotation():
    s, t = draw(6, 10), draw(6, 12, seed=1)
    turn = torch.linalg.qr(draw(10, 10, seed=2)).Q
    for other in (7.5 * s, s @ turn, scaled(s)):
        close(relation_distance(other, t), relation_distance(s, t))
        close(relation_distance(other, s), 0.0)


def test_gram_by_hand():
    close(gram(torch.tensor([[-3.0]])), [[1.0]])
    close(gram(torch.tensor([[2.0, 0.0], [0.0, 5.0]])), torch.eye(2))
    close(gram(torch.tensor([[2.0, 0.0], [0.0, 0.0]])), [[1.0, 0.0], [0.0, 0.0]])


def test_class_distance_takes_other_widths_and_sees_no_rotation():
    s, t = draw(4, 6), draw(4, 9, seed=1)
    total = 0.0
    for i in range(4):
        a, b = ([float(g[i] @ g[j]) for j in range(4)] for g in (s, t))
        total += sum((x - y) ** 2 for x, y in zip(*map(unit, (a, b)), strict=True))
    close(class_distance(s, t), total / 4)
    close(class_distance(3 * s @ torch.linalg.qr(draw(6, 6, seed=2)).Q, t), class_distance(s, t))


def test_classifier_gradient_is_autograds():
    head, h, y = nn.Linear(7, 5).double(), draw(9, 7), torch.arange(9) % 5
    F.cross_entropy(head(h), y).backward()
    close(classifier_gradient(head(h).detach(), y, h), head.weight.grad)


# --- random weights ---


class Net(nn.Module):
    def __init__(self, depth=1, width=6, norm=True, classes=CLASSES):
        super().__init__()
        layers, here = [], 1
        for _ in range(depth):
            layers += [nn.Conv2d(here, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            here = width
            if not norm:
                del layers[-2]
        self.body = nn.Sequential(*layers)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(here, classes)

    def forward(self, x):
        return self.head(self.drop(self.body(x).mean((2, 3))))


def test_gaussian_draws_weights_and_sets_all_else():
    net = nn.Sequential(Net(2, 32), nn.LayerNorm(4), nn.MultiheadAttention(32, 2))
    gaussian_(net, generator(0))
    draws = []
    for name, p in net.named_parameters():
        if name.endswith("weight") and p.dim() > 1:
            draws.append(p.detach().flatten())
        else:
            norm = name.endswith("weight")  # the vectors called weight are those of norm layers
            assert torch.equal(p, torch.ones_like(p) if norm else torch.zeros_like(p)), name
    drawn = torch.cat(draws)
    assert len(drawn) > 10000
    assert abs(float(drawn.mean())) < 0.04
    assert abs(float(drawn.std()) - 1) < 0.02
    again = gaussian_(copy.deepcopy(net), generator(0))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))


def test_awake_means_batch_statistics_and_no_dropout():
    net = awake_(Net().eval())
    x = 5 + torch.randn(16, 1, 8, 8)
    assert torch.equal(net(x), net(x))
    seen = net.body[1](net.body[0](x))
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-5)


# --- the score ---


def task(space=None, teacher=None, **changes):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(80) % CLASSES
    x = torch.randn(CLASSES, 1, 8, 8, generator=g)[y] + torch.randn(80, 1, 8, 8, generator=g)
    if space is None:
        space = {f"{d}": lambda d=d: Net(d) for d in (1, 2, 3)}
    torch.manual_seed(0)
    given = {
        "teacher": teacher or Net(4), "student": Net, "train": (x, y), "test": (x[:40], y[:40]),
        "budget": Budget(steps=6, batch=20), "data": {"space": space},
        "taps": {"feature": ("body", "body"), "embedding": ("head:in", "head:in")},
    }  # fmt: skip
    return Task(**{**given, **changes})


def seen_by_autograd(net, x, y):
    """Feature map and classifier gradient, by the way the paper goes: forward, loss, backward."""
    net = awake_(net)
    feature = net.body(x)
    F.cross_entropy(net.head(feature.mean((2, 3))), y).backward()
    return net.head.weight.grad.double(), feature.detach().double()


def test_scores_are_the_papers_from_the_same_draws():
    method, brought = DisWOT(inits=2, images=16, train=False, semantic=0.5, relation=2.0), task()
    scores = run(method, brought, seed=3, device="cpu").scores
    assert set(scores) == {"1", "2", "3"}
    with Run(brought, seed=3, device="cpu") as active:
        order = torch.randperm(80, generator=active.rng("images"))
        for name in scores:
            here, there = active.rng(f"candidate {name}"), active.rng("teacher")
            total = 0.0
            for i in range(2):
                x, y = (c[order[16 * i : 16 * i + 16]] for c in brought.train)
                nets = gaussian_(Net(int(name)), here), gaussian_(Net(4), there)
                (g_s, f_s), (g_t, f_t) = (seen_by_autograd(net, x, y) for net in nets)
                total += 0.5 * slow_channels(g_s, g_t) + 2 * float(relation_distance(f_s, f_t))
            assert scores[name] == pytest.approx(-total / 2, rel=1e-4)


def test_equal_weights_score_zero_and_that_is_the_most():
    brought = task()
    with Run(brought, device="cpu") as active:
        pool = Pool(DisWOT(), brought, brought.data["space"])
        pool.teacher = pool._shows(Net(2), "teacher", "", active.rng("candidate 2"))
        scores = {name: pool.score(name) for name in ("1", "2", "3")}
    assert scores["2"] == 0.0
    assert max(scores["1"], scores["3"]) < 0.0


def test_scores_do_not_depend_on_the_rest_of_the_space_nor_on_its_order():
    method = DisWOT(inits=1, images=16, train=False)
    space = {f"{d}": lambda d=d: Net(d) for d in (3, 1, 2)}
    whole = run(method, task(space), device="cpu").scores
    assert whole == run(method, task(dict(reversed(space.items()))), device="cpu").scores
    one = run(method, task({"2": space["2"]}), device="cpu").scores
    assert one == {"2": whole["2"]}
    assert whole != run(method, task(space), seed=1, device="cpu").scores


def test_teacher_and_given_candidates_stay_as_they_were():
    candidate, teacher = Net(2), Net(3)
    before = [copy.deepcopy(m.state_dict()) for m in (candidate, teacher)]
    modes = [m.training for m in teacher.modules()]
    run(DisWOT(images=16, train=False), task({"a": candidate}, teacher), device="cpu")
    for module, then in zip((candidate, teacher), before, strict=True):
        assert all(torch.equal(v, then[k]) for k, v in module.state_dict().items())
    assert [m.training for m in teacher.modules()] == modes


def test_other_widths_are_compared_by_classes_and_then_all_are():
    method = DisWOT(inits=1, images=16, train=False)
    space = {"a": lambda: Net(1), "b": lambda: Net(2)}
    wide = {**space, "c": lambda: Net(2, width=9)}
    narrow, mixed = (run(method, task(s), device="cpu") for s in (space, wide))
    rows = {row["candidate"]: row["terms"] for row in mixed.log}
    assert set(rows["a"]) == {"channels", "classes", "relation"}
    assert set(rows["c"]) == {"classes", "relation"}
    for name, row in rows.items():
        assert mixed.scores[name] == pytest.approx(-(row["classes"] + row["relation"]))
    for row in narrow.log:
        told = row["terms"]
        value = -(told["channels"] + told["relation"])
        assert narrow.scores[row["candidate"]] == pytest.approx(value)


def test_deep_networks_without_norms_are_scored_all_the_same():
    brought = task({"thin": lambda: Net(40, norm=False)})
    score = run(DisWOT(inits=1, images=16, train=False), brought, device="cpu").scores["thin"]
    with Run(brought, device="cpu") as active:
        rows = torch.randperm(80, generator=active.rng("images"))[:16]
        x, y = brought.train[0][rows].double(), brought.train[1][rows]
        thin = gaussian_(Net(40, norm=False), active.rng("candidate thin")).double()
        net = gaussian_(Net(4), active.rng("teacher")).double()
    (g_s, f_s), (g_t, f_t) = (seen_by_autograd(n, x, y) for n in (thin, net))
    assert float(f_s.abs().max()) > 1e20  # its square is no float32
    wanted = slow_channels(g_s, g_t) + float(relation_distance(f_s, f_t))
    assert score == pytest.approx(-wanted, rel=1e-4)


def test_each_side_is_read_at_its_own_tap():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net(4)

        def forward(self, x):
            return self.net(x)

    taps = {"feature": ("net.body", "body"), "embedding": ("net.head:in", "head:in")}
    method = DisWOT(images=16, train=False)
    one = run(method, task(teacher=Other(), taps=taps), device="cpu").scores
    assert one == run(method, task(), device="cpu").scores


# --- the search ---


def test_neighbours_differ_in_one_choice():
    names = ["1-1", "1-2", "2-1", "2-2", "2-3", "deep"]
    values = choices(names)
    assert values == [["1", "2", "deep"], ["1", "2", "3"]]
    assert sorted(neighbours("1-1", set(names), values)) == ["1-2", "2-1"]
    assert sorted(neighbours("2-2", set(names), values)) == ["1-2", "2-1", "2-3"]
    assert neighbours("deep", set(names), values) == []


GRID = [f"{a}-{b}-{c}-{d}" for a in range(4) for b in range(4) for c in range(4) for d in range(4)]


def hill(name):
    return -sum((int(c) - best) ** 2 for c, best in zip(name.split("-"), (3, 0, 2, 1), strict=True))


def searched(score=hill, allowed=lambda name: True, names=GRID, **sizes):
    """The candidates whose score an evolution asks for, in that order."""
    met, asked = [], []

    def rng(name):
        asked.append(name)
        return generator(0, name)

    def told(name):
        met.append(name)
        return score(name)

    sizes = {"population": 8, "cycles": 60, "tournament": 5, **sizes}
    evolve(names, told, allowed, rng=rng, **sizes)
    assert len(set(asked)) == len(asked)  # each draw has a name of its own
    return met


def test_evolution_climbs():
    met = searched()
    assert "3-0-2-1" in met
    assert len(set(met)) < 100  # of 256


def test_a_child_is_a_neighbour_of_the_best_of_the_living_and_the_oldest_dies():
    # A tournament that surely holds all of the living asks each of them, then the child.
    living, values = [], choices(GRID)
    met = searched(population=5, cycles=40, tournament=400)
    living, met = met[:5], met[5:]
    assert len(set(living)) == 5
    children = 0
    while met:
        asked = sorted(set(living))
        assert met[: len(asked)] == asked
        best, child = max(asked, key=hill), met[len(asked)]
        assert child in neighbours(best, set(GRID), values)
        living, met = [*living[1:], child], met[len(asked) + 1 :]
        children += 1
    assert children == 40


def test_evolution_keeps_to_the_budget():
    odd = {n for n in GRID if sum(map(int, n.split("-"))) % 3}
    assert set(searched(allowed=odd.__contains__)) <= odd
    assert searched(allowed=lambda name: False) == []


def test_names_without_choices_have_any_child():
    names = [f"net{i}" for i in range(30)]
    assert len(set(searched(score=lambda n: -int(n[3:]), names=names, cycles=100))) > 25


def test_a_large_space_is_searched_and_a_small_one_scored_whole():
    space = {f"{a}-{b}": lambda a=a, b=b: Net(a + b) for a in (1, 2, 3) for b in (1, 2, 3)}
    small = {"inits": 1, "images": 8, "train": False, "population": 2, "tournament": 2}
    some = run(DisWOT(cycles=3, **small), task(space), device="cpu")
    assert 2 <= len(some.scores) <= 5
    assert [row["step"] for row in some.log] == list(range(len(some.scores)))
    assert set(run(DisWOT(cycles=7, **small), task(space), device="cpu").scores) == set(space)


def test_budgets_of_parameters_and_operations():
    size = {d: sum(p.numel() for p in Net(d).parameters()) for d in (1, 2, 3)}
    # a convolution on 8 x 8 takes 2 * 64 * 9 * channels in * channels out, the head 2 * 6 * classes
    operations = {d: 2 * 64 * 9 * (6 + (d - 1) * 36) + 2 * 6 * CLASSES for d in (1, 2, 3)}
    few = {"inits": 1, "images": 8, "train": False}
    for d in (1, 2, 3):
        names = {str(i) for i in range(1, d + 1)}
        method = DisWOT(parameters=size[d], **few)
        assert set(run(method, task(), device="cpu").scores) == names
        method = DisWOT(flops=operations[d], **few)
        assert set(run(method, task(), device="cpu").scores) == names
    with pytest.raises(UsageError, match="within the budget"):
        run(DisWOT(flops=operations[1] - 1, **few), task(), device="cpu")


# --- the winner ---


def test_the_winner_is_taught_as_the_named_method_teaches():
    method, brought = DisWOT(images=16, of="kd(tau=2)"), task()
    found = run(method, brought, device="cpu")
    winner = max(found.scores, key=found.scores.get)
    alone = run("kd(tau=2)", task(student=brought.data["space"][winner]), device="cpu")
    mine, there = found.model.state_dict(), alone.model.state_dict()
    assert mine.keys() == there.keys()
    assert all(torch.equal(mine[k], there[k]) for k in mine)
    assert found.facts["score"] == alone.facts["score"]
    assert run(DisWOT(images=16, train=False), brought, device="cpu").model is None


def test_the_distances_can_be_added_as_losses():
    brought = task()
    found = run(DisWOT(images=16, semantic_loss=0.3, relation_loss=2.0), brought, device="cpu")
    names = {n for row in found.log if row["stage"] == "fit" for n in row["terms"]}
    assert names == {"kd.label", "kd.kd", "likeness.semantic_loss", "likeness.relation_loss"}
    plain = run(DisWOT(images=16), brought, device="cpu")
    assert found.scores == plain.scores
    one, two = found.model.state_dict(), plain.model.state_dict()
    assert any(not torch.equal(one[k], two[k]) for k in one)
    with pytest.raises(UsageError, match="no single objective"):
        run(DisWOT(images=16, of="diswot", relation_loss=1.0), brought, device="cpu")


class Shown:
    def __init__(self, feature):
        self.feature = feature


@pytest.mark.parametrize(
    "shapes", [((5, 6, 4, 4), (5, 9, 4, 4)), ((5, 6), (5, 9)), ((5, 9), (5, 9))]
)
def test_losses_fit_widths_by_a_map_and_vanish_for_equal_sides(shapes):
    s, t = Shown(draw(*shapes[0]).float().requires_grad_()), Shown(draw(*shapes[1], seed=1).float())
    both = Likeness(2.0, 3.0)
    parts, clock = both.build(s, t, Batch(), None), Clock(0, "fit", 0, 1, 1)
    terms = both.terms(parts, s, t, Batch(), clock)
    close(terms["relation_loss"].detach(), 3 * relation_distance(s.feature, t.feature).detach())
    if shapes[0] == shapes[1]:
        wanted = 2 * channel_distance(s.feature, t.feature)
        close(terms["semantic_loss"].detach(), wanted.detach())
    sum(terms.values()).backward()
    assert bool(s.feature.grad.abs().sum() > 0)
    assert all(bool(p.grad.abs().sum() > 0) for p in parts.parameters())
    assert len(list(parts.parameters())) == (shapes[0] != shapes[1])
    same = both.terms(both.build(t, t, Batch(), None), t, t, Batch(), clock)
    assert [float(v) for v in same.values()] == [0.0, 0.0]


# --- being stopped, and refusals ---


def test_what_was_scored_is_not_scored_again(tmp_path):
    built = []

    def space(broken):
        def made(depth):
            built.append(depth)
            if broken and depth == 3:
                raise KeyboardInterrupt
            return Net(depth)

        return {f"{d}": lambda d=d: made(d) for d in (1, 2, 3)}

    method = DisWOT(images=16, train=False)
    whole = run(method, task(), device="cpu")
    with pytest.raises(KeyboardInterrupt):
        run(method, task(space(True)), device="cpu", out=tmp_path / "run")
    assert built == [1, 2, 3]
    result = run(method, task(space(False)), device="cpu", out=tmp_path / "run")
    assert built == [1, 2, 3, 3]
    assert result.scores == whole.scores
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3


def test_a_row_is_in_the_log_once_though_its_result_was_lost(tmp_path, monkeypatch):
    write = Run.write

    def lost(self, name, *given, **named):
        if name == "score/1":
            raise KeyboardInterrupt
        write(self, name, *given, **named)

    method = DisWOT(images=16, train=False)
    monkeypatch.setattr(Run, "write", lost)
    with pytest.raises(KeyboardInterrupt):
        run(method, task(), device="cpu", out=tmp_path / "run")
    monkeypatch.undo()
    path = tmp_path / "run" / "metrics.jsonl"
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    run(method, task(), device="cpu", out=tmp_path / "run")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3


def test_refusals_say_what_to_do():
    for broken, told in (
        (task({}), "needs a space"),
        (task(teacher=lambda: None), "compares with the teacher's architecture"),
        (task({"a": lambda: Net(1, classes=5)}), "'a' has 5 classes, the teacher 4"),
        (task(taps={"embedding": ("head:in", "head:in")}), "'feature'"),
    ):
        with pytest.raises(UsageError, match=told):
            run(DisWOT(images=16, train=False), broken, device="cpu")


def test_a_score_that_is_not_finite_names_the_candidate():
    class Bad(Net):
        def forward(self, x):
            return super().forward(x) / 0

    with pytest.raises(NonFinite, match="the candidate 'bad'"):
        run(DisWOT(images=16, train=False), task({"bad": Bad}), device="cpu")
