"""ALM: chunks, likelihoods, divergences, de-biasing, embeddings and balance, each by slow loops."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from toys import CONTEXT, VOCAB, task, texts

import limbeck
from limbeck.core.crowd import Crowd
from limbeck.core.data import Batch, Epochs, Table
from limbeck.core.run import Run
from limbeck.core.signals import Dense, Head, Linear
from limbeck.core.task import Budget, Optimiser
from limbeck.core.teacher import Setting
from limbeck.core.text.encode import both
from limbeck.core.text.facts import Text
from limbeck.core.text.places import IGNORED
from limbeck.core.text.view import Causal
from limbeck.core.updates import Phase
from limbeck.errors import Missing, UsageError
from limbeck.language.alm import ALM, chunks
from limbeck.language.alm.balance import GradMag, last_layer
from limbeck.language.alm.bias import Ends, Unbiased, biased_pairs, excess, is_biased, keys_of
from limbeck.language.alm.chunks import Tokens, closing, latent, merged, read, sides, windows
from limbeck.language.alm.divergence import EPS, compared, log1mexp
from limbeck.language.alm.hyper import put, taken
from limbeck.language.alm.pieces import Pieces
from limbeck.language.alm.transfer import fvt, transfer

pytestmark = pytest.mark.xdist_group("language")

OTHER = 13
HOWS = ("binary_ce", "binary_kl", "reverse_binary_kl", "binary_kl_limit", "abs", "abs_exp")
LINES = [
    "the quick brown fox jumps over the lazy dog",
    "the cat sat on the mat and the dog looked on",
    "foxes and dogs run over hills\nand the quick ones win",
]


class Shown:
    def __init__(self, z, hidden=None):
        self.signal = z if not isinstance(z, torch.Tensor) else Dense(z)
        self.hidden = hidden


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the divergence ------------------------------------------------------------------------------


def test_log1mexp_is_exact_on_both_sides_and_so_is_its_gradient():
    for x in (-1e-6, -1e-3, -0.5, -0.69, -0.7, -3.0, -30.0, -90.0):
        z = torch.tensor([x], requires_grad=True)  # float32
        value, x = log1mexp(z), z.item()
        exact = math.log1p(-math.exp(x)) if x < -1 else math.log(-math.expm1(x))
        assert value.item() == pytest.approx(exact, rel=2e-6)
        (slope,) = torch.autograd.grad(value, z)
        assert float(slope) == pytest.approx(-1 / math.expm1(-x), rel=2e-6)


def bernoulli(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@pytest.mark.parametrize("tau", [1.0, 7.0, 100.0])
def test_divergences_are_their_formulas(tau):
    for a, b in itertools.product((-0.3, -2.0, -9.0), repeat=2):
        p, q = math.exp(a / tau - EPS), math.exp(b / tau - EPS)
        right = {
            "binary_ce": -p * math.log(q) - (1 - p) * math.log(1 - q),
            "binary_kl": bernoulli(p, q),
            "reverse_binary_kl": bernoulli(q, p),
            "binary_kl_limit": (a - b) + (a - EPS) * math.log((b - EPS) / (a - EPS)),
            "abs": abs(a - b),
            "abs_exp": abs(p - q),
        }
        for how in HOWS:
            found = compared(how, *torch.tensor([a, b], dtype=torch.float64), tau)
            assert float(found) == pytest.approx(right[how], abs=1e-12)


def test_the_limit_of_high_temperatures():
    a, b = -drawn(50).exp(), -drawn(50, seed=1).exp()
    limit = compared("binary_kl_limit", a, b, 1.0)
    high = [x + 1e4 * EPS for x in (a, b)]  # so that log P is a / tau
    assert torch.allclose(1e4 * compared("binary_kl", *high, 1e4), limit, atol=1e-3, rtol=1e-3)
    assert bool((limit > 0).all())
    assert torch.equal(compared("binary_kl_limit", a, a, 1.0), torch.zeros(50).double())


@pytest.mark.parametrize("how", HOWS)
def test_the_least_is_where_both_agree(how):
    for tau in (1.0, 100.0):
        a = -drawn(20).exp()
        b = a.clone().requires_grad_()
        if how not in ("abs", "abs_exp"):
            (slope,) = torch.autograd.grad(compared(how, a, b, tau).sum(), b)
            assert float(slope.abs().max()) < 1e-9
        least = compared(how, a, a, tau)
        for step in (-0.2, 0.2):
            assert bool((compared(how, a, (a + step * a.abs()), tau) > least).all())
        if how != "binary_ce":
            assert float(least.abs().max()) < 1e-12


# --- chunks --------------------------------------------------------------------------------------


def test_the_worked_example():
    """[Hel, lo, ?] against [Hello, ?], both after a BOS."""
    one = Tokens(torch.tensor([[0, 5, 6, 7]]), torch.tensor([[-1, 0, 0, 1]]), 2)
    other = Tokens(torch.tensor([[0, 3, 4]]), torch.tensor([[-1, 0, 1]]), 2)
    for side, vocab, width in ((one, 9, 4), (other, 6, 3)):
        z = drawn(1, width, vocab)
        each, _ = read(Dense(z), side)
        lengths = [float(z[0, i].log_softmax(-1)[side.ids[0, i + 1]]) for i in range(width - 1)]
        assert float(side.total(each).sum()) == pytest.approx(sum(lengths))
        cut = 2 if side is one else 1
        assert float(side.total(each)[0, 0]) == pytest.approx(sum(lengths[:cut]))
    assert one.sizes().tolist() == [[2, 1]]
    assert (one.last().tolist(), other.last().tolist()) == ([[2, 3]], [[1, 2]])


def test_chunks_with_tokens_that_are_not_trained_on_are_none():
    y = torch.tensor([[IGNORED, 4, 4, 4, IGNORED, 4, 4], [IGNORED] + [4] * 6])
    chunk = torch.tensor([[0, 1, 1, 2, 3, 4, -1], [0, 0, 1, 2, 3, 4, 4]])
    t_chunk = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 4, 4]])
    wanted = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 1, 0]]).bool()  # tokens 1 .. 4; not 3 below
    x = {"ids": y, "chunk": chunk, "t_ids": t_chunk, "t_chunk": t_chunk, "t_wanted": wanted}
    one, other = sides(Batch(x=x, y=y))
    assert one.chunk.tolist() == [[-1, 0, 0, 1, -1, 2, -1], [-1, -1, 0, 1, -1, -1, -1]]
    assert other.chunk.tolist() == [[-1, 0, 1, -1, 2], [-1, 0, 1, -1, -1]]
    found = chunks.apart(one, other)
    assert (found[0, :3].tolist(), found[1, :2].tolist()) == ([False, True, True], [False, True])


def test_without_other_tokens_each_trained_one_is_a_chunk():
    here = Batch(**texts(4))
    one, other = sides(here)
    assert one is other
    for row, y in zip(one.chunk.tolist(), here.y.tolist(), strict=True):
        numbers = itertools.count()
        assert row == [-1 if token == IGNORED else next(numbers) for token in y]


def test_merging_goes_on_until_an_end():
    one = Tokens(torch.zeros(1, 7).long(), torch.tensor([[-1, 0, 0, 1, 2, 3, 4]]), 5)
    other = Tokens(torch.zeros(1, 5).long(), torch.tensor([[0, 1, 2, 3, 4]]), 5)
    found = merged(one, other, torch.tensor([[False, True, False, False, False]]))
    assert found[0].chunk.tolist() == [[-1, 0, 0, 0, 1, 1, 1]]
    assert found[1].chunk.tolist() == [[0, 0, 1, 1, 1]]


def test_windows_and_their_last_chunks():
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0], [1.0, 2.0, 4.0, 0.0, 0.0]])
    assert windows(values, 2).tolist() == [[3, 12, 16], [3, 4, 0]]
    assert windows(values, 8).tolist() == [[31], [7]]
    there = values > 0
    assert closing(there, 2).long().tolist() == [[0, 1, 0, 1, 1], [0, 1, 1, 0, 0]]
    assert closing(there, 1).tolist() == there.tolist()


def crossed(n=4, seed=0, width=11):
    """Texts in both sides' tokens, with chunks of 1 to 3 tokens on either side; gaps in row 0."""
    made, draw = texts(n, seed), torch.Generator().manual_seed(seed)
    chunk = torch.full((n, CONTEXT), -1)
    t_chunk, t_wanted = torch.full((n, width), -1), torch.zeros(n, width, dtype=torch.bool)
    for b in range(n):
        lengths = int(made["x"]["mask"][b].sum())
        i, j, number = 4, 2, 0  # a prompt before
        while True:
            more, t_more = (int(x) for x in torch.randint(1, 4, (2,), generator=draw))
            if i + more > lengths or j + t_more > width:
                break
            if b or number != 1:
                chunk[b, i : i + more], t_chunk[b, j : j + t_more] = number, number
            t_wanted[b, j - 1 : j + t_more - 1] = True
            i, j, number = i + more, j + t_more, number + 1
    t_ids = torch.randint(2, OTHER, (n, width), generator=draw)
    extra = {"t_ids": t_ids, "t_mask": torch.ones_like(t_ids), "t_wanted": t_wanted}
    return {"x": {**made["x"], **extra, "chunk": chunk, "t_chunk": t_chunk}, "y": made["y"]}


