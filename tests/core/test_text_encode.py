"""Rows as tensors, against slow loops, with tokenizers that are trained on the spot."""

from __future__ import annotations

import functools
import random
import time
from typing import Any

import pytest
import torch

from limbeck.core.text.encode import answers, blocks, both, labelled, same
from limbeck.core.text.places import IGNORED, wanted
from limbeck.errors import UsageError

pytest.importorskip("transformers", reason="needs transformers")
pytestmark = pytest.mark.xdist_group("text_encode")

CORPUS = [
    "the quick brown fox jumps over the lazy dog. Hello, how are you? you are well, he says",
    "user assistant system\nprompt\n\nanswer café naïve 日本語 😀 x\ty a\n\nb 1234 [INST] inst",
] * 20
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # thoughts are taken out of all turns but the last
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and "
    "loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPEN = (  # nothing ends a turn
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PAIR = {"prompt": "how are you?", "response": "you are well, he says"}
CHAT = {
    "messages": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "how are you?"},
        {"role": "user", "content": "well"},
        {"role": "assistant", "content": "the lazy dog"},
    ]
}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]


@functools.cache
def trained(kind: str, bos: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if kind == "word":
        return _word_piece()
    made = Tokenizer(models.BPE())
    if kind == "space":  # SentencePiece's way: a space is put before the text
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted({c for text in CORPUS for c in text} | set("</>:[]"))
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = {"byte": 400, "coarse": 340, "space": 200}[kind]
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return made


def _word_piece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
    )
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def tokenizer(kind: str = "byte", bos: bool = False, template: str | None = None) -> Any:
    from transformers import PreTrainedTokenizerFast

    if kind == "word":
        special = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
    else:
        special = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    named = {f"{name}_token": token for name, token in special.items()}
    made = PreTrainedTokenizerFast(tokenizer_object=trained(kind, bos), **named)
    if kind != "word":
        made.add_special_tokens({"additional_special_tokens": SPECIAL[2:4]})
    made.chat_template = template
    return made


def documents(count: int = 40, seed: int = 0) -> list[dict[str, str]]:
    draw = random.Random(seed)
    words = " ".join(CORPUS[:2]).split(" ")
    return [{"text": " ".join(draw.choices(words, k=draw.randrange(1, 40)))} for _ in range(count)]


def told(tok: Any, found: Any, row: int = 0) -> str:
    """What of a row is trained on, as text."""
    return tok.decode([i for i in found.y[row].tolist() if i != IGNORED])


def read(tok: Any, found: Any, row: int = 0) -> str:
    """A row without its padding, as text."""
    return tok.decode(found.x["ids"][row][found.x["mask"][row] == 1].tolist())


# --- plain texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
def test_packed_blocks_hold_all_texts_in_order(bos: bool) -> None:
    tok, rows = tokenizer(bos=bos), documents()
    x, y, notes = blocks(rows, tok, 16)
    stream: list[int] = []
    for row in rows:
        stream += [0] * bos + tok(row["text"], add_special_tokens=False)["input_ids"] + [1]
    assert x["ids"][x["mask"] == 1].tolist() == stream
    assert x["ids"].shape[1] == 16
    assert x["ids"].dtype == x["mask"].dtype == y.dtype == torch.int64
    for i in range(len(y)):
        for j in range(16):
            trained_on = j > 0 and bool(x["mask"][i, j])
            assert y[i, j] == (x["ids"][i, j] if trained_on else IGNORED)
    assert not notes
    text = tok.decode(x["ids"][x["mask"] == 1].tolist(), skip_special_tokens=not bos)
    assert ("".join(r["text"] for r in rows) if not bos else rows[0]["text"]) in text


def test_a_last_token_alone_makes_no_block() -> None:
    tok = tokenizer()
    ids = tok("the quick brown fox jumps over", add_special_tokens=False)["input_ids"]
    x, _, _ = blocks([{"text": "the quick brown fox jumps over"}], tok, len(ids))
    assert x["ids"].tolist() == [ids]  # EOS would stand alone


