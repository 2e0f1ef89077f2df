"""fsp: the matrix by loops, a hand-worked pair, its invariances, and what each stage trains."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import limbeck
from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.objectives import Labels
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.errors import UsageError
from limbeck.vision._kit.layers import Fitted, layers
from limbeck.vision.fsp import FSP, Stage, flow, fsp_loss

pytestmark = pytest.mark.xdist_group("fsp")

G = torch.Generator().manual_seed(5)
X, Y = torch.randn(32, 1, 8, 8, generator=G), torch.arange(32) % 4


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def row(*channels: tuple[float, ...]) -> Tensor:
    """Channels of one picture, each a row of places -> (1, C, 1, W)."""
    return torch.tensor(channels, dtype=torch.float64)[None, :, None]


def slow_flow(a: Tensor, b: Tensor) -> Tensor:
    out = torch.zeros(len(a), a.shape[1], b.shape[1], dtype=torch.float64)
    for n, i, j in torch.cartesian_prod(*(torch.arange(k) for k in out.shape)).tolist():
        for y in range(a.shape[2]):
            for x in range(a.shape[3]):
                out[n, i, j] += a[n, i, y, x] * b[n, j, y, x] / (a.shape[2] * a.shape[3])
    return out


# --- the mathematics -----------------------------------------------------------------------------


def test_the_worked_pair_of_layers() -> None:
    g_t = flow(row((1, 2)), row((3, 1), (0, 4)))
    assert g_t.tolist() == [[[2.5, 4.0]]]
    above = row((2, 2), (1, 3)).requires_grad_()
    g_s = flow(row((1, 0)), above)
    assert g_s.tolist() == [[[1.0, 0.5]]]
    loss = fsp_loss(g_s, g_t)
    assert float(loss.detach()) == 14.5
    assert float(fsp_loss(g_s, g_t, mean=True).detach()) == 7.25
    loss.backward()
    # 2 / places * (G_s - G_t) * what the layer below has there, which is 0 at the second place
    assert above.grad[0, :, 0].tolist() == [[-1.5, 0.0], [-3.5, 0.0]]


def test_flow_is_by_loops_what_is_written() -> None:
    a, b = draw(3, 4, 2, 5), draw(3, 6, 2, 5)
    torch.testing.assert_close(flow(a, b), slow_flow(a, b))
    assert torch.equal(flow(a, b), flow(b, a).mT)


def test_gradient_is_the_closed_form() -> None:
    a, b, g_t = draw(2, 3, 2, 3), draw(2, 4, 2, 3).requires_grad_(), draw(2, 3, 4)
    fsp_loss(flow(a, b), g_t).backward()
    gap = slow_flow(a, b.detach()) - g_t
    by_hand = torch.zeros_like(b)
    for n, j, y, x in torch.cartesian_prod(*(torch.arange(k) for k in b.shape)).tolist():
        by_hand[n, j, y, x] = 2 / 6 * sum(gap[n, i, j] * a[n, i, y, x] for i in range(3)) / 2
    torch.testing.assert_close(b.grad, by_hand)


def test_loss_is_a_sum_over_entries_and_a_mean_over_samples() -> None:
    s, t = draw(3, 2, 4), draw(3, 2, 4)
    by_loop = sum(float(u - v) ** 2 for u, v in zip(s.flatten(), t.flatten(), strict=True))
    assert float(fsp_loss(s, t)) == pytest.approx(by_loop / 3)
    assert float(fsp_loss(s, t, mean=True)) == pytest.approx(by_loop / 24)
    assert float(fsp_loss(s, s)) == 0


def test_what_leaves_a_flow_alone() -> None:
    a, b = draw(2, 3, 4, 4), draw(2, 5, 4, 4)
    mixed = torch.randperm(16, generator=G)
    one, two = (x.flatten(2)[:, :, mixed].unflatten(2, (4, 4)) for x in (a, b))
    torch.testing.assert_close(flow(one, two), flow(a, b))
    torch.testing.assert_close(flow(4 * a, b / 4), flow(a, b))
    assert not torch.allclose(flow(one, b), flow(a, b))
    # maps that are the same at all places: the grid does not count
    flat = draw(2, 3, 1, 1), draw(2, 5, 1, 1)
    wide = flat[0].expand(-1, -1, 6, 2), flat[1].expand(-1, -1, 3, 3)
    torch.testing.assert_close(flow(*wide), flow(*flat))


def test_the_larger_map_is_pooled_on_each_axis() -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None], torch.full((1, 1, 1, 1), 5.0)
    assert float(flow(a, b)) == 20
    assert float(flow(b, a)) == 20
    assert float(flow(a, b, "avg")) == 12.5
    tall, broad = draw(1, 1, 4, 2), draw(1, 1, 2, 4)
    expected = slow_flow(F.max_pool2d(tall, (2, 1)), F.max_pool2d(broad, (1, 2)))
    torch.testing.assert_close(flow(tall, broad), expected)


def test_half_precision_is_summed_in_float32() -> None:
    a = torch.full((1, 1, 64, 64), 300.0, dtype=torch.float16)
    assert float(flow(a, a)) == 90000  # beyond float16
    assert flow(a.double(), a.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert flow(a.float(), a.float()).dtype == torch.float32


# --- layers of two sides -------------------------------------------------------------------------


def sides(s: list[Tensor], t: list[Tensor]) -> tuple[Any, Any]:
    return SimpleNamespace(blocks=s), SimpleNamespace(blocks=t)


def test_blocks_are_thinned_evenly_to_the_shorter_list() -> None:
    blocks = [torch.full((1, 1), float(k)) for k in range(1, 13)]

    def chosen(count: int) -> list[int]:
        ours, theirs = layers(*sides(blocks[:count], blocks), "x")
        assert [int(x) for x in ours] == list(range(1, count + 1))
        return [int(x) for x in theirs]

    assert chosen(4) == [3, 6, 9, 12]
    assert chosen(12) == list(range(1, 13))


def test_tokens_are_maps_without_the_class_token() -> None:
    s, t = sides([draw(2, 3, 4, 4), draw(2, 5, 2, 2)], [draw(2, 17, 3), draw(2, 16, 5)])
    ours, theirs = layers(s, t, "x")
    assert [tuple(x.shape) for x in ours] == [(2, 3, 4, 4), (2, 5, 2, 2)]
    assert [tuple(x.shape) for x in theirs] == [(2, 3, 4, 4), (2, 5, 4, 4)]
    assert torch.equal(theirs[0][:, :, 1, 2], t.blocks[0][:, 1 + 6])
    assert torch.isfinite(FSP().flows(None, s, t))


def test_channels_must_be_the_teachers_or_are_projected() -> None:
    s = [draw(2, 3, 4, 4).float(), draw(2, 5, 2, 2).float()]
    t = [draw(2, 3, 4, 4).float(), draw(2, 7, 2, 2).float()]
    given = (*sides(s, t), Batch(x=X, y=Y), None)
    with pytest.raises(UsageError, match="layer 2 has 5 in the student and 7 in the teacher"):
        Stage("fsp", FSP()).build(*given)
    parts = Stage("fsp", FSP(project=True)).build(*given)
    made = parts["project"]
    assert isinstance(made, Fitted)
    for k in range(2):
        by_hand = torch.einsum("bchw,dc->bdhw", s[k], made[k].weight[:, :, 0, 0])
        torch.testing.assert_close(made(s)[k], by_hand)
    assert FSP(project=True).flows(parts, *given[:2]).requires_grad
    # the second stage goes on with the first one's, and has none where it does not need them
    m = FSP(project=True, also=1.0)
    assert Stage("label", m, parts).build(*given) is parts
    assert not list(Stage("label", replace(m, also=0.0), parts).build(*given).parameters())


def test_pairs_are_a_chain_or_two_by_two() -> None:
    s, t = ([draw(2, 2, 3, 3) for _ in range(4)] for _ in range(2))

    def gap(k: int) -> float:
        return float(fsp_loss(slow_flow(s[k], s[k + 1]), slow_flow(t[k], t[k + 1])))

    chain, two = (float(FSP(pairs=p).flows(None, *sides(s, t))) for p in ("chain", "two"))
    assert chain == pytest.approx(gap(0) + gap(1) + gap(2))
    assert two == pytest.approx(gap(0) + gap(2))
    with pytest.raises(UsageError, match="two by two, but there are 3"):
        FSP(pairs="two").flows(None, *sides(s[:3], t[:3]))
    with pytest.raises(UsageError, match="tap at least 2 modules"):
        FSP().flows(None, *sides(s[:1], t))
    with pytest.raises(UsageError, match="no map"):
        FSP().flows(None, *sides([draw(2, 2, 3, 3, 3)] * 2, t))


def test_terms_of_each_stage() -> None:
    s = SimpleNamespace(blocks=[draw(4, 2, 3, 3), draw(4, 3, 3, 3)], logits=draw(4, 5))
    t = SimpleNamespace(blocks=[draw(4, 2, 3, 3), draw(4, 3, 3, 3)], logits=draw(4, 5))
    batch, clock = Batch(x=X[:4], y=Y[:4]), Clock(0, "fsp", 0, 1, 1)
    gap = float(fsp_loss(slow_flow(*s.blocks), slow_flow(*t.blocks)))

    def terms(name: Any, **kw: Any) -> dict[str, float]:
        out = Stage(name, FSP(**kw)).terms(None, s, t, batch, clock)
        return {k: float(v) for k, v in out.items()}

    assert terms("fsp", fsp=3.0) == {"fsp": pytest.approx(3 * gap)}
    plain = float(F.cross_entropy(s.logits, Y[:4]))
    assert terms("label") == {"label": pytest.approx(plain, rel=1e-5)}
    log_s, log_t = ((z / 4).log_softmax(1) for z in (s.logits, t.logits))
    soft = 16 * float((log_t.exp() * (log_t - log_s)).sum(1).mean())
    assert terms("label", label=0.0, also=2.0, kd=0.5) == {
        "also": pytest.approx(2 * gap),
        "kd": pytest.approx(soft / 2, rel=1e-5),
    }


# --- the stages ----------------------------------------------------------------------------------


def net(depth: int) -> nn.Sequential:
    """Blocks "0" (B, 3, 8, 8) and "1" (B, 5, 4, 4) of so many convolutions, and a classifier."""

    def block(here: int, out: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(here, out, 3, padding=1), nn.ReLU()]
            here = out
        return nn.Sequential(*layers)

    second = nn.Sequential(nn.MaxPool2d(2), block(3, 5))
    return nn.Sequential(block(1, 3), second, nn.Flatten(), nn.Linear(80, 4))


def task(**kw: Any) -> Task:
    torch.manual_seed(2)
    given: dict[str, Any] = {
        "teacher": net(2),
        "student": net(1),
        "train": (X, Y),
        "test": (X, Y),
        "taps": {"blocks": (["0", "1"], ["0", "1"])},
        "budget": Budget(epochs=3, batch=8, optimiser=Optimiser("sgd", lr=0.05)),
    }
    return Task(**{**given, **kw})


def run(given: Task, **kw: Any) -> Any:
    return limbeck.run("fsp", given, seed=4, device="cpu", **kw)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(v, other[k]) for k, v in a.state_dict().items())


def test_first_stage_has_no_labels_and_leaves_the_classifier() -> None:
    given = task()
    only = {"label": 0.0, "also": 1e-30}  # a second stage that moves nothing
    first = run(given, rate=1.0, **only)
    before, after = given.student.state_dict(), first.model.state_dict()
    moved = [k for k in before if not torch.allclose(before[k], after[k], atol=1e-7)]
    assert moved == ["0.0.weight", "0.0.bias", "1.1.0.weight", "1.1.0.bias"]
    assert same(first.model, run(task(train=(X, Y.flip(0))), rate=1.0, **only).model)
    logged = [r["terms"]["fsp"] for r in first.log if r["stage"] == "fsp"]
    assert logged[-1] < logged[0]


def test_the_second_stage_is_label_training_from_the_first_ones_end() -> None:
    given = task()
    result = run(given)
    assert [(s["stage"], s["steps"]) for s in result.facts["stages"]] == [
        ("fsp", 12),
        ("label", 12),
    ]
    assert set(result.log[-1]["terms"]) == {"label"}
    bare = run(given, fsp=0.0)
    assert [s["stage"] for s in bare.facts["stages"]] == ["label"]
    plain = limbeck.run(Labels(), given, seed=4, device="cpu")
    assert same(bare.model, plain.model)
    assert not same(result.model, plain.model)
    assert list(result.model.state_dict()) == list(given.student.state_dict())


def test_rate_and_share_are_of_the_first_stage() -> None:
    given = task(budget=Budget(steps=1, batch=32, optimiser=Optimiser("sgd", lr=0.05)))
    frozen = {"label": 0.0, "also": 1e-30}
    ends = [state(run(given, rate=rate, **frozen).model) for rate in (0.01, 1.0)]
    start = given.student.state_dict()
    slow, fast = (end["0.0.weight"] - start["0.0.weight"] for end in ends)
    torch.testing.assert_close(100 * slow, fast, rtol=1e-3, atol=1e-6)
    longer = task(budget=Budget(steps=8, batch=8, optimiser=Optimiser("sgd", lr=0.05)))
    assert [s["steps"] for s in run(longer, share=0.5).facts["stages"]] == [4, 8]


def test_one_stage_lowers_both_terms() -> None:
    given = task(budget=Budget(epochs=25, batch=8, optimiser=Optimiser("adam", lr=0.01)))
    result = run(given, fsp=0.0, also=100.0)
    first, last = result.log[0]["terms"], result.log[-1]["terms"]
    assert set(first) == {"label", "also"}
    assert last["also"] < 0.5 * first["also"]
    assert last["label"] < first["label"]
