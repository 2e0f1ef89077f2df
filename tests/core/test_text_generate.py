"""What models write: exact probabilities, no dependence on neighbours, padding or the cache."""

import math
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from limbeck.core.rng import Draws
from limbeck.core.text.generate import beams, context_of, generate, truncated
from limbeck.core.text.lengths import apart
from limbeck.core.text.places import IGNORED, labels
from limbeck.core.text.replay import joined
from limbeck.errors import NonFinite, UsageError

transformers = pytest.importorskip("transformers", reason="needs transformers")

pytestmark = pytest.mark.xdist_group("text")

V, PAD, EOS = 23, 0, (2,)
LENGTHS = (5, 2, 7, 1)


def model_of(kind="llama", vocab=V, seed=0, context=32):
    torch.manual_seed(seed)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context,
            initializer_range=0.5, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)
    config = transformers.GPT2Config(
        vocab_size=vocab, n_embd=16, n_layer=2, n_head=4, n_positions=context,
        initializer_range=0.5, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)  # has dropout; stays in training mode


def prompts(lengths=LENGTHS, vocab=V, seed=1):
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (len(lengths), max(lengths)), generator=rng)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def draws(index=range(4), place="write"):
    return Draws(torch.tensor(list(index)), 0, place)


def whole(model, written, tau=1.0):
    """Log-probabilities (B, L, V) of a forward pass without cache, padding or position numbers."""
    out = torch.zeros(*written.ids.shape, model.config.vocab_size)
    model.eval()
    with torch.no_grad():
        for b, n in enumerate(written.mask.sum(1).tolist()):
            z = model(input_ids=written.ids[b : b + 1, :n], use_cache=False).logits[0]
            out[b, :n] = (z / tau).log_softmax(-1)
    return out


def told(logp, written):
    """Of log-probabilities (B, L, V) those of the written tokens, in their order."""
    next_ones = written.ids[:, 1:, None]
    return logp[:, :-1].gather(-1, next_ones)[..., 0][written.y[:, 1:] != IGNORED]


KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2"])


@KINDS
def test_form_and_exact_log_probabilities(kind):
    model, (ids, mask), ends = model_of(kind), prompts(), (2, 11)
    written = generate(
        [model], ids, mask, new=9, draws=draws(), eos=ends, pad=PAD, temperature=1.5, own=True
    )
    assert model.training
    assert (written.mask.diff(dim=1) <= 0).all()  # right padded
    assert written.ids.dtype == written.mask.dtype == written.y.dtype == torch.int64
    for b, n in enumerate(LENGTHS):
        count = int(written.valid[b].sum())
        assert written.ids[b, :n].tolist() == ids[b, :n].tolist()
        assert int(written.mask[b].sum()) == n + count
        answer = written.ids[b, n : n + count].tolist()
        assert written.y[b].tolist() == [
            *[IGNORED] * n, *answer, *[IGNORED] * (written.y.shape[1] - n - count)
        ]  # fmt: skip
        assert not set(answer[:-1]) & set(ends)
        assert count == 9 or answer[-1] in ends
        assert (written.ids[b, n + count :] == PAD).all()
    assert written.valid.sum(1).min() < 9  # a row did end early, so that the above says something
    assert labels(written.y).tolist() == written.ids[written.y != IGNORED].tolist()
    torch.testing.assert_close(
        written.logp[written.valid], told(whole(model, written, 1.5), written), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        written.own[0][written.valid], told(whole(model, written), written), rtol=0, atol=1e-5
    )
    assert (written.logp[~written.valid] == 0).all()
    assert (written.own[:, ~written.valid] == 0).all()


