"""Encoder-decoders and masked models in words, from files of texts to folders that load again."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")

import limbeck  # noqa: E402
from limbeck import registry  # noqa: E402
from limbeck.bench import worlds  # noqa: E402
from limbeck.cli import main  # noqa: E402
from limbeck.core import identity  # noqa: E402
from limbeck.core.data import Table  # noqa: E402
from limbeck.core.evaluate import evaluating, measure  # noqa: E402
from limbeck.core.run import Run  # noqa: E402
from limbeck.core.text.generate import beams  # noqa: E402
from limbeck.core.text.places import IGNORED  # noqa: E402
from limbeck.core.text.seq2seq import Seq2Seq, pairs  # noqa: E402
from limbeck.errors import UsageError  # noqa: E402
from limbeck.language import task  # noqa: E402
from limbeck.language.uld.answers import Answers  # noqa: E402

pytestmark = pytest.mark.xdist_group("language_kinds")

SPECIAL = ["<pad>", "</s>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PLAIN = [" ".join(WORDS[(i * k + k) % 10] for k in range(1, 15)) for i in range(1, 61)]
ROWS = [
    {"prompt": " ".join(said := text.split()[: 3 + i % 3]), "response": " ".join(said[::-1])}
    for i, text in enumerate(PLAIN)
]


def tokenizer(kind):
    table = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>"}
    if kind == "bert":
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    else:
        names |= {"eos_token": "</s>"}
    if kind == "t5":  # its tokenizer ends texts by itself; the other's is helped
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def t5(layers):
    config = transformers.T5Config(
        vocab_size=20, d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=layers,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def bart(layers):
    config = transformers.BartConfig(
        vocab_size=18, d_model=16, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=32, dropout=0.0, init_std=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1,
        forced_eos_token_id=None,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


def bert(layers):
    config = transformers.BertConfig(
        vocab_size=18, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, pad_token_id=0,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders `t5`, `bart`, `bert`, and of texts `pairs` and `plain`."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind, make in (("t5", t5), ("bart", bart), ("bert", bert)):
        torch.manual_seed(0)
        make(3).save_pretrained(folder / kind)
        tokenizer(kind).save_pretrained(folder / kind)
    for name, rows in (("pairs", ROWS), ("plain", [{"text": text} for text in PLAIN])):
        (folder / name).mkdir()
        told = "\n".join(json.dumps(row) for row in rows)
        (folder / name / "train.jsonl").write_text(told, "utf-8")
    return folder


def command(*words):
    return main([str(word) for word in words])


def test_prompts_go_to_the_encoder_and_responses_to_the_decoder():
    rows = [{"prompt": "one two", "response": "three"}, {"prompt": "ten", "response": "six five"}]
    for kind in ("t5", "bart"):
        x, y, notes = pairs(rows, tokenizer(kind), 8, 0)
        end = [1] if kind == "t5" else []
        one, two = ([WORDS.index(w) + 6 for w in words.split()] for words in ("one two", "ten"))
        wide = 2 + len(end)
        assert x["source_ids"].tolist() == [one + end, (two + end + [0] * 3)[:wide]]
        assert x["source_mask"].sum(1).tolist() == [2 + len(end), 1 + len(end)]
        assert x["ids"].tolist() == [[0, 8, 1, 0], [0, 11, 10, 1]]
        assert x["mask"].tolist() == [[1, 1, 1, 0], [1] * 4]  # what it begins with is no padding
        assert y.tolist() == [[IGNORED, 8, 1, IGNORED], [IGNORED, 11, 10, 1]]
        assert notes == ()
    x, y, notes = pairs(rows, tokenizer("bart"), 3, 1)
    assert y[1].tolist() == [IGNORED, 11, 10]  # cut: it has not ended
    assert notes == ("1 of 2 responses were cut to the context of 3 tokens",)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_reader_shows_what_the_model_says(place, kind):
    made = task(str(place / kind), "truncate:2", str(place / "pairs"), context=16)
    reader, model = made.readers["student"], made.new_student(0).eval()
    assert isinstance(reader, Seq2Seq)
    assert reader.linear == (kind == "bart")  # T5 scales its hidden states
    x = {name: value[:6] for name, value in made.train["x"].items()}
    with evaluating(model):
        shown = reader.view(model, reader(x))
        y = made.train["y"][:6]
        told = y[:, 1:].clone()
        own = model(
            input_ids=x["source_ids"],
            attention_mask=x["source_mask"],
            decoder_input_ids=x["ids"],
            decoder_attention_mask=x["mask"],
        ).logits
    wide = shown["logits"].shape[1]
    torch.testing.assert_close(shown["logits"], own[:, :wide, :16], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        shown["signal"].log_p(), own[:, :wide, :16].log_softmax(-1), rtol=1e-4, atol=1e-4
    )
    slow = [
        -own[b, i, :16].log_softmax(-1)[told[b, i]] for b, i in (told != IGNORED).nonzero().tolist()
    ]
    few = Table({"x": x, "y": y, "bytes": made.train["bytes"][:6]}, "few")
    found = measure(model, few, made.score, reader)
    nats = found * float(made.train["bytes"][:6].sum()) * torch.log(torch.tensor(2.0))
    assert float(nats) == pytest.approx(float(sum(slow)), rel=1e-4)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_seqkd_of_an_encoder_decoder_as_a_user_types_it(place, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = ["--teacher", place / kind, "--student", "truncate:1", "--data", place / "pairs"]
    how = ["--context", "16", "--steps", "4", "--batch", "8", "--beam", "2", "--inter-beam", "3"]
    assert command("run", "seqkd", *own, *how, "--baseline", "--out", "run") == 0
    facts = json.loads((tmp_path / "run" / "result.json").read_text())
    assert facts["score_name"] == "bits per byte"
    assert facts["teacher"] > 0
    seen = json.loads((tmp_path / "run" / "appraisal.json").read_text())
    assert {*seen["sides"]} == {"student", "teacher", "baseline", "before"}
    assert all(0 <= side["rouge_l"] <= 1 for side in seen["sides"].values())
    given = {row["prompt"]: row["response"] for row in ROWS}
    assert all(given[each["prompt"]] == each["text"] for each in seen["written"])
    assert "What they write" in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert command("export", "run", "--to", "safetensors", "--out", "home") == 0
    taken = transformers.AutoModelForSeq2SeqLM.from_pretrained("home", local_files_only=True)
    assert type(taken) is type(t5(1) if kind == "t5" else bart(1))
    made = task(str(place / kind), "truncate:1", str(place / "pairs"), context=16)
    again = measure(taken, Table(made.test, "test"), made.score, made.readers["student"])
    assert again == pytest.approx(facts["score"], rel=1e-5)
    words = transformers.AutoTokenizer.from_pretrained("home", local_files_only=True)
    asked = words("one two", return_tensors="pt", return_token_type_ids=False)
    assert taken.generate(**asked, max_new_tokens=3).shape[0] == 1
    # The run's student is a teacher of the next one.
    more = ["--teacher", "home", "--student", place / kind, "--data", place / "pairs"]
    short = ["--first", "data", "--inter", "0", "--word", "true", *how[:6]]
    assert command("run", "seqkd", *more, *short, "--out", "next") == 0


def test_distilbert_of_a_masked_model_as_a_user_types_it(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = ["--teacher", place / "bert", "--student", "truncate:2", "--data", place / "plain"]
    how = ["--context", "16", "--steps", "4", "--batch", "8"]
    assert command("run", "distilbert", *own, *how, "--baseline", "--out", "run") == 0
    facts = json.loads((tmp_path / "run" / "result.json").read_text())
    assert facts["score_name"] == "masked nll"
    seen = json.loads((tmp_path / "run" / "appraisal.json").read_text())
    for side, value in (("student", facts["score"]), ("teacher", facts["teacher"])):
        assert seen["sides"][side]["nll"] == pytest.approx(value, rel=1e-4)
    assert "As language models" in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert command("export", "run", "--to", "safetensors", "--out", "home") == 0
    taken = transformers.AutoModelForMaskedLM.from_pretrained("home", local_files_only=True)
    assert taken.config.num_hidden_layers == 2
    made = task(str(place / "bert"), "truncate:2", str(place / "plain"), context=16)
    again = measure(taken, Table(made.test, "test"), made.score, made.readers["student"])
    assert again == pytest.approx(facts["score"], rel=1e-5)
    assert transformers.AutoTokenizer.from_pretrained("home", local_files_only=True).mask_token


def test_hidden_tokens_are_fixed_where_models_are_scored_and_drawn_anew_where_they_learn(
    place, monkeypatch
):
    from limbeck.core.text.masking import Masking

    made = [task(str(place / "bert"), "truncate:1", PLAIN, context=16) for _ in range(2)]
    for part in ("train", "valid", "test"):
        one, two = (each.set(part) for each in made)
        assert torch.equal(one["x"]["ids"], two["x"]["ids"])
        assert torch.equal(one["y"], two["y"])
    seen, batch = {}, Masking.batch

    def told(self, raw, rng):
        found = batch(self, raw, rng)
        for i, y in zip(raw.index.tolist(), found.y.tolist(), strict=True):
            seen.setdefault(i, []).append(tuple(y))
        return found

    monkeypatch.setattr(Masking, "batch", told)
    short = task(str(place / "bert"), "truncate:1", PLAIN, context=16)
    limbeck.run("distilbert", short, baseline=True)
    own = {i: tuple(y) for i, y in enumerate(short.train["y"].tolist())}
    baseline = [rows[-1] for rows in seen.values()]
    assert all(len(rows) >= 2 for rows in seen.values())  # of the method's fit and the baseline's
    assert len(seen) > 10
    assert sum(rows[0] != own[i] for i, rows in seen.items()) > len(seen) / 2
    assert sum(a != rows[0] for a, rows in zip(baseline, seen.values(), strict=True)) > 5


@pytest.mark.parametrize(
    ("teacher", "student", "rows", "said"),
    [
        ("t5", "truncate:1", PLAIN, "row 0 has text, and an encoder-decoder is taught on prompts"),
        ("bart", "t5", PLAIN, "row 0 has text, and an encoder-decoder is taught on prompts"),
        ("t5", "bert", PLAIN, "the teacher 't5' is a seq2seq model"),
        ("bert", "truncate:1", ROWS, "plain texts, and these are answers"),
        ("bert", "t5", PLAIN, "for a seq2seq one"),
    ],
)
def test_what_cannot_be(place, teacher, student, rows, said):
    student = student if ":" in student else str(place / student)
    with pytest.raises(UsageError, match=said):
        task(str(place / teacher), student, rows, context=16)


LETTERS = ["<pad>", "</s>", "<unk>", *" \nefghinorstuvwx"]


def letters(pairs=()):
    """A causal model of letters, and pairs of them, with its tokenizer."""
    table = {c: i for i, c in enumerate([*LETTERS, *map("".join, pairs)])}
    words = tokenizers.Tokenizer(tokenizers.models.BPE(table, list(pairs), unk_token="<unk>"))
    words.decoder = tokenizers.decoders.Fuse()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = transformers.LlamaConfig(
        vocab_size=len(table), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=None,
        eos_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(config)
    return model, transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names)


def spoken(made, part, side, n=12):
    """What is trained on on a side, without white space, which these tokenizers drop or keep."""
    text = made.data["text"]
    words, ids = (text.other, "t_ids") if side else (text.tokenizer, "ids")
    told = part["x"]["t_wanted"] if side else part["y"][:, 1:] != IGNORED
    rows = [part["x"][ids][b, 1:][told[b, : part["x"][ids].shape[1] - 1]] for b in range(n)]
    return ["".join(words.decode(r, skip_special_tokens=True).split()) for r in rows]


def telling():
    """A T5 that answers, and not always the same."""
    torch.manual_seed(1)
    model = t5(2)
    model.lm_head.weight.data = torch.randn(20, 16)  # tied: the embeddings too
    return model, tokenizer("t5")


KINDS = [("letters", "t5"), ("t5", "bart"), ("t5", "letters"), ("letters", "bart")]
FEW = [
    {"prompt": WORDS[i], "response": " ".join(WORDS[(i * k + k) % 10] for k in (2, 3))}
    for i in range(10)
] * 3


def between(place, teacher, student):
    first = {"letters": letters, "t5": telling}[teacher]()
    second = letters() if student == "letters" else str(place / student)
    return task(first, second, FEW, context=32)


@pytest.mark.parametrize(("teacher", "student"), KINDS)
def test_both_sides_read_the_same_answers_whatever_they_are(place, teacher, student):
    made = between(place, teacher, student)
    assert any("their tokens are not aligned" in note for note in made.notes)
    said = spoken(made, made.train, "")
    assert said == spoken(made, made.train, "t_")
    assert set(said) <= {"".join(row["response"].split()) for row in FEW}
    x, model = {n: v[:6] for n, v in made.train["x"].items()}, made.the_teacher().module.eval()
    reader = made.readers["teacher"]
    with evaluating(model):
        shown = reader.view(model, reader(x))["signal"].log_p()
        if teacher == "t5":
            own = {"input_ids": x["t_source_ids"], "attention_mask": x["t_source_mask"]}
            own |= {"decoder_input_ids": x["t_ids"], "decoder_attention_mask": x["t_mask"]}
        else:
            own = {"input_ids": x["t_ids"], "attention_mask": x["t_mask"]}
        logits = model(**own).logits[..., : reader.vocab]
    there = x["t_wanted"][:, : shown.shape[1]]
    torch.testing.assert_close(
        shown[there], logits.log_softmax(-1)[:, : shown.shape[1]][there], rtol=1e-4, atol=1e-4
    )


def answered(made, model, kind, b, new):
    """The teacher's answer to a row by one whole pass for each token, and its tokenizer."""
    text = made.data["text"]
    side, words = ("t_", text.other) if text.other else ("", text.tokenizer)
    x, more = {n: v[b : b + 1] for n, v in made.train["x"].items()}, {}
    if kind == "t5":
        ids, name = [0], "decoder_input_ids"
        more = {"input_ids": x[f"{side}source_ids"][:, x[f"{side}source_mask"][0].bool()]}
    else:
        ids, name = x["t_ids"][0, : 1 + int(x["t_wanted"][0].nonzero()[0])].tolist(), "input_ids"
    start = len(ids)
    while len(ids) < start + new and 1 not in ids[start:]:
        with torch.no_grad():
            z = model(**more, **{name: torch.tensor([ids])}).logits[0, -1, : len(words)]
        ids.append(int(z.argmax()))
    return ids[start:], words