def test_unpacked_blocks_keep_texts_apart() -> None:
    tok, rows = tokenizer(bos=True), documents()
    x, _, _ = blocks(rows, tok, 16, pack=False)
    found, i = [], 0
    for row in rows:
        ids = [0, *tok(row["text"], add_special_tokens=False)["input_ids"], 1]
        for start in range(0, len(ids), 16):
            if len(ids) - start > 1:
                found.append(ids[start : start + 16])
    for i, ids in enumerate(found):
        assert x["ids"][i][x["mask"][i] == 1].tolist() == ids
    assert len(x["ids"]) == len(found)


def test_blocks_of_masked_models_are_wrapped() -> None:
    tok, rows = tokenizer("word"), documents()
    x, y, _ = blocks(rows, tok, 16)
    last = x["mask"].sum(1) - 1
    assert (x["ids"][:, 0] == 2).all()
    assert (x["ids"].gather(1, last[:, None]) == 3).all()
    inner = [ids[1 : int(n)].tolist() for ids, n in zip(x["ids"], last, strict=True)]
    stream: list[int] = []
    for row in rows:
        stream += [*tok(row["text"], add_special_tokens=False)["input_ids"], 3]
    assert [i for part in inner for i in part] == stream[:-1]
    assert torch.equal(y != IGNORED, (x["mask"] == 1) & (x["ids"] != 2) & (x["ids"] != 3))


def test_a_word_that_is_not_known_is_trained_on_nonetheless() -> None:
    x, y, _ = blocks([{"text": "the fox \u4e2d dog"}], tokenizer("word"), 16)
    assert 1 in x["ids"]
    assert (y[x["ids"] == 1] == 1).all()


def test_a_megabyte_is_cut_in_a_few_seconds() -> None:
    rows = documents(9500)
    assert sum(len(row["text"]) for row in rows) > 1_000_000
    start = time.perf_counter()
    blocks(rows, tokenizer(), 128)
    assert time.perf_counter() - start < 15  # about one on a quiet machine


# --- prompts and chats ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte", "coarse", "space"])
@pytest.mark.parametrize("bos", [False, True])
def test_a_pair_without_a_template_is_plain(kind: str, bos: bool) -> None:
    tok = tokenizer(kind, bos)
    found = answers([PAIR], tok, 99)
    assert told(tok, found).strip() == "you are well, he says</s>"
    prompt = tok("how are you?\n")["input_ids"]
    assert found.x["ids"][0, : len(prompt)].tolist() == prompt  # as it is when it is asked
    assert (found.y[0, : len(prompt)] == IGNORED).all()


def test_a_plain_pair_of_words_ends_with_sep() -> None:
    tok = tokenizer("word")
    found = answers([PAIR], tok, 99)
    assert read(tok, found) == "[CLS] how are you? you are well, he says [SEP]"
    assert told(tok, found) == "you are well, he says [SEP]"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML, "you are well, he says<|im_end|>"),
        (LLAMA, " you are well, he says </s>"),
        (OPEN, "you are well, he says</s>"),
        (THINKING, "<think>\n\n</think>\n\nyou are well, he says<|im_end|>"),
    ],
)
def test_a_template_writes_a_pair(template: str, said: str) -> None:
    tok = tokenizer(bos=True, template=template)
    found = answers([PAIR], tok, 99)
    messages = [{"role": "user", "content": PAIR["prompt"]}]
    prompt = tok.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert found.x["ids"][0, : len(prompt)].tolist() == prompt
    assert read(tok, found) == tok.decode(prompt) + said
    assert told(tok, found) == said


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML, "how are you?<|im_end|>the lazy dog<|im_end|>"),
        (LLAMA, " how are you? </s> the lazy dog </s>"),
        (OPEN, "how are you?the lazy dog</s>"),
        (THINKING, "how are you?<|im_end|><think>\n\n</think>\n\nthe lazy dog<|im_end|>"),
        (None, "how are you?</s>the lazy dog</s>"),
    ],
)
def test_only_what_the_assistant_says_is_trained_on(template: str | None, said: str) -> None:
    tok = tokenizer(template=template)
    assert told(tok, answers([CHAT], tok, 99)) == said


def test_a_space_put_before_a_text_goes_before_no_response() -> None:
    tok = tokenizer("space", bos=True, template=LLAMA)
    found = answers([PAIR], tok, 99)
    whole = tok(
        "<s>[INST] how are you? [/INST] you are well, he says </s>", add_special_tokens=False
    )
    assert found.x["ids"][0].tolist() == whole["input_ids"]