@KINDS
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_neighbours_and_padding_change_nothing(kind, temperature):
    model, (ids, mask) = model_of(kind), prompts()

    def write(rows, ids=ids, mask=mask):
        return generate(
            [model], ids[rows], mask[rows], new=12, draws=draws(rows), eos=EOS, pad=PAD,
            temperature=temperature, top_p=0.95,
        )  # fmt: skip

    together = write([0, 1, 2, 3])
    far = torch.cat([torch.full((4, 3), 7), ids], 1), torch.cat([torch.zeros(4, 3).long(), mask], 1)
    for rows, given in [([0], ()), ([1], ()), ([2], ()), ([3], ()), ([0, 1], ()), ([3, 2], far)]:
        apart = write(rows, *given)
        for a, b in enumerate(rows):
            one, other = apart.mask[a].bool(), together.mask[b].bool()
            assert apart.ids[a][one].tolist() == together.ids[b][other].tolist()
            assert apart.y[a][one].tolist() == together.y[b][other].tolist()
            torch.testing.assert_close(
                apart.logp[a][apart.valid[a]],
                together.logp[b][together.valid[b]],
                rtol=0,
                atol=1e-5,
            )


def test_place_and_number_decide():
    model, (ids, mask) = model_of(), prompts((3, 3))
    same = ids[:1].expand(2, -1)

    def write(draws, new=10):
        return generate([model], same, mask, new=new, draws=draws, eos=(), pad=PAD).ids

    assert torch.equal(write(draws([5, 6])), write(draws([5, 6])))
    assert not torch.equal(*write(draws([5, 6])))
    assert torch.equal(*write(draws([5, 5])))
    assert not torch.equal(write(draws([5, 6])), write(draws([5, 6], "elsewhere")))
    assert torch.equal(write(draws([5, 6]), 4), write(draws([5, 6]))[:, :7])


class Uncached(nn.Module):
    """A model that gives no cache and takes nothing but ids and mask."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.config, self.read = model, model.config, []

    def forward(self, input_ids, attention_mask):
        self.read.append(input_ids.shape[1])
        places = (attention_mask.cumsum(1) - 1).clamp_min(0)
        out = self.inner(input_ids, attention_mask=attention_mask, position_ids=places)
        return SimpleNamespace(logits=out.logits)


class Counted(nn.Module):
    """What a model was given to read."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.config, self.read = model, model.config, []

    def forward(self, input_ids, attention_mask, position_ids, past_key_values, use_cache):
        self.read.append(input_ids.shape[1])
        return self.inner(
            input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, use_cache=use_cache,
        )  # fmt: skip


@KINDS
def test_cache_changes_nothing_but_what_is_read(kind):
    (ids, mask), found = prompts(), []
    for wrap in (Counted, Uncached):
        model = wrap(model_of(kind))
        found.append(generate([model], ids, mask, new=6, draws=draws(), eos=(), pad=PAD))
        found.append(model.read)
    cached, read, uncached, all_read = found
    assert torch.equal(cached.ids, uncached.ids)
    torch.testing.assert_close(cached.logp, uncached.logp, rtol=0, atol=1e-5)
    assert read == [7, 1, 1, 1, 1, 1]
    assert all_read == [7, 8, 9, 10, 11, 12]


@KINDS
def test_likeliest_equals_transformers(kind):
    model, (ids, mask) = model_of(kind).eval(), prompts((4, 4, 4))
    written = generate([model], ids, mask, new=10, draws=None, eos=EOS, pad=PAD, temperature=0)
    theirs = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=10, eos_token_id=2, pad_token_id=0
    )
    assert torch.equal(written.ids, theirs)
    assert (written.logp == 0).all()
    cold = generate([model], ids, mask, new=10, draws=draws(range(3)), eos=EOS, pad=PAD,
                    temperature=1e-4)  # fmt: skip
    assert torch.equal(cold.ids, written.ids)


def slow_truncation(p, k, top):
    order = sorted(range(len(p)), key=lambda i: -p[i])
    order = order[:k] if k else order
    mass, kept = sum(p[i] for i in order), []
    for i in order:
        kept.append(i)
        if sum(p[j] for j in kept) >= top * mass:
            break
    total = sum(p[i] for i in kept)
    return [p[i] / total if i in kept else 0.0 for i in range(len(p))]


