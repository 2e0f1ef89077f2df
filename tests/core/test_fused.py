"""The fused road equals the plain definition, in value and in every gradient."""

import pytest
import torch

from limbeck.core.losses import fused
from limbeck.core.losses.divergences import NAMES, Divergence, rows, summed
from limbeck.core.signals import Dense, Head, Linear, Mixture, Sampled, TopK

pytestmark = pytest.mark.xdist_group("signals")

N, V, H = 23, 61, 8
TAU = 1.7


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def student(dtype, bias=True, grad=(True, True, True), **head):
    h, w = (torch.randn(n, H, generator=rng(n), dtype=torch.float64) for n in (N, V + 3))
    b = torch.randn(V + 3, generator=rng(5), dtype=torch.float64) if bias else None
    leaves = [
        None if x is None else x.to(dtype).requires_grad_(g)
        for x, g in zip((h, w, b), grad, strict=True)
    ]
    return Linear(leaves[0], Head(leaves[1], leaves[2], vocab=V, **head)), leaves


def teacher(kind, dtype=torch.float64):
    h = torch.randn(N, H + 2, generator=rng(7), dtype=dtype)
    whole = Linear(h, Head(torch.randn(V + 5, H + 2, generator=rng(8), dtype=dtype), vocab=V))
    logp = whole.log_p(TAU)
    if kind == "dense":
        return Dense(whole.head(h))
    if kind == "topk":
        found = logp.topk(9)
        return TopK(found.indices, found.values, V, TAU)
    if kind == "sampled":
        ids = torch.multinomial(logp.exp(), 6, True, generator=rng(9))
        return Sampled(ids, torch.full(ids.shape, 1 / 6, dtype=dtype), V, TAU)
    if kind == "mixture":
        other = torch.randn(N, V, generator=rng(10), dtype=dtype)
        return Mixture((whole, Dense(other)), (0.3, 0.7))
    if kind == "mixture of few":
        return Mixture((teacher("topk", dtype), teacher("sampled", dtype)), (0.4, 0.6))
    return whole


def both(how, s, leaves, t, tau=TAU, dtype=torch.float64):
    """(value, gradients) by the definition and by the fused road, of a weighted sum."""
    weights = torch.rand(N, generator=rng(11), dtype=dtype)
    wanted = [x for x in leaves if x is not None and x.requires_grad]
    out = []
    for total in (
        (weights * rows(how, s, t, tau)).sum(),
        summed(how, s, t, weights, tau),
    ):
        slopes = torch.autograd.grad(3 * total, wanted, retain_graph=True)
        out.append((total.detach(), slopes))
    return out


CELLS = [
    (name, kind)
    for name in NAMES
    for kind in ("linear", "dense", "topk", "sampled", "mixture", "mixture of few")
    if not (name != "forward_kl" and kind in ("sampled", "mixture of few"))
    and not (name == "adaptive" and kind == "topk")
]


