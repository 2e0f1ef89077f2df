"""Students made of their teacher: what they keep is the teacher's, and what they say holds."""

import copy
import itertools
import math

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
from limbeck.core.rng import seed_globals  # noqa: E402
from limbeck.core.text import narrow, students  # noqa: E402
from limbeck.core.text.lora import lora, merged  # noqa: E402
from limbeck.core.text.models import load  # noqa: E402
from limbeck.core.text.view import Causal, is_linear  # noqa: E402
from limbeck.errors import UsageError  # noqa: E402

pytestmark = pytest.mark.xdist_group("text")

WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(41))]
VOCAB, LAYERS = 48, 5  # the model has four rows more than there are words


def tokenizer():
    table = {word: i for i, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<pad>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OLD = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {**OLD, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
OPT = {**LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32}
WINDOW = {"sliding_window": 4}
FAMILIES = {
    "Llama": LLAMA,
    "Mistral": {**LLAMA, **WINDOW},
    "Qwen2": {**LLAMA, **WINDOW, "use_sliding_window": True, "max_window_layers": 2},
    "Qwen3": {**LLAMA, "head_dim": 16},
    "Gemma": {**LLAMA, "head_dim": 16},
    "Gemma2": {**LLAMA, **WINDOW, "head_dim": 16, "query_pre_attn_scalar": 16},
    "GPT2": {**GPT2, "scale_attn_by_inverse_layer_idx": False},
    "OPT": OPT,
    "GPTNeoX": LLAMA,
    "Bert": LLAMA,
    "DistilBert": {**OLD, "dim": 32, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 48},
}
ENCODERS = ("Bert", "DistilBert")
DECODERS = tuple(name for name in FAMILIES if name not in ENCODERS)
NARROW = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2")


def model_of(family, **changes):
    """A model whose weights are all random: norms and biases too, that none is like another."""
    config = getattr(transformers, f"{family}Config")(**{**FAMILIES[family], **changes})
    head = {"GPT2": "LMHeadModel", **dict.fromkeys(ENCODERS, "ForMaskedLM")}
    kind = getattr(transformers, family + head.get(family, "ForCausalLM"))
    rng = torch.Generator().manual_seed(7)
    model = kind(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=rng))
    return model


def teacher_of(family, **changes):
    return load((model_of(family, **changes), tokenizer()), "teacher")


IDS = torch.randint(3, 44, (2, 9), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def logits(model):
    with torch.no_grad():
        return model.eval()(**INPUTS).logits


def stem_of(model):
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    return min(names, key=len)


def reloaded(model, folder):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def tied(model):
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_are_the_teacher_to_the_bit(family):
    teacher = teacher_of(family)
    student = students.make(f"truncate:{LAYERS}", teacher)()
    big = teacher.make()
    assert torch.equal(logits(student), logits(big))
    assert student.state_dict().keys() == big.state_dict().keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_layers_are_the_teachers_and_the_rest_is_copied(family, tmp_path):
    teacher, kept = teacher_of(family), (0, 2, 4)
    big, student = teacher.make(), students.make("truncate:0,2,4", teacher)()
    theirs, stem = big.state_dict(), stem_of(big)
    for name, value in student.state_dict().items():
        if name.startswith(stem + "."):
            number, _, rest = name[len(stem) + 1 :].partition(".")
            name = f"{stem}.{kept[int(number)]}.{rest}"
        assert torch.equal(value, theirs[name]), name
    assert student.config.num_hidden_layers == 3
    # an independent cut: the teacher with its other layers taken out
    layers = big.get_submodule(stem)
    parent = big.get_submodule(stem.rpartition(".")[0])
    rest = torch.nn.ModuleList(layers[i] for i in kept)
    setattr(parent, stem.rpartition(".")[2], rest)
    big.config.use_cache = False  # its layers still have their old numbers there
    big.config.num_hidden_layers = 3  # what the forward of some families loops over
    if getattr(big.config, "layer_types", None):  # Gemma2 and Qwen2 look it up by number
        big.config.layer_types = [big.config.layer_types[i] for i in kept]
    assert torch.equal(logits(student), logits(big))
    assert torch.equal(logits(reloaded(student, tmp_path)), logits(student))


@pytest.mark.parametrize("family", DECODERS)
def test_a_truncated_decoder_generates_alike_with_and_without_its_cache(family, tmp_path):
    student = students.make("truncate:1,4", teacher_of(family))()
    again = reloaded(student, tmp_path)
    told = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    cached = student.generate(**INPUTS, **told, use_cache=True)
    assert cached.shape == (2, 19)
    assert torch.equal(cached, student.generate(**INPUTS, **told, use_cache=False))
    assert torch.equal(cached, again.generate(**INPUTS, **told, use_cache=True))
    with torch.no_grad():  # step by step, token for token: the logits too
        past, steps = None, []
        for i in range(IDS.shape[1]):
            out = student(input_ids=IDS[:, i : i + 1], past_key_values=past, use_cache=True)
            past, steps = out.past_key_values, [*steps, out.logits]
    assert torch.allclose(torch.cat(steps, 1), logits(student), atol=1e-4)


@pytest.mark.parametrize(
    ("words", "layers"),
    [("1", [0]), ("2", [0, 4]), ("3", [0, 2, 4]), ("4", [0, 1, 3, 4]), ("0,3", [0, 3])],
)
def test_layers_are_spread_with_the_first_and_the_last(words, layers):
    assert students._layers(words, LAYERS, "t") == layers


def test_each_count_of_layers_is_kept_evenly():
    for total in range(2, 41):
        for count in range(2, total + 1):
            layers = students._layers(str(count), total, "t")
            gaps = {b - a for a, b in itertools.pairwise(layers)}
            assert len(layers) == count
            assert (layers[0], layers[-1]) == (0, total - 1)
            assert max(gaps) - min(gaps) <= 1
            assert min(gaps) >= 1


@pytest.mark.parametrize("words", ["truncate:2", "width:0.5", "config:num_hidden_layers=1"])
@pytest.mark.parametrize("tie", [True, False])
def test_tied_embeddings_stay_tied_and_count_once(words, tie, tmp_path):
    teacher = teacher_of("Llama", tie_word_embeddings=tie)
    student = students.make(words, teacher)()
    assert tied(student) == tie
    hidden = student.config.hidden_size
    blocks = sum(p.numel() for p in student.model.layers.parameters())
    tables = VOCAB * hidden * (1 if tie else 2)
    assert sum(p.numel() for p in student.parameters()) == blocks + tables + hidden
    again = reloaded(student, tmp_path)
    assert tied(again) == tie
    assert torch.equal(logits(again), logits(student))
    # changing the student leaves the teacher alone
    before = logits(teacher.make())
    with torch.no_grad():
        for p in student.parameters():
            p.zero_()
    assert torch.equal(logits(teacher.make()), before)


@pytest.mark.parametrize("family", NARROW)
def test_the_whole_width_is_the_teacher(family):
    teacher = teacher_of(family)
    student = students.make("width:1.0", teacher)()
    assert torch.equal(logits(student), logits(teacher.make()))


@pytest.mark.parametrize("family", NARROW)
def test_half_the_width_works_and_loads(family, tmp_path):
    teacher = teacher_of(family)
    student = students.make("width:0.5", teacher)()
    config = student.config
    assert (config.hidden_size, config.intermediate_size) == (16, 24)
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    assert config.head_dim == (teacher.config.head_dim if "head_dim" in FAMILIES[family] else 8)
    again = reloaded(student, tmp_path)
    assert torch.equal(logits(again), logits(student))
    told = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached = again.generate(**INPUTS, **told)
    assert torch.equal(cached, again.generate(**INPUTS, **told, use_cache=False))


@pytest.mark.parametrize("family", NARROW)
def test_what_has_no_weights_is_what_width_leaves_out(family):
    """Dead heads, neurons and channels are the ones that go; what is left computes the same."""
    model = model_of(family)
    heads, neurons = {0: (0, 2), 1: (1, 3), 2: (1, 2), 3: (0, 3), 4: (0, 2)}, range(0, 48, 2)
    dim = model_of(family).model.layers[0].self_attn.head_dim
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            for head in heads[number]:  # one of the two that share a key
                rows = slice(head * dim, head * dim + dim)
                attention.q_proj.weight[rows] = 0
                attention.o_proj.weight[:, rows] = 0
            for linear in (mlp.gate_proj, mlp.up_proj):
                linear.weight[list(neurons)] = 0
            mlp.down_proj.weight[:, list(neurons)] = 0
    found = load((model, tokenizer()), "teacher")
    config = found.config
    kept = {"hidden": 32, "wide": 24, "heads": 2, "groups": 2}
    state = narrow.narrowed(dict(model.state_dict()), config, kept)
    small = copy.deepcopy(config)
    small.num_attention_heads, small.intermediate_size, small.head_dim = 2, 24, dim
    student = type(model)(small)
    student.load_state_dict(state)
    assert torch.allclose(logits(student), logits(model), atol=1e-4)


def test_channels_of_smallest_weights_go():
    model = model_of("Llama", tie_word_embeddings=True)
    dead = list(range(1, 32, 2))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:
                into = name.endswith(("o_proj.weight", "down_proj.weight"))
                (p if into else p.T)[dead] *= 0.01
    student = students.make("width:0.5", load((model, tokenizer()), "teacher"))()
    table = model.model.embed_tokens.weight
    assert torch.equal(student.model.embed_tokens.weight, table[:, 0::2])
    assert torch.equal(student.model.norm.weight, model.model.norm.weight[0::2])


def test_random_weights_are_the_callers_and_of_the_sizes_asked(tmp_path):
    teacher = teacher_of("Llama")
    words = "config:hidden_size=24,num_hidden_layers=2,num_attention_heads=2,rms_norm_eps=1"
    make = students.make(words, teacher)
    drawn = []
    for seed in (0, 0, 1):
        seed_globals(seed)
        drawn.append(make())
    a, b, c = (logits(model) for model in drawn)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    config = drawn[0].config
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (24, 2, 12)
    assert config.rms_norm_eps == 1.0
    assert torch.equal(logits(reloaded(drawn[0], tmp_path)), a)


def test_a_configuration_of_other_depth_has_its_own_pattern_of_layers():
    teacher = teacher_of("Gemma2")
    student = students.make("config:num_hidden_layers=3", teacher)()
    full, sliding = "full_attention", "sliding_attention"
    assert student.config.layer_types == [sliding, full, sliding]
    assert students.make("truncate:1,3", teacher)().config.layer_types == [full, full]
    student = students.make("config:num_hidden_layers=2,n_embd=16", teacher_of("GPT2"))()
    assert (student.config.n_layer, len(student.transformer.h), student.config.n_embd) == (2, 2, 16)


@pytest.mark.parametrize("family", DECODERS)
def test_the_view_is_the_models_own(family):
    teacher = teacher_of(family)
    for words in ("truncate:2", "config:num_hidden_layers=1", "width:0.5"):
        if words.startswith("width") and family not in NARROW:
            continue
        student = students.make(words, teacher)()
        assert is_linear(student, INPUTS, len(WORDS)), words
        wrapped = lora(student, 2, 4.0)
        assert is_linear(wrapped, INPUTS, len(WORDS)), words


def stirred(model):
    """Adapters that do something."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return model


@pytest.mark.parametrize("family", ["Llama", "GPT2", "OPT", "GPTNeoX", "Bert"])
def test_only_adapters_train_and_the_merged_model_is_the_adapted_one(family, tmp_path):
    pytest.importorskip("peft", reason="needs peft")
    plain = model_of(family)
    before, shape = logits(plain), {n: p.shape for n, p in plain.named_parameters()}
    own = {n: p.clone() for n, p in plain.named_parameters()}
    wrapped = lora(plain, 2, 4.0)
    assert torch.equal(logits(wrapped), before)
    training = [n for n, p in wrapped.named_parameters() if p.requires_grad]
    assert training
    assert all("lora_" in name for name in training)
    wrapped(**INPUTS, labels=IDS).loss.backward()
    assert {n for n, p in wrapped.named_parameters() if p.grad is not None} == {*training}
    adapted = logits(stirred(wrapped))
    assert not torch.allclose(adapted, before, atol=1e-2)
    model = merged(wrapped)
    assert type(model) is type(plain)
    assert {n: p.shape for n, p in model.named_parameters()} == shape
    assert all(p.requires_grad for p in model.parameters())
    assert torch.allclose(logits(model), adapted, atol=1e-4)
    assert torch.equal(model.get_output_embeddings().weight, own_head(own, plain))
    assert torch.equal(logits(reloaded(model, tmp_path)), logits(model))


def own_head(own, plain):
    head = plain.get_output_embeddings().weight
    return own[next(n for n, p in plain.named_parameters() if p is head)]


def test_the_view_holds_with_adapters_on_the_head():
    peft = pytest.importorskip("peft", reason="needs peft")
    model = model_of("Llama")
    told = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["lm_head", "q_proj"])
    wrapped = stirred(peft.get_peft_model(model, told))
    assert is_linear(wrapped, INPUTS, len(WORDS))
    view = Causal(len(WORDS)).view(wrapped, INPUTS)
    adapted = logits(wrapped)
    assert torch.allclose(view["logits"], adapted[..., : len(WORDS)], atol=1e-4)
    # what it would be without the head's share
    bare = wrapped.get_output_embeddings().get_base_layer().weight
    assert not torch.allclose(view["hidden"] @ bare[: len(WORDS)].T, view["logits"], atol=1e-2)
    assert torch.allclose(logits(merged(wrapped)), adapted, atol=1e-4)


def test_a_classifiers_head_trains_whole():
    pytest.importorskip("peft", reason="needs peft")
    config = transformers.LlamaConfig(**{**LLAMA, "num_labels": 3})
    plain = transformers.LlamaForSequenceClassification(config)
    teacher = load((plain, tokenizer()), "teacher")
    narrow = students.make("width:0.5", teacher)()
    assert narrow.score.weight.shape == (3, 16)
    wrapped = lora(students.make("truncate:2", teacher)(), 2, 4.0)
    training = [n for n, p in wrapped.named_parameters() if p.requires_grad]
    assert [n for n in training if "lora_" not in n] == [n for n in training if ".score." in n]
    assert any(".score." in name for name in training)
    adapted = logits(stirred(wrapped))
    model = merged(wrapped)
    assert type(model) is type(plain)
    assert torch.allclose(logits(model), adapted, atol=1e-4)
    assert isinstance(model.score, torch.nn.Linear)


REFUSED = {
    "truncate:6": "has 5 layers; give how many to keep, or their numbers from 0 to 4",
    "truncate:0": "has 5 layers",
    "truncate:": "has 5 layers",
    "truncate:ten": "has 5 layers",
    "truncate:-1": "has 5 layers",
    "truncate:3,1": "rising",
    "truncate:1,1": "rising",
    "truncate:0,5": "from 0 to 4",
    "truncate:0,x": "from 0 to 4",
    "width:0": "above 0 and up to 1",
    "width:2": "above 0 and up to 1",
    "width:half": "above 0 and up to 1",
    "width:nan": "above 0 and up to 1",
    "config:hiden_size=8": "has no 'hiden_size' to change; did you mean 'hidden_size'",
    "config:vocab_size=8": "has no 'vocab_size' to change",
    "config:hidden_size=big": "has hidden_size=big; give it as hidden_size=32 is",
    "config:hidden_size": "has hidden_size=None",
    "config:": "has no '' to change",
    "config:num_attention_heads=3": "no LlamaForCausalLM can have .*num_attention_heads=3",
    "config:num_key_value_heads=3": "4 num_attention_heads, which its 3 num_key_value_heads do not",
    "shrink:3": "give truncate:10, width:0.5 or config:NAME=1",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_made_is_one_sentence(words):
    with pytest.raises(UsageError, match=REFUSED[words]) as caught:
        students.make(words, teacher_of("Llama"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NARROW])
def test_only_what_is_built_like_llama_is_narrowed(family):
    with pytest.raises(UsageError, match=f"models built like Llama, and a {family}"):
        students.make("width:0.5", teacher_of(family))


def test_other_makes_are_refused():
    config = transformers.AlbertConfig(**LLAMA, embedding_size=16)
    shared = load((transformers.AlbertForMaskedLM(config), tokenizer()), "teacher")
    with pytest.raises(
        UsageError, match="AlbertForMaskedLM does not keep its 5 layers in one list"
    ):
        students.make("truncate:2", shared)
    with pytest.raises(UsageError, match="rank 0 and alpha"):
        lora(model_of("Llama"), 0, 1.0)
    pytest.importorskip("peft", reason="needs peft")
    with pytest.raises(UsageError, match="has adapters already"):
        lora(lora(model_of("Llama"), 1, 1.0), 1, 1.0)


T5 = {**OLD, "d_model": 16, "d_ff": 16, "num_heads": 2, "d_kv": 8, "decoder_start_token_id": 0}
BART = {**OLD, "d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BART |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "dropout": 0.0}
PAIRS = {
    "T5": (transformers.T5Config, {**T5, "num_layers": 4, "num_decoder_layers": 3}),
    "Bart": (transformers.BartConfig, {**BART, "encoder_layers": 4, "decoder_layers": 3}),
}


def pair_of(family):
    kind, fields = PAIRS[family]
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(kind(**fields))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return load((model, tokenizer()), "teacher")


def pair_logits(model):
    with torch.no_grad():
        return model.eval()(**INPUTS, decoder_input_ids=IDS[:, :4]).logits


@pytest.mark.parametrize("family", PAIRS)
def test_an_encoder_decoder_is_cut_in_both_stacks(family, tmp_path):
    teacher = pair_of(family)
    big, student = teacher.make(), students.make("truncate:2", teacher)()
    stacks = {
        part: next(
            m for n, m in big.named_modules() if part in n and isinstance(m, torch.nn.ModuleList)
        )
        for part in ("encoder", "decoder")
    }
    for part, kept in (("encoder", (0, 3)), ("decoder", (0, 2))):
        for i in sorted({*range(len(stacks[part]))} - {*kept}, reverse=True):
            del stacks[part][i]  # the teacher itself without those layers
        for i, layer in enumerate(stacks[part]):
            for m in layer.modules():
                if hasattr(m, "layer_idx"):
                    m.layer_idx = i
    assert torch.equal(pair_logits(student), pair_logits(big))
    again = reloaded(student, tmp_path)
    assert torch.equal(pair_logits(again), pair_logits(student))
    assert again.generate(**INPUTS, max_new_tokens=3).shape[0] == 2
    drawn = students.make("config:num_hidden_layers=1", teacher)()
    assert drawn.config.num_hidden_layers == 1


def test_what_an_encoder_decoder_cannot_lose():
    with pytest.raises(UsageError, match=r"relative_attention_bias.* keep layer 0"):
        students.make("truncate:1,2", pair_of("T5"))
    with pytest.raises(UsageError, match="has 3 layers"):
        students.make("truncate:4", pair_of("Bart"))
    with pytest.raises(UsageError, match="models built like Llama"):
        students.make("width:0.5", pair_of("Bart"))


@pytest.mark.parametrize("words", ["truncate:2", "width:0.5", "config:num_hidden_layers=1"])
def test_an_end_of_text_that_pads_still_learns(words):
    tokens = tokenizer()
    tokens.pad_token = tokens.eos_token
    model = model_of("Llama", pad_token_id=2, tie_word_embeddings=False)
    student = students.make(words, load((model, tokens), "teacher"))()
    ids = torch.tensor([[3, 2, 4]])
    student(input_ids=ids, labels=ids).loss.backward()
    assert student.get_input_embeddings().weight.grad[2].abs().sum() > 0


def test_half_precision_stays(tmp_path):
    teacher = load((model_of("Llama").bfloat16(), tokenizer()), "teacher")
    for words in ("truncate:2", "width:0.5", "config:num_hidden_layers=1"):
        student = students.make(words, teacher)()
        assert {p.dtype for p in student.parameters()} == {torch.bfloat16}, words
        assert math.isfinite(float(logits(student).sum()))