def test_no_token_lies_across_the_beginning_of_a_response() -> None:
    tok = tokenizer("space")
    row = {"prompt": "prompt", "response": "\nanswer"}  # a token holds "\n\n"
    assert any("\n\n" in tok.decode(i) for i in tok("prompt\n\nanswer")["input_ids"])
    assert told(tok, answers([row], tok, 99)).strip(" ") == "\nanswer</s>"


def test_long_responses_are_cut_and_long_prompts_left_out() -> None:
    tok = tokenizer()
    short = len(tok("how are you?\n")["input_ids"])
    long = {"prompt": "the quick brown fox jumps " * 9, "response": "well"}
    silent = {"messages": [{"role": "user", "content": "Hello"}]}
    whole = answers([PAIR], tok, 99)
    x, y, notes = answers([PAIR, long, silent], tok, short + 2)
    assert x["ids"].shape == (1, short + 2)
    assert (y != IGNORED).sum() == 2
    assert torch.equal(x["ids"], whole.x["ids"][:, : short + 2])
    assert notes == (
        f"1 of 3 rows were cut where they, with their prompts, fill the context of {short + 2} "
        "tokens",
        f"1 of 3 rows were left out, since their prompts alone fill the context of {short + 2} "
        "tokens",
        "1 of 3 rows were left out, since the assistant says nothing in them",
    )
    with pytest.raises(UsageError, match=r"none of 1 rows .* prompts alone fill the context of 9"):
        answers([long], tok, 9)
    with pytest.raises(UsageError, match="the assistant says nothing in them"):
        answers([silent], tok, 9)
    chatty = tokenizer(template=CHATML)
    with pytest.raises(UsageError, match="the assistant says nothing in them"):
        answers([silent], chatty, 9)


def test_rows_are_padded_on_the_right() -> None:
    tok = tokenizer()
    rows = [PAIR, {"prompt": "a", "response": "b"}]
    x, y, _ = answers(rows, tok, 99)
    alone = answers(rows[1:], tok, 99)
    size = alone.x["ids"].shape[1]
    assert torch.equal(x["ids"][1, :size], alone.x["ids"][0])
    assert (x["ids"][1, size:] == tok.pad_token_id).all()
    assert not x["mask"][1, size:].any()
    assert (y[1, size:] == IGNORED).all()


# --- labels, sameness, refusals ------------------------------------------------------------------


def test_labelled_texts_are_as_the_tokenizer_makes_them() -> None:
    tok = tokenizer("word")
    rows = [{**row, "label": i % 3} for i, row in enumerate(documents(9))]
    x, y, notes = labelled(rows, tok, 12)
    made = tok([r["text"] for r in rows], truncation=True, max_length=12, padding=True)
    assert x["ids"].tolist() == made["input_ids"]
    assert x["mask"].tolist() == made["attention_mask"]
    assert y.tolist() == [i % 3 for i in range(9)]
    over = sum(len(tok(r["text"])["input_ids"]) > 12 for r in rows)
    assert notes == (f"{over} of 9 texts were cut to the context of 12 tokens",)
    assert not labelled(rows, tok, 500).notes


def test_sameness_is_of_vocabulary_and_cutting() -> None:
    assert same(tokenizer(), tokenizer())
    assert same(tokenizer(template=CHATML), tokenizer())
    assert not same(tokenizer(), tokenizer("coarse"))
    assert not same(tokenizer(), tokenizer(bos=True))  # of one vocabulary


