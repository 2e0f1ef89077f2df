"""What methods need to know of a text task beside its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from limbeck.core.card import Card, Need, parse_needs
from limbeck.core.data import Table
from limbeck.core.task import Task
from limbeck.errors import Missing, UsageError

__all__ = ["MaskedText", "TaggedText", "Text", "check_text", "text_of"]


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


def check_text(task: Task, card: Card | None) -> None:
    """Refuse a method that would read what a text task shows as something else.

    Raises:
        UsageError: the sentence names what to run instead.
    """
    text = task.data.get("text")
    if card is None or not isinstance(text, Text | MaskedText | TaggedText):
        return
    needs = parse_needs(card.needs)
    tagged = isinstance(text, TaggedText)  # there a method that could do without them is no help
    reads = any(_reads(need, "logits", any if tagged else all) for need in needs)
    if reads and (does := _by_tokens(task, text)):
        what, instead = does
        raise UsageError(
            f"{card.key} takes one answer a sample, and the models of the task '{task.name}' "
            f"{what}; run {instead}"
        )
    aligned = "cross_tokenizer" in card.kinds
    if not isinstance(text, Text) or text.other is None or aligned:
        return
    if any(_reads(need, "signal") for need in needs):
        raise UsageError(
            f"the teacher has another tokenizer ({len(text.other):,} tokens, and the student "
            f"{text.vocab:,}) or reads in another way, and {card.key} compares next tokens one by "
            "one; use a method for such: limbeck list --kind cross_tokenizer"
        )


def _by_tokens(task: Task, text: Text | MaskedText | TaggedText) -> tuple[str, str] | None:
    """What models do that answer for each token, and what to run; None of models of classes."""
    if isinstance(text, TaggedText):
        return "tag words", "gkd with own=0 and other=data"
    if isinstance(text, MaskedText):
        return "fill in hidden tokens", "distilbert"
    if task.train is None:
        return None
    columns = Table(task.train).rows(torch.arange(1)).columns
    x, y = columns["x"], columns.get("y")
    ids = x.get("ids") if isinstance(x, Mapping) else None
    each = (
        ids is not None and getattr(y, "shape", None) == ids.shape
    )  # else (B,), or several (B, C)
    return ("write token by token", "gkd") if each else None


def _reads(
    need: tuple[frozenset[Need], ...], entry: str, ways: Callable[[Iterable[bool]], bool] = all
) -> bool:
    """Whether each way (with `any`: one) of meeting a need has an entry of a view, of any side."""
    return ways(any(n.name == entry for n in some) for some in need)
