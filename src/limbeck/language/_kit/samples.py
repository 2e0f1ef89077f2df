"""Rows of a text task as tokens, in the way that its models read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.core.text import encode, tagged
from limbeck.core.text.models import Found
from limbeck.core.text.seq2seq import pairs, unaligned
from limbeck.errors import UsageError

__all__ = ["cut"]


def cut(
    rows: Sequence[dict[str, Any]],
    labelled: bool,
    teacher: Found | None,
    student: Found,
    other: Any,
    context: int,
) -> encode.Samples:
    """Rows as samples for both sides.

    Args:
        rows: of one shape.
        labelled: whether they have labels or tags.
        teacher: where its tokenizer is known.
        student: whose kind decides.
        other: the teacher's tokenizer, where its columns are not the student's.
        context: tokens of a sample at most.

    Raises:
        UsageError: the rows are not for such models.
    """
    words = student.tokenizer
    if student.kind == "masked" and "text" not in rows[0]:
        raise UsageError(
            "masked models are taught on plain texts, and these are answers; give others"
        )
    if student.kind == "tagger":
        return encode.Samples(*tagged.encoded(rows, words, context))
    if labelled:
        return encode.labelled(rows, words, context)
    if other is not None:
        if teacher is not None and "seq2seq" in (teacher.kind, student.kind):
            return unaligned(rows, student, teacher, context)
        return encode.both(rows, words, other, context)
    if student.kind == "seq2seq":
        return pairs(rows, words, context, student.config.decoder_start_token_id)
    if "text" in rows[0]:
        return encode.blocks(rows, words, context)
    return encode.answers(rows, words, context)
