"""Masking: how many tokens are hidden, which, by what; and how masked models are looked at."""

from itertools import permutations

import pytest
import torch

from limbeck.core.data import Batch, Table
from limbeck.core.evaluate import measure
from limbeck.core.method import Clock
from limbeck.core.rng import Draws
from limbeck.core.text.masking import Masked, MaskedTokens, Masking, fixed, masked_nll, rates_of
from limbeck.core.text.places import IGNORED, labels, told
from limbeck.core.views import shown
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("masking")
VOCAB, MASK, PAD = 12, 1, 0


def draw(n, seed=0):
    return lambda name: Draws(torch.arange(n), seed, name)


def rows(n, lengths=(3, 10, 16), width=18):
    """Texts that begin and end with a token that is never hidden, 2; padded."""
    generator = torch.Generator().manual_seed(n)
    ids = torch.randint(3, VOCAB, (n, width), generator=generator)
    mask, tokens = torch.zeros_like(ids), ids.clone()
    for i in range(n):
        size = lengths[i % len(lengths)]
        ids[i, 0] = ids[i, size - 1] = 2
        ids[i, size:], mask[i, :size] = PAD, 1
        tokens[i, 0], tokens[i, size - 1 :] = IGNORED, IGNORED
    return {"ids": ids, "mask": mask}, tokens


def test_so_many_of_each_text_are_hidden_and_labelled():
    x, tokens = rows(60)
    ids, y = Masking(MASK, VOCAB)(x["ids"], tokens, draw(60))
    for i in range(60):
        free = [j for j in range(18) if tokens[i, j] != IGNORED]
        there = [j for j in range(18) if y[i, j] != IGNORED]
        assert set(there) <= set(free)
        assert len(there) == max(1, round(0.15 * len(free)))
        assert all(y[i, j] == x["ids"][i, j] for j in there)
        assert all(ids[i, j] == x["ids"][i, j] for j in range(18) if j not in there)
    assert Masking(MASK, VOCAB).count(tokens).tolist() == (y != IGNORED).sum(1).tolist()
    assert Masking(MASK, VOCAB).count(torch.full((1, 4), IGNORED)).tolist() == [0]
    assert Masking(MASK, VOCAB, share=1.0).count(tokens).tolist() == [1, 8, 14] * 20


def test_eight_in_ten_are_the_mask_one_is_random_one_stays():
    ids = torch.full((4000, 10), 5)
    tokens = ids.clone()
    shown_ids, y = Masking(MASK, VOCAB, share=0.5)(ids, tokens, draw(4000))
    said = shown_ids[y != IGNORED]
    assert len(said) == 20_000
    shares = said.bincount(minlength=VOCAB) / len(said)
    random = 0.1 / VOCAB  # of each token
    assert float(shares[MASK]) == pytest.approx(0.8 + random, abs=0.012)
    assert float(shares[5]) == pytest.approx(0.1 + random, abs=0.01)
    others = [v for v in range(VOCAB) if v not in (MASK, 5)]
    assert all(float(shares[v]) == pytest.approx(random, abs=0.003) for v in others)
    for replaced, random, expected in ((1.0, 0.0, {MASK}), (0.0, 0.0, {5})):
        whole, y = Masking(MASK, VOCAB, 0.5, replaced, random)(ids, tokens, draw(4000))
        assert set(whole[y != IGNORED].tolist()) == expected


def test_which_are_hidden_by_their_rates_without_one_twice():
    """Two of three tokens, drawn in turn in proportion to what is left: all orders enumerated."""
    rates = torch.zeros(VOCAB, dtype=torch.float64)
    rates[3], rates[4], rates[5] = 1.0, 2.0, 5.0
    expected = dict.fromkeys((3, 4, 5), 0.0)
    for one, two, _ in permutations((3, 4, 5)):
        chance = rates[one] / 8 * rates[two] / (8 - rates[one])
        for token in (one, two):
            expected[token] += float(chance)
    tokens = torch.tensor([[3, 4, 5]]).repeat(20_000, 1)
    there = Masking(MASK, VOCAB, share=0.6, rates=rates).hidden(
        tokens, Draws(torch.arange(20_000), 3)
    )
    assert set(there.sum(1).tolist()) == {2}
    for place, token in enumerate((3, 4, 5)):
        assert float(there[:, place].double().mean()) == pytest.approx(expected[token], abs=0.012)


def test_rates_are_counts_to_a_power():
    x, tokens = rows(9)
    found = rates_of(Table({"x": x, "tokens": tokens}), VOCAB, 0.7)
    for v in range(VOCAB):
        n = sum(int(t) == v for row in tokens for t in row)
        assert float(found[v]) == pytest.approx(max(n, 1) ** -0.7)


