"""What methods need to know of a text task beside its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from limbeck.core.task import Task
from limbeck.errors import Missing

__all__ = ["Text", "text_of"]


@dataclass(frozen=True, eq=False)
class Text:
    """The text side of a task, at `task.data["text"]`.

    Attributes:
        vocab: tokens of the student's tokenizer that mean something.
        context: tokens of a sample at most.
        eos: ids that end a text.
        pad: the id of padding.
        tokenizer: of the student; None in worlds that make ids themselves.
        other: the teacher's tokenizer where it is another one, else None.
    """

    vocab: int
    context: int
    eos: tuple[int, ...]
    pad: int
    tokenizer: Any = None
    other: Any = None


def text_of(task: Task) -> Text:
    """The text side of a task.

    Raises:
        Missing: the task is not of text.
    """
    found = task.data.get("text")
    if not isinstance(found, Text):
        raise Missing(
            f"this method is for text, and the task '{task.name}' is not; make one with "
            "limbeck.language.task(teacher, student, data)"
        )
    return found
