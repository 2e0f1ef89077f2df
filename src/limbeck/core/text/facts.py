"""What methods need to know of a text task beside its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from limbeck.core.task import Task
from limbeck.errors import Missing, UsageError

__all__ = ["MaskedText", "TaggedText", "Text", "text_of"]


@dataclass(frozen=True, eq=False)
class Text:
    """The text side of a task, at `task.data["text"]`.

    Attributes:
        vocab: tokens of the student's tokenizer that mean something.
        context: tokens of a sample at most.
        eos: ids that end a text.
        pad: the id of padding.
        tokenizer: of the student; None in worlds that make ids themselves.
        other: the teacher's tokenizer where it is another one, or the teacher reads in another way
            (one of the sides is an encoder-decoder); else None.
    """

    vocab: int
    context: int
    eos: tuple[int, ...]
    pad: int
    tokenizer: Any = None
    other: Any = None


@dataclass(frozen=True, eq=False)
class MaskedText:
    """The text side of a task of masked models, at `task.data["text"]`.

    Attributes:
        vocab: tokens of the tokenizer that mean something.
        context: tokens of a sample at most.
        mask: the id that stands for a hidden token.
        pad: the id of padding.
        tokenizer: of both sides.
    """

    vocab: int
    context: int
    mask: int
    pad: int
    tokenizer: Any = None


@dataclass(frozen=True, eq=False)
class TaggedText:
    """The text side of a task of tagging words, at `task.data["text"]`.

    Attributes:
        context: tokens of a sample at most.
        tokenizer: of both sides.
    """

    context: int
    tokenizer: Any = None


def text_of(task: Task) -> Text:
    """The text side of a task of models that write.

    Raises:
        Missing: the task is not of text.
        UsageError: its models are masked ones, or tag words.
    """
    found = task.data.get("text")
    if isinstance(found, MaskedText):
        raise UsageError(
            f"this method is for models that write, and those of the task '{task.name}' fill in "
            "hidden tokens; give causal ones, or run distilbert"
        )
    if isinstance(found, TaggedText):
        raise UsageError(
            f"this method is for models that write, and those of the task '{task.name}' tag words; "
            "run gkd with own=0 and other=data"
        )
    if not isinstance(found, Text):
        raise Missing(
            f"this method is for text, and the task '{task.name}' is not; make one with "
            "limbeck.language.task(teacher, student, data)"
        )
    return found
