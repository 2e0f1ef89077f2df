"""`limbeck.language.task` and the command line on folders of models and files of texts."""

import hashlib
import json
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers")

import limbeck
from limbeck.cli import main
from limbeck.core.teachers import Frozen
from limbeck.core.text.places import IGNORED
from limbeck.core.text.view import Causal
from limbeck.core.untrained import Untrained
from limbeck.errors import Missing, UsageError
from limbeck.language import task

pytestmark = pytest.mark.xdist_group("language_task")

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs"]
WORDS += ["far", "away", "from", "here"]
TEXTS = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 24)) + "." for i in range(1, 61)]


def tokenizer(size):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")


def llama(words, layers=2, width=16, heads=2):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(layers)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words) + 6,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
        )
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders `teacher`, `other` (another tokenizer), and texts."""
    folder = tmp_path_factory.mktemp("language")
    for name, size, layers in (("teacher", 300, 3), ("other", 270, 1)):
        words = tokenizer(size)
        llama(words, layers).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    rows = [json.dumps({"text": text}) for text in TEXTS]
    (folder / "texts.jsonl").write_text("\n".join(rows), "utf-8")
    return folder


def test_a_truncated_student_of_plain_texts(place):
    made = task(str(place / "teacher"), "truncate:2", TEXTS, context=32)
    assert isinstance(made.teacher, Frozen)
    assert made.about["begins"] == "truncate:2"
    assert made.about["split"]["made"]
    student = made.new_student(0)
    assert student.config.num_hidden_layers == 2
    text = made.data["text"]
    assert (text.vocab, text.context, text.eos, text.pad) == (len(text.tokenizer), 32, (1,), 0)
    assert made.readers["student"] == Causal(text.vocab)  # padded columns are left out
    ids, y = made.train["x"]["ids"], made.train["y"]
    assert ids.shape[1] == 32
    whole = "".join(text.tokenizer.decode(row[row > 1].tolist()) for row in ids)
    assert all(word in whole for word in WORDS)
    spoken = text.tokenizer.decode(y[0][y[0] != IGNORED].tolist(), skip_special_tokens=True)
    assert int(made.train["bytes"][0]) == len(spoken.encode())


def test_prompts_and_chats(place):
    rows = [{"prompt": f"say {w}", "response": f"{w} {w}"} for w in WORDS * 3]
    made = task(str(place / "teacher"), "truncate:1", rows, context=48)
    text, y = made.data["text"], made.train["y"]
    said = {text.tokenizer.decode(row[row != IGNORED].tolist(), True).strip() for row in y}
    assert said <= {f"{w} {w}" for w in WORDS}


def test_another_tokenizer_is_aligned_and_taught(place, tmp_path):
    words = [str(place / "teacher"), str(place / "other"), TEXTS]
    made = task(*words, context=32)
    assert made.readers["teacher"].side == "t_"
    assert {"t_ids", "t_wanted", "chunk", "t_chunk"} <= set(made.train["x"])
    assert any("aligned by bytes" in note for note in made.notes)
    with pytest.raises(UsageError, match="cross_tokenizer"):
        limbeck.run("gkd", made, own=0.0)
    for key in ("uld", "alm"):
        result = limbeck.run(key, made, out=tmp_path / key)
        assert result.facts["teacher"] > 0


def test_labels_make_it_a_classification(place):
    rows = [{"text": t, "label": "long" if len(t) > 96 else "short"} for t in TEXTS]
    made = task(str(place / "teacher"), str(place / "other"), rows, context=32)
    assert made.data["names"] == ("long", "short")
    assert isinstance(made.teacher, Untrained)  # its head is new
    found = limbeck.run("kd", made, baseline=True)
    assert found.facts["score_name"] == "accuracy"
    assert found.model.config.num_labels == 2


def test_adapters_alone_are_trained(place):
    made = task(str(place / "teacher"), "truncate:2", TEXTS, context=32, rank=2)
    student = made.new_student(0)
    trained = [n for n, p in student.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    limbeck.run("gkd", made, own=0.5, new=4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (dict(student="truncate:9"), "9"),
        (dict(student="truncate:2", teacher=None), "made of its teacher"),
        (dict(context=4), "at least 8"),
        (dict(augment="flip"), "not augmented"),
        (dict(teacher="no/such/folder"), "no/such/folder"),
        (dict(data=[]), "train|row|text"),
    ],
)
def test_what_cannot_be(place, words, said):
    given = {"teacher": str(place / "teacher"), "student": "truncate:2", "data": TEXTS, **words}
    with pytest.raises((UsageError, Missing), match=said):
        task(given.pop("teacher"), given.pop("student"), given.pop("data"), **given)


def command(*words):
    return main([str(word) for word in words])


def test_the_command_line_from_a_cache_to_a_folder_that_transformers_loads(
    place, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    own = ["--teacher", place / "teacher", "--data", place / "texts.jsonl", "--context", "32"]
    start = [*own, "--student", "truncate:2"]
    assert command("cache", *start, "--signal", "topk", "--k", "20", "--out", "c", "--quiet") == 0
    assert "signal" in capsys.readouterr().out
    learn = ["--own", "0", "--divergence", "forward_kl", "--steps", "4", "--batch", "4"]
    assert command("run", "gkd", *start, *learn, "--cache", "c", "--out", "one") == 0
    write = ["--phi", "0.9", "--new", "4", "--steps", "4", "--batch", "4"]
    assert command("run", "distillm", *own, "--student", "one", *write, "--out", "two") == 0
    assert command("export", "two", "--to", "safetensors") == 0
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "two" / "export" / "safetensors"
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    inputs = words("the quick", return_tensors="pt", return_token_type_ids=False)
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]
    page = (tmp_path / "two" / "report.html").read_text("utf-8")
    assert "As language models" in page


def test_a_context_too_short_to_write_in_is_a_sentence(place, tmp_path, capsys):
    own = [
        "--teacher",
        place / "teacher",
        "--data",
        place / "texts.jsonl",
        "--student",
        "truncate:1",
    ]
    run = [
        "run",
        "gkd",
        *own,
        "--own",
        "1",
        "--steps",
        "1",
        "--batch",
        "4",
        "--out",
        tmp_path / "x",
    ]
    for words, said in (
        (["--context", "8"], "4 new tokens leave room for 4 of a prompt in a context of 8"),
        (["--context", "16", "--new", "40"], "responses of 40 tokens leave no room for a prompt"),
    ):
        assert command(*run, *words) == 2
        assert said in capsys.readouterr().err


def test_flags_of_texts_are_for_texts(tmp_path, capsys):
    own = ["--teacher", "none", "--student", "timm:resnet18", "--data", "sklearn:digits"]
    assert command("run", "kd", *own, "--context", "8", "--out", tmp_path / "x") == 2
    assert "--context is for language models" in capsys.readouterr().err


# --- what cannot be, as it is typed ---------------------------------------------------------------


@pytest.fixture(scope="module")
def small(place):
    """A cache of the teacher, and another teacher with the same tokens."""
    words = tokenizer(300)
    llama(words, 2).save_pretrained(place / "second")
    words.save_pretrained(place / "second")
    texts = [f"{text} {text}" for text in TEXTS]
    for name, rows in (
        ("silent", [{"prompt": text, "response": ""} for text in TEXTS]),
        ("long", [{"prompt": text, "response": text} for text in texts]),
    ):
        told = "\n".join(json.dumps(row) for row in rows)
        (place / f"{name}.jsonl").write_text(told, "utf-8")
    made = ["--data", place / "texts.jsonl", "--context", "32", "--quiet"]
    words = ["cache", "--teacher", place / "teacher", "--student", "truncate:1", *made]
    assert main([str(word) for word in [*words, "--k", "8", "--out", place / "small"]]) == 0
    return place


@pytest.mark.parametrize("method", [["gkd", "--own", "0"], ["distillm"], ["rs_kd"]])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"--teacher": "second"}, ["is stale", "its teacher's weights"]),
        ({"--teacher": "other"}, ["is stale", "its teacher's weights", "its samples"]),
        ({"--context": "24"}, ["is stale", "its length", "its samples"]),
    ],
)
def test_a_cache_of_something_else(small, capsys, method, changes, told):
    more = {"--teacher": "teacher", "--context": "32", "--data": "texts.jsonl", **changes}
    if method[0] == "rs_kd":
        method = [*method, "--estimate", "tail"]
    words = [w for k, v in more.items() for w in (k, str(small / v) if k != "--context" else v)]
    command = ["run", *method, *words, "--student", "truncate:1", "--steps", "2", "--quiet"]
    assert main([*command, "--cache", str(small / "small"), "--out", str(small / "no")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("error:")]) == 1
    assert all(part in said[-1] for part in told), said[-1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--student", "other"],
            "has another tokenizer (300 tokens, and the student 270) or reads",
        ),
        (["--data", "silent.jsonl"], "has no row with text in it"),
        (["--data", "long.jsonl"], "the prompts alone fill the context of 32 tokens"),
        (["--own", "1", "--new", "40"], "leave no room for a prompt in a context of 32"),
    ],
)
def test_what_cannot_be_is_a_sentence(small, capsys, words, told):
    given = {"--student": "truncate:1", "--data": "texts.jsonl", "--own": "0"}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    flat = [w for k, v in given.items() for w in (k, str(small / v) if (small / v).exists() else v)]
    command = ["run", "gkd", "--teacher", str(small / "teacher"), *flat, "--context", "32"]
    assert main([*command, "--steps", "2", "--quiet", "--out", str(small / "no")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert told in said[-1]


# --- killed, and gone on with -------------------------------------------------------------------


def killed(words, enough):
    """Begin a command, and kill it with signal 9 as soon as `enough` is true of what it wrote."""
    process = subprocess.Popen([sys.executable, "-m", "limbeck", *map(str, words)])
    until = time.monotonic() + 120
    try:
        while not enough():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


def digests(folder, *names):
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


@pytest.fixture(scope="module")
def kept(place):
    """What a task is named by, and a whole cache of its teacher."""
    many = [json.dumps({"text": f"{text} {text[::-1]}"}) for text in TEXTS * 30]
    (place / "many.jsonl").write_text("\n".join(many), "utf-8")
    words = ["--teacher", place / "teacher", "--student", "truncate:1", "--context", "32"]
    words += ["--data", place / "many.jsonl", "--quiet"]
    cache = ["cache", *words, "--signal", "topk", "--k", "8", "--rows", "1"]
    assert main([*map(str, cache), "--out", str(place / "whole")]) == 0
    return words, cache


@pytest.mark.slow
def test_a_cache_that_was_killed_is_written_on(place, kept):
    _, cache = kept
    words, out = [*cache, "--out", place / "half"], place / "half"
    size = (place / "whole" / "checksums").stat().st_size

    def begun():
        marks = out / "checksums"
        return marks.exists() and any(marks.read_bytes()[: size // 4])

    killed(words, begun)
    assert digests(out, "packed.rows") != digests(place / "whole", "packed.rows")
    assert main([str(word) for word in words]) == 0
    names = ("cache.json", "packed.rows", "checksums")
    assert digests(out, *names) == digests(place / "whole", *names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "cached"),
    [
        (["gkd", "--own", "0", "--divergence", "forward_kl"], True),
        (["gkd", "--own", "1", "--new", "8"], False),
        (["distillm", "--phi", "0.7", "--new", "8", "--replay", "16"], False),
    ],
)
def test_a_run_that_was_killed_ends_with_the_same_bits(place, kept, method, cached):
    words, name = kept[0], "-".join(method[:3]).replace("--", "")
    command = ["run", *method, *words, "--steps", "80"]
    command += ["--cache", place / "whole"] if cached else []
    whole, half = place / f"{name}-whole", place / f"{name}-half"
    assert main([str(word) for word in [*command, "--out", whole]]) == 0
    rows = half / "metrics.jsonl"
    killed([*command, "--out", half], lambda: rows.exists() and rows.read_bytes().count(b"\n") > 30)
    assert (half / "checkpoints" / "fit.now.safetensors").exists(), "it was not in the middle"
    assert not (half / "result.json").exists()
    assert main(["resume", str(half), "--quiet"]) == 0
    names = ("student.safetensors", "metrics.jsonl", "result.json")
    assert digests(half, *names) == digests(whole, *names)