def test_a_few_places_at_a_time_are_the_same_and_so_are_gradients(monkeypatch):
    here, head = Batch(**crossed()), drawn(VOCAB, 6, seed=2).requires_grad_()
    hidden, group = drawn(4, CONTEXT, 6).requires_grad_(), torch.arange(VOCAB) % 3 == 0
    seen = []
    for entries in (10**6, 3 * VOCAB):
        monkeypatch.setattr(chunks, "ENTRIES", entries)
        each, following = read(Linear(hidden, Head(head)), sides(here)[0], group)
        assert torch.equal(following != 0, each.new_tensor(ends_of(here.x["chunk"])).bool())
        loss = (each + 2 * following).square().sum()
        for _ in range(2):  # a graph that is kept is used twice
            found = torch.autograd.grad(loss, [hidden, head], retain_graph=True)
            seen.append([loss.detach(), *found])
    for more in seen[1:]:
        assert all(torch.allclose(a, b) for a, b in zip(seen[0], more, strict=True))


def ends_of(chunk):
    rows = [[*row, -1] for row in chunk.tolist()]
    return [[int(a >= 0 and a != b) for a, b in itertools.pairwise(row)] for row in rows]


def test_a_signal_of_other_tokens_is_refused():
    here = Batch(**crossed())
    with pytest.raises(UsageError, match=r"shows \(4, 5\) places of a batch of \(4, 16\)"):
        read(Dense(drawn(4, 5, VOCAB)), sides(here)[0])