@pytest.mark.parametrize(("k", "top"), [(0, 0.5), (0, 0.9), (4, 1.0), (4, 0.7), (1, 1.0), (99, 1)])
def test_truncation_equals_a_slow_loop(k, top):
    logits = 2 * torch.randn(20, 9, generator=torch.Generator().manual_seed(0)).double()
    p = logits.softmax(-1)
    got = truncated(logits.log_softmax(-1), k, top).exp()
    want = torch.tensor([slow_truncation(row, k, 1.0 if top == 1 else top) for row in p.tolist()])
    torch.testing.assert_close(got.float(), want)
    assert got.gt(0).sum(1).float().std() > 0 or top == 1


def test_truncation_breaks_ties_by_number():
    logp = torch.tensor([0.2, 0.3, 0.3, 0.2]).log()
    assert truncated(logp, 1).exp().tolist() == [0, 1, 0, 0]
    assert truncated(logp, 3).exp().gt(0).tolist() == [True, True, True, False]


def test_truncated_samples_have_exact_log_probabilities():
    model, (ids, mask) = model_of(), prompts()
    written = generate([model], ids, mask, new=9, draws=draws(), eos=EOS, pad=PAD,
                       temperature=1.5, top_p=0.8, top_k=6)  # fmt: skip
    p = whole(model, written, 1.5).double().exp()
    for b, n in enumerate(LENGTHS):
        for j in range(int(written.valid[b].sum())):
            row = slow_truncation(p[b, n + j - 1].tolist(), 6, 0.8)
            want = math.log(row[written.ids[b, n + j]])
            assert float(written.logp[b, j]) == pytest.approx(want, abs=1e-4)


def enumerated(models, weights, prompt, tau):
    """The probability of each two tokens after a prompt, from full forward passes."""
    vocab = models[0].config.vocab_size

    def target(ids):
        each = [(m.eval()(torch.tensor([ids])).logits[0, -1] / tau).softmax(-1) for m in models]
        return sum(w * p for w, p in zip(weights, each, strict=True)).tolist()

    with torch.no_grad():
        first = target(prompt)
        return {
            (a, b): first[a] * second
            for a in range(vocab)
            for b, second in enumerate(target([*prompt, a]))
        }


def goodness(want, counts):
    """How likely counts so far from what is wanted are; rare outcomes are put together."""
    n = sum(counts.values())
    common = [pair for pair, p in want.items() if n * p >= 5]
    seen, expected = [counts[pair] for pair in common], [n * want[pair] for pair in common]
    seen, expected = [*seen, n - sum(seen)], [*expected, max(n - sum(expected), 1e-3)]
    square = sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True))
    return float(torch.special.gammaincc(torch.tensor(len(common) / 2), torch.tensor(square / 2)))


def test_mixture_is_drawn_at_its_rate():
    models = [model_of("llama", 5, 0), model_of("gpt2", 5, 1)]
    weights, n = (0.3, 0.7), 20_000
    want = enumerated(models, weights, [3, 4], 1.4)
    ids = torch.tensor([[3, 4]]).expand(n, -1)
    written = generate(models, ids, torch.ones_like(ids), new=2, draws=draws(range(n)), eos=(),
                       pad=PAD, temperature=1.4, weights=weights, own=True)  # fmt: skip
    pairs = [tuple(row) for row in written.ids[:, 2:].tolist()]
    for pair, logp in zip(pairs[:50], written.logp.sum(1).tolist(), strict=False):
        assert logp == pytest.approx(math.log(want[pair]), abs=1e-4)
    counts = Counter(pairs)
    assert goodness(want, counts) > 1e-3
    for m, model in enumerate(models):  # it is neither of the two
        assert goodness(enumerated([model], (1.0,), [3, 4], 1.4), counts) < 1e-6, m
    few = SimpleNamespace(ids=written.ids[:9], mask=written.mask[:9], y=written.y[:9])
    for m, model in enumerate(models):
        torch.testing.assert_close(
            written.own[m][:9].flatten(), told(whole(model, few), few), rtol=0, atol=1e-5
        )


