"""DistilBERT: its three terms by loops, the copied layers, and what is hidden from both sides."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from toys import model, task, texts

import limbeck
from limbeck.core.data import Batch, Table
from limbeck.core.method import Clock
from limbeck.core.signals import Dense
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import Frozen
from limbeck.core.text.facts import MaskedText
from limbeck.core.text.masking import Masked, Masking, fixed, masked_nll
from limbeck.core.text.places import IGNORED, columns
from limbeck.errors import Missing, UsageError
from limbeck.language import task as language_task
from limbeck.language.distilbert import DistilBERT, Triple, cosines
from limbeck.language.distilbert.beginning import begin, spread

pytestmark = pytest.mark.xdist_group("distilbert")
VOCAB, MASK, PAD, WIDTH = 12, 1, 0, 14
CLOCK = Clock(3, "fit", 5, 10, 2)


def masked_texts(n, seed=0):
    """Texts of 6 to 14 tokens with 2 around them; each second token follows from the one before."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (n, WIDTH), generator=generator)
    ids[:, 2::2] = (ids[:, 1:-1:2] * 5) % (VOCAB - 3) + 3
    tokens, mask = ids.clone(), torch.ones_like(ids)
    for i, size in enumerate(torch.randint(6, WIDTH + 1, (n,), generator=generator).tolist()):
        ids[i, 0] = ids[i, size - 1] = 2
        ids[i, size:], mask[i, size:] = PAD, 0
        tokens[i, 0], tokens[i, size - 1 :] = IGNORED, IGNORED
    return fixed({"ids": ids, "mask": mask}, tokens, Masking(MASK, VOCAB), f"set {seed}")


def bert(layers, width=16, kind="Bert", seed=0):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(seed)
    inner = {"hidden_dim" if kind == "DistilBert" else "intermediate_size": 2 * width}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=WIDTH,
        initializer_range=0.3,
        pad_token_id=PAD,
        **inner,
    )
    net = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
    with torch.no_grad():  # biases begin at zero, all alike
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return net


def masked_task(teacher=None, student=None, steps=6, **more):
    given = student or bert(2, kind="DistilBert", seed=1)
    return Task(
        teacher=teacher or bert(4),
        student=given,
        train=masked_texts(32),
        valid=masked_texts(8, 1),
        test=masked_texts(8, 2),
        score=masked_nll,
        budget=Budget(steps=steps, batch=8, optimiser=Optimiser("adamw", 3e-3)),
        readers={"student": Masked(VOCAB), "teacher": Masked(VOCAB)},
        data={"text": MaskedText(VOCAB, WIDTH, MASK, PAD)},
        name="masked-toy",
        **more,
    )


# --- the terms -----------------------------------------------------------------------------------


class Shown:
    """A side with logits and hidden states of its own, of a prepared batch."""

    def __init__(self, batch, seed, width=6):
        generator = torch.Generator().manual_seed(seed)
        shape = columns(batch.x)[0].shape  # without what is padding in every row
        self.logits = torch.randn(*shape, VOCAB, generator=generator, dtype=torch.float64)
        self.hidden = torch.randn(*shape, width, generator=generator, dtype=torch.float64)
        self.signal, self.batch = Dense(self.logits), batch


def prepared(method, n=5):
    raw = Table(masked_texts(n)).rows(torch.arange(n))
    masking = Masking(MASK, VOCAB, method.share, method.replaced, method.random)
    triple = Triple(method, masking)
    one, two = triple.prepare(raw, CLOCK.rng)
    assert one is two  # both sides see the same
    return triple, raw, one


def by_loops(method, s, t, batch):
    """(label, kd, cos), token by token."""
    nats, kls, apart = [], [], []
    for i in range(len(batch.y)):
        for j in range(WIDTH):
            if not batch.x["mask"][i, j]:
                continue
            z, w = s.logits[i, j].tolist(), t.logits[i, j].tolist()
            q, p = ([math.exp(v / method.tau) for v in row] for row in (z, w))
            q, p = ([v / sum(row) for v in row] for row in (q, p))
            if method.over == "tokens" or batch.y[i, j] != IGNORED:
                kls.append(
                    method.tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
                )
            if batch.y[i, j] != IGNORED:
                y = int(batch.y[i, j])
                nats.append(math.log(sum(math.exp(v) for v in z)) - z[y])
            a, b = s.hidden[i, j].tolist(), t.hidden[i, j].tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            apart.append(1 - dot / math.hypot(*a) / math.hypot(*b))
    return [sum(v) / len(v) for v in (nats, kls, apart)]