# --- the loss ------------------------------------------------------------------------------------

BLANK, T_BLANK = torch.arange(VOCAB) % 3 == 0, torch.arange(OTHER) % 4 == 1
TOOLS = SimpleNamespace(blank=BLANK, t_blank=T_BLANK)


def slow_chunks(z, ids, chunk, group):
    """For each text its chunks: log-likelihood, log P(blank next), tokens, first and last place."""
    out = []
    for b in range(len(ids)):
        row = {}
        for i, c in enumerate(chunk[b].tolist()):
            if c >= 0:
                row.setdefault(c, []).append(i)
        out.append(
            [
                (
                    sum(float(z[b, i - 1].log_softmax(-1)[ids[b, i]]) for i in where),
                    math.log(float(z[b, where[-1]].softmax(-1)[group].sum())),
                    len(where),
                    where[0],
                    where[-1],
                )
                for _, where in sorted(row.items())
            ]
        )
    return out


def slow(how, s, t, x):
    """The mean by loops: (value, sum of weights)."""
    mine = slow_chunks(s, x["ids"], x["chunk"], BLANK)
    theirs = slow_chunks(t, x["t_ids"], x["t_chunk"], T_BLANK)
    total = size = 0.0
    for one, other in zip(mine, theirs, strict=True):
        groups, now = [], []
        for k, (m, o) in enumerate(zip(one, other, strict=True)):
            now.append((m, o))
            final = k + 1 == len(one)
            gap = not final and (one[k + 1][3] != m[4] + 1 or other[k + 1][3] != o[4] + 1)
            if how.merge == "none" or math.exp(o[1]) > how.boundary or gap or final:
                groups.append(now)
                now = []
        for n in how.windows:
            for k in range(0, len(groups), n):
                window = [pair for group in groups[k : k + n] for pair in group]
                b, a = (sum(pair[side][0] for pair in window) for side in (0, 1))
                if how.append_space:
                    b, a = b + window[-1][0][1], a + window[-1][1][1]
                count = sum(o[2] for _, o in window)
                w = {"chunk": 1, "tokens": count, "log_tokens": math.log1p(count)}[how.weigh]
                p, q = math.exp(a / how.tau - EPS), math.exp(b / how.tau - EPS)
                total += w * (-p * math.log(q) - (1 - p) * math.log(1 - q))
                size += w
    return total, size


@pytest.mark.parametrize("weigh", ["chunk", "tokens", "log_tokens"])
@pytest.mark.parametrize("windows", [(1,), (1, 2, 4)])
@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("merge", ["none", "space"])
def test_loss_by_loops(weigh, windows, append, merge):
    s, t, here = drawn(4, CONTEXT, VOCAB), drawn(4, 11, OTHER, seed=1), Batch(**crossed())
    how = ALM(
        alm=2.0, tau=5.0, weigh=weigh, windows=windows, merge=merge, append_space=append,
        boundary=0.2, label=0.5,
    )  # fmt: skip
    found = how.terms(TOOLS, Shown(s), Shown(t), here, None)
    total, size = slow(how, s, t, here.x)
    if merge == "space":
        assert float(found["alm"]) == pytest.approx(2 * total / size)
        assert set(how.counts(here)) == {"label"}
        assert size < slow(ALM(merge="none", weigh=weigh, windows=windows), s, t, here.x)[1] or (
            weigh == "tokens"
        )
    else:
        assert float(found["alm"].sum) == pytest.approx(2 * total)
        assert float(found["alm"].count) == pytest.approx(size)
        assert float(how.counts(here)["alm"]) == pytest.approx(size)


