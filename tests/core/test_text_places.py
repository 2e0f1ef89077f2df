"""Places, views and scores of causal models, by loops over tokens."""

import math

import pytest
import torch

from limbeck.core.data import Batch, Table
from limbeck.core.evaluate import measure
from limbeck.core.losses.divergences import Divergence
from limbeck.core.signals import Dense
from limbeck.core.text.places import IGNORED, count, cross_entropy, labels, matched, told, wanted
from limbeck.core.text.scores import bits_per_byte, nll
from limbeck.core.text.view import Causal, head_of, is_linear
from limbeck.core.views import Look, entries_of, shown
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("text")

V = 11
X = IGNORED
Y = torch.tensor([[X, 4, 5, X, 7], [X, X, X, 3, X], [X, X, X, X, X]])
IDS = torch.tensor([[2, 4, 5, 6, 7], [8, 9, 2, 3, 0], [1, 2, 0, 0, 0]])
MASK = (IDS > 0).long()


def batch():
    return Batch(x={"ids": IDS, "mask": MASK}, y=Y, bytes=torch.tensor([5, 2, 0]))


def logits(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*Y.shape, V, generator=generator, dtype=torch.float64)


def by_loops(z):
    """-log q of each token that is trained on, by text: what place i says of token i + 1."""
    return [
        [-float(z[b, i].log_softmax(-1)[Y[b, i + 1]]) for i in range(4) if Y[b, i + 1] >= 0]
        for b in range(3)
    ]


def test_the_shift():
    assert wanted(Y).nonzero().tolist() == [[0, 0], [0, 1], [0, 3], [1, 2]]
    assert labels(Y).tolist() == [4, 5, 7, 3]
    assert int(count(batch())) == 4
    assert int(count(batch(), "text")) == 2


def test_cross_entropy_over_tokens_and_over_texts():
    z = logits()
    each = by_loops(z)
    found = cross_entropy(Dense(z), batch(), weight=2.0)
    assert float(found.sum) == pytest.approx(2 * sum(map(sum, each)))
    found = cross_entropy(Dense(z), batch(), per="text")
    assert float(found.sum) == pytest.approx(sum(sum(row) / len(row) for row in each if row))
    assert int(found.count) == 2


def test_a_divergence_over_texts():
    s, t = logits(), logits(1)
    found = matched(Divergence("forward_kl"), Dense(s), Dense(t), batch(), tau=2.0, per="text")
    total = 0.0
    for b, places in ((0, (0, 1, 3)), (1, (2,))):
        for i in places:
            p, q = (t[b, i] / 2).softmax(-1), (s[b, i] / 2).softmax(-1)
            total += float((p * (p / q).log()).sum()) / len(places)
    assert float(found.sum) == pytest.approx(total)


def test_a_signal_without_the_columns_of_padding():
    assert told(Y[1:], Dense(logits()[1:, :4])).shape == (2, 4)
    with pytest.raises(UsageError, match="must be of the same tokens"):
        told(Y, Dense(logits()[:, :3]))


def test_an_unlabelled_batch_is_zero_and_finite():
    none = Batch(x={"ids": IDS, "mask": MASK}, y=torch.full_like(Y, IGNORED))
    found = cross_entropy(Dense(logits()), none)
    assert (float(found.sum), int(found.count)) == (0.0, 0)


# --- Hugging Face models --------------------------------------------------------------------------

SMALL = {
    "vocab_size": V + 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GPT = {"vocab_size": V + 2, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 1}
MORE = {
    "Llama": {"tie_word_embeddings": True},
    "Qwen2": {},
    "Gemma2": {"head_dim": 4, "final_logit_softcapping": 0.02},
    "Granite": {"logits_scaling": 3.0},
    "Cohere": {"logit_scale": 0.5},
}


def model_of(family, **more):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")
    if family == "GPT2":
        return transformers.GPT2LMHeadModel(config(**{**GPT, "eos_token_id": 1, **more})).eval()
    made = getattr(transformers, f"{family}ForCausalLM")
    return made(config(**{**SMALL, **MORE[family], **more})).eval()


@pytest.mark.parametrize("family", [*MORE, "GPT2"])
def test_hidden_states_and_head_are_the_models_logits(family):
    model, reader = model_of(family), Causal(V)
    inputs = reader({"ids": IDS, "mask": MASK})
    assert is_linear(model, inputs, V)
    with torch.no_grad():
        own = model(**inputs).logits[..., :V]
        entries = entries_of(shown(model, {"ids": IDS, "mask": MASK}, reader))
        spread = float(own.std())
        torch.testing.assert_close(entries["logits"], own, rtol=1e-5, atol=1e-5 * spread)
        torch.testing.assert_close(entries["signal"].log_p(), own.log_softmax(-1))
        plain = entries_of(shown(model, {"ids": IDS, "mask": MASK}, Causal(V, linear=False)))
        assert torch.equal(plain["signal"].logits, own)


def test_a_model_that_does_more_than_its_head_is_noticed():
    model = model_of("Llama")
    inputs = Causal(V)({"ids": IDS, "mask": MASK})
    model.lm_head.register_forward_hook(lambda module, args, out: 2 * out)
    assert not is_linear(model, inputs, V)
    assert not is_linear(torch.nn.Linear(2, 2), inputs, V)


def test_columns_that_are_all_padding_are_not_run():
    inputs = Causal(V)({"ids": IDS[2:], "mask": MASK[2:]})
    assert inputs["input_ids"].tolist() == [[1, 2]]


def test_no_logits_are_made_until_they_are_asked(monkeypatch):
    model = model_of("Llama")
    ran = []
    model.lm_head.register_forward_hook(lambda *_: ran.append(1))
    look = Look(model, "student", reader=Causal(V))
    side = look.side_of(batch())
    side.signal.at(told(Y, side.signal)).log_p()
    assert not ran
    assert side.hidden.shape == (3, 5, 8)


def test_a_teachers_entries_carry_no_graph_though_they_are_made_late():
    model = model_of("Llama")
    side = Look(model, "teacher", reader=Causal(V), grad=False).side_of(batch())
    assert not side.logits.requires_grad
    assert not side.signal.hidden.requires_grad
    assert not side.signal.head.weight.requires_grad
    assert not side.signal.log_p().requires_grad


def test_low_rank_additions_to_the_head_are_in_its_matrix():
    peft = pytest.importorskip("peft", reason="needs peft")
    model = model_of("Llama", tie_word_embeddings=False)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["lm_head", "q_proj"])
    adapted = peft.get_peft_model(model, config)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    adapted.eval()
    inputs = Causal(V)({"ids": IDS, "mask": MASK})
    assert is_linear(adapted, inputs, V)
    head_of(adapted, V).weight.sum().backward()
    grads = {n for n, p in adapted.named_parameters() if p.grad is not None}
    assert all("lm_head.lora" in n for n in grads)
    assert len(grads) == 2


def test_scores_stream_to_the_same_as_loops(monkeypatch):
    monkeypatch.setattr("limbeck.core.evaluate._CHUNK", 2)
    model = model_of("Llama")
    columns = {"x": {"ids": IDS, "mask": MASK}, "y": Y, "bytes": torch.tensor([5, 2, 0])}
    with torch.no_grad():
        z = model(input_ids=IDS, attention_mask=MASK).logits[..., :V].double()
    nats = sum(map(sum, by_loops(z)))
    table = Table(columns)
    assert measure(model, table, nll, Causal(V)) == pytest.approx(nats / 4, rel=1e-5)
    found = measure(model, table, bits_per_byte, Causal(V))
    assert found == pytest.approx(nats / math.log(2) / 7, rel=1e-5)
