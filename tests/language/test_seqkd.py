"""Seq-KD: searches against enumeration, BLEU by hand, losses by loops, and what is pruned."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from math import exp, prod

import pytest
import torch
from toys import CONTEXT, EOS, PAD, VOCAB, model, task, texts

import limbeck
from limbeck.core.data import Batch
from limbeck.core.run import Run
from limbeck.core.signals import Dense
from limbeck.core.task import Optimiser
from limbeck.core.teachers import BlackBox
from limbeck.core.text.bleu import bleu
from limbeck.core.text.facts import Text
from limbeck.core.text.generate import beams
from limbeck.core.text.kept import Keep
from limbeck.core.text.places import IGNORED
from limbeck.errors import UsageError
from limbeck.language.seqkd import SeqKD, Words, written
from limbeck.language.seqkd.pruned import Masked, masks_of, put_out
from limbeck.language.seqkd.written import Writer, answers, nearest_of

pytestmark = pytest.mark.xdist_group("language")
TEXT = Text(VOCAB, CONTEXT, (EOS,), PAD)
BOS = 2


def pair_model(vocab=VOCAB, seed=0):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(seed)
    config = transformers.BartConfig(
        vocab_size=vocab,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=CONTEXT,
        dropout=0.0,
        init_std=0.4,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
        decoder_start_token_id=BOS,
        forced_eos_token_id=None,
    )
    return transformers.BartForConditionalGeneration(config).eval()


def pairs(n, seed=0, vocab=VOCAB):
    """Sources of 3 to 6 words, and targets of 5 tokens after BOS."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(3, vocab, (n, 6), generator=generator)
    seen = (torch.arange(6) < torch.randint(3, 7, (n, 1), generator=generator)).long()
    ids = torch.randint(3, vocab, (n, 7), generator=generator)
    ids[:, 0], ids[:, -1] = BOS, EOS
    y = ids.clone()
    y[:, 0] = IGNORED
    x = {"source_ids": source * seen, "source_mask": seen, "ids": ids, "mask": torch.ones_like(ids)}
    return Batch(x=x, y=y)


def said(found):
    """What was written, of each row, with its EOS."""
    return [row[row != IGNORED].tolist() for row in found["y"]]


def logits(net, batch, row, text):
    """Logits (T, V) of all that follows, for one text of one row."""
    if "source_ids" in batch.x:
        seen = batch.x["source_mask"][row].bool()
        source = batch.x["source_ids"][row][seen][None]
        return net(input_ids=source, decoder_input_ids=torch.tensor([[BOS, *text]])).logits[0]
    prompt = batch.x["ids"][row, :4].tolist()
    return net(input_ids=torch.tensor([[*prompt, *text]])).logits[0, 3:]


@pytest.fixture(params=["causal", "pair"])
def side(request):
    return (model(), Batch(**texts(5))) if request.param == "causal" else (pair_model(), pairs(5))


# --- what the teacher writes ----------------------------------------------------------------------


@torch.no_grad()
def test_one_beam_is_the_likeliest_word_each_time(side):
    net, batch = side
    found = Writer(TEXT, 1, 6, 4, 0.0).written(net, batch)
    for row, text in enumerate(said(found)):
        slow = []
        while len(slow) < 6 and EOS not in slow:
            slow.append(int(logits(net, batch, row, slow)[-1].argmax()))
        assert text == slow


@torch.no_grad()
@pytest.mark.parametrize("kind", ["causal", "pair"])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_of_all_prefixes_finds_the_best_of_all_texts(kind, penalty):
    vocab, new = 5, 3
    net = small_causal(vocab) if kind == "causal" else pair_model(vocab, seed=3)
    batch = pairs(3, vocab=vocab) if kind == "pair" else Batch(**texts(3))
    if kind == "causal":
        batch.x["ids"].remainder_(vocab)
    text = replace(TEXT, vocab=vocab)
    writer = Writer(text, vocab ** (new - 1), new, 4, penalty)
    found = said(writer.written(net, batch))
    short = {s[: s.index(EOS) + 1] if EOS in s else s for s in product(range(vocab), repeat=new)}
    for row in range(3):
        scores = {}
        for one in short:
            logp = logits(net, batch, row, one).log_softmax(-1)
            scores[one] = sum(float(logp[i, w]) for i, w in enumerate(one)) / len(one) ** penalty
        assert tuple(found[row]) == max(scores, key=scores.get)