def test_rare_tokens_are_not_lost_and_impossible_ones_never_drawn():
    from limbeck.core.text.generate import _drawn

    logp = torch.tensor([[0.0, 1e-9, 1 - 1e-9, 0.0]]).log().expand(3, -1)
    u = torch.tensor([0.0, 0.9e-9, 1 - 2.0**-48], dtype=torch.float64)
    assert _drawn(logp, u).tolist() == [1, 1, 2]


def test_draws_are_finer_than_one_stream_of_24_bits():
    class Certain(nn.Module):
        config = model_of().config

        def forward(self, input_ids, attention_mask):
            logits = torch.tensor([1e-8, 1 - 1e-8]).log().expand(*input_ids.shape, 2)
            return SimpleNamespace(logits=logits)

    def write(fine):
        fixed = SimpleNamespace(rand=lambda n, stream=0: torch.full((1, n), stream * fine))
        one = torch.ones(1, 1).long()
        return generate([Certain()], one, one, new=1, draws=fixed, eos=(), pad=PAD).ids[0, 1]

    assert write(0.1) == 0  # 0.1 and 0.5 in units of 2^-24, about 0.6e-8 and 3e-8
    assert write(0.5) == 1


def test_padding_columns_are_never_written():
    model, (ids, mask) = model_of(), prompts(vocab=5)
    written = generate([model], ids, mask, new=9, draws=draws(), eos=(), pad=PAD, temperature=3.0,
                       vocab=6, own=True)  # fmt: skip
    assert written.ids.max() < 6
    inside = whole(model, written)[..., :6].log_softmax(-1)
    torch.testing.assert_close(written.own[0].flatten(), told(inside, written), rtol=0, atol=1e-5)