def values(terms):
    return {name: float(mean.sum / mean.count) for name, mean in terms.items()}


@pytest.mark.parametrize("over", ["tokens", "masked"])
@pytest.mark.parametrize("tau", [1.0, 2.0, 4.0])
def test_terms_are_the_papers(over, tau):
    method = DistilBERT(over=over, tau=tau, share=0.4)
    triple, raw, batch = prepared(method)
    s, t = Shown(batch, 0), Shown(batch, 1)
    terms = triple.terms(None, s, t, raw, CLOCK)
    label, kd, cos = by_loops(method, s, t, batch)
    found = values(terms)
    assert found["label"] == pytest.approx(2 * label, rel=1e-5)
    assert found["kd"] == pytest.approx(5 * kd, rel=1e-5)
    assert found["cos"] == pytest.approx(cos, rel=1e-5)
    assert sum(found.values()) == pytest.approx(5 * kd + 2 * label + cos, rel=1e-5)
    told = triple.counts(raw)
    assert {n: int(c) for n, c in told.items()} == {n: int(m.count) for n, m in terms.items()}


def test_without_tau_squared_at_one():
    triple, raw, batch = prepared(DistilBERT(tau=1.0, label=0.0, cos=0.0))
    s, t = Shown(batch, 0), Shown(batch, 1)
    there = batch.x["mask"].bool()
    p, q = t.logits[there].softmax(-1), s.logits[there].softmax(-1)
    plain = (p * (p / q).log()).sum(-1).mean()
    assert values(triple.terms(None, s, t, raw, CLOCK)) == {
        "kd": pytest.approx(5 * float(plain), rel=1e-5)
    }


def test_the_teacher_itself_has_no_distance_and_cosines_no_scale():
    triple, raw, batch = prepared(DistilBERT())
    s, t = Shown(batch, 4), Shown(batch, 4)
    found = values(triple.terms(None, s, t, raw, CLOCK))
    assert found["kd"] == 0
    assert abs(found["cos"]) < 1e-6
    other = Shown(batch, 5)
    one = values(triple.terms(None, s, other, raw, CLOCK))["cos"]
    s.hidden, other.hidden = 7 * s.hidden, 0.01 * other.hidden
    assert values(triple.terms(None, s, other, raw, CLOCK))["cos"] == pytest.approx(one, rel=1e-5)
    opposite = cosines(torch.tensor([[1.0, 2.0]]), torch.tensor([[-2.0, -4.0]]))
    assert float(opposite) == pytest.approx(2)


def test_padding_has_no_effect():
    triple, raw, batch = prepared(DistilBERT())
    s, t = Shown(batch, 0), Shown(batch, 1)
    before = values(triple.terms(None, s, t, raw, CLOCK))
    padding = columns(batch.x)[1] == 0
    assert bool(padding.any())
    for side in (s, t):
        side.logits[padding] *= -30
        side.hidden[padding] += 9
    assert values(triple.terms(None, s, t, raw, CLOCK)) == before


def test_a_weight_of_zero_is_not_computed():
    for name in ("label", "kd", "cos"):
        method = replace(DistilBERT(), **{name: 0.0})
        triple, raw, batch = prepared(method)
        terms = triple.terms(None, Shown(batch, 0), Shown(batch, 1), raw, CLOCK)
        assert set(terms) == {"label", "kd", "cos"} - {name} == set(triple.counts(raw))


