"""Rows of packed tokens: their exact bits, what they lose, and draws without bias."""

import itertools
import json
import math
import struct

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.core.packing import Layout, draw, select_topk
from limbeck.core.rng import generator
from limbeck.errors import NonFinite, UsageError

pytestmark = pytest.mark.xdist_group("packing")

SHAPES = [(1, 1), (1, 7), (2, 2), (7, 7), (64, 64), (5, 9), (50, 49152), (3, 1000), (64, 65)]


def logits(rows: int, vocab: int, spread: float, name: str) -> Tensor:
    """Peaked like a language model's: normal numbers with a long upper tail."""
    z = torch.randn(rows, vocab, generator=generator(0, name))
    return spread * (z + 0.1 * z.clamp_min(0) ** 2)


def some_sets(k: int, vocab: int, rows: int) -> Tensor:
    """Random sets (rows, k), among them the first and the last k ids, and both ends."""
    rng = generator(1, k, vocab)
    sets = [torch.randperm(vocab, generator=rng)[:k].sort().values for _ in range(rows)]
    first, last = torch.arange(k), torch.arange(vocab - k, vocab)
    ends = torch.cat([first[: (k + 1) // 2], last[len(last) - k // 2 :]])
    return torch.stack([*sets, first, last, ends])


def by_hand(layout: Layout, row: bytes) -> tuple[list[int], list[float]]:
    """Read one row bit by bit, from the description in the module alone."""
    k, vocab = layout.k, layout.vocab
    low = 0
    while 2 ** (low + 1) * k <= vocab:
        low += 1
    head = row[:4] if layout.bits else b""
    bits = iter("".join(f"{byte:08b}" for byte in row[len(head) :]))
    take = lambda n: int("0" + "".join(itertools.islice(bits, n)), 2)  # noqa: E731
    lows = [take(low) for _ in range(k)]
    marks = [take(1) for _ in range(k + math.ceil(vocab / 2**low))]
    highs, zeros = [], 0
    for mark in marks:  # unary: as many zeros as the high part has grown, then a one
        if mark:
            highs.append(zeros)
        else:
            zeros += 1
    ids = [high * 2**low + rest for high, rest in zip(highs, lows, strict=True)]
    if not layout.bits:
        assert set(bits) <= {"0"}
        return ids, [1 / k] * k
    codes = [take(layout.bits) for _ in range(k)]
    assert len(rest := list(bits)) < 8
    assert set(rest) <= {"0"}
    least, mass = struct.unpack("<ee", head)
    values = [(1 - code * (1 - least) / (2**layout.bits - 1)) ** 8 for code in codes]
    if layout.kind == "sampled":
        return ids, [math.exp(mass) * v / sum(values) for v in values]
    kept = mass / 65536 if mass > 0 else 1 + mass / 65536
    return ids, [math.log(kept * v / sum(values)) for v in values]


def bound(logp: Tensor, bits: int) -> Tensor:
    """How wrong the module says that log-probabilities (N, k) may become."""
    v = ((logp - logp.amax(-1, keepdim=True)).double() / 8).exp().clamp_min(math.exp(-8))
    r = v.amin(-1, keepdim=True)
    h = (1 - r) / (2 * (2**bits - 1))
    b = 8 * (1 + h / torch.maximum(v - h, r)).log()
    p = logp.double().softmax(-1)
    return b + (p * b.exp()).sum(-1, keepdim=True).log() + 0.005


@pytest.mark.parametrize(("k", "vocab"), SHAPES)
def test_sets_come_back_exactly(k: int, vocab: int) -> None:
    ids = some_sets(k, vocab, 40)
    logp = torch.randn(ids.shape, generator=generator(2)).log_softmax(-1) - 0.1
    for bits in (1, 6, 8):
        layout = Layout("topk", k, vocab, bits)
        rows = layout.pack(ids, logp)
        assert rows.dtype == torch.uint8
        assert rows.shape == (len(ids), layout.width)
        back, values = layout.unpack(rows)
        assert back.dtype == torch.int64
        assert values.dtype == torch.float32
        assert torch.equal(back, ids)


@pytest.mark.parametrize(("k", "vocab"), [*SHAPES, (50, 3), (9, 1), (100, 64)])
def test_multisets_come_back_exactly(k: int, vocab: int) -> None:
    ids = torch.randint(vocab, (40, k), generator=generator(3, k, vocab)).sort().values
    ids[0], ids[1] = 0, vocab - 1
    even = torch.full(ids.shape, 1 / k)
    for layout in (Layout("sampled", k, vocab, 0), Layout("sampled", k, vocab)):
        back, weights = layout.unpack(layout.pack(ids, even))
        assert torch.equal(back, ids)
        torch.testing.assert_close(weights, even, rtol=1e-3 if layout.bits else 0, atol=0)


@pytest.mark.parametrize(
    ("kind", "bits"), [(k, b) for k in ("topk", "sampled") for b in range(9)][1:]
)
@pytest.mark.parametrize(("k", "vocab"), [(1, 1), (7, 7), (5, 9), (50, 49152), (3, 1000)])
def test_each_bit_lies_where_the_module_says(kind: str, bits: int, k: int, vocab: int) -> None:
    z = logits(6, vocab, 2.5, "bits")
    if kind == "topk":
        ids, values = select_topk(z, k)
    else:
        ids, values = draw(z, k, 0.7 if bits else 1, generator(4))
    layout = Layout(kind, k, vocab, bits)
    rows = layout.pack(ids, values)
    back, unpacked = layout.unpack(rows)
    for row, number, value in zip(rows, back, unpacked, strict=True):
        ids_by_hand, values_by_hand = by_hand(layout, bytes(row.tolist()))
        assert ids_by_hand == number.tolist()
        expected = torch.tensor(values_by_hand)
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=2e-6 * (kind == "topk"))


def test_a_row_written_out() -> None:
    """k = 2 of V = 8: l = 2, low bits 01 11, high parts 0 and 1: ones at bits 0 and 2 of 4."""
    layout = Layout("topk", 2, 8, 1)
    rows = layout.pack(torch.tensor([[1, 7]]), torch.tensor([[0.25, 0.125]]).log())
    scale = struct.pack("<ee", 0.5 ** (1 / 8), 0.375 * 65536)
    assert bytes(rows[0].tolist()) == scale + bytes([0b0111_1010, 0b01_000000])
    assert layout.width == 6


def test_fifty_entries_of_a_vocabulary_take_less_than_120_bytes() -> None:
    assert Layout("topk", 50, 49152).width == 116
    assert Layout("sampled", 50, 49152, 0).width == 75


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.3, 1.0, 3.0, 10.0, 60.0])
@pytest.mark.parametrize(("k", "vocab"), [(1, 500), (50, 3000), (40, 40)])
def test_log_probabilities_stay_within_the_bound(spread: float, k: int, vocab: int) -> None:
    ids, logp = select_topk(logits(300, vocab, spread, "bound"), k)
    for bits in (4, 6, 8):
        layout = Layout("topk", k, vocab, bits)
        _, back = layout.unpack(layout.pack(ids, logp))
        deep = logp < logp.amax(-1, keepdim=True) - 64  # kept as e^-64 of the likeliest
        wrong = (back - logp).abs().masked_fill(deep, 0)
        assert (wrong <= bound(logp, bits)).all()


