"""Prompts with responses and chats as a tokenizer writes them, and what of them is trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import UsageError

__all__ = ["Turn", "Written", "specials", "write"]

Message = Mapping[str, str]


@dataclass(frozen=True)
class Turn:
    """A range [start, stop) of a text that is trained on, in characters, and what is said in it.

    It begins where a model begins to write, and has the token that ends the turn, if one does.
    """

    start: int
    stop: int
    said: str


@dataclass(frozen=True)
class Written:
    """A row as one text.

    Attributes:
        text: what the tokenizer cuts.
        turns: what of it is trained on, in order.
        ended: whether the last turn ends with a special token; else EOS is put after it.
        special: whether the tokenizer's own special tokens go before it (no template wrote them).
    """

    text: str
    turns: tuple[Turn, ...]
    ended: bool
    special: bool


def write(row: Mapping[str, Any], number: int, tokenizer: Any) -> Written:
    r"""Write a row by the tokenizer's chat template, or plainly where it has none.

    Plainly, a prompt is followed by a line break, and the response by EOS; a chat is so too: what
    the assistant says is followed by EOS (written between turns only where it is plain text to the
    tokenizer), each other message by a line break.

    Args:
        row: {"prompt", "response"} or {"messages"}.
        number: of the row, for sentences.
        tokenizer: of transformers.

    Raises:
        UsageError: a row of another shape; the template refuses it, or changes what is said.
    """
    messages = _messages(row, number)
    if not getattr(tokenizer, "chat_template", None):
        return _plainly(messages, tokenizer)
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        return Written("", (), True, False)
    text, close = _render(tokenizer, messages, number), _specials_in(tokenizer)
    said = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m["content"].strip()]
    by_prefix = {i: _by_prefix(tokenizer, messages, i, text, number, close) for i in said}
    found = {i: place for i, place in by_prefix.items() if place}
    if len(found) < len(said):
        found = _by_marks(tokenizer, messages, said, text, number, close) | found
    turns = tuple(Turn(found[i][0], found[i][1], messages[i]["content"]) for i in said)
    last = turns[-1].stop
    ended = re.search(f"(?:{close})$", text[:last]) is not None
    return Written(text[:last], turns, ended, False)


def specials(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text by itself."""
    found = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    ids, mask = list(found["input_ids"]), list(found["special_tokens_mask"])
    before = mask.index(0) if 0 in mask else len(ids)
    after = len(ids) - mask[::-1].index(0) if 0 in mask else len(ids)
    return ids[:before], ids[after:]


def _messages(row: Mapping[str, Any], number: int) -> list[Message]:
    if "messages" in row:
        return list(row["messages"])
    if "response" not in row:
        raise UsageError(
            f"row {number} has {' and '.join(row)}; prompts with responses, or messages, are wanted"
        )
    return [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["response"]},
    ]


def _plainly(messages: Sequence[Message], tokenizer: Any) -> Written:
    eos = tokenizer.eos_token or tokenizer.sep_token or ""
    text, turns = "", []
    for message in messages:
        if message["role"] != "assistant":
            text += message["content"] + "\n"
        elif message["content"].strip():
            start = len(text)
            text += message["content"] + eos
            turns.append(Turn(start, len(text), message["content"]))
    last = turns[-1].stop if turns else 0
    return Written(text[:last], tuple(turns), bool(eos), True)


def _render(tokenizer: Any, messages: Sequence[Message], number: int, prompt: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        roles = ", ".join(m["role"] for m in messages)
        raise UsageError(
            f"the chat template of the tokenizer refuses row {number} (roles: {roles}): {error}"
        ) from error
    return text


def _by_prefix(
    tokenizer: Any, messages: Sequence[Message], i: int, text: str, number: int, close: str
) -> tuple[int, int] | None:
    """Turn i as it comes to be: from the prompt for it to the end of the chat that ends with it.

    None where that chat is written otherwise once it goes on (thoughts are taken out).
    """
    if i == 0:
        return None
    before = _render(tokenizer, messages[:i], number, prompt=True)
    last = i + 1 == len(messages)
    whole = text if last else _render(tokenizer, messages[: i + 1], number)
    turn = whole[len(before) :]
    if not (whole.startswith(before) and text.startswith(whole)):
        return None
    if messages[i]["content"].strip() not in turn:
        return None
    end = re.search(rf"(?:{close})(?=\s*$)", turn)
    return len(before), len(before) + (end.end() if end else len(turn.rstrip()))


def _by_marks(
    tokenizer: Any,
    messages: Sequence[Message],
    said: Sequence[int],
    text: str,
    number: int,
    close: str,
) -> dict[int, tuple[int, int]]:
    """The turns from what is said on, told from the same chat with marks in its place."""
    marks = {i: f"\ue000{i}\ue001" for i in said}
    marked = [{**m, "content": marks[i]} if i in marks else m for i, m in enumerate(messages)]
    before, *frames = re.split("\ue000\\d+\ue001", _render(tokenizer, marked, number))
    place, found = len(before), {}
    fits = text.startswith(before) and len(frames) == len(said)
    for i, frame in zip(said, frames, strict=False):
        content = messages[i]["content"]
        forms = (content, content.rstrip(), content.lstrip(), content.strip())
        stop = place + next((len(f) for f in forms if text.startswith(f + frame, place)), 0)
        end = re.match(rf"\s*(?:{close})", frame)
        found[i] = (place, stop + (end.end() if end else 0))
        fits = fits and stop > place
        place = stop + len(frame)
    if not fits or place != len(text):
        raise UsageError(
            f"the chat template of the tokenizer changes what the assistant says in row {number} "
            "(it takes out thoughts, or writes a turn twice or not at all), so its turns cannot be "
            "found; give the chat as the template leaves it, or prompts and responses"
        )
    return found


def _specials_in(tokenizer: Any) -> str:
    """A pattern of the special tokens of a tokenizer; of nothing at all if it has none."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    names = {str(token) for token in added.values() if token.special}
    names |= set(tokenizer.all_special_tokens)
    return "|".join(map(re.escape, sorted(names, key=lambda n: (-len(n), n)))) or "(?!)"