def test_causal_models_learn_the_next_token():
    batch = Batch(**texts(4), index=torch.arange(4))
    triple = Triple(DistilBERT(over="masked", cos=0.0))
    assert triple.prepare(batch, CLOCK.rng) == (batch, batch)
    generator = torch.Generator().manual_seed(0)
    width = columns(batch.x)[0].shape[1]

    class Causal:
        z = torch.randn(4, width, 20, generator=generator)
        signal = Dense(z)

    Causal.batch = batch
    other = Dense(torch.randn(4, width, 20, generator=generator))
    found = values(triple.terms(None, Causal, type("T", (), {"signal": other}), batch, CLOCK))
    nats, kls = [], []
    for b in range(4):
        for i in range(15):
            if batch.y[b, i + 1] != IGNORED:
                nats.append(-float(Causal.z[b, i].log_softmax(-1)[batch.y[b, i + 1]]))
                p, q = ((z[b, i] / 2).log_softmax(-1) for z in (other.logits, Causal.z))
                kls.append(4 * float((p.exp() * (p - q)).sum()))
    assert found["label"] == pytest.approx(2 * sum(nats) / len(nats), rel=1e-5)
    assert found["kd"] == pytest.approx(5 * sum(kls) / len(kls), rel=1e-5)


# --- the beginning -------------------------------------------------------------------------------


def test_layers_are_the_papers_and_ends_stay():
    assert spread(6, 12) == (0, 2, 4, 7, 9, 11)
    assert [spread(few, 12)[:1] + spread(few, 12)[-1:] for few in (2, 3, 5)] == [(0, 11)] * 3
    assert spread(1, 4) == (0,)
    assert spread(4, 4) == (0, 1, 2, 3)


def test_layer_i_is_the_teachers_parameter_by_parameter():
    teacher, student = bert(12), bert(6, seed=1)
    begin(student, teacher)
    mine, theirs = student.state_dict(), teacher.state_dict()
    for i, layer in enumerate((0, 2, 4, 7, 9, 11)):
        names = [n for n in mine if n.startswith(f"bert.encoder.layer.{i}.")]
        assert len(names) == 16
        for name in names:
            other = name.replace(f"layer.{i}.", f"layer.{layer}.")
            assert torch.equal(mine[name], theirs[other])
    rest = [n for n in mine if ".layer." not in n]
    assert all(torch.equal(mine[n], theirs[n]) for n in rest)
    decoder = student.cls.predictions.decoder.weight
    assert decoder is student.bert.embeddings.word_embeddings.weight  # tied as before


def test_a_distilbert_is_a_bert_without_token_types():
    """With all layers copied, and the teacher's token types at zero, it is the same function."""
    teacher, student = bert(3), bert(3, kind="DistilBert", seed=1)
    assert not any("token_type" in n or "pooler" in n for n in student.state_dict())
    with torch.no_grad():
        teacher.bert.embeddings.token_type_embeddings.weight.zero_()
    begin(student, teacher)
    x = masked_texts(6)["x"]
    given = {"input_ids": x["ids"], "attention_mask": x["mask"]}
    there = x["mask"].bool()
    with torch.no_grad():
        one, two = student(**given).logits[there], teacher(**given).logits[there]
    assert torch.allclose(one, two, atol=1e-5)


def test_causal_layers_and_named_ones():
    teacher, student = model(3, seed=1), model(2, seed=2)
    begin(student, teacher, (1, 2))
    for i, layer in enumerate((1, 2)):
        pairs = zip(
            student.model.layers[i].parameters(), teacher.model.layers[layer].parameters(),
            strict=True,
        )  # fmt: skip
        assert all(torch.equal(a, b) for a, b in pairs)


def test_run_begins_with_the_teachers_weights_or_not(monkeypatch):
    began = []

    def noted(objective, student, *more, **named):
        began.append(copy.deepcopy(student.state_dict()))
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.language.distilbert.fit", noted)
    given = masked_task()
    for init in (True, False):
        with pytest.raises(KeyboardInterrupt):
            limbeck.run("distilbert", given, init=init)
    name = "distilbert.transformer.layer.1.ffn.lin1.weight"
    theirs = given.teacher.state_dict()["bert.encoder.layer.3.intermediate.dense.weight"]
    assert torch.equal(began[0][name], theirs)
    assert torch.equal(began[1][name], given.student.state_dict()[name])


# --- runs ----------------------------------------------------------------------------------------