REFUSED = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}"
CHANGES = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: blocks([PAIR], tokenizer(), 9), "row 0 has prompt and response; rows of text are"),
        (
            lambda: blocks([{"text": "a"}], tokenizer(), 1),
            "a context of 1 tokens leaves room for 1",
        ),
        (lambda: blocks([{"text": "a"}], tokenizer("word"), 3), "leaves room for 1 of a text"),
        (lambda: blocks([{"text": "\udc80"}], tokenizer(), 9), "half of a surrogate pair"),
        (lambda: blocks([{"text": ""}], tokenizer(), 9), "1 texts make no two tokens"),
        (lambda: answers([{"text": "a"}], tokenizer(), 9), "row 0 has text; prompts with"),
        (lambda: labelled([{"text": "a"}], tokenizer(), 9), "rows of text and label are wanted"),
        (
            lambda: answers([PAIR], tokenizer(template=REFUSED), 9),
            r"refuses row 0 \(roles: user, assistant\): no system",
        ),
        (
            lambda: answers([PAIR], tokenizer(template=CHANGES), 9),
            "changes what the assistant says in row 0",
        ),
        (lambda: both([{"text": ""}], tokenizer(), tokenizer("coarse"), 9), "no two tokens"),
        (lambda: both([PAIR], tokenizer(), tokenizer("coarse"), 4), "fill the context of 4"),
    ],
)
def test_refusals(call: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        call()


# --- a teacher with another tokenizer ------------------------------------------------------------


def spans(tok: Any, ids: torch.Tensor, chunk: torch.Tensor) -> list[str]:
    """What each aligned span says, without those of special tokens."""
    count = int(chunk.max()) + 1
    found = [tok.decode(ids[chunk == n].tolist()) for n in range(count)]
    return [said for said in found if said not in SPECIAL]


def closing(tok: Any, ids: torch.Tensor, chunk: torch.Tensor) -> dict[int, int]:
    """The special tokens of a row that are in a span: their numbers, and where they are."""
    own = torch.isin(ids, torch.tensor(tok.convert_tokens_to_ids(SPECIAL[:4]))) & (chunk >= 0)
    return dict(zip(chunk[own].tolist(), own.nonzero()[:, 0].tolist(), strict=True))


@pytest.mark.parametrize("other", ["coarse", "space"])
@pytest.mark.parametrize("context", [12, 60])
def test_texts_of_two_tokenizers_are_cut_alike(other: str, context: int) -> None:
    a, b, rows = tokenizer(), tokenizer(other, bos=True), documents(12, seed=3)
    x, y, _ = both(rows, a, b, context)
    assert x["ids"].shape[1] <= context
    assert x["t_ids"].shape[1] <= context
    aligned = 0
    for i in range(len(y)):
        mine = spans(a, x["ids"][i], x["chunk"][i])
        theirs = spans(b, x["t_ids"][i], x["t_chunk"][i])
        assert [s.strip() for s in mine] == [s.strip() for s in theirs]
        aligned += len(mine)
        assert (y[i] != IGNORED)[x["chunk"][i] >= 0].all()  # each of its tokens is trained on
    assert aligned > 100
    student = a.decode(x["ids"][x["mask"] == 1].tolist()).replace("</s>", "")
    assert student == "".join(row["text"] for row in rows)
    assert [int((x[f"{side}ids"] == 1).sum()) for side in ("", "t_")] == [len(rows)] * 2  # EOS
    t_y = torch.where(x["t_mask"] == 1, x["t_ids"], IGNORED)
    t_y[:, 0] = IGNORED
    assert torch.equal(x["t_wanted"], wanted(t_y))


@pytest.mark.parametrize("other", ["coarse", "space"])
def test_the_end_of_a_text_is_a_span_of_both(other: str) -> None:
    a, b, rows = tokenizer(), tokenizer(other, bos=True), documents(6, seed=3)
    x, _, _ = both(rows, a, b, 24)
    ends = 0
    for i in range(len(x["ids"])):
        mine = closing(a, x["ids"][i], x["chunk"][i])
        assert mine.keys() == closing(b, x["t_ids"][i], x["t_chunk"][i]).keys()
        assert set(mine) <= {int(x["chunk"][i].max())}
        assert all(int((x["chunk"][i] == n).sum()) == 1 for n in mine)
        ends += len(mine)
    assert ends == len(rows) < len(x["ids"])


TURNS = {"chatml": CHATML, "llama": LLAMA, "plain": None, "thinking": THINKING, "open": OPEN}


@pytest.mark.parametrize("seed", range(12))
def test_ends_of_turns_are_spans_of_their_own_where_both_train_on_them(seed: int) -> None:
    rng = random.Random(seed)
    one, two = rng.sample(sorted(TURNS), 2)
    a = tokenizer(template=TURNS[one])
    b = tokenizer(rng.choice(["coarse", "space"]), bos=True, template=TURNS[two])
    words = CORPUS[0].split()
    chats = [
        [
            {"role": role, "content": " ".join(rng.choices(words, k=rng.randint(1, 5)))}
            for _ in range(rng.randint(1, 3))
            for role in ("user", "assistant")
        ]
        for _ in range(5)
    ]
    x, y, _ = both([{"messages": chat} for chat in chats], a, b, 200)
    there = x["t_mask"] == 1
    told = torch.cat([torch.zeros_like(there[:, :1]), x["t_wanted"][:, :-1]], 1)
    for i, chat in enumerate(chats):
        sides = ((a, x["ids"][i], x["chunk"][i], y[i] != IGNORED),
                 (b, x["t_ids"][i], x["t_chunk"][i], told[i]))  # fmt: skip
        found = [closing(*side[:3]) for side in sides]
        assert found[0].keys() == found[1].keys()
        last = [int(chunk.max()) for _, _, chunk, _ in sides]
        assert last[0] == last[1]
        for (_, _, chunk, trained_on), ends in zip(sides, found, strict=True):
            own = chunk[chunk >= 0]
            assert (own.diff() >= 0).all()  # in the order of the text
            assert own.unique().tolist() == list(range(last[0] + 1))
            assert trained_on[chunk >= 0].all()
            assert all(int((chunk == n).sum()) == 1 for n in ends)
        said = "".join(m["content"] for m in chat if m["role"] == "assistant").replace(" ", "")
        for tok, ids, chunk, _ in sides:
            assert "".join(spans(tok, ids, chunk)).replace(" ", "") == said
        every = len(chat) // 2  # but for the template that ends no turn; EOS ends the text
        assert len(found[0]) == (1 if "open" in (one, two) else every)
        assert last[0] in found[0]  # the last turn is ended by all


def test_pieces_are_as_long_as_they_can_be() -> None:
    a, b, rows = tokenizer(), tokenizer("coarse"), documents(12, seed=3)
    x, _, _ = both(rows, a, b, 24)
    size = sum(len(a(r["text"])["input_ids"]) for r in rows)
    assert len(x["ids"]) < 2 * (size // 24) + 2 * len(rows)


@pytest.mark.parametrize("row", [PAIR, CHAT])
@pytest.mark.parametrize("templates", [(CHATML, LLAMA), (None, THINKING), (LLAMA, OPEN)])
@pytest.mark.parametrize("other", ["coarse", "space"])
def test_responses_are_aligned_whatever_the_templates(
    row: Any, templates: tuple[str | None, str | None], other: str
) -> None:
    a = tokenizer(template=templates[0])
    b = tokenizer(other, bos=True, template=templates[1])
    x, y, notes = both([row, row], a, b, 99)
    for side, given in (("", answers([row], a, 99)), ("t_", answers([row], b, 99))):
        assert torch.equal(x[f"{side}ids"][0], given.x["ids"][0])
    assert torch.equal(x["t_wanted"][0], wanted(answers([row], b, 99).y)[0])
    assert torch.equal(y[0], answers([row], a, 99).y[0])
    said = [PAIR["response"]] if row is PAIR else ["how are you?", "the lazy dog"]
    for tok, ids, chunk in ((a, x["ids"], x["chunk"]), (b, x["t_ids"], x["t_chunk"])):
        whole = "".join(spans(tok, ids[1], chunk[1]))
        assert whole.replace(" ", "") == "".join(said).replace(" ", "")
    mine = [s.strip() for s in spans(a, x["ids"][0], x["chunk"][0])]
    assert mine == [s.strip() for s in spans(b, x["t_ids"][0], x["t_chunk"][0])]
    assert len(mine) > 3
    assert not notes


def test_rows_that_one_side_cannot_hold_are_left_out_on_both() -> None:
    a, b = tokenizer(), tokenizer("coarse")
    long = {"prompt": CORPUS[1], "response": "well"}
    mine, size = (len(tok(CORPUS[1] + "\n")["input_ids"]) for tok in (a, b))
    assert mine < size
    short = {"prompt": "a", "response": "b"}
    x, y, notes = both([long, short], a, b, size)
    assert len(y) == len(x["t_ids"]) == 1
    assert "1 of 2 rows were left out, since their prompts alone fill" in notes[-1]
