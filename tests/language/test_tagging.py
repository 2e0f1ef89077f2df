"""Words with tags: from files to a token classifier that transformers loads again."""

import json
import re
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")

import limbeck  # noqa: E402
from limbeck.cli import main  # noqa: E402
from limbeck.core.data import Table  # noqa: E402
from limbeck.core.evaluate import measure  # noqa: E402
from limbeck.core.teachers import Frozen  # noqa: E402
from limbeck.core.text.places import IGNORED  # noqa: E402
from limbeck.core.text.tagged import encoded, words_right  # noqa: E402
from limbeck.core.text.texts import read  # noqa: E402
from limbeck.core.untrained import Untrained  # noqa: E402
from limbeck.errors import UsageError  # noqa: E402
from limbeck.language import task  # noqa: E402

pytestmark = pytest.mark.xdist_group("language_tagging")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["a", "b", "c", "##a", "##b", "##c"]
# A word's tag is told by its first letter; words have one to four tokens.
WORDS = ["a", "ab", "abc", "b", "ba", "bcab", "c", "ca", "cab"]
TAG = {"a": "NOUN", "b": "VERB", "c": "ADJ"}
NAMES = ("ADJ", "NOUN", "VERB")
SAID = [[WORDS[(i * k + k) % 9] for k in range(1, 3 + i % 6)] for i in range(1, 61)]
ROWS = [{"tokens": said, "tags": [TAG[word[0]] for word in said]} for said in SAID]