def test_the_bound_means_something() -> None:
    """It is not far above what happens, and small where the mass is."""
    ids, logp = select_topk(logits(300, 3000, 1.5, "bound"), 50)
    layout = Layout("topk", 50, 3000)
    wrong = (layout.unpack(layout.pack(ids, logp))[1] - logp).abs()
    assert wrong.max() > bound(logp, 6).max() / 4
    assert bound(logp, 6).max() < 0.3


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 3.0, 10.0, 60.0])
@pytest.mark.parametrize(("k", "vocab"), [(1, 500), (50, 3000), (50, 49152), (40, 40)])
def test_the_tail_is_right_and_the_mass_never_above_one(spread: float, k: int, vocab: int) -> None:
    ids, logp = select_topk(logits(100, vocab, spread, "tail"), k)
    layout = Layout("topk", k, vocab, 3)
    _, back = layout.unpack(layout.pack(ids, logp))
    kept, now = logp.double().exp().sum(-1), back.double().exp().sum(-1)
    assert (now < 1).all()
    assert (back.exp().sum(-1) < 1).all()  # as a loss sums it
    tail, tail_now = (1 - kept).clamp_min(2.0**-20), 1 - now
    share = torch.where(kept <= 0.5, now / kept, tail_now / tail)
    assert ((share - 1).abs() < 2.0**-11 + 1e-6 / torch.minimum(kept, tail)).all()