@pytest.mark.parametrize(("teacher", "student"), [*KINDS, ("t5", "t5")])
def test_uld_on_answers_that_the_teacher_writes(place, teacher, student):
    made, seen = between(place, teacher, student), set()
    model, own = made.the_teacher().module.eval(), made.data["text"].tokenizer
    with Run(made, seed=0):
        found = Answers(made.data["text"], 6, 8)(made.the_teacher(), made.train, "write")
    assert bool(found["changed"].all())
    for b in range(10):
        said, words = answered(made, model, teacher, b, 6)
        seen.add(tuple(said))
        if teacher != student:
            told = found["x"]["t_wanted"][b].nonzero()[:, 0] + 1
            assert found["x"]["t_ids"][b, told].tolist() == said
            text = words.decode([i for i in said if i != 1], skip_special_tokens=True)
            said = own(text, add_special_tokens=False)["input_ids"] + [1] * (said[-1] == 1)
        y = found["y"][b]
        first = int((made.train["y"][b] != IGNORED).nonzero()[0])
        assert y[y != IGNORED].tolist() == said[: 32 - first]
        assert torch.equal(found["x"]["ids"][b, :first], made.train["x"]["ids"][b, :first])
        assert bool((y[:first] == IGNORED).all())
    assert len(seen) > 1
    result = limbeck.run("uld", made, answers="teacher", new=6)
    assert result.model.config.is_encoder_decoder == (student != "letters")


