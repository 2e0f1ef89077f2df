"""`masklm`: English, character by character, some hidden: small masked models of BERT's kind."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from limbeck.bench.worlds._build import whole
from limbeck.bench.worlds._text import english, rate, sizes, taught, usual
from limbeck.bench.worlds.charlm import coded, letters
from limbeck.core.hub import library
from limbeck.core.rng import generator
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.text.facts import MaskedText
from limbeck.core.text.masking import Masked, MaskedTokens, Masking, fixed, masked_nll
from limbeck.core.text.places import IGNORED
from limbeck.errors import UsageError

PAD, MASK = 0, 1


def task(
    *,
    teacher: str | None = None,
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    context: int | None = None,
    text: str | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task: pieces of a text, in which 15 % of the characters are hidden.

    The student is a DistilBERT: it lacks the token types of its teacher, a BERT. It begins with
    random weights, unless a method gives it others.

    Args:
        teacher: layers x width, 4x64 by default, or 'none'.
        student: the same but for 'none'; 2x64 by default.
        seed: of the run; makes no difference here.
        tiny: 160 pieces of 16 characters, small models and 24 steps.
        n: training pieces; 8000 by default.
        context: characters of a piece, 32 by default.
        text: "kjv" or "topics"; the first where it is on the machine.
        data_seed: of the order of the pieces.

    Raises:
        UsageError: an option cannot be. Missing: the text or transformers is not there.
    """
    size = whole("context", context or (16 if tiny else 32), 8, 4096)
    many = whole("n", n or (160 if tiny else 8000), 32, 10**6)
    held = max(32, many // 10)
    words = english(text or usual())
    if (many + 2 * held) * size > len(words):
        raise UsageError(
            f"{many + 2 * held} samples of {size} characters are more than the text has "
            f"({len(words)}); give a smaller n"
        )
    ids = coded(words, many + 2 * held, size)
    ids = ids[torch.randperm(len(ids), generator=generator("masklm", data_seed))]
    vocab = len(letters(words)) + 2
    parts = dict(zip(("train", "valid", "test"), torch.split(ids, [many, held, held]), strict=True))
    sets = {name: columns(part, vocab, name) for name, part in parts.items()}
    made = Task(
        teacher=None,
        student=bert(student or ("1x64" if tiny else "2x64"), "student", vocab, size),
        train=sets["train"],
        valid=sets["valid"],
        test=sets["test"],
        score=masked_nll,
        budget=rate(24, 1e-2, 16) if tiny else rate(600, 5e-3, 64),
        data={"text": MaskedText(vocab, size, MASK, PAD, Letters(letters(words)))},
        readers={"student": Masked(vocab), "teacher": Masked(vocab)},
        name="masklm",
    )
    if teacher == "none":
        return made
    family = teacher or ("2x64" if tiny else "4x64")
    make = bert(family, "teacher", vocab, size)
    budget = rate(300, 5e-3, 16) if tiny else rate(2000, 5e-3, 64)
    alone = replace(made, readers={"student": Masked(vocab)})
    truth = MaskedTokens(MASK, vocab)
    return replace(made, teacher=Frozen(taught(f"masklm-{family}", make, truth, alone, budget)))


def columns(ids: torch.Tensor, vocab: int, name: str) -> dict[str, Any]:
    """A set of samples (N, T) with some characters hidden; never the first of a piece."""
    tokens = ids.clone()
    tokens[:, 0] = IGNORED
    whole_text = {"ids": ids, "mask": torch.ones_like(ids)}
    return fixed(whole_text, tokens, Masking(MASK, vocab), f"masklm-{name}")


def bert(given: str, side: str, vocab: int, context: int) -> Callable[[], nn.Module]:
    """A factory of small masked models: of BERTs for the teacher, of DistilBERTs for the student.

    Args:
        given: layers x width.
        side: "teacher" or "student".
        vocab: how many tokens there are.
        context: how many of them they can see.
    """
    layers, width = sizes(given, side)
    transformers = library("transformers")
    common = {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 16),
        "max_position_embeddings": context,
        "pad_token_id": PAD,
        "initializer_range": 0.1,
    }
    if side == "teacher":
        config = transformers.BertConfig(
            **common,
            intermediate_size=4 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return lambda: transformers.BertForMaskedLM(config)
    config = transformers.DistilBertConfig(
        **common, hidden_dim=4 * width, dropout=0.0, attention_dropout=0.0
    )
    return lambda: transformers.DistilBertForMaskedLM(config)


class Letters:
    """What writes ids out, a hidden one as "_"."""

    def __init__(self, known: list[str]) -> None:
        self.known = known

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; padding is nothing, nor a hidden one where special tokens are skipped."""
        hidden = "" if skip_special_tokens else "_"
        return "".join(self.known[i - 2] if i > 1 else hidden if i == MASK else "" for i in ids)
