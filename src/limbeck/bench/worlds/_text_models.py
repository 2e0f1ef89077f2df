"""Small language models for the worlds beside the causal ones, and what their ids mean."""

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bench.worlds._text import sizes
from limbeck.core.hub import library
from limbeck.errors import UsageError

PAD, EOS, BOS = 0, 1, 2
"""Ids with a meaning of their own in an encoder-decoder; words begin at 3."""


# --- classifiers of texts ------------------------------------------------------------------------


def classifier(
    given: str, side: str, tokenizer: Any, classes: int, context: int
) -> Callable[[], nn.Module]:
    """A factory of small BERTs ("2x64": layers x width), or of bags of words ("bow")."""
    if given == "bow":
        return lambda: Bow(len(tokenizer), 64, classes)
    layers, width = sizes(given, side)
    transformers = library("transformers")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=4 * width,
        max_position_embeddings=context,
        num_labels=classes,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    return lambda: transformers.BertForSequenceClassification(config)


class Bow(nn.Module):
    """A bag of words: the mean of a text's embeddings, and a linear layer."""

    def __init__(self, vocab: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, C) of ids and mask (B, T)."""
        there = attention_mask[..., None].float()
        bag = (self.embedding(input_ids) * there).sum(1) / there.sum(1).clamp_min(1)
        logits: Tensor = self.head(bag)
        return logits


# --- encoder-decoders ----------------------------------------------------------------------------


def seq2seq(given: str, side: str, vocab: int, context: int) -> Callable[[], nn.Module]:
    """A factory of small BARTs, with as many layers of the encoder as of the decoder."""
    layers, width = sizes(given, side)
    transformers = library("transformers")
    heads = max(1, width // 32)
    config = transformers.BartConfig(
        vocab_size=vocab,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=context,
        dropout=0.0,
        init_std=0.05,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
        decoder_start_token_id=BOS,
        forced_eos_token_id=None,
    )
    return lambda: transformers.BartForConditionalGeneration(config)


# --- models that are tables ----------------------------------------------------------------------


class Tabular(nn.Module):
    """A model whose next token depends on the last one only: logits (V, V)."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, vocab)
        nn.init.zeros_(self.table.weight)
        self.config = library("transformers").PreTrainedConfig()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        """An output with `logits` (B, T, V) of ids (B, T)."""
        return SimpleNamespace(logits=self.table(input_ids))


# --- what ids mean -------------------------------------------------------------------------------


class Words:
    """Writes ids out; of a text only the part before EOS, without other special tokens.

    Args:
        words: of all ids; None for the special ones.
    """

    def __init__(self, words: Sequence[str | None]) -> None:
        self.words = words

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The words of ids, with a space between two."""
        return " ".join(word for i in spoken(ids) if (word := self.words[i]) is not None)


def spoken(ids: Iterable[int]) -> list[int]:
    """The ids of words before the first EOS."""
    found: list[int] = []
    for i in ids:
        if i == EOS:
            break
        if i > BOS:
            found.append(int(i))
    return found


def number(name: str, value: object, low: float, high: float) -> float:
    """Check a number that the user gave."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}; give a number from {low:g} to {high:g}")
    return float(value)


def padded(rows: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (N, length) of rows, padded on the right."""
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
