"""Texts, prompts with responses, and chats as tokens with the bytes that each covers.

What is aligned is the text, the response, or what the assistant says; tokens that are not of it
(special tokens, a prompt, other turns) cover nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.core.text.spans import Cut, cut, cut_as
from limbeck.core.text.spelling import Numbers, raw
from limbeck.errors import UsageError

__all__ = ["Encoded", "encode", "encode_all", "encode_chat", "encode_pair"]


@dataclass(frozen=True)
class Encoded:
    """Tokens of one text, and the bytes of the aligned text that they cover.

    Attributes:
        ids: (T,) int64.
        ends: (T,) int64, the byte after each token's last; a token begins where the one before
            ends. Tokens that are not of the text repeat the end before them.
        text: (T,) bool, which tokens are of the text. One of them may have no bytes of its own (a
            '▁' put before the text, a character that several tokens share).
    """

    ids: Numbers
    ends: Numbers
    text: NDArray[np.bool_]

    @property
    def spans(self) -> Numbers:
        """(T, 2) first byte and the byte after the last; equal where nothing is covered."""
        return np.stack([np.append(0, self.ends)[: len(self.ends)], self.ends], 1)


def encode(
    tokenizer: Any, text: str, *, add_special: bool = True, ids: Sequence[int] | None = None
) -> Encoded:
    """Cut a text with a Hugging Face tokenizer, fast or one that spells its text (ByT5).

    Args:
        tokenizer: the tokenizer.
        text: the text.
        add_special: add the special tokens that the tokenizer adds by itself.
        ids: tokens that spell the text, to be taken as they are instead (what a model wrote).
            Special ones among them cover nothing; text is what they decode to without those.

    Raises:
        UsageError: tokens do not spell the text; the text has no UTF-8.
    """
    if ids is None:
        return encode_all(tokenizer, [text], add_special=add_special)[0]
    found = cut_as(tokenizer, text, ids)
    return Encoded(found.ids, found.hi, found.text)


def encode_all(tokenizer: Any, texts: Sequence[str], *, add_special: bool = True) -> list[Encoded]:
    """`encode` for many texts."""
    return [Encoded(c.ids, c.hi, c.text) for c in cut(tokenizer, texts, add_special)]


def encode_pair(tokenizer: Any, prompt: str, response: str, *, add_special: bool = True) -> Encoded:
    """Cut prompt + response; ends are bytes of the response, and prompt tokens cover nothing.

    The two are cut as one text, unless a token would lie across the border; then each is cut by
    itself, so that a border of tokens lies there with every tokenizer. Special tokens go before and
    after the whole. A tokenizer that puts a space before every text ('▁' of SentencePiece,
    add_prefix_space) then puts one before the response too: its first token reads as after a space.
    """
    start = len(raw(prompt))
    regions = [(start, start + len(raw(response)))]
    found = _regions(tokenizer, prompt + response, regions, add_special)
    return _within(found, regions, [regions[0][1] - start], [0])


def encode_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> Encoded:
    """Cut a chat as the tokenizer's template writes it; ends are bytes of what the assistant says.

    These are the contents of all assistant turns, one after the other (blank ones count for
    nothing); other tokens cover nothing. The template may strip white space around a content, which
    then belongs to the nearest token of the turn. A token that would lie across a content's edge is
    not made: the text is cut there first.

    Args:
        tokenizer: the tokenizer, with a chat template.
        messages: of a role and a content each.
        options: further words for the template.

    Raises:
        UsageError: no template; it refuses the messages; it changes what the assistant says.
    """
    turns = [
        i for i, m in enumerate(messages)
        if m.get("role") == "assistant" and _content(m, i).strip()
    ]  # fmt: skip
    text, starts = _rendered(tokenizer, messages, turns, options)
    regions, sizes, leads = [], [], []
    for i, (first, said) in zip(turns, starts, strict=True):
        content = messages[i]["content"]
        start = len(raw(text[:first]))
        regions.append((start, start + len(raw(said))))
        sizes.append(len(raw(content)))
        leads.append(len(raw(content[: content.index(said)])))
    return _within(_regions(tokenizer, text, regions, False), regions, sizes, leads)


def _content(message: Mapping[str, Any], place: int) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if not isinstance(content, str):
        raise UsageError(
            f"message {place + 1} of a chat has a content of type {type(content).__name__}; what "
            "the assistant says is aligned as one text, so give a string"
        )
    return content


def _written(tokenizer: Any, messages: Sequence[Mapping[str, Any]], options: Any) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except (TemplateError, ValueError) as error:
        raise UsageError(
            f"the chat template of this {type(tokenizer).__name__} refuses the messages (roles: "
            f"{', '.join(str(m.get('role')) for m in messages)}): {error}"
        ) from error
    return text


def _rendered(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], turns: Sequence[int], options: Any
) -> tuple[str, list[tuple[int, str]]]:
    """A chat as it is written, and where in it stands what of each turn.

    What stands around the turns is told from the same chat with marks in their place.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"this {type(tokenizer).__name__} has no chat template; set tokenizer.chat_template, "
            "or give prompts and responses"
        )
    text = _written(tokenizer, messages, options)
    marks = {i: f"\ue000{i}\ue001" for i in turns}
    marked = [{**m, "content": marks[i]} if i in marks else m for i, m in enumerate(messages)]
    before, *frames = _parts(_written(tokenizer, marked, options), list(marks.values()))
    place = len(before)
    fits, found = text.startswith(before) and len(frames) == len(turns), []
    for i, frame in zip(turns, frames, strict=False):
        content = messages[i]["content"]
        forms = (content, content.rstrip(), content.lstrip(), content.strip())
        said = next((form for form in forms if text.startswith(form + frame, place)), None)
        fits = fits and said is not None
        found.append((place, said or ""))
        place += len(found[-1][1]) + len(frame)
    if not fits or place != len(text):
        raise UsageError(
            f"the chat template of this {type(tokenizer).__name__} changes what the assistant says "
            "(it takes out thoughts, or writes a turn twice or not at all), so its turns cannot be "
            "found in the text; give the chat as the template leaves it, or prompts and responses"
        )
    return text, found