def test_merged_by_pairs():
    here = crossed()
    x = here["x"]
    one, other = sides(Batch(**here))
    keys = keys_of(one, other, VOCAB)[one.sizes() > 0]
    biased = keys.unique()[::2]
    batches = Unbiased(Epochs(here), biased, VOCAB)
    made = batches.with_chunks(Batch(**here))
    assert torch.equal(made.x["chunk"], x["chunk"])
    rows = zip(x["chunk"], x["t_chunk"], x["ids"], x["t_ids"], strict=True)
    for b, (chunk, t_chunk, ids, t_ids) in enumerate(rows):
        number, table = 0, {-1: -1}
        names = sorted(set(chunk.tolist()) - {-1})
        for c in names:
            table[c] = number
            places, t_places = (chunk == c).nonzero()[:, 0], (t_chunk == c).nonzero()[:, 0]
            key = int(t_ids[t_places[-1]]) * VOCAB + int(ids[places[-1]])
            number += key not in biased.tolist() or c + 1 not in names
        assert made.x["merged"][b].tolist() == [table[c] for c in chunk.tolist()]
        assert made.x["t_merged"][b].tolist() == [table[c] for c in t_chunk.tolist()]
    assert int(made.x["merged"].max()) < int(x["chunk"].max())
    s, t = drawn(4, CONTEXT, VOCAB), drawn(4, 11, OTHER, seed=1)
    found = ALM(append_space=False).terms(None, Shown(s), Shown(t), made, None)["alm"]
    coarse = {**x, "chunk": made.x["merged"], "t_chunk": made.x["t_merged"]}
    total, size = slow(ALM(append_space=False, merge="none"), s, t, coarse)
    assert float(found.sum / found.count) == pytest.approx(total / size)
    with pytest.raises(UsageError, match="merged by pairs in alm's own run"):
        ALM().terms(TOOLS, Shown(s), Shown(t), Batch(**here), None)


def test_one_tokenizer_and_the_teacher_itself_teach_nothing():
    here, z = Batch(**texts(4)), drawn(4, CONTEXT, VOCAB).requires_grad_()
    found = ALM().terms(None, Shown(z), Shown(z.detach()), here, None)["alm"]
    (slope,) = torch.autograd.grad(found.sum, z)
    assert float(slope.abs().max()) < 1e-12
    assert int(found.count) == int((here.y != IGNORED).sum())
    for how in ("abs", "binary_kl"):
        same = ALM(divergence=how).terms(None, Shown(z), Shown(z.detach()), here, None)["alm"]
        assert same.sum.item() == pytest.approx(0.0, abs=1e-12)


def test_at_temperature_one_it_is_the_binary_kl_of_the_gold_token():
    here, s, t = Batch(**texts(4)), drawn(4, CONTEXT, VOCAB), drawn(4, CONTEXT, VOCAB, seed=1)
    found = ALM(tau=1.0, divergence="binary_kl").terms(None, Shown(s), Shown(t), here, None)["alm"]
    each = [
        bernoulli(*(float(z[b, i - 1].softmax(-1)[here.y[b, i]]) for z in (t, s)))
        for b in range(4)
        for i in range(CONTEXT)
        if here.y[b, i] != IGNORED
    ]
    assert float(found.sum / found.count) == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_gradient_of_the_loss():
    here, t = Batch(**crossed()), drawn(4, 11, OTHER, seed=1)
    how = ALM(merge="space", windows=(1, 2), tau=3.0, boundary=0.2)

    def loss(z):
        return how.terms(TOOLS, Shown(z), Shown(t), here, None)["alm"]

    assert torch.autograd.gradcheck(loss, drawn(4, CONTEXT, VOCAB).requires_grad_(), fast_mode=True)