def test_divergence_of_language_like_distributions_is_small() -> None:
    ids, logp = select_topk(logits(2000, 3000, 1.5, "kl").double(), 50)
    layout = Layout("topk", 50, 3000)
    back = layout.unpack(layout.pack(ids, logp))[1].double()
    p, q = (torch.cat([x.exp(), 1 - x.exp().sum(-1, keepdim=True)], -1) for x in (logp, back))
    kl = (p * (p / q).log()).sum(-1)
    assert kl.mean() < 2e-4
    assert kl.max() < 6e-4


def test_masked_tokens_can_be_among_the_likeliest() -> None:
    z = torch.tensor([[0.0, -math.inf, 1.0, -math.inf]])
    ids, logp = select_topk(z, 4)
    layout = Layout("topk", 4, 4, 8)
    back, values = layout.unpack(layout.pack(ids, logp))
    assert back.tolist() == [[0, 1, 2, 3]]
    assert (values[0, [1, 3]] < -60).all()
    torch.testing.assert_close(values[0, [0, 2]], logp[0, [0, 2]], rtol=0, atol=0.03)


def test_weights_keep_their_sum_and_their_ratios() -> None:
    ids, weights = draw(logits(200, 3000, 1.5, "weights"), 50, 0.6, generator(5))
    layout = Layout("sampled", 50, 3000)
    back, now = layout.unpack(layout.pack(ids, weights))
    assert torch.equal(back, ids)
    torch.testing.assert_close(now.sum(-1), weights.sum(-1), rtol=1e-3, atol=0)
    assert ((now / weights).log().abs() <= bound(weights.log(), 6)).all()


def test_order_does_not_matter_nor_do_leading_axes() -> None:
    ids, logp = select_topk(logits(12, 500, 1.0, "order"), 9)
    layout = Layout("topk", 9, 500)
    rows = layout.pack(ids, logp)
    mixed = torch.randperm(9, generator=generator(6))
    assert torch.equal(layout.pack(ids[:, mixed], logp[:, mixed]), rows)
    folded = layout.pack(ids.view(3, 4, 9), logp.view(3, 4, 9))
    assert torch.equal(folded, rows.view(3, 4, -1))
    for whole, part in zip(layout.unpack(rows), layout.unpack(folded), strict=True):
        assert torch.equal(whole, part.flatten(0, 1))


def test_rows_are_read_from_a_mapping_in_any_order(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ids, logp = select_topk(logits(30, 500, 1.0, "map"), 9)
    layout = Layout("topk", 9, 500)
    (tmp_path / "rows").write_bytes(layout.pack(ids, logp).numpy().tobytes())
    mapped = np.memmap(tmp_path / "rows", np.uint8, "r", shape=(30, layout.width))
    picked = torch.tensor([29, 3, 3, 0])
    back, _ = layout.unpack(torch.from_numpy(mapped[picked.numpy()]))
    assert torch.equal(back, ids[picked])


@pytest.mark.parametrize("bits", [0, 6])
def test_no_tokens_are_packed_too(bits: int) -> None:
    layout = Layout("sampled", 5, 9, bits)
    rows = layout.pack(torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, 5))
    assert rows.shape == (0, layout.width)
    assert [tuple(x.shape) for x in layout.unpack(rows)] == [(0, 5), (0, 5)]


def test_a_layout_is_written_and_read() -> None:
    layout = Layout("sampled", 50, 49152, 0)
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


# -- choosing and drawing --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_likeliest_have_their_probabilities_among_all(dtype: torch.dtype) -> None:
    z = logits(20, 300, 1.0, "top").to(dtype)
    ids, logp = select_topk(z, 7, tau=2.0)
    p = np.exp(z.double().numpy() / 2)
    p /= p.sum(1, keepdims=True)
    for row, number, value in zip(p, ids, logp, strict=True):
        assert sorted(number.tolist()) == number.tolist()
        assert np.sort(row)[-7:].sum() == pytest.approx(row[number].sum(), abs=1e-12)
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value.numpy(), np.log(row[number]), atol=2e-6)
    assert torch.equal(select_topk(z, 300)[0], torch.arange(300).expand(20, 300))


