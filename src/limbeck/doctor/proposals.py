"""The command of a run, written again with a change, and what that does to the teacher."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from limbeck import registry
from limbeck.core.text.facts import MaskedText, TaggedText
from limbeck.core.untrained import Untrained
from limbeck.doctor import limits
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import again
from limbeck.errors import UsageError

Command = Sequence[str]
Proposed = tuple[str | None, str]
"""A command, if there is one, and what is to be known of it, as the end of a sentence."""


def value_of(command: Command, option: str) -> str | None:
    """The value that an option has in a command."""
    for i, word in enumerate(command):
        name, eq, value = word.partition("=")
        if name == option:
            return value if eq else next(iter(command[i + 1 : i + 2]), None)
    return None


def anew(seen: Seen, command: Command, changes: Mapping[str, Any]) -> tuple[str, str]:
    """The command with another budget, and what is to be known of it.

    A budget is the teacher's too, where that is trained by the run; one that a run has trained
    already is named by its file, so that it stays as it is, unless it learned nothing there.
    """
    words, other = list(command), _other(changes)
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


def _other(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """The option that a command must not have beside these: a budget has one of two."""
    pair = {"--steps": "--epochs", "--epochs": "--steps"}
    return tuple(pair[option] for option in changes if option in pair)


def _takes_weights(model: str) -> bool:
    """Whether a file of weights can be named after it."""
    return of_library(model) and "@" not in model


def of_library(model: str | None) -> bool:
    """Whether it is named by library or file, apart from its weights."""
    return model is not None and (model.startswith(("timm:", "torchvision:")) or ".py:" in model)


def longer(seen: Seen, command: Command) -> Proposed:
    """The command with twice the budget."""
    change = _twice(seen, command)
    return anew(seen, command, change) if change else (None, "")


def teacher_longer(seen: Seen, command: Command) -> Proposed:
    """The same for the teacher's sake, where the run trains it: it has the run's budget."""
    untrained = seen.task is not None and isinstance(seen.task.the_teacher(), Untrained)
    change = _twice(seen, command)
    if not (seen.raised or seen.trained_by_run or untrained) or not change:
        how = "with --pretrained no the run trains it from scratch, for its own --epochs"
        return None, f" ({how})" if of_library(value_of(command, "--teacher")) else ""
    return again(command, change, _other(change)), "; it is trained for the run's own budget"


def _twice(seen: Seen, command: Command) -> dict[str, Any]:
    """Twice the budget, as an option; empty where it is not known."""
    for option in ("--epochs", "--steps"):
        try:
            given = float(value_of(command, option) or 0)
        except ValueError:
            continue
        if given > 0:
            return {option: int(2 * given) if option == "--steps" else 2 * given}
    if seen.task is not None:
        budget = seen.task.budget
        return {"--steps": 2 * budget.steps} if budget.steps else {
            "--epochs": 2.0 * (10 if budget.epochs is None else budget.epochs)
        }  # fmt: skip
    stages = seen.records.result.get("stages") or [] if seen.records else []
    steps = [s["steps"] for s in stages if s.get("stage") not in ("teacher", "baseline")
             and isinstance(s.get("steps"), int)]  # fmt: skip
    return {"--steps": 2 * max(steps)} if steps else {}


def augmented(seen: Seen, command: Command) -> Proposed:
    """The command with its pictures drawn anew in each epoch, where it has pictures."""
    about = seen.task.about if seen.task is not None else {}
    about = about or (seen.records.told.get("about") or {} if seen.records else {})
    pictures = (about.get("inputs") or {}).get("kind") == "pictures"
    given = value_of(command, "--augment") or "none"
    if not pictures or value_of(command, "--data") is None or given != "none":
        return None, ""
    return anew(seen, command, {"--augment": "crop,flip"})


def with_method(seen: Seen, command: Command, key: str, given: Mapping[str, Any]) -> str | None:
    """The command of another method, without this one's fields; None where there is no such one."""
    try:
        registry.find(key)
    except UsageError:
        return None
    if list(command[:2]) != ["limbeck", "run"] or len(command) < 3:
        return None
    method: Any = seen.method
    own = fields(method) if is_dataclass(method) else ()
    flags = [f"--{f.name.replace('_', '-')}" for f in own]
    return again([*command[:2], key, *command[3:]], given, without=flags)


_NAMED = re.compile(r"\brun (\w+)(?: with ([\w=, ]+?(?: and \w+=\w+)?))?$")


def named_in(seen: Seen, command: Command, told: str) -> str | None:
    """The command of the method that a sentence ends with: "run gkd with own=0 and other=data"."""
    found = _NAMED.search(told)
    if not found:
        return None
    values = re.findall(r"(\w+)=(\w+)", found[2] or "")
    given = {f"--{name.replace('_', '-')}": value for name, value in values}
    return with_method(seen, command, found[1], given)


def for_texts(seen: Seen, command: Command) -> str | None:
    """The command of a method for texts, where the task is of them."""
    text = seen.task.data.get("text") if seen.task is not None else None
    if text is None:
        return None
    if isinstance(text, MaskedText):
        return with_method(seen, command, "distilbert", {})
    tags = {"--own": 0, "--other": "data"} if isinstance(text, TaggedText) else {}
    return with_method(seen, command, "gkd", tags)


def reading_features(seen: Seen, command: Command) -> str | None:
    """The command of a method that reads inside the teacher, where its places are known."""
    if seen.task is None or "text" in seen.task.data:
        return None
    guessed = value_of(command, "--data") is not None  # the command line proposes places
    return with_method(seen, command, "fitnets", {}) if guessed or "mid" in seen.task.taps else None


def weighed(seen: Seen, command: Command, factor: float) -> str | None:
    """The command with other weights of the terms that the teacher is in."""
    terms: Iterable[str] = next((r["terms"] for r in reversed(seen.rows) if "terms" in r), ())
    now = {t: getattr(seen.method, t, None) for t in terms if t != "label"}
    changes = {
        f"--{t.replace('_', '-')}": float(f"{factor * v:.2g}")
        for t, v in now.items()
        if isinstance(v, int | float) and v > 0
    }
    return again(command, changes) if changes else None


def modules(command: Command) -> str | None:
    """The command that lists the places inside the teacher."""
    teacher = value_of(command, "--teacher")
    if teacher is None or not of_library(teacher):
        return None
    return f"limbeck show --modules {shlex.quote(teacher)}"