def _parts(text: str, marks: Sequence[str]) -> list[str]:
    """What stands before, between and after some marks; fewer parts if a mark is missing."""
    parts: list[str] = []
    for mark in marks:
        part, hit, text = text.partition(mark)
        if not hit:
            return parts or [part]
        parts.append(part)
    return [*parts, text]


def _regions(
    tokenizer: Any, text: str, regions: Sequence[tuple[int, int]], add_special: bool
) -> Cut:
    """Cut a text so that no token lies across an edge of some ranges of bytes."""
    data = raw(text)
    whole = found = cut(tokenizer, [text], add_special)[0]
    edges, places = {edge for region in regions for edge in region}, {0, len(data)}
    while across := {e for e in edges if np.any(found.text & (found.lo < e) & (e < found.hi))}:
        places |= across
        stops = sorted(places)
        pieces = [data[a:b].decode() for a, b in pairwise(stops)]
        cuts = cut(tokenizer, pieces, False)
        found = _chained(cuts, stops)
    if found is whole:
        return whole
    own = np.flatnonzero(whole.text)  # some: a token lay across an edge
    before, after = _part(whole, slice(own[0])), _part(whole, slice(own[-1] + 1, None))
    return _chained([before, found, after], [0, 0, 0])


def _part(whole: Cut, part: slice) -> Cut:
    return Cut(whole.ids[part], whole.lo[part], whole.hi[part], whole.text[part])


def _chained(cuts: Sequence[Cut], starts: Sequence[int]) -> Cut:
    """Cuts one after the other, whose texts begin at some bytes of the whole."""
    return Cut(
        np.concatenate([c.ids for c in cuts]),
        np.concatenate([c.lo + start for c, start in zip(cuts, starts, strict=False)]),
        np.concatenate([c.hi + start for c, start in zip(cuts, starts, strict=False)]),
        np.concatenate([c.text for c in cuts]),
    )


def _within(
    found: Cut, regions: Sequence[tuple[int, int]], sizes: Sequence[int], leads: Sequence[int]
) -> Encoded:
    """Count bytes in some ranges only, which stand for texts of `sizes` from byte `leads` on."""
    ends = np.zeros_like(found.ids)
    inside = np.zeros_like(found.text)
    base = 0
    for (start, stop), size, lead in zip(regions, sizes, leads, strict=True):
        here = np.flatnonzero(found.text & (start <= found.lo) & (found.lo < stop))
        inside[here] = True
        ends[here] = base + lead + found.hi[here] - start
        base += size
        ends[here[-1:]] = base
    return Encoded(found.ids, np.maximum.accumulate(ends), inside)