def test_rare_tokens_are_hidden_more_often():
    given = masked_task()
    method = DistilBERT(smoothing=0.7, replaced=0.5, random=0.2, share=0.3)
    masking = method.masking(given)
    counts = given.train["tokens"][given.train["tokens"] != IGNORED].bincount(minlength=VOCAB)
    assert torch.allclose(masking.rates, counts.clamp_min(1).double() ** -0.7)
    assert (masking.share, masking.replaced, masking.random) == (0.3, 0.5, 0.2)
    assert replace(method, smoothing=0.0).masking(given).rates is None
    assert method.masking(task()) is None


def test_a_run_lowers_all_terms():
    result = limbeck.run("distilbert", masked_task(steps=80))
    assert type(result.model).__name__ == "DistilBertForMaskedLM"
    for name in ("kd", "cos"):
        each = [row["terms"][name] for row in result.log]
        assert sum(each[-10:]) < 0.8 * sum(each[:10])


def test_a_causal_run():
    teacher = Frozen(model(3, 16, seed=1))
    result = limbeck.run("distilbert", task(steps=40, teacher=teacher))
    each = [sum(row["terms"].values()) for row in result.log]
    assert set(result.log[0]["terms"]) == {"label", "kd", "cos"}
    assert sum(each[-5:]) < sum(each[:5])


@pytest.mark.parametrize(
    ("given", "fields", "said"),
    [
        (dict(student=bert(2, 8, "DistilBert")), {}, "init=false"),
        (dict(student=bert(2, 8, "DistilBert")), {"init": False}, "or cos=0"),
        (dict(student=bert(6, 16, "DistilBert")), {}, "has 6 layers"),
        ({}, {"layers": (1, 4)}, "from 0 to 3"),
        ({}, {"layers": (1, 2, 3)}, "begin with 3"),
        ({}, {"replaced": 0.95}, "may not be above 1"),
    ],
)
def test_what_cannot_be(given, fields, said):
    with pytest.raises(UsageError, match=said):
        limbeck.run("distilbert", masked_task(**given), **fields)


def test_without_a_teacher_whose_weights_are_here():
    with pytest.raises(UsageError, match="no teacher whose weights"):
        limbeck.run("distilbert", replace(masked_task(), teacher=None))


def test_students_of_other_widths_learn_without_copies_and_cosines():
    given = masked_task(student=bert(2, 8, "DistilBert"))
    result = limbeck.run("distilbert", given, init=False, cos=0.0)
    assert set(result.log[0]["terms"]) == {"label", "kd"}


def test_tasks_that_are_no_text():
    net = torch.nn.Linear(2, 2)
    with pytest.raises(Missing, match="is for text"):
        limbeck.run("distilbert", Task(net, net, (torch.zeros(8, 2), torch.zeros(8).long())))


# --- models with tokenizers ----------------------------------------------------------------------

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "far"]
TEXTS = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 24)) for i in range(1, 41)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def pair():
    """A BERT of four layers and its tokenizer."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    known = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, **dict(zip(names, SPECIAL, strict=True))
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(known), hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config).eval(), words


def test_a_task_of_a_masked_model_and_texts(pair, tmp_path):
    given = language_task(pair, "truncate:2", TEXTS, context=16)
    text, rows = given.data["text"], given.train
    assert (text.vocab, text.context, text.mask, text.pad) == (17, 16, 4, 0)
    assert given.score.name == "masked nll"
    special = rows["x"]["ids"].where(rows["tokens"] == IGNORED, torch.tensor(0))
    assert set(special.unique().tolist()) <= {0, 2, 3}  # of these none is ever hidden
    assert bool((rows["x"]["ids"] == 4).any())
    told = limbeck.run("distilbert", given, out=tmp_path / "run", device="cpu")
    assert told.model.config.num_hidden_layers == 2
    assert told.facts["teacher"] > 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_masked_models_that_cannot_be_taught(pair):
    answers = [{"prompt": "the quick", "response": "brown fox"}] * 20
    with pytest.raises(UsageError, match="taught on plain texts"):
        language_task(pair, "truncate:2", answers, context=16)
    words = copy.deepcopy(pair[1])
    words.mask_token = None
    with pytest.raises(UsageError, match="set its mask_token"):
        language_task((pair[0], words), "truncate:2", TEXTS, context=16)
    with pytest.raises(UsageError, match="for models that write"):
        limbeck.run("gkd", language_task(pair, "truncate:2", TEXTS, context=16))