Z4 = torch.tensor([0.3, -1.0, 1.4, 0.0])


@pytest.mark.parametrize(("u", "tau"), [(1.0, 1.0), (1.0, 2.0), (0.5, 1.0), (0.0, 0.7), (1.6, 1.0)])
def test_draws_are_unbiased_over_all_outcomes(u: float, tau: float) -> None:
    """Each outcome of two draws has its weights and comes at its rate; so the sum is p exactly."""
    p = (Z4.double() / tau).softmax(0)
    r = p**u / (p**u).sum()
    rounds = 40_000
    ids, weights = draw(Z4.expand(rounds, 4), 2, u, generator(7), tau)
    expected, chi = torch.zeros(4, dtype=torch.float64), 0.0
    for a, b in itertools.combinations_with_replacement(range(4), 2):
        rate = float(r[a] * r[b]) * (1 if a == b else 2)
        here = (ids == torch.tensor([a, b])).all(-1)
        seen = weights[here].unique(dim=0)
        assert len(seen) == 1  # an outcome's weights are always the same
        expected.index_add_(0, torch.tensor([a, b]), rate * seen[0].double())
        chi += (int(here.sum()) - rounds * rate) ** 2 / (rounds * rate)
    torch.testing.assert_close(expected, p, rtol=1e-6, atol=0)
    assert chi < 30  # 9 degrees of freedom: beyond it with probability below 5e-4
    if u == 1:
        assert (weights == 0.5).all()


def test_draws_of_a_wide_vocabulary_estimate_means() -> None:
    z, f = logits(1, 5000, 1.5, "wide"), torch.randn(5000, generator=generator(8)).double()
    p = z[0].double().softmax(0)
    for u in (1.0, 0.7):
        ids, weights = draw(z.expand(400, -1), 50, u, generator(9))
        means = (weights * f[ids]).sum(-1)
        error = means.std() / math.sqrt(400)
        assert error < 0.02
        assert (means.mean() - (p * f).sum()).abs() < 4 * error


def test_draws_come_from_the_generator_alone() -> None:
    z = logits(3, 100, 1.0, "rng")
    first, again, other = (draw(z, 20, 0.8, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[:, 1:] >= first[:, :-1]).all()


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0])
def test_what_has_no_chance_is_never_drawn(u: float) -> None:
    z = torch.tensor([[-math.inf, 0.0, -math.inf, 5.0, -math.inf]])
    ids, weights = draw(z, 2000, u, generator(10))
    assert set(ids[0].tolist()) == {1, 3}
    assert weights.isfinite().all()


# -- refusals --------------------------------------------------------------------------------------

