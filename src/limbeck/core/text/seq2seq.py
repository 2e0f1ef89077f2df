"""Encoder-decoders: prompts with responses as they are given to one, and how it is looked at.

Raw samples have "source_ids" and "source_mask" (B, S), what the encoder reads, and "ids" and "mask"
(B, T), what the decoder does: its first token, then the response with the token that ends it. At
place i the decoder predicts token i + 1, as a causal model does, so labels, places and signals are
those of causal models. A teacher that reads in another way, or other tokens, has columns of its own
with "t_" before their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from limbeck.core.data import Batch
from limbeck.core.text.encode import Samples, answers, room_for, whole
from limbeck.core.text.places import columns, wanted
from limbeck.core.text.spelling import raw
from limbeck.core.text.tokens import array, stacked
from limbeck.core.text.view import Causal
from limbeck.errors import UsageError

__all__ = ["Seq2Seq", "end_of", "is_pair", "pairs", "unaligned"]


@dataclass(frozen=True)
class Seq2Seq(Causal):
    """The reader of a side that reads one text and writes another: an encoder-decoder.

    Its entries are those of a causal model, over the decoder's places.
    """

    def __call__(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the model, without the columns that are padding in every row."""
        source, seen = columns(x, f"{self.side}source_")
        ids, mask = columns(x, self.side)
        return {
            "input_ids": source,
            "attention_mask": seen,
            "decoder_input_ids": ids,
            "decoder_attention_mask": mask,
        }


def is_pair(batch: Batch) -> bool:
    """Whether sources and targets are apart in `batch`, as an encoder-decoder reads them."""
    return "source_ids" in batch.x


def end_of(tokenizer: Any) -> int | None:
    """The token that ends what a decoder writes: EOS, of BERT's tokenizers SEP."""
    eos: int | None = tokenizer.eos_token_id
    return tokenizer.sep_token_id if eos is None else eos


def pairs(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, context: int, start: int | None
) -> Samples:
    """Prompts for the encoder, and responses for the decoder, of which all but `start` is trained.

    Both are cut as the tokenizer cuts a source and a target, with its special tokens around them; a
    response ends with EOS. No chat template is used.

    Args:
        rows: of {"prompt", "response"}.
        tokenizer: of transformers.
        context: tokens of a prompt, and of a response with `start`, at most; the rest is cut off.
        start: what the decoder begins with, of the model's config.

    Raises:
        UsageError: rows of another shape, a model that does not say what its decoder begins with,
            or a context without room.
    """
    _check_rows(rows)
    if start is None:
        raise UsageError(
            "the model's config has no decoder_start_token_id, so what its decoder begins with is "
            "not known; set it"
        )
    x, cut = whole([row["prompt"] for row in rows], tokenizer, context)
    spoken = [row["response"] for row in rows]
    for text in spoken:
        raw(text)  # refuses what the tokenizer would choke on
    written, end = tokenizer(text_target=spoken, verbose=False)["input_ids"], end_of(tokenizer)
    for own in written:
        if end is not None and own[-1:] != [end]:
            own.append(end)
    ids = [array([start, *own])[:context] for own in written]
    decoder, y = stacked(ids, [np.arange(len(own)) > 0 for own in ids], tokenizer)
    many = sum(len(own) >= context for own in written)
    notes = (
        f"{n:,} of {len(rows):,} {what} were cut to the context of {context} tokens"
        for n, what in ((cut, "prompts"), (many, "responses"))
        if n
    )
    sources = {f"source_{name}": value for name, value in x.items()}
    return Samples(sources | decoder, y, tuple(notes))


def unaligned(
    rows: Sequence[Mapping[str, Any]], student: Any, teacher: Any, context: int
) -> Samples:
    """Prompts with responses as either side reads them, of which one at least is in two parts.

    Beside the student's columns x has the teacher's with "t_" before their names, and "t_wanted"
    (N, U); no spans of the two are aligned.

    Args:
        rows: of {"prompt", "response"}.
        student: with `kind`, `tokenizer` and `config`, as `models.Found` has them.
        teacher: the same.
        context: tokens of a text at most, on either side.

    Raises:
        UsageError: as for `pairs` and `answers`.
    """
    _check_rows(rows)
    many = len(rows)
    for side in (student, teacher):
        if side.kind != "seq2seq":
            rows = [rows[i] for i in room_for(rows, side.tokenizer, context)]
    left = f"{many - len(rows):,} of {many:,} rows were left out, since their prompts alone fill "
    notes = [f"{left}the context of {context} tokens"] if len(rows) < many else []
    made = []
    for side in (student, teacher):
        if side.kind == "seq2seq":
            start = side.config.decoder_start_token_id
            made.append(pairs(rows, side.tokenizer, context, start))
        else:
            made.append(answers(rows, side.tokenizer, context))
    one, other = made
    x = {**one.x, **{f"t_{n}": value for n, value in other.x.items()}, "t_wanted": wanted(other.y)}
    return Samples(x, one.y, (*notes, *dict.fromkeys((*one.notes, *other.notes))))


def _check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    for i, row in enumerate(rows):
        if set(row) != {"prompt", "response"}:
            raise UsageError(
                f"row {i} has {' and '.join(row)}, and an encoder-decoder is taught on prompts "
                "with responses; give these"
            )