def test_what_is_hidden_is_the_samples_own_matter():
    x, tokens = rows(6)
    table = Table(fixed(x, tokens, Masking(MASK, VOCAB), "train"))
    clock, masking = Clock(3, "fit", 5, 10, 2), Masking(MASK, VOCAB, share=0.4)
    whole = masking.batch(table.rows(torch.arange(6)), clock.rng)
    some = masking.batch(table.rows(torch.tensor([4, 1])), clock.rng)
    assert torch.equal(some.x["ids"], whole.x["ids"][[4, 1]])
    assert torch.equal(some.y, whole.y[[4, 1]])
    later = masking.batch(table.rows(torch.arange(6)), Clock(3, "fit", 6, 10, 2).rng)
    assert not torch.equal(later.y, whole.y)
    true = torch.where(whole.y != IGNORED, whole.y, whole.x["ids"])
    assert torch.equal(true, x["ids"])  # nothing is left of what the set has hidden


def test_a_set_hides_by_the_number_of_a_sample_and_its_name():
    x, tokens = rows(6)
    one, two = (fixed(x, tokens, Masking(MASK, VOCAB), "valid") for _ in range(2))
    assert torch.equal(one["y"], two["y"])
    assert torch.equal(one["x"]["ids"], two["x"]["ids"])
    assert not torch.equal(one["y"], fixed(x, tokens, Masking(MASK, VOCAB), "test")["y"])
    some = {key: value[:2] for key, value in x.items()}
    assert torch.equal(fixed(some, tokens[:2], Masking(MASK, VOCAB), "valid")["y"], one["y"][:2])


def test_shares_above_one_are_refused():
    with pytest.raises(UsageError, match="may not be above 1"):
        Masking(MASK, VOCAB, replaced=0.8, random=0.3)


# --- models --------------------------------------------------------------------------------------


def model(kind="Bert"):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB + 2,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        initializer_range=0.3,
        pad_token_id=PAD,
    )
    return getattr(transformers, f"{kind}ForMaskedLM")(config).eval()


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Roberta", "ModernBert"])
def test_entries_are_the_models_own(kind):
    x, _ = rows(3)
    net = model(kind)
    with torch.no_grad():
        view = shown(net, x, Masked(VOCAB))
        inputs = {"input_ids": x["ids"][:, :16], "attention_mask": x["mask"][:, :16]}
        logits = net(**inputs).logits
        hidden = net.base_model(**inputs).last_hidden_state
    assert torch.equal(view["logits"], logits[..., :VOCAB])
    assert torch.equal(view["hidden"], hidden)
    assert torch.equal(view["signal"].logits[:, :-1], view["logits"][:, 1:])
    assert torch.equal(view["signal"].logits[:, -1], view["logits"][:, 0])
    assert not any(m._forward_hooks for m in net.modules())


def test_one_pass_and_only_if_it_is_asked():
    net, asked = model(), []
    net.register_forward_hook(lambda *given: asked.append(1))
    view = shown(net, rows(3)[0], Masked(VOCAB))
    assert not asked
    view["hidden"], view["logits"], view["signal"]
    assert len(asked) == 1


def test_score_is_the_mean_over_hidden_tokens_whatever_the_chunks():
    x, tokens = rows(40)
    table = Table(fixed(x, tokens, Masking(MASK, VOCAB), "test"))
    net, nats = model(), []
    batch = table.rows(torch.arange(40))
    with torch.no_grad():
        logits = net(input_ids=batch.x["ids"], attention_mask=batch.x["mask"]).logits[..., :VOCAB]
    for i in range(40):
        for j in range(18):
            if batch.y[i, j] != IGNORED:
                nats.append(-float(logits[i, j].double().log_softmax(-1)[batch.y[i, j]]))
    found = measure(net, table, masked_nll, Masked(VOCAB))
    assert found == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    with torch.no_grad():
        signal = shown(net, batch.x, Masked(VOCAB))["signal"]
    assert len(labels(batch.y)) == len(nats) == len(signal.at(told(batch.y, signal)).logits)


def test_objective_of_hidden_tokens_and_its_count():
    x, tokens = rows(6)
    batch = Table(fixed(x, tokens, Masking(MASK, VOCAB), "train")).rows(torch.arange(6))
    clock, net = Clock(1, "fit", 2, 10, 2), model()
    truth = MaskedTokens(MASK, VOCAB, share=0.3, label=2.0)
    one, two = truth.prepare(batch, clock.rng)
    assert one is two

    class Shown:
        signal, batch = shown(net, one.x, Masked(VOCAB))["signal"], one

    mean = truth.terms(None, Shown, None, batch, clock)["label"]
    assert int(mean.count) == int(truth.counts(batch)["label"]) == int((one.y != IGNORED).sum())
    logits = net(input_ids=one.x["ids"], attention_mask=one.x["mask"]).logits[..., :VOCAB]
    slow = torch.nn.functional.cross_entropy(logits.transpose(1, 2), one.y, ignore_index=IGNORED)
    value = float(mean.sum.detach() / mean.count)
    assert value == pytest.approx(2 * float(slow.detach()), rel=1e-5)
    assert isinstance(one, Batch)