IDS = torch.tensor([[1, 4, 8]])
LOGP = torch.tensor([[-1.0, -2.0, -3.0]])
TOP, DRAWN, EVEN = Layout("topk", 3, 9), Layout("sampled", 3, 9), Layout("sampled", 3, 9, 0)
RNG = torch.Generator()
BAD_ROW = torch.zeros(1, TOP.width, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: Layout("top", 3, 9), "packed as 'topk' or 'sampled', not as 'top'"),
        (lambda: Layout("topk", 10, 9), "'topk' packs at least 1 of 9, at most all, not 10"),
        (lambda: Layout("sampled", 0, 9), "'sampled' packs at least 1 of 9, not 0"),
        (lambda: Layout("topk", 3, 9, 0), "'topk' packs values in 1 to 8 bits, not 0"),
        (lambda: Layout("sampled", 3, 9, 9), "'sampled' packs values in 0 to 8 bits, not 9"),
        (lambda: Layout("sampled", 3, 2**31), "1 to 2^31 - 1 tokens, not 2147483648"),
        (
            lambda: Layout.from_json({"kind": "topk", "k": 3}),
            "whole k, vocab and bits, not {'kind'",
        ),
        (lambda: Layout.from_json({**TOP.to_json(), "k": "3"}), "not {'kind': 'topk', 'k': '3'"),
        (lambda: TOP.pack(IDS[:, :2], LOGP[:, :2]), "(..., 3) are packed, and these are (1, 2)"),
        (lambda: TOP.pack(IDS, LOGP[0]), "and these are (1, 3) and (3,)"),
        (lambda: TOP.pack(IDS + 1, LOGP), "ids from 2 to 9 do not lie in a vocabulary of 9"),
        (lambda: TOP.pack(IDS - 2, LOGP), "ids from -1 to 6"),
        (lambda: TOP.pack(IDS * 0, LOGP), "twice among the likeliest"),
        (lambda: TOP.pack(IDS, LOGP.exp()), "no log-probabilities: over each token exp sums to"),
        (lambda: TOP.pack(IDS, LOGP * torch.nan), "no log-probabilities"),
        (lambda: TOP.pack(IDS, LOGP - math.inf), "no log-probabilities"),
        (lambda: DRAWN.pack(IDS, LOGP), "weights must be at least 0"),
        (lambda: DRAWN.pack(IDS, LOGP * torch.nan), "weights must be at least 0"),
        (
            lambda: EVEN.pack(IDS, -LOGP),
            "weights from 1 to 3 are not all 1/3; give the layout bits",
        ),
        (lambda: TOP.unpack(BAD_ROW[:, 1:]), "of torch.uint8 are read, not (1, "),
        (lambda: TOP.unpack(BAD_ROW.int()), "of torch.int32"),
        (lambda: TOP.unpack(BAD_ROW), "do not hold 3 ids of a vocabulary of 9 each"),
        (lambda: TOP.unpack(~BAD_ROW), "do not hold 3 ids of a vocabulary of 9 each"),
        (lambda: select_topk(Z4[None], 5), "the 5 likeliest of 4 tokens"),
        (lambda: select_topk(Z4[None], 0), "the 0 likeliest of 4 tokens"),
        (lambda: select_topk(Z4[None], 2, tau=0), "above 0 and finite, and was 0"),
        (lambda: draw(Z4[None], 0, 1, RNG), "0 draws from p^1"),
        (lambda: draw(Z4[None], 2, -0.5, RNG), "2 draws from p^-0.5"),
        (lambda: draw(Z4[None], 2, 17, RNG), "2 draws from p^17"),
        (lambda: draw(Z4[None], 2, math.nan, RNG), "2 draws from p^nan"),
        (lambda: draw(Z4[None], 2, 1, RNG, tau=-1), "above 0 and finite, and was -1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(act, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError) as refused:
        act()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 37])
def test_logits_without_a_softmax_are_refused(bad: float, place: int) -> None:
    z = torch.zeros(3, 100)
    z[1, place] = bad
    for act in (lambda: select_topk(z, 2), lambda: draw(z, 2, 1, RNG)):
        with pytest.raises(NonFinite, match="1 of 3 rows of the teacher's logits"):
            act()
    with pytest.raises(NonFinite, match="2 of 2 rows"):
        select_topk(torch.full((2, 9), -math.inf), 2)


def test_an_id_beyond_the_vocabulary_is_noticed() -> None:
    """V = 9, k = 3: l = 1, so the last high part has room for id 9, which there is not."""
    row = TOP.pack(IDS, LOGP)
    row[0, 4] |= 0b0010_0000  # the low bit of the third id: 8 becomes 9
    with pytest.raises(UsageError, match="vocabulary of 9"):
        TOP.unpack(row)


def test_a_mark_that_strayed_into_the_row_before_is_noticed() -> None:
    """As many marks as entries, but four in one row and two in the other."""
    rows = TOP.pack(IDS.repeat(2, 1), LOGP.repeat(2, 1))
    rows[0, 5] |= 0b0010_0000  # the last of its eight marks, which follow three low bits
    rows[1, 4] &= 0b1110_1111  # the first
    with pytest.raises(UsageError, match="do not hold 3 ids"):
        TOP.unpack(rows)


def test_the_least_uniform_number_draws_what_has_a_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape, dtype=torch.float64))
    ids, _ = draw(torch.tensor([[-math.inf, 0.0, 0.0]]), 1, 1, RNG)
    assert ids.tolist() == [[1]]
