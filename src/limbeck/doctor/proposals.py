"""The command of a run, written again with another budget, and what that does to the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.doctor import limits
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import again

Command = Sequence[str]


def anew(seen: Seen, command: Command, changes: Mapping[str, Any]) -> tuple[str, str]:
    """The command with another budget, and what is to be known of it.

    A budget is the teacher's too, where that is trained by the run; one that a run has trained
    already is named by its file, so that it stays as it is, unless it learned nothing there.
    """
    words = list(command)
    other = ("--epochs",) if "--steps" in changes else ()  # a budget has one of them
    for i, word in enumerate(words):  # --teacher=T as two words
        option, eq, value = word.partition("=")
        if eq and option == "--teacher":
            words[i : i + 1] = [option, value]
    if seen.records is not None and seen.records.teacher.exists():
        at = words.index("--teacher") + 1 if "--teacher" in words[:-1] else 0
        learned = seen.score("teacher", "train")
        good = learned is None or learned >= limits.LEARNED
        if at and good and _takes_weights(words[at]):
            kept = {"--teacher": f"{words[at]}@{seen.records.teacher}"}
            return again(words, {**kept, **changes}, without=("--pretrained", *other)), ""
        return again(words, changes, other), "; the teacher will be trained again with it"
    if seen.trained_by_run:
        return again(words, changes, other), "; the teacher is trained with it, too"
    return again(words, changes, other), ""


def _takes_weights(model: str) -> bool:
    """Whether a file of weights can be named after it."""
    library = model.startswith(("timm:", "torchvision:")) or ".py:" in model
    return library and "@" not in model