def test_plain_texts_are_gone_on_from_one_place_on_both_sides():
    teacher, student = letters([("e", "n"), ("o", "n"), ("t", "h")]), letters([("e", " ")])
    made = task(teacher, student, PLAIN, context=32)
    with Run(made, seed=0):
        found = Answers(made.data["text"], 6, 5)(made.the_teacher(), made.train, "write")
    starts, sizes, long = [], set(), (made.train["x"]["mask"].sum(1) >= 8).tolist()
    assert sum(long) > 15
    for b in range(30):
        both = []
        for words, side in ((student[1], ""), (teacher[1], "t_")):
            there = found["x"][f"{side}mask"][b].bool()
            ids = found["x"][f"{side}ids"][b][there]
            y = found["y"][b] if not side else ids.clone()
            if side:
                told = found["x"]["t_wanted"][b]
                y[1:] = torch.where(told[: len(ids) - 1], ids[1:], IGNORED)
                y[0] = IGNORED
                sizes.add(int((y != IGNORED).sum()))
            y = y[: len(ids)]
            parts = (ids[y == IGNORED], ids[y != IGNORED])
            both.append([words.decode(part, skip_special_tokens=True) for part in parts])
            starts.append(int((y == IGNORED).sum()))
        assert both[0] == both[1]
        assert PLAIN_TEXT.count(both[0][0]) > 0
    assert max(sizes) == 6
    assert min(starts[2 * b] for b in range(30) if long[b]) >= 5
    assert starts[::2] != starts[1::2]
    assert limbeck.run("uld", made, answers="teacher", new=6, least=5).model is not None