def test_hidden_states_at_the_ends_of_chunks():
    here, s, t = Batch(**crossed()), drawn(4, CONTEXT, 6), drawn(4, 11, 6, seed=1)
    found = ALM(alm=0.0, latent=2.0).terms(None, Shown(None, s), Shown(None, t), here, None)
    total = count = 0
    for b in range(4):
        last, t_last = ({c: i for i, c in enumerate(side[b].tolist())} for side in
                        (here.x["chunk"], here.x["t_chunk"]))  # fmt: skip
        rows = [(s[b, last[c]], t[b, t_last[c]]) for c in sorted(last) if c >= 0]
        scale = sum(float(q.square().mean()) for _, q in rows) / len(rows)
        total += sum(float((p - q).square().mean()) for p, q in rows) / scale
        count += len(rows)
    assert float(found["latent"].sum) == pytest.approx(2 * total, rel=1e-5)
    assert (
        int(found["latent"].count)
        == count
        == int(ALM(latent=1.0, merge="none").counts(here)["latent"])
    )
    one, _ = sides(Batch(**texts(4)))
    assert float(latent(s, s, one, one)) == 0.0
    with pytest.raises(UsageError, match=r"6 wide and the teacher's 5; .* latent=0"):
        latent(s, t[..., :5], *sides(here))


# --- balance -------------------------------------------------------------------------------------


def test_gradients_get_one_norm_at_the_last_layer():
    names = ["student.emb", "student.layers.0.w", "student.layers.1.w", "student.layers.1.b"]
    assert last_layer(names) == [2, 3]
    assert last_layer(names[:1]) == [0]
    grads = {
        t: [scale * drawn(3, seed=seed + k) for k in range(4)]
        for t, scale, seed in (("alm", 1e-3, 0), ("label", 5.0, 10), ("latent", 1.0, 20))
    }
    grads["label"][3] = None
    norm = {t: math.sqrt(sum(float(g.square().sum()) for g in each[2:] if g is not None))
            for t, each in grads.items()}  # fmt: skip
    weight = {t: (1 / n) / sum(1 / m for m in norm.values()) for t, n in norm.items()}
    found = GradMag().join(grads, names, None)
    for i in range(4):
        right = sum(weight[t] * each[i] for t, each in grads.items() if each[i] is not None)
        assert torch.allclose(found[i], right, rtol=1e-5)
    alone = GradMag().join({"alm": grads["alm"]}, names, None)
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(alone, grads["alm"], strict=True))
    grads = {"alm": grads["alm"], "latent": [torch.zeros(3).double()] * 4}
    with_nothing = GradMag().join(grads, names, None)
    assert all(torch.equal(a, b) for a, b in zip(alone, with_nothing, strict=True))


def test_only_several_terms_are_balanced():
    assert ALM().update() == (Phase(),)
    assert ALM(label=1.0, balance=False).update() == (Phase(),)
    assert isinstance(ALM(label=1.0).update()[0].join, GradMag)


# --- vocabularies --------------------------------------------------------------------------------