def small_causal(vocab):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.5,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_written_texts_stand_after_their_prompts():
    batch = Batch(**texts(5))
    found = Writer(TEXT, 2, 6, 4, 0.0).written(model(), batch)
    assert found["ids"].shape == (5, CONTEXT)
    assert torch.equal(found["ids"][:, :4], batch.x["ids"][:, :4])
    for row, text in enumerate(said(found)):
        there = found["mask"][row].bool()
        assert found["ids"][row][there].tolist()[4:] == text
        assert EOS not in text[:-1]
        assert len(text) <= 6
        assert there.sum() == 4 + len(text)
    assert bool((found["y"][:, :4] == IGNORED).all())


def test_pairs_keep_their_sources_and_begin_as_before():
    batch = pairs(5)
    source = {"x": batch.x, "y": batch.y}
    with Run(device="cpu"):
        found = Writer(TEXT, 2, 6, 4, 0.0)(limbeck.Frozen(pair_model()), source, "write")
    assert torch.equal(found["x"]["source_ids"], batch.x["source_ids"])
    assert torch.equal(found["x"]["source_mask"], batch.x["source_mask"])
    assert found["x"]["ids"][:, 0].tolist() == [BOS] * 5
    assert found["changed"].tolist() == [True] * 5
    lengths = found["x"]["mask"].sum(1)
    assert found["x"]["ids"].shape[1] == int(lengths.max())
    assert ((found["y"] != IGNORED).sum(1) == lengths - 1).all()


# --- the nearest to the data ----------------------------------------------------------------------


def sentence_bleu(said, truth):
    return bleu([said], [[truth]])