PLAIN_TEXT = "\n".join(PLAIN)


def test_what_is_not_aligned_is_refused_by_alm(place):
    with pytest.raises(UsageError, match="the tokens of the two are not aligned"):
        limbeck.run("alm", between(place, "letters", "t5"), merge="none", append_space=False)


def test_methods_for_other_kinds_say_so(place):
    pair = task(str(place / "bart"), "truncate:1", ROWS, context=16)
    with pytest.raises(UsageError, match="only causal models write texts while"):
        limbeck.run("gkd", pair, own=1.0, new=4)
    limbeck.run("gkd", pair, own=0.0)  # on the data's responses it is as ever
    hidden = task(str(place / "bert"), "truncate:1", PLAIN, context=16)
    with pytest.raises(UsageError, match=r"fill in hidden tokens; .* run distilbert"):
        limbeck.run("seqkd", hidden)
    nameless = transformers.T5Config(**{**t5(1).config.to_dict(), "decoder_start_token_id": None})
    model = transformers.T5ForConditionalGeneration(nameless)
    with pytest.raises(UsageError, match="no decoder_start_token_id"):
        task((model, tokenizer("t5")), "truncate:1", ROWS, context=16)


@pytest.mark.parametrize("beam", [1, 3])
def test_rows_of_a_model_beyond_its_tokens_are_never_written(beam):
    torch.manual_seed(1)
    model = t5(1).eval()  # 20 rows, of 16 tokens
    with torch.no_grad():
        model.lm_head.weight[16:] = 3 * model.lm_head.weight[:4]
    ids, start = torch.tensor([[6, 7, 8], [9, 10, 1]]), torch.zeros(1, 1, dtype=torch.int64)
    more = {"new": 4, "beams": beam, "eos": (1,), "pad": 0, "length_penalty": 0.0}
    found = beams(model, ids, torch.ones_like(ids), **more, vocab=16)
    assert int(found.ids.max()) < 16
    assert int(beams(model, ids, torch.ones_like(ids), **more).ids.max()) >= 16
    for row, said, there, logp in zip(
        ids, found.ids[:, 0], found.mask[:, 0].bool(), found.logp[:, 0], strict=True
    ):
        written = torch.cat([start[0], said[there]])[None]
        with evaluating(model):
            own = model(input_ids=row[None], decoder_input_ids=written[:, :-1]).logits[..., :16]
        slow = own.log_softmax(-1)[0].gather(-1, written[0, 1:, None]).sum()
        assert float(logp) == pytest.approx(float(slow), abs=1e-4)


