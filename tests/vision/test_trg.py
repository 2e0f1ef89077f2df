"""trg: tokens of maps and transformers, the graph by loops, what each loss does not see, runs."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import Missing, UsageError
from limbeck.registry import make
from limbeck.vision.trg import (
    TRG,
    as_map,
    context,
    contrast_loss,
    graph,
    local_loss,
    tokens_of,
)

pytestmark = pytest.mark.xdist_group("trg")

G = torch.Generator().manual_seed(6)
TOKENS = ("inner", "local", "contrast")


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def rotated(x: Tensor) -> Tensor:
    q, _ = torch.linalg.qr(draw(x.shape[-1], x.shape[-1]))
    return x @ q


def clock(step: int = 0, steps: int = 11) -> Clock:
    return Clock(0, "fit", step, steps, 5)


# --- tokens ---------------------------------------------------------------------------------------


def test_pooled_tokens_are_the_means_of_patches_in_reading_order() -> None:
    x = draw(2, 3, 6, 6)
    tokens = tokens_of(x, 3)
    assert tokens.shape == (2, 9, 3)
    for p in range(9):
        row, column = divmod(p, 3)
        patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(tokens[:, p], patch.mean((2, 3)))


def test_flattened_tokens_are_all_numbers_of_patches() -> None:
    x = draw(2, 3, 6, 6)
    tokens = tokens_of(x, 3, 2)  # of 6 by 6 already, so nothing is resized
    assert tokens.shape == (2, 9, 12)
    patch = x[1, :, 2:4, 4:6]
    torch.testing.assert_close(tokens[1, 5], patch.flatten())
    assert tokens_of(x, 2, 2).shape == (2, 4, 12)  # by way of 4 by 4


def test_maps_of_other_sizes_get_the_same_grid() -> None:
    s = SimpleNamespace(feature=draw(2, 3, 4, 4).float())
    t = SimpleNamespace(feature=draw(2, 5, 8, 8).float())
    mine, theirs = TRG().tokens(s, t)
    assert mine.shape == (2, 16, 3)
    assert theirs.shape == (2, 16, 5)
    torch.testing.assert_close(mine, s.feature.flatten(2).mT)
    torch.testing.assert_close(theirs[:, 0], t.feature[:, :, :2, :2].mean((2, 3)))
    mine, theirs = TRG(grid=2, patch="flattened").tokens(s, t)  # patches of 2 by 2 places
    assert mine.shape == (2, 4, 12)
    assert theirs.shape == (2, 4, 20)


def test_a_transformers_tokens_lose_those_before_the_patches() -> None:
    x = draw(2, 18, 5)  # two before 16 patches
    there = as_map(x)
    assert there.shape == (2, 5, 4, 4)
    torch.testing.assert_close(tokens_of(there, 4), x[:, 2:])
    assert as_map(x[:, 2:]).shape == (2, 5, 4, 4)
    assert as_map(there) is there
    for wrong in (draw(2, 7), draw(2, 35, 5), draw(2, 3, 4, 4, 4)):
        with pytest.raises(UsageError, match="trg relates patches, but a `feature` of shape"):
            as_map(wrong)


# --- the graph ------------------------------------------------------------------------------------


def slow_graph(x: Tensor, k: int, sigma: float) -> np.ndarray:
    n = len(x)
    d = [[sum(float(a - b) ** 2 for a, b in zip(x[i], x[j], strict=True)) for j in range(n)]
         for i in range(n)]  # fmt: skip
    near = [sorted((i for i in range(n) if i != j), key=lambda i: d[i][j])[:k] for j in range(n)]
    pairs = [d[i][j] for j in range(n) for i in near[j]]
    sigma = sigma or sum(pairs) / len(pairs)
    out = np.zeros((n, n))
    for j in range(n):
        for i in (*near[j], j):
            out[i, j] = math.exp(-d[i][j] / (2 * sigma))
    return out


@pytest.mark.parametrize(("k", "sigma"), [(1, 0.0), (3, 0.0), (3, 2.5), (50, 1.0)])
def test_the_graph_by_loops(k: int, sigma: float) -> None:
    x = draw(9, 4)
    np.testing.assert_allclose(graph(x, k, sigma).numpy(), slow_graph(x, k, sigma), atol=1e-12)


def test_the_graph_is_of_weights_up_to_one_which_a_node_is_to_itself() -> None:
    x = draw(9, 4)
    a = graph(x, 3)
    assert torch.equal(a.diagonal(), torch.ones(9).double())
    assert float(a.min()) == 0
    assert float(a.max()) == 1
    assert ((a > 0).sum(0) == 4).all()  # in a column stand a node's neighbours
    assert not torch.equal(a > 0, (a > 0).T)
    whole = graph(x, 8, 1.5)
    torch.testing.assert_close(whole, (-torch.cdist(x, x).square() / 3).exp())
    torch.testing.assert_close(graph(100 * x, 3), a)  # by its own width it has no scale


def test_nothing_is_divided_by_zero() -> None:
    x = torch.ones(5, 3, requires_grad=True)
    a = graph(x, 2)
    assert a.isfinite().all()
    assert float(a.detach().max()) == 1
    assert torch.autograd.grad(a.sum(), x)[0].isfinite().all()
    assert torch.equal(graph(torch.ones(1, 3), 2), torch.ones(1, 1))


# --- the losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["student", "teacher"])
def test_the_local_loss_is_scipys_relative_entropy(first: str) -> None:
    s, t = graph(draw(7, 3), 2), graph(draw(7, 5), 2)
    p, q = softmax(2 * s.numpy(), 1), softmax(2 * t.numpy(), 1)
    p, q = (p, q) if first == "student" else (q, p)
    by_hand = np.mean([rel_entr(p[i], q[i]).sum() for i in range(7)])
    assert float(local_loss(s, t, first, 2.0)) == pytest.approx(float(by_hand), rel=1e-9)


def test_a_rotation_and_a_shift_keep_the_graph() -> None:
    t = draw(12, 6)
    s = rotated(t) + draw(6)
    assert float(local_loss(graph(s, 4, 2.0), graph(t, 4, 2.0))) < 1e-12
    assert float(local_loss(graph(draw(12, 6), 4, 2.0), graph(t, 4, 2.0))) > 1e-3


def test_a_rotation_keeps_the_context() -> None:
    t = draw(3, 9, 6)
    torch.testing.assert_close(context(rotated(t)), context(t))
    for b in range(3):
        scores = t[b].numpy() @ t[b].numpy().T / math.sqrt(6)
        np.testing.assert_allclose(context(t)[b].numpy(), softmax(scores, 1), rtol=1e-9)
    assert float((context(t + 1) - context(t)).abs().max()) > 1e-3  # a shift it sees


def test_the_contrast_of_orthonormal_tokens_by_hand() -> None:
    t = torch.eye(6, dtype=torch.float64)
    for tau in (1.0, 0.1):
        by_hand = math.log(1 + 5 * math.exp(-1 / tau))
        assert float(contrast_loss(3 * t, t, tau)) == pytest.approx(by_hand, rel=1e-9)
    wrong = float(contrast_loss(t.roll(1, 0), t, 0.1))  # another token of the teacher is nearer
    assert wrong == pytest.approx(10 + math.log(1 + 5 * math.exp(-10)), rel=1e-9)


def test_the_temperature_falls() -> None:
    method = TRG(hot=1.0, cold=0.2)
    assert [method.temperature(f) for f in (0, 0.25, 0.5, 1)] == pytest.approx([1, 0.8, 0.6, 0.2])
    turned = replace(method, anneal="cosine")
    by_hand = [1, 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2, 0.6, 0.2]
    assert [turned.temperature(f) for f in (0, 0.25, 0.5, 1)] == pytest.approx(by_hand)


# --- the objective --------------------------------------------------------------------------------


def sides(here: int = 3, there: int = 5) -> tuple[SimpleNamespace, SimpleNamespace, Batch]:
    s, t = (
        SimpleNamespace(logits=draw(6, 4).float(), feature=draw(6, width, 3, 3).float())
        for width in (here, there)
    )
    return s, t, Batch(x=s.logits, y=torch.arange(6) % 4, index=torch.arange(6) + 10)


def asked(method: TRG, at: Clock, here: int = 3, there: int = 5) -> tuple[Any, ...]:
    s, t, batch = sides(here, there)
    parts = method.build(s, t, batch, Facts(6, 4, 10, 5))
    return method.terms(parts, s, t, batch, at), parts, s, t, batch


def test_terms_are_of_the_same_places_of_both_sides() -> None:
    method = TRG(inner=2.0, local=3.0, contrast=0.5, sampled=4, neighbours=3)
    out, parts, s, t, batch = asked(method, clock(10))
    assert set(out) == {"label", "kd", *TOKENS}
    places = clock(10).rng("tokens", batch.index).rand(9).argsort(1)[:, :4]
    assert len({tuple(p.tolist()) for p in places}) > 1  # each picture has its own
    mine, theirs = (
        torch.stack([x.feature[b].flatten(1)[:, p] for b in range(6) for p in places[b]])
        for x in (s, t)
    )
    assert mine.shape == (24, 3)
    by_hand = 3 * local_loss(graph(mine, 3), graph(theirs, 3))
    torch.testing.assert_close(out["local"], by_hand)
    at = 0.5 * contrast_loss(parts["map"](mine), theirs, 0.1)  # the last step is the coldest
    torch.testing.assert_close(out["contrast"], at)
    whole = [context(x.feature.flatten(2).mT) for x in (s, t)]
    by_hand = sum(float((whole[0][b] - whole[1][b]).square().mean()) for b in range(6)) / 6
    assert float(out["inner"]) == pytest.approx(2 * by_hand, rel=1e-5)
    torch.testing.assert_close(out["kd"], kl(s.logits, t.logits, 4.0).mean())


def test_places_change_with_the_step_and_not_with_the_order() -> None:
    method, turn = TRG(kd=0, inner=0, sampled=4), torch.tensor([3, 0, 5, 1, 4, 2])
    out, parts, s, t, batch = asked(method, clock(3))
    later = method.terms(parts, s, t, batch, clock(4))
    assert float(later["local"]) != float(out["local"])
    s, t = (SimpleNamespace(logits=x.logits[turn], feature=x.feature[turn]) for x in (s, t))
    turned = method.terms(parts, s, t, batch.select(turn), clock(3))
    torch.testing.assert_close(turned["local"], out["local"])


def test_more_places_than_there_are_takes_all() -> None:
    out, _, s, t, _ = asked(TRG(sampled=99), clock())
    mine, theirs = (x.feature.flatten(2).mT.flatten(0, 1) for x in (s, t))
    torch.testing.assert_close(out["local"], local_loss(graph(mine, 8), graph(theirs, 8)))


def test_only_other_widths_are_mapped() -> None:
    assert isinstance(asked(TRG(), clock())[1]["map"], nn.Linear)
    _, parts, *_ = asked(TRG(), clock(), 5, 5)
    assert not list(parts.parameters())
    assert not list(asked(TRG(contrast=0), clock())[1].children())


def test_weight_zero_is_not_computed() -> None:
    s, t, batch = sides()
    off = TRG(inner=0, local=0, contrast=0)
    blind = [SimpleNamespace(logits=x.logits) for x in (s, t)]
    out = off.terms(nn.Module(), *blind, batch, clock())
    base = make("kd(label=1.0, kd=1.0, tau=4.0)").terms(nn.Module(), *blind, batch, clock())
    assert set(out) == set(base) == {"label", "kd"}
    assert all(torch.equal(out[n], base[n]) for n in out)
    for name in TOKENS:
        found = asked(TRG(**{n: 0.0 for n in TOKENS if n != name}), clock())[0]
        assert set(found) == {"label", "kd", name}


def net(width: int) -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(1, width, 2, 2), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def task(steps: int) -> Task:
    x, y = torch.randn(32, 1, 8, 8, generator=G), torch.arange(32) % 4
    torch.manual_seed(1)
    budget = Budget(steps=steps, batch=16, optimiser=Optimiser("adam", lr=0.02))
    taps = {"feature": ("0", "0")}
    return Task(net(8), net(4), (x, y), test=(x, y), taps=taps, budget=budget)


def test_each_loss_falls_where_it_is_trained_alone() -> None:
    given = task(80)
    for name in TOKENS:
        fields = {n: 0.0 for n in ("label", "kd", *TOKENS) if n != name}
        hot = {"hot": 0.1} if name == "contrast" else {}
        log = limbeck.run("trg", given, device="cpu", **fields, **hot, **{name: 1.0}).log
        values = [row["terms"][name] for row in log if "terms" in row]
        assert sum(values[-10:]) < 0.8 * sum(values[:10]), name


def test_what_is_missing_or_out_of_range_is_said() -> None:
    with pytest.raises(Missing, match="'feature'"):
        limbeck.run("trg", replace(task(2), taps={}), device="cpu")
    for field in ("sampled=0", "neighbours=0", "sigma=-1", "cold=0", "grid=-1", "local=-1"):
        with pytest.raises(UsageError):
            make(f"trg({field})")