def byte_level(size=290, lines=LINES):
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(lines * 5, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def pieces_tokenizer():
    """As Llama 2: a space is '▁', other bytes are <0x..>."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    normalizers = tokenizers.normalizers
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=310, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(["the quick brown fox", "hello the dog"] * 5, trainer)
    import json

    kept = json.loads(made.to_str())
    kept["added_tokens"] = [a for a in kept["added_tokens"] if not a["content"].startswith("<0x")]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(kept)),
        unk_token="<unk>", bos_token="<s>", eos_token="</s>",
    )  # fmt: skip


def test_bytes_of_tokens_and_the_way_back():
    table = pytest.importorskip("transformers.convert_slow_tokenizer", reason="needs transformers")
    back = {letter: byte for byte, letter in table.bytes_to_unicode().items()}
    for tokenizer in (byte_level(), pieces_tokenizer()):
        pieces = Pieces(tokenizer)
        for i, part in enumerate(pieces.spelled):
            assert (part is None) == (i in tokenizer.all_special_ids)
            if part is None or pieces.is_byte(pieces.names[i]):
                continue
            assert pieces.written(part) == pieces.names[i]
            assert pieces.cut(pieces.names[i]) == [i] or len(part) > 1
            name = pieces.names[i]
            assert part == bytes(back.get(x, 0) for x in name) or part.decode() == name.replace(
                "▁", " "
            )


def test_tokens_that_begin_with_white_space():
    for tokenizer in (byte_level(), pieces_tokenizer()):
        found = Pieces(tokenizer).blanks(len(tokenizer) + 3)
        assert not found[len(tokenizer) :].any()
        for i in range(len(tokenizer)):
            name = tokenizer.convert_ids_to_tokens(i)
            blank = name[0] in "Ġ▁Ċĉ" or name in ("<0x20>", "<0x09>", "<0x0A>")
            assert bool(found[i]) == (blank or i in tokenizer.all_special_ids)
        assert 0 < int(found.sum()) < len(tokenizer) // 2


def test_a_tokenizer_that_drops_white_space_is_refused():
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=80, special_tokens=["[UNK]"], show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    with pytest.raises(UsageError, match="drops white space; give append_space=False"):
        Pieces(wrapped)


def test_byte_models_have_no_parts_of_words():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pieces = Pieces(transformers.ByT5Tokenizer())
    assert pieces.spelled[3:259] == [bytes([byte]) for byte in range(256)]
    with pytest.raises(UsageError, match="no fast tokenizer"):
        pieces.cut("a")


# --- bias ----------------------------------------------------------------------------------------


def slow_cover(tokenizer, name):
    """{text after: last token} of all cuts whose last token lies across the end."""
    model, found = tokenizer.backend_tokenizer.model, {}

    def cut(text):
        return [t.value for t in model.tokenize(text)]

    for start in range(len(name) - 1, -1, -1):
        before = cut(name[:start])
        for token in tokenizer.get_vocab():
            if token.startswith(name[start:]) and cut(name[:start] + token) == [*before, token]:
                after = (name[:start] + token)[len(name) :]
                if after:
                    found[after] = token
    return found


def slow_excess(one, name, p, other, theirs):
    mine, its = slow_cover(one, name), slow_cover(other, theirs)
    vocab = one.get_vocab()
    return sum(p[vocab[token]] for after, token in mine.items() if after not in its)


def test_bias_of_pairs_is_that_of_all_cuts():
    one, other = byte_level(300), byte_level(285, LINES[:1])
    counts = [torch.arange(len(t)) % 7 for t in (one, other)]
    ends = [Ends(Pieces(t), c) for t, c in zip((one, other), counts, strict=True)]
    names, seen = other.get_vocab(), []
    for name, i in sorted(one.get_vocab().items()):
        j = names.get(name, names.get(name[-1:]))
        if len(name) < 2 or name in one.all_special_tokens or j is None or len(seen) > 25:
            continue
        theirs = other.convert_ids_to_tokens(j)
        right = [
            slow_excess(one, name, ends[0].p, other, theirs),
            slow_excess(other, theirs, ends[1].p, one, name),
        ]
        found = [excess(ends[0], i, ends[1], j), excess(ends[1], j, ends[0], i)]
        assert found == pytest.approx(right)
        limits = {1e-4, *(r * f for r in right for f in (0.9, 1.1)), 0.5}
        for limit in limits:
            blank = not name.replace("Ġ", "").replace("Ċ", "")
            assert is_biased(ends[0], i, ends[1], j, limit) == (blank or max(right) > limit)
        seen += right
    assert 0 < sum(r > 0 for r in seen) < len(seen)


def test_one_vocabulary_is_without_bias_and_white_space_is_not():
    tokenizer = byte_level()
    ends = Ends(Pieces(tokenizer), torch.ones(len(tokenizer)))
    for i in range(2, len(tokenizer)):
        blank = not ends.pieces.spelled[i].strip()
        assert is_biased(ends, i, ends, i, 0.0) == blank


def test_a_cut_within_a_word_is_biased_against_a_byte():
    """After "the" of a vocabulary with "there" more is ruled out than after the byte "e"."""
    tokenizer = byte_level(300, ["there", "the", "there the"])
    bare = byte_level(258)
    vocab, plain = tokenizer.get_vocab(), bare.get_vocab()
    ends = [Ends(Pieces(t), torch.ones(len(t))) for t in (tokenizer, bare)]
    assert "there" in vocab
    assert is_biased(ends[0], vocab["the"], ends[1], plain["e"], 1e-4)
    assert not is_biased(ends[0], vocab["there"], ends[1], plain["e"], 1e-4)


# --- embeddings ----------------------------------------------------------------------------------


def test_embeddings_of_a_new_vocabulary():
    old, new = byte_level(300), byte_level(330, [*LINES, "hello world of words " * 3])
    rows, rng = drawn(len(old) + 4, 6), torch.Generator().manual_seed(0)
    made = fvt(rows, old, new, rng)
    assert made.shape == (len(new), 6)
    vocab, averaged = old.get_vocab(), 0
    for name, i in new.get_vocab().items():
        if name in vocab:
            assert torch.equal(made[i], rows[vocab[name]])
        else:
            parts = [t.id for t in old.backend_tokenizer.model.tokenize(name)]
            assert torch.allclose(made[i], rows[parts].mean(0))
            averaged += 1
    assert averaged > 5
    assert torch.equal(fvt(rows, old, old, rng), rows[: len(old)])


def test_embeddings_across_kinds_of_vocabularies():
    old, new = pieces_tokenizer(), byte_level(300)
    rows = drawn(len(old), 6)
    made = fvt(rows, old, new, torch.Generator().manual_seed(0))
    source, vocab = old.get_vocab(), new.get_vocab()
    assert torch.equal(made[vocab["Ġthe"]], rows[source["▁the"]])
    assert torch.equal(made[vocab["Ã"]], rows[source["<0xC3>"]])
    assert torch.equal(made[vocab["Ċ"]], rows[source["<0x0A>"]])
    for token, theirs in (("<s>", "<s>"), ("</s>", "</s>")):
        assert torch.equal(made[vocab[token]], rows[source[theirs]])


def test_what_cannot_be_cut_is_drawn_like_the_others():
    old, new = byte_level(300), byte_level(300)
    new.add_special_tokens({"additional_special_tokens": [f"<x{i}>" for i in range(400)]})
    rows = 3 + 2 * drawn(len(old), 5)
    made = fvt(rows, old, new, torch.Generator().manual_seed(0))[-400:]
    assert torch.allclose(made.mean(0), rows.mean(0), atol=0.4)
    assert torch.allclose(made.std(0), rows.std(0), atol=0.4)
    again = fvt(rows, old, new, torch.Generator().manual_seed(0))[-400:]
    assert torch.equal(made, again)


def llama(vocab, width=16, seed=0, tie=False, layers=1):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tie,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("tie", [False, True])
def test_a_body_with_transferred_rows_says_what_its_teacher_says(tie):
    old, new = byte_level(300), byte_level(320)
    teacher, student = llama(len(old), tie=tie), llama(len(new), seed=5, tie=tie)
    student.model.layers.load_state_dict(teacher.model.layers.state_dict())
    transfer(student, teacher, new, old, torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, 60, 80, 90]])  # bytes have the same numbers in both
    assert old.convert_ids_to_tokens(ids[0]) == new.convert_ids_to_tokens(ids[0])
    with torch.no_grad():
        one, other = student(ids).logits, teacher(ids).logits
    same = [
        i for i in range(len(old)) if old.convert_ids_to_tokens(i) == new.convert_ids_to_tokens(i)
    ]
    assert len(same) > 256
    assert torch.allclose(one[..., same], other[..., same], atol=1e-5)
    with pytest.raises(UsageError, match=r"are 8 wide and the teacher's 16; .* init='none'"):
        transfer(llama(len(new), 8), teacher, new, old, torch.Generator().manual_seed(0))


# --- runs ----------------------------------------------------------------------------------------


def world(steps=6, known=True, **budget):
    mine, theirs = byte_level(300, [*LINES, "over and over"]), byte_level(270)
    rows = [{"text": f"{a} {b}"} for a, b in itertools.product(LINES, repeat=2)] * 2
    samples = both(rows, mine, theirs, 32)
    made = task(steps=steps, teacher=llama(len(theirs), seed=1), budget=budget)
    made.student = lambda: llama(len(mine))
    made.train = {"x": samples.x, "y": samples.y}
    made.valid = made.test = made.train
    made.readers = {"student": Causal(len(mine)), "teacher": Causal(len(theirs), side="t_")}
    tokenizers = (mine, theirs) if known else (None, None)
    made.data = {"text": Text(len(mine), 32, (1,), 1, *tokenizers)}
    return made


def ran(how, made):
    with Run(made, seed=0):
        return how.run(made)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"merge": "space"},
        {"merge": "none", "append_space": False},
        {"label": 1.0, "latent": 1.0, "windows": (1, 2)},
    ],
    ids=str,
)
def test_runs_bring_the_likelihoods_together(fields):
    made = world(steps=60)
    result = ran(ALM(divergence="binary_kl", **fields), made)
    values = [row["terms"]["alm"] for row in result.log]
    assert sum(values[-5:]) < 0.7 * sum(values[:5])
    assert type(result.model).__name__ == "LlamaForCausalLM"
    assert set(result.log[0]["terms"]) == {"alm", *(n for n in ("label", "latent") if n in fields)}


def test_pairs_of_a_set_are_those_of_its_chunks():
    made = world()
    text = made.data["text"]
    found = biased_pairs(Table(made.train), text.tokenizer, text.other, 1e-4)
    one, other = sides(Batch(**made.train))
    seen = keys_of(one, other, len(text.tokenizer))[one.sizes() > 0].unique()
    counts = [
        torch.bincount(made.train["x"][f"{side}ids"][made.train["x"][f"{side}mask"].bool()],
                       minlength=len(t))
        for side, t in (("", text.tokenizer), ("t_", text.other))
    ]  # fmt: skip
    ends = [Ends(Pieces(t), c) for t, c in zip((text.tokenizer, text.other), counts, strict=True)]
    size = len(text.tokenizer)
    right = [k for k in seen.tolist() if is_biased(ends[0], k % size, ends[1], k // size, 1e-4)]
    assert found.tolist() == right
    assert 0 < len(right) < len(seen)


def test_two_halves_are_the_whole():
    one, two = (
        ran(ALM(label=1.0, latent=1.0, balance=False), world(steps=3, accumulate=n)) for n in (1, 2)
    )
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def test_embeddings_are_made_in_a_run():
    made = world(steps=1)
    teacher = made.teacher
    text = made.data["text"]
    made.budget = Budget(steps=1, batch=4, optimiser=Optimiser("sgd", 1e-9))
    result = ran(ALM(init="fvt"), made)
    ours, vocab = result.model.get_input_embeddings().weight, text.tokenizer.get_vocab()
    theirs = teacher.get_input_embeddings().weight
    for name, i in text.other.get_vocab().items():
        if name in vocab:
            assert torch.allclose(ours[vocab[name]], theirs[i], atol=1e-5)


@pytest.mark.parametrize("tie", [False, True])
def test_a_network_that_makes_embeddings_begins_with_them_and_leaves_what_it_made(tie):
    model, ids = llama(30, tie=tie), torch.tensor([[3, 7, 11]])
    names, before = list(model.state_dict()), model.get_input_embeddings().weight.detach().clone()
    own = model(ids).logits
    put(model, torch.Generator().manual_seed(0))
    assert torch.equal(model(ids).logits, own)
    made = model.get_input_embeddings().parametrizations.weight[0]
    head = model.get_output_embeddings().parametrizations.weight[0]
    assert (made is head) == tie
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    w = {n: p.detach().double() for n, p in made.named_parameters()}
    for i in (0, 11, 29):  # row by row
        row = before[i].double()
        x = (row - before.double().mean(0)) / before.double().std(0, correction=0) + w["place"]
        inner = w["inner.weight"] @ x + w["inner.bias"]
        gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        h = x + w["outer.weight"] @ gelu + w["outer.bias"]
        h = (h - h.mean()) / h.std(correction=0) * w["norm.weight"] + w["norm.bias"]
        out = w["last.weight"] @ h + w["last.bias"]
        slow = row + out * before.double().std(0, correction=0)
        found = model.get_input_embeddings().weight[i]
        torch.testing.assert_close(found.double(), slow, rtol=1e-4, atol=1e-4)
    loss = model(ids).logits.square().sum()
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in made.parameters())
    after = model(ids).logits
    taken(model)
    assert list(model.state_dict()) == names
    assert torch.equal(model(ids).logits, after)
    assert not torch.equal(after, own)
    same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert same == tie


def test_a_run_in_which_a_network_makes_the_embeddings():
    """All rows move along, those of tokens that no text has too; the model is the user's own."""
    plain, made = (ran(ALM(hyper=h), world(steps=4)).model for h in (False, True))
    assert list(plain.state_dict()) == list(made.state_dict())
    begun = llama(300).get_input_embeddings().weight
    one, other = (m.get_input_embeddings().weight.detach() for m in (plain, made))
    seen = world(steps=1).train["x"]["ids"].unique().tolist()
    never = [i for i in range(300) if i not in seen]
    assert len(never) > 200
    moved = torch.stack([(w - begun).abs().max(1).values for w in (one, other)])[:, never]
    assert not torch.equal(one, other)
    assert bool((moved[1] > 1e-5).all())


def test_models_brought_to_one_tokenizer_are_an_ensemble():
    """A Crowd's signal at each place is the mean of its members' probabilities, and teaches."""
    one, other = llama(VOCAB, seed=1), llama(VOCAB, seed=2)
    made = task(steps=2, teacher=Crowd((one, other), weights=(3.0, 1.0)))
    setting = Setting(reader=Causal(VOCAB))
    here = Batch(**texts(4))
    shown = made.the_teacher().attach(setting).side(here, None).signal
    with torch.no_grad():
        x = {"input_ids": here.x["ids"], "attention_mask": here.x["mask"]}
        p, q = (m(**x).logits.softmax(-1) for m in (one, other))
    wide = shown.shape[1]  # without what is padding in every row
    there = here.x["mask"].bool()[:, :wide]
    mean = (0.75 * p + 0.25 * q)[:, :wide][there]
    torch.testing.assert_close(shown.log_p().exp()[there], mean, rtol=1e-4, atol=1e-6)
    with pytest.raises(UsageError, match="mixed in probability by fixed weights"):
        _ = Crowd((one, other), mix="log").attach(setting).side(here, None).signal
    result = limbeck.run("gkd", made, own=0.0)
    assert result.model is not None


def test_tokenizers_that_are_not_known():
    with pytest.raises(Missing, match="merge='space' or 'none'"):
        ran(ALM(), world(known=False))
    with pytest.raises(Missing, match="append_space=False and merge='none'"):
        ran(ALM(merge="none"), world(known=False))
    ran(ALM(merge="none", append_space=False), world(steps=1, known=False))


def test_windows_of_nothing():
    with pytest.raises(UsageError, match="windows are of"):
        ALM(windows=(1, 0))