def test_methods_of_classes_say_what_runs_on_texts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = "worlds.make(\"charlm(teacher='none')\", tiny=True)"
    (tmp_path / "t.py").write_text(f"from limbeck.bench import worlds\nmake = lambda: {made}\n")
    told = "takes one answer a sample, and the models of the task 'charlm' write token by token"
    for key, *more in (["kd"], ["rkd"], ["kd", "--dry"]):
        assert main(["run", key, "--task", "t.py:make", *more]) == 2
        assert capsys.readouterr().err == f"error: {key} {told}; run gkd\n"
    assert not any((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(("world", "told"), [("glosscls", ""), ("masklm", "run distilbert")])
def test_texts_that_have_classes_are_for_methods_of_classes(world, told):
    made = worlds.make(f"{world}(teacher='none')", tiny=True)
    if not told:
        identity.check_task(made, registry.make("kd"))
        return
    with pytest.raises(UsageError, match=f"fill in hidden tokens; {told}"):
        identity.check_task(made, registry.make("kd"))


def test_texts_of_several_labels_are_not_token_by_token():
    from limbeck.core.task import Task
    from limbeck.core.text.facts import Text, check_text
    from limbeck.registry import find

    ids = torch.arange(40).view(8, 5)
    x = {"ids": ids, "mask": torch.ones_like(ids)}
    side = Text(vocab=40, context=5, eos=(), pad=0, tokenizer=None)

    def texts(y):
        return Task(None, torch.nn.Linear(1, 1), {"x": x, "y": y}, data={"text": side})

    check_text(texts(torch.ones(8, 3, dtype=torch.int64)), find("kd").card)
    check_text(texts(torch.zeros(8, dtype=torch.int64)), find("kd").card)
    with pytest.raises(UsageError, match="write token by token"):
        check_text(texts(ids), find("kd").card)