def test_bleu_by_hand():
    said, truth = ["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "f"]
    by_hand = (4 / 5 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert sentence_bleu(said, truth) == pytest.approx(by_hand)
    assert sentence_bleu(["a", "b"], truth) == pytest.approx(exp(1 - 5 / 2))  # all of it, but short
    twice = (1 / 2 * 1 / 2) ** 0.25  # "a a": one a of two counts, no pair
    assert sentence_bleu(["a", "a"], ["a"]) == pytest.approx(twice)
    assert sentence_bleu(truth, truth) == 1.0
    assert sentence_bleu(["b", "a"], ["a", "b"]) < 1.0
    assert sentence_bleu(["x"], truth) == 0.0
    assert sentence_bleu([], truth) == sentence_bleu([], []) == 0.0


def slow_bleu(said, truth):
    if not said:
        return 0.0
    factors = []
    for n in range(1, 5):
        mine = [tuple(said[i : i + n]) for i in range(len(said)) if i + n <= len(said)]
        left = Counter(tuple(truth[i : i + n]) for i in range(len(truth)) if i + n <= len(truth))
        hits = 0
        for gram in mine:
            if left[gram] > 0:
                left[gram] -= 1
                hits += 1
        factors.append((hits + (n > 1)) / (len(mine) + (n > 1)))
    short = 1.0 if len(said) >= len(truth) else exp(1 - len(truth) / len(said))
    return short * prod(factors) ** 0.25


def test_bleu_by_loops():
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        a, b = (
            torch.randint(4, (int(torch.randint(1, 9, (), generator=generator)),),
                          generator=generator).tolist()
            for _ in range(2)
        )  # fmt: skip
        assert sentence_bleu(a, b) == pytest.approx(slow_bleu(a, b))


def test_the_datas_own_text_wins_then_the_nearest_then_the_likeliest():
    truth = [1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2]
    assert nearest_of([[9], [1, 2, 3], truth, [5]], truth) == 2
    assert nearest_of([[7], [8]], [1, 2]) == 0
    assert nearest_of([[4, 1], [1, 4], [2, 1], [1, 2, 9]], [1, 2, 3, 4]) == 3
    # of these all n-grams up to four are the same, as often: BLEU is 1
    one, two = [0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]
    assert sentence_bleu(two, one) == 1.0
    assert nearest_of([two, one], one) == 1


def test_seq_inter_picks_from_the_beam_by_bleu(side):
    net, batch = side
    found = said(Writer(TEXT, 8, 6, 4, 0.0, near=True).written(net, batch))
    every = all_beams(net, batch, 8)
    picked = 0
    for row, text in enumerate(found):
        truth = batch.y[row][(batch.y[row] != IGNORED) & (batch.y[row] != EOS)].tolist()[:6]
        scores = [slow_bleu([i for i in one if i != EOS], truth) for one in every[row]]
        assert text == every[row][scores.index(max(scores))]
        picked += text != every[row][0]
    assert picked
    assert found != said(Writer(TEXT, 8, 6, 4, 0.0).written(net, batch))


def all_beams(net, batch, k):
    pair = "source_ids" in batch.x
    ids, mask = (
        (batch.x["source_ids"], batch.x["source_mask"])
        if pair
        else (batch.x["ids"][:, :4], batch.x["mask"][:, :4])
    )
    found = beams(net, ids, mask, new=6, beams=k, eos=(EOS,), pad=PAD, length_penalty=0.0)
    return [
        [one[m.bool()].tolist() for one, m in zip(*row, strict=True)]
        for row in zip(found.ids, found.mask, strict=True)
    ]


def test_gold_in_the_beam_is_taken_and_one_beam_is_seq_kd(side):
    net, batch = side
    every = all_beams(net, batch, 8)
    y = torch.full((5, CONTEXT), IGNORED)
    x = {**batch.x, "ids": torch.full((5, CONTEXT), PAD), "mask": torch.zeros(5, CONTEXT).long()}
    start = 1 if "source_ids" in batch.x else 4
    for row in range(5):
        gold = every[row][5]
        stop = start + len(gold)
        x["ids"][row, :start] = batch.x["ids"][row, :start]
        x["ids"][row, start:stop] = y[row, start:stop] = torch.tensor(gold)
        x["mask"][row, :stop] = 1
    given = Batch(x=x, y=y)
    found = said(Writer(TEXT, 8, 6, 4, 0.0, near=True).written(net, given))
    words = [[[i for i in text if i != EOS] for text in each] for each in (found, y_of(y))]
    assert words[0] == words[1]
    one = [Writer(TEXT, 1, 6, 4, 0.0, near=near).written(net, given) for near in (False, True)]
    assert torch.equal(one[0]["ids"], one[1]["ids"])


def y_of(y):
    return [row[row != IGNORED].tolist() for row in y]


def test_the_datas_answers():
    x = {"ids": torch.arange(10).repeat(4, 1), "mask": torch.ones(4, 10).long()}
    y = torch.arange(10).repeat(4, 1)
    y[0, :4] = IGNORED  # a prompt of four
    y[1, :1] = IGNORED  # plain text
    y[2, [0, 1, 5, 6]] = IGNORED  # a chat
    y[3] = IGNORED
    batch = Batch(x=x, y=y)
    assert answers(batch, (), 9, 3) == [[4, 5, 6, 7, 8, 9], [3, 4, 5, 6, 7, 8, 9], [2, 3, 4], []]
    assert answers(batch, (7,), 9, 3) == [[4, 5, 6], [3, 4, 5, 6], [2, 3, 4], []]
    assert answers(batch, (7,), 2, 3) == [[4, 5], [3, 4], [2, 3], []]
    x["mask"][:, 8:] = 0
    assert answers(batch, (), 9, 3)[0] == [4, 5, 6, 7]
    pair = Batch(x={**x, "source_ids": x["ids"]}, y=y)
    assert answers(pair, (), 9, 3)[1] == [1, 2, 3, 4, 5, 6, 7]


# --- the loss -------------------------------------------------------------------------------------


class Shown:
    def __init__(self, z):
        self.signal = Dense(z)


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, CONTEXT, VOCAB, generator=generator, dtype=torch.float64)


def places(batch):
    return [(b, i) for b in range(4) for i in range(CONTEXT - 1) if batch.y[b, i + 1] != IGNORED]


def value(loss, s, t, batch):
    found = loss.terms(None, Shown(s), Shown(t), batch, None)
    assert {n: int(c) for n, c in loss.counts(batch).items()} == {
        n: len(places(batch)) for n in found
    }
    return {name: float(term.sum / term.count) for name, term in found.items()}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_word_level_is_the_papers_less_the_teachers_entropy(alpha):
    s, t, batch = drawn(0), drawn(1), Batch(**texts(4))
    nll, soft, entropy = [], [], []
    for b, i in places(batch):
        p, q = t[b, i].softmax(-1), s[b, i].log_softmax(-1)
        nll.append(-float(q[batch.y[b, i + 1]]))
        soft.append(-sum(float(p[k] * q[k]) for k in range(VOCAB)))
        entropy.append(-sum(float(p[k] * p[k].log()) for k in range(VOCAB)))
    n = len(nll)
    found = value(SeqKD(word=True, alpha=alpha).loss, s, t, batch)
    assert set(found) == {0.0: {"label"}, 1.0: {"word"}}.get(alpha, {"label", "word"})
    whole = (1 - alpha) * sum(nll) / n + alpha * (sum(soft) - sum(entropy)) / n
    assert sum(found.values()) == pytest.approx(whole)


def test_without_a_teachers_share_it_is_nll():
    assert SeqKD().loss == SeqKD(word=True, alpha=0.0).loss == Words(1.0, 0.0)
    assert Words(1.0, 0.0).asks() == ("student:signal", "y")


def test_a_teacher_that_is_sure_gives_nll_on_its_tokens():
    s, batch = drawn(0), Batch(**texts(4))
    token = torch.randint(VOCAB, (4, CONTEXT), generator=torch.Generator().manual_seed(5))
    sure = torch.nn.functional.one_hot(token, VOCAB).double() * 1e4
    found = value(SeqKD(word=True, alpha=1.0).loss, s, sure, batch)["word"]
    logq = s.log_softmax(-1)
    assert found == pytest.approx(
        -sum(float(logq[b, i, token[b, i]]) for b, i in places(batch)) / len(places(batch))
    )


def test_it_is_zero_for_the_teachers_own_distributions_only():
    s, batch = drawn(0), Batch(**texts(4))
    other = s.clone()
    b, i = places(batch)[3]
    other[b, i, 0] += 1.0
    assert value(Words(0.0, 1.0), s, s, batch)["word"] == 0.0
    assert value(Words(0.0, 1.0), s, other, batch)["word"] > 1e-4


# --- pruning --------------------------------------------------------------------------------------


def test_the_least_weights_of_all_matrices_go():
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 2), torch.nn.Embedding(4, 2), torch.nn.Linear(2, 2)
    )
    net[2].weight.requires_grad_(False)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.1, -5.0, 2.0], [-0.2, 3.0, -4.0]]))
        net[1].weight.copy_(torch.tensor([[0.1, 6.0], [-7.0, 0.05], [8.0, 9.0], [0.1, 1.0]]))
        net[0].bias.zero_()
    masks = masks_of(net, 0.25)  # of 14: 3.5, which is rounded to the even 4
    assert set(masks) == {"0.weight", "1.weight"}
    assert masks["0.weight"].tolist() == [[False, True, True], [True, True, True]]
    gone = [(int(i), int(j)) for i, j in (~masks["1.weight"]).nonzero()]
    assert gone == [(0, 0), (1, 1), (3, 0)]
    assert [int((~m).sum()) for m in masks_of(net, 0.1).values()] == [0, 1]  # ties: 0.05 alone
    assert [int((~m).sum()) for m in masks_of(net, 0.14).values()] == [1, 1]  # the earlier of 0.1
    put_out(net, masks)
    assert net[0].weight.tolist()[0] == [0.0, -5.0, 2.0]
    assert bool((net[2].weight != 0).all())