def test_what_cannot_be_written_is_refused():
    model, (ids, mask) = model_of(), prompts()

    def write(models=(model,), ids=ids, mask=mask, **more):
        told = {"new": 3, "draws": draws(), "eos": EOS, "pad": PAD} | more
        return generate(models, ids, mask, **told)

    assert context_of(model) == context_of(model_of("gpt2")) == 32
    assert write(new=25).ids.shape[1] <= 32
    with pytest.raises(UsageError, match=r"7 tokens and 26 new ones .* a context of 32; cut"):
        write(new=26)
    with pytest.raises(UsageError, match="1 of 4 prompts have no token"):
        write(mask=mask * torch.tensor([[1], [1], [0], [1]]))
    with pytest.raises(UsageError, match="2 signals was given 1 weights"):
        write((model, model))
    with pytest.raises(UsageError, match="one vocabulary"):
        write((model, model_of(vocab=24)), weights=(0.5, 0.5))
    with pytest.raises(UsageError, match="needs draws"):
        write(draws=None)
    for wrong in ({"new": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}):
        with pytest.raises(UsageError, match="they must be"):
            write(**wrong)
    broken = model_of()
    broken.lm_head.weight.data.fill_(math.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(NonFinite, match="4 of 4 texts could not be written"):
            write((broken,), temperature=temperature)


def all_texts(model, prompt, new, eos, vocab):
    """The log-probability of each text that ends in an EOS or has `new` tokens."""
    found, open_ = {}, {(): 0.0}
    for step in range(new):
        grown = {}
        for text, so_far in open_.items():
            logp = model(torch.tensor([[*prompt, *text]])).logits[0, -1].log_softmax(-1).tolist()
            for token in range(vocab):
                ended = token in eos or step == new - 1
                (found if ended else grown)[(*text, token)] = so_far + logp[token]
        open_ = grown
    return found


@KINDS
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_wide_beams_find_the_best_of_all_texts(kind, penalty):
    model, (ids, mask) = model_of(kind, 5).eval(), prompts((4, 2), 5)
    model.generation_config.repetition_penalty = 1.7  # of the model's own; not to be followed
    found = beams(model, ids, mask, new=3, beams=16, eos=EOS, pad=PAD, length_penalty=penalty)
    assert model.generation_config.repetition_penalty == 1.7
    assert found.ids.shape[:2] == found.scores.shape == (2, 16)
    with torch.no_grad():
        for b, n in enumerate((4, 2)):
            every = all_texts(model, ids[b, :n].tolist(), 3, EOS, 5)
            by_score = sorted(every, key=lambda t: -every[t] / len(t) ** penalty)
            texts = [
                tuple(row[m.bool()].tolist())
                for row, m in zip(found.ids[b], found.mask[b], strict=True)
            ]
            assert texts[0] == by_score[0]
            assert len(set(texts)) == 16
            for text, logp, score in zip(texts, found.logp[b], found.scores[b], strict=True):
                assert float(logp) == pytest.approx(every[text], abs=1e-4)
                assert float(score) == pytest.approx(every[text] / len(text) ** penalty, abs=1e-4)
            assert found.scores[b].diff().max() <= 0


def test_one_beam_is_the_likeliest_and_joins_its_prompt():
    model, (ids, mask) = model_of().eval(), prompts()
    one = beams(model, ids, mask, new=8, beams=1, eos=EOS, pad=PAD)
    written = generate([model], ids, mask, new=8, draws=None, eos=EOS, pad=PAD, temperature=0,
                       own=True)  # fmt: skip
    rows = joined(ids, mask, one.ids.flatten(0, 1), one.mask.flatten(0, 1), PAD)
    for got, want in zip(rows, (written.ids, written.mask, written.y), strict=True):
        assert torch.equal(got, want)
    torch.testing.assert_close(one.logp[:, 0], written.own[0].sum(1), rtol=0, atol=1e-4)


def test_beams_of_an_encoder_decoder():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=6, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4,
        decoder_start_token_id=0, eos_token_id=2, pad_token_id=0, bos_token_id=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    nn.init.normal_(model.lm_head.weight)
    ids, mask = prompts((4, 2), 6)
    found = beams(model, ids, mask, new=3, beams=25, eos=EOS, pad=PAD)
    with torch.no_grad():
        for b, n in enumerate((4, 2)):
            for text, there, logp in zip(found.ids[b], found.mask[b], found.logp[b], strict=True):
                text = text[there.bool()]
                decoder = torch.cat([torch.zeros(1).long(), text[:-1]])[None]
                z = model(input_ids=ids[b : b + 1, :n], decoder_input_ids=decoder).logits[0]
                want = z.log_softmax(-1).gather(-1, text[:, None]).sum()
                torch.testing.assert_close(logp, want, rtol=0, atol=1e-4)
    one = beams(model, ids, mask, new=3, beams=1, eos=EOS, pad=PAD)
    assert one.ids.shape[:2] == (2, 1)


def test_beams_beyond_the_context_are_refused():
    ids, mask = prompts()
    with pytest.raises(UsageError, match="7 tokens and 26 new ones"):
        beams(model_of(), ids, mask, new=26, beams=2, eos=EOS, pad=PAD)


def test_an_adapter_writes():
    peft = pytest.importorskip("peft", reason="needs peft")
    model, (ids, mask) = model_of(), prompts()
    lora = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    written = generate([lora], ids, mask, new=5, draws=draws(), eos=EOS, pad=PAD)
    torch.testing.assert_close(
        written.logp[written.valid], told(whole(lora, written), written), rtol=0, atol=1e-5
    )
    assert beams(lora, ids, mask, new=5, beams=2, eos=EOS, pad=PAD).ids.shape[:2] == (4, 2)


def slow_groups(lengths, new):
    """The cheapest cost over all ways to cut the sorted lengths."""
    tops, n = sorted(lengths), len(lengths)
    costs = []
    for cuts in range(2 ** (n - 1)):
        edges = [0, *(i + 1 for i in range(n - 1) if cuts >> i & 1), n]
        groups = [tops[a:b] for a, b in pairwise(edges)]
        costs.append(sum(len(g) * g[-1] + 48 * new for g in groups))
    return min(costs)


@pytest.mark.parametrize("lengths", [(5, 90, 7, 80, 6, 200, 75), (4, 4, 4), (9,), (1, 300)])
@pytest.mark.parametrize("new", [1, 4, 40])
def test_prompts_of_near_lengths_go_together_at_the_least_cost(lengths, new):
    groups = apart(torch.tensor(lengths), new)
    assert sorted(torch.cat(groups).tolist()) == list(range(len(lengths)))
    told = [[lengths[i] for i in rows] for rows in groups]
    assert all(max(a) < min(b) for a, b in pairwise(told))
    assert sum(len(g) * max(g) + 48 * new for g in told) == slow_groups(lengths, new)
    if lengths == (5, 90, 7, 80, 6, 200, 75):
        assert len(groups) == {1: 3, 4: 3, 40: 1}[new]


def test_texts_are_the_same_in_whatever_batches_they_are_written(monkeypatch):
    model, lengths = Counted(model_of(context=128)), (60, 2, 64, 1, 3, 61)
    ids, mask = prompts(lengths)
    place = draws(range(10, 16))

    def write(**more):
        told = {"new": 3, "draws": place, "eos": EOS, "pad": PAD, "own": True} | more
        model.read = []
        return generate([model], ids, mask, **told), model.read

    def same(one, other):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.y, other.y)
        for a, b in ((one.logp, other.logp), (one.own, other.own)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

    cut, read = write()
    assert [n for n in read if n > 1] == [3, 64]  # little padding is read
    for rows in ([[0, 1, 2, 3, 4, 5]], [[5, 0], [3, 1], [2, 4]], [[4], [1], [0], [3], [2], [5]]):
        parts = [torch.tensor(r) for r in rows]
        monkeypatch.setattr("limbeck.core.text.generate.apart", lambda *_, parts=parts: parts)
        other, read = write()
        assert len([n for n in read if n > 1]) >= len(rows) - 1
        same(other, cut)
        assert other.cache > 0
    assert not torch.equal(write(draws=draws(range(6)))[0].ids, cut.ids)


def test_the_cache_is_counted_at_its_largest():
    model, (ids, mask) = model_of(), prompts((4, 4))
    written = generate([model], ids, mask, new=6, draws=draws(range(2)), eos=(), pad=PAD)
    seen = 4 + 6 - 1  # the last token is not read
    assert written.cache == 2 * 2 * 2 * seen * 2 * 4 * 4  # layers, both, rows, tokens, heads, width
    both = generate([model, model], ids, mask, new=6, draws=draws(range(2)), eos=(), pad=PAD,
                    weights=(0.5, 0.5))  # fmt: skip
    assert both.cache == 2 * written.cache
    uncached = generate([Uncached(model)], ids, mask, new=2, draws=None, temperature=0, eos=(),
                        pad=PAD)  # fmt: skip
    assert uncached.cache == 0


@pytest.mark.parametrize("count", [1, 4])
def test_beams_never_write_columns_of_padding(count):
    model, (ids, mask) = model_of("llama", 9).eval(), prompts((4, 2), 5)
    model.lm_head.weight.data[6:] = 3 * model.lm_head.weight.data[:3].sum(0)
    told = {"new": 3, "beams": count, "eos": EOS, "pad": PAD, "length_penalty": 0.0}
    assert int(beams(model, ids, mask, **told).ids.max()) >= 6  # else nothing is shown here
    found = beams(model, ids, mask, vocab=6, **told)
    assert int(found.ids.max()) < 6
    with torch.no_grad():
        for b, n in enumerate((4, 2)):
            for text, there, logp in zip(found.ids[b], found.mask[b], found.logp[b], strict=True):
                text = text[there.bool()]
                z = model(torch.cat([ids[b, :n], text])[None]).logits[0, n - 1 : -1, :6]
                want = z.log_softmax(-1).gather(-1, text[:, None]).sum()
                torch.testing.assert_close(logp, want, rtol=0, atol=1e-4)