@pytest.mark.parametrize(("name", "kind"), CELLS)
@pytest.mark.parametrize("places", [1, 5, 64])
def test_equals_the_definition(name, kind, places, monkeypatch):
    monkeypatch.setattr(fused, "ENTRIES", places * V)
    s, leaves = student(torch.float64, scale=0.7, cap=5.0)
    (a, slopes), (b, fast) = both(Divergence(name, 0.3), s, leaves, teacher(kind))
    torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)
    for x, y in zip(fast, slopes, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adaptive"])
def test_places_of_fewer_entries(name):
    """As a server gives them: an id of -1 is no outcome, in value and gradient, on both roads."""
    s, leaves = student(torch.float64)
    full = teacher("topk")
    fewer = torch.arange(N) % 9 + 1  # entries of each place
    none = torch.arange(9) >= fewer[:, None]
    t = TopK(full.ids.masked_fill(none, -1), full.logp.masked_fill(none, -torch.inf), V, TAU)
    how = Divergence(name, 0.3)
    (a, slopes), (b, fast) = both(how, s, leaves, t)
    weights = torch.rand(N, generator=rng(11), dtype=torch.float64)
    by_row = [  # each place by itself, with as many entries as it has
        rows(
            how,
            s.at(slice(i, i + 1)),
            TopK(full.ids[i : i + 1, :k], full.logp[i : i + 1, :k], V, TAU),
            TAU,
        )
        for i, k in enumerate(fewer.tolist())
    ]
    total = (weights * torch.cat(by_row)).sum()
    by_hand = torch.autograd.grad(3 * total, leaves)
    for value, slope in ((a, slopes), (b, fast)):
        torch.testing.assert_close(value, total.detach(), rtol=1e-10, atol=1e-12)
        for x, y in zip(slope, by_hand, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_as_near_as_the_definition(name):
    s, leaves = student(torch.float32)
    (a, slopes), (b, fast) = both(
        Divergence(name, 0.3), s, leaves, teacher("linear", torch.float32), dtype=torch.float32
    )
    torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    for x, y in zip(fast, slopes, strict=True):
        assert float((x - y).norm() / y.norm()) < 1e-5


@pytest.mark.parametrize("places", [1, 4, 23])
@pytest.mark.parametrize("name", ["forward_kl", "jsd", "skew_reverse_kl"])
def test_bfloat16_heads_gradient(name, places, monkeypatch):
    """As near to the definition in float64 as the exact gradient is once rounded to bfloat16."""
    monkeypatch.setattr(fused, "ENTRIES", places * V)
    half, leaves = student(torch.bfloat16, bias=False)
    t, weights, how = teacher("linear"), torch.full((N,), 1 / N), Divergence(name, 0.3)
    _, fast = torch.autograd.grad(summed(how, half, t, weights, TAU), leaves[:2])
    wide = [x.detach().double().requires_grad_() for x in leaves[:2]]
    exact = (weights * rows(how, Linear(wide[0], Head(wide[1], vocab=V)), t, TAU)).sum()
    _, slope = torch.autograd.grad(exact, wide)
    assert fast.dtype == torch.bfloat16
    rounded = float((slope.bfloat16().double() - slope).norm() / slope.norm())
    assert float((fast.double() - slope).norm() / slope.norm()) < 1.01 * rounded < 0.0025


@pytest.mark.parametrize("name", NAMES)
def test_identical_models_give_exactly_nothing(name):
    """Padding of any content included."""
    s, leaves = student(torch.float32, bias=False)
    other = leaves[1].detach().clone()
    other[V:] = 100.0
    t = Linear(leaves[0].detach(), Head(other, vocab=V))
    total = summed(Divergence(name, 0.3), s, t, torch.ones(N))
    slopes = torch.autograd.grad(total, leaves[:2])
    assert float(total.detach().abs()) <= (1e-4 if name == "alpha" else 0.0)
    if name in ("forward_kl", "reverse_kl", "jsd"):
        assert all(not x.any() for x in slopes)
    assert all(float(x.abs().max()) < 1e-5 for x in slopes)


def test_frozen_head_gets_no_gradient_and_costs_no_matrix(monkeypatch):
    s, leaves = student(torch.float64, grad=(True, False, False))
    made = []
    zeros = torch.Tensor.new_zeros
    monkeypatch.setattr(
        torch.Tensor, "new_zeros", lambda x, *a, **k: made.append(a) or zeros(x, *a, **k)
    )
    total = summed(Divergence("jsd"), s, teacher("linear"), torch.ones(N))
    assert all(a == ((),) for a in made)
    total.backward()
    assert leaves[0].grad is not None
    assert leaves[1].grad is None


def test_a_second_backward_pass_gives_the_same():
    s, leaves = student(torch.float64)
    total = summed(Divergence("jsd"), s, teacher("linear"), torch.ones(N))
    first = torch.autograd.grad(2 * total, leaves, retain_graph=True)
    again = torch.autograd.grad(2 * total, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_without_gradient_only_the_value():
    s, _ = student(torch.float64)
    with torch.no_grad():
        total = summed(Divergence("jsd"), s, teacher("topk"), torch.ones(N), TAU)
    assert not total.requires_grad
    full = rows(Divergence("jsd"), s, teacher("topk"), TAU).sum()
    torch.testing.assert_close(total, full.detach())


def test_no_tensor_of_all_places_and_tokens_is_made(monkeypatch):
    """The largest tensor of a sweep has `ENTRIES` numbers, or is as large as the head."""
    monkeypatch.setattr(fused, "ENTRIES", 4 * V)
    s, _ = student(torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    t = teacher("linear", torch.float32)
    with Watch():
        summed(Divergence("jsd"), s, t, torch.ones(N)).backward()
    assert largest <= max(4 * V, (V + 5) * (H + 2)) < N * V


def test_gradients_pass_a_low_rank_addition_to_the_head():
    _, leaves = student(torch.float64, bias=False, grad=(True, False, False))
    a, b = (torch.randn(*shape, generator=rng(1)).double() for shape in ((2, H), (V + 3, 2)))
    a.requires_grad_(), b.requires_grad_()
    adapted = Linear(leaves[0], Head(leaves[1] + 0.5 * (b @ a), vocab=V))
    (x, slopes), (y, fast) = both(Divergence("forward_kl"), adapted, [a, b], teacher("linear"))
    torch.testing.assert_close(y, x)
    for one, two in zip(fast, slopes, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.slow
def test_under_compile_it_is_the_same():
    _, leaves = student(torch.float32)
    t = teacher("linear", torch.float32)

    def loss(h, w, b):
        return summed(Divergence("jsd"), Linear(h * 1.5, Head(w, b, vocab=V)), t, torch.ones(N))

    plain = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.autograd.grad(torch.compile(loss)(*leaves), leaves)
    for a, b in zip(compiled, plain, strict=True):
        torch.testing.assert_close(a, b)