def test_tied_weights_count_once():
    net = pair_model()
    masks = masks_of(net, 0.5)
    tied = [n for n, p in net.named_parameters(remove_duplicate=False) if p is net.lm_head.weight]
    assert len(tied) > 1
    assert len(set(tied) & set(masks)) == 1
    total = sum(p.numel() for p in net.parameters() if p.dim() > 1)
    assert sum(int((~m).sum()) for m in masks.values()) == round(0.5 * total)


def test_gradients_are_summed_and_masked():
    mask = torch.tensor([[True, False]])
    grads = {
        "a": [torch.ones(1, 2), torch.ones(1), None],
        "b": [2 * torch.ones(1, 2), None, None],
    }
    names = ["student.w", "student.b", "student.c"]
    w, b, c = Masked({"w": mask}).join(grads, names, None)
    assert w.tolist() == [[3.0, 0.0]]
    assert b.tolist() == [1.0]
    assert c is None


@pytest.mark.parametrize(
    "optimiser",
    [
        Optimiser("adamw", 1e-2, weight_decay=0.1),
        Optimiser("sgd", 0.1, momentum=0.9, nesterov=True),
    ],
)
def test_removed_weights_stay_zero_while_others_are_trained(optimiser):
    given = task(steps=20)
    given.budget = replace(given.budget, optimiser=optimiser)
    seen = {}

    class Watched(Run):
        def __init__(self):
            super().__init__(given, 0, device="cpu", on_fit=self.begin)

        def begin(self, passes):
            seen[passes.stage] = {
                n: p.detach().clone() for n, p in passes.student.named_parameters()
            }

    with Watched():
        result = SeqKD(beam=2, inter=0, prune=0.6, retrain=0.5, rate=1.0, new=4, word=True).run(
            given
        )
    before, after = seen["retrain"], dict(result.model.named_parameters())
    matrices = [n for n, p in after.items() if p.dim() > 1]
    total = sum(after[n].numel() for n in matrices)
    zeros = sum(int((after[n] == 0).sum()) for n in matrices)
    assert zeros == round(0.6 * total)
    assert result.report == {"weights": total, "removed": zeros}
    for name in matrices:
        assert torch.equal(after[name] == 0, before[name] == 0)
    assert any(not torch.equal(after[n], before[n]) for n in matrices)
    assert all(not torch.equal(after[n], before[n]) for n in after if n not in matrices)