def tokenizer(special=True):
    table = {word: i for i, word in enumerate([*SPECIAL, *PIECES])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(table, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if special:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", **names
    )


def bert(layers, names=(), head="TokenClassification"):
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, pad_token_id=0,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
    )  # fmt: skip
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    return getattr(transformers, f"BertFor{head}")(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders `masked`, and of heads for tags `tagger`, `turned`, `more`, `other`; `tags.jsonl`."""
    folder = tmp_path_factory.mktemp("tagging")
    torch.manual_seed(0)
    bert(2, head="MaskedLM").save_pretrained(folder / "masked")
    for name, names in (
        ("tagger", NAMES),
        ("turned", NAMES[::-1]),
        ("more", ("X", *NAMES[::-1])),
        ("other", ("P", "Q", "R")),
    ):
        bert(2, names).save_pretrained(folder / name)
    for name in ("masked", "tagger", "turned", "more", "other"):
        tokenizer().save_pretrained(folder / name)
    (folder / "tags.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS), "utf-8")
    return folder


def command(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("context", [32, 8])
def test_a_tag_stands_on_the_first_token_of_its_word(special, context):
    words = tokenizer(special)
    rows = [{"tokens": r["tokens"], "tags": [NAMES.index(t) for t in r["tags"]]} for r in ROWS]
    x, y, notes = encoded(rows, words, context)
    lost = 0
    for row, ids, mask, own in zip(rows, x["ids"], x["mask"], y, strict=True):
        slow_ids, slow = [2] if special else [], [IGNORED] if special else []
        room = context - special
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            pieces = words(word, add_special_tokens=False)["input_ids"]
            lost += len(slow_ids) >= room
            slow_ids += pieces
            slow += [tag] + [IGNORED] * (len(pieces) - 1)
        slow_ids, slow = slow_ids[:room] + [3] * special, slow[:room] + [IGNORED] * special
        assert ids[mask.bool()].tolist() == slow_ids
        there = own[1:].tolist()  # the label of token i stands at i + 1
        assert int(own[0]) == IGNORED
        assert there[: len(slow)] == slow
        assert set(there[len(slow) :]) <= {IGNORED}
    assert bool(lost) == (context == 8)
    assert notes == () if not lost else f"{lost:,} of" in notes[0]


def test_words_are_scored_one_by_one(place):
    made = task(str(place / "tagger"), "truncate:1", ROWS, context=32)
    assert isinstance(made.teacher, Frozen)
    assert made.score is words_right
    model, right, words = made.teacher.module, 0, 0
    table, texts = Table(made.test, "test"), read(ROWS)
    for row in texts.test:
        cut = tokenizer()(row["tokens"], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            guess = model(**cut).logits[0].argmax(-1)
        for i, tag in enumerate(row["tags"]):
            right += int(guess[cut.word_ids(0).index(i)]) == tag
            words += 1
    found = measure(model, table, made.score, made.readers["teacher"])
    assert found == pytest.approx(right / words)


def test_tags_are_numbered_as_the_teachers_are(place):
    own = task(str(place / "tagger"), "truncate:1", ROWS, context=32)
    turned = task(str(place / "turned"), "truncate:1", ROWS, context=32)
    more = task(str(place / "more"), str(place / "tagger"), ROWS, context=32)
    assert own.about["names"] == [*NAMES]
    assert turned.about["names"] == [*NAMES[::-1]]
    assert more.about["names"] == ["X", *NAMES[::-1]]
    assert all(isinstance(each.teacher, Frozen) for each in (own, turned, more))
    y, z, w = (each.train["y"] for each in (own, turned, more))
    told = y != IGNORED
    assert torch.equal(z[told], 2 - y[told])
    assert torch.equal(w[told], 3 - y[told])
    assert more.new_student(0).config.num_labels == 4  # its head is new


def test_a_teacher_of_other_tags_is_trained_first(place):
    for name, why in (("masked", "no head for tags"), ("other", r"for other tags \(P, Q, R\)")):
        made = task(str(place / name), "truncate:1", ROWS, context=32)
        assert isinstance(made.teacher, Untrained)
        assert re.search(why, made.teacher.why)
        assert made.teacher.new().config.id2label == dict(enumerate(NAMES))


def test_parts_of_datasets_name_their_tags(place):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    kind = datasets.ClassLabel(names=["VERB", "NOUN", "ADJ"])
    for each in (datasets.Sequence(kind), datasets.List(kind)):
        features = datasets.Features(
            {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": each}
        )
        order = kind.names.index
        rows = {
            "tokens": [row["tokens"] for row in ROWS],
            "ner_tags": [[order(tag) for tag in row["tags"]] for row in ROWS],
        }
        found = read(datasets.Dataset.from_dict(rows, features=features))
        assert found.names == tuple(kind.names)
        assert "tags" in found.train[0]


def test_parquet_and_numbers(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    rows = [{"tokens": r["tokens"], "pos_tags": [NAMES.index(t) for t in r["tags"]]} for r in ROWS]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = read(str(tmp_path / "t.parquet"))
    assert found.names == ("0", "1", "2")
    given = {tuple(row["tokens"]): row["pos_tags"] for row in rows}
    assert all(given[tuple(row["tokens"])] == row["tags"] for row in found.train)


def test_gkd_of_a_tagger_as_a_user_types_it(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = ["--teacher", place / "masked", "--student", "truncate:1", "--data", place / "tags.jsonl"]
    how = ["--own", "0", "--context", "32", "--steps", "60", "--batch", "8", "--lr", "0.01"]
    assert command("run", "gkd", *own, *how, "--baseline", "--out", "run") == 0
    facts = json.loads(Path("run/result.json").read_text())
    assert facts["score_name"] == "accuracy"
    assert facts["teacher"] > 0.8  # it has learned the tags, of three
    assert facts["score"] > 0.8
    seen = json.loads(Path("run/appraisal.json").read_text())
    for side, value in (("student", facts["score"]), ("teacher", facts["teacher"])):
        assert seen["sides"][side]["top1"] == pytest.approx(value)
    page = Path("run/report.html").read_text("utf-8")
    assert "As taggers of words" in page
    assert "perplexity" not in page
    assert command("export", "run", "--to", "safetensors", "--out", "home") == 0
    taken = transformers.AutoModelForTokenClassification.from_pretrained(
        "home", local_files_only=True
    )
    assert taken.config.id2label == dict(enumerate(NAMES))
    made = task(str(place / "masked"), "truncate:1", str(place / "tags.jsonl"), context=32)
    again = measure(taken, Table(made.test, "test"), made.score, made.readers["student"])
    assert again == pytest.approx(facts["score"])
    # The folder, and the run itself, are teachers of the next one.
    for teacher in ("home", "run"):
        after = task(teacher, "truncate:1", ROWS, context=32)
        assert isinstance(after.teacher, Frozen)
        assert after.about["names"] == [*NAMES]


def test_adapters_train_beside_a_whole_head(place):
    pytest.importorskip("peft", reason="needs peft")
    made = task(str(place / "tagger"), "truncate:1", ROWS, context=32, rank=2)
    trained = [n for n, p in made.new_student(0).named_parameters() if p.requires_grad]
    assert any("classifier" in name for name in trained)
    assert all("lora" in name or "classifier" in name for name in trained)


def test_methods_that_write_say_what_runs(place):
    made = task(str(place / "tagger"), "truncate:1", ROWS, context=32)
    some = (("kd", {}), ("gkd", {"own": 0.5}), ("seqkd", {}), ("distilbert", {}), ("ban", {}))
    for key, fields in (*some, ("sla", {}), ("rkd", {})):  # whose need is of the student's logits
        with pytest.raises(UsageError, match=r"tag words; run gkd with own=0"):
            limbeck.run(key, made, **fields)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "tags": ["NOUN"]}, "row 60 of .* has 2 tokens and 1 tags"),
        ({"tokens": "a b", "tags": ["NOUN"]}, "its tokens are a str; give a list"),
        ({"tokens": ["a", 3], "tags": ["NOUN", "VERB"]}, "a int among its tokens"),
    ],
)
def test_rows_that_cannot_be(row, said):
    with pytest.raises(UsageError, match=said):
        read([*ROWS, row])


def test_other_faults_of_the_data(place):
    odd = [{"tokens": ["a"], "tags": ["DET"]}]
    with pytest.raises(UsageError, match="has the class 'DET' in row 0, which the training data"):
        read({"train": ROWS, "test": odd})
    with pytest.raises(UsageError, match=r"no columns that are known .*tokens and tags"):
        read([{"tags": row["tags"]} for row in ROWS])
    with pytest.raises(UsageError, match="has no column 'tokens', which the training data have"):
        read({"train": ROWS, "test": [{"tags": ["NOUN"]}]})
    pair = (bert(1, ("P", "Q")), tokenizer())
    with pytest.raises(UsageError, match="has 2 tags and the data 3"):
        task(str(place / "tagger"), pair, ROWS, context=32)
    for names, said in (
        (NAMES[::-1], "student '.*' has the data's tags in another order"),
        (("P", "Q", "R"), r"student '.*' has other tags than the data \(P, Q, R\)"),
    ):
        with pytest.raises(UsageError, match=said):
            task(str(place / "tagger"), (bert(1, names), tokenizer()), ROWS, context=32)
    (place / "made.py").write_text(
        "from transformers import AutoTokenizer, BertForTokenClassification\n"
        "def make():\n"
        f"    made = BertForTokenClassification.from_pretrained({str(place / 'turned')!r})\n"
        f"    made.tokenizer = AutoTokenizer.from_pretrained({str(place / 'turned')!r})\n"
        "    return made\n",
        "utf-8",
    )
    with pytest.raises(UsageError, match="has the data's tags in another order"):
        task(str(place / "tagger"), f"{place / 'made.py'}:make", ROWS, context=32)
    nameless = (bert(1, [f"LABEL_{i}" for i in range(3)]), tokenizer())
    assert task(str(place / "tagger"), nameless, ROWS, context=32).about["names"] == [*NAMES]
    turned = task((bert(1, NAMES[::-1]), tokenizer()), nameless, ROWS, context=32)
    assert turned.about["names"] == [*NAMES[::-1]]  # a teacher's order is the data's
    with pytest.raises(UsageError, match="a tagger model, and these texts have no labels"):
        task(str(place / "tagger"), "truncate:1", [" ".join(said) for said in SAID])