# --- runs -----------------------------------------------------------------------------------------


def stages(result):
    return {s["stage"]: s["steps"] for s in result.facts["stages"]}


def test_fits_in_their_order_and_length():
    result = limbeck.run("seqkd", task(steps=8), beam=2, inter_beam=3, new=4)
    assert list(stages(result).items()) == [("student", 8), ("inter", 2)]
    rates = {row["stage"]: row["lr"] for row in result.log if row["step"] == 0}
    assert rates["inter"] == pytest.approx(0.1 * rates["student"])
    result = limbeck.run("seqkd", task(steps=8), first="data", inter=0, word=True)
    assert stages(result) == {"student": 8}
    result = limbeck.run("seqkd", task(steps=8), first="none", inter=0.5, inter_beam=2, new=4)
    assert stages(result) == {"inter": 4}
    epochs = task(steps=None, budget={"epochs": 2})
    result = limbeck.run("seqkd", epochs, beam=1, new=4, inter=0, prune=0.5, retrain=0.5)
    assert list(stages(result).items()) == [("student", 8), ("retrain", 4)]


def test_first_data_without_a_teacher_is_the_baseline():
    ours = limbeck.run("seqkd", task(steps=6), first="data", inter=0)
    alone = limbeck.run("seqkd", task(steps=6), first="data", inter=0, word=True, alpha=0.0)
    base = limbeck.run("gkd", task(steps=6), own=0.0, gkd=0.0001, baseline=True)
    assert ours.log == alone.log
    assert ours.facts["score"] == pytest.approx(base.facts["baseline"])


def test_the_student_learns_what_the_teacher_writes():
    given = task(steps=150)
    result = limbeck.run("seqkd", given, inter=0, beam=3, new=5)
    losses = [row["terms"]["label"] for row in result.log]
    assert losses[-1] < 0.3 * losses[0]
    writer, train = Writer(TEXT, 3, 5, 8, 0.0), Batch(**given.train)
    theirs, mine, fresh = (
        said(writer.written(net, train)) for net in (given.teacher, result.model, model())
    )
    like, unlike = (sum(a == b for a, b in zip(one, theirs, strict=True)) for one in (mine, fresh))
    assert like >= 12  # of 16
    assert unlike < 6


def test_a_killed_run_goes_on_after_the_last_piece(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(written, "ROWS", 4)
    fields = {"beam": 2, "inter": 0.0, "new": 4}
    whole = limbeck.run("seqkd", task(steps=3), **fields)
    calls = []

    def search(*args, **more):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(args[1]))
        return beams(*args, **more)

    monkeypatch.setattr(written, "beams", search)
    with pytest.raises(KeyboardInterrupt):
        limbeck.run("seqkd", task(steps=3), out=tmp_path / "run", **fields)
    assert calls == [4, 4]
    calls[:] = [None] * 3  # on from here
    capsys.readouterr()
    result = limbeck.run("seqkd", task(steps=3), out=tmp_path / "run", progress="json", **fields)
    assert calls == [None] * 3 + [4, 4]  # 16 texts
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    pieces = [(row["step"], row["terms"]) for row in told if row.get("stage") == "write"]
    assert pieces == [(3, {"texts": 12}), (4, {"texts": 16})]
    for one, two in zip(whole.model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_searches_are_no_larger_than_memory_allows(monkeypatch):
    rows = []

    def search(model, ids, mask, **more):
        rows.append(len(ids))
        return beams(model, ids, mask, **more)

    monkeypatch.setattr(written, "beams", search)
    monkeypatch.setattr(written, "ROOM", 3 * 2 * VOCAB * 4 + 1)
    limbeck.run("seqkd", task(steps=1, batch=4), beam=2, inter=0, new=4)
    assert rows == [3] * 5 + [1]


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "fields", "words"),
    [
        ({"teacher": BlackBox(len)}, {}, "this teacher is a BlackBox"),
        ({"teacher": None}, {"first": "none"}, "this teacher is a Nobody"),
        ({"teacher": torch.nn.Linear(2, 2)}, {}, "a Linear has none"),
        ({"teacher": "pair"}, {}, "the teacher is an encoder-decoder, and the data"),
        ({"other": range(9)}, {}, "has another tokenizer"),
        ({}, {"new": CONTEXT}, f"context of {CONTEXT}"),
        ({"precision": "fp16"}, {"prune": 0.5}, "fp16's loss scaling"),
    ],
)
def test_what_cannot_be(change, fields, words):
    given = task()
    if "teacher" in change:
        net = pair_model() if change["teacher"] == "pair" else change["teacher"]
        given = replace(given, teacher=net)
    if "other" in change:
        given.data = {"text": replace(TEXT, other=change["other"])}
    given.budget = replace(given.budget, precision=change.get("precision", "fp32"))
    with pytest.raises(UsageError, match=words), Run(given, device="cpu"):
        SeqKD(**fields).run(given)


def test_nothing_to_be_done():
    with pytest.raises(UsageError, match="nothing is trained"):
        SeqKD(first="none", inter=0)


def test_decoders_that_begin_with_more_than_a_token():
    batch = pairs(3)
    batch.y[1, 1] = IGNORED
    with pytest.raises(UsageError, match="first token alone"):
        Writer(TEXT, 2, 4, 4, 0.0).written(pair_model(), batch)
    with pytest.raises(UsageError, match="the teacher is a causal model, and the data"):
        Writer(TEXT, 2, 4, 4, 0.0).written(model(), pairs(3))


def test_word_level_alone_is_taught_by_a_cache(tmp_path):
    given = task(steps=3)
    fields = {"first": "data", "inter": 0.0, "word": True}
    live = limbeck.run("seqkd", given, **fields)
    with Run(given):
        cached = limbeck.cache_teacher(given, tmp_path / "cache", keep=Keep("topk", VOCAB), batch=4)
    kept = limbeck.run("seqkd", replace(given, teacher=cached), **fields)
    for one, two in zip(live.log, kept.log, strict=True):
        assert one["terms"] == pytest.approx(two["terms"], rel=5e-3)  # kept in few bits
    with pytest.raises(UsageError, match="this teacher is a Cached"):
        limbeck.run("seqkd", replace(given, teacher=cached), word=True)
