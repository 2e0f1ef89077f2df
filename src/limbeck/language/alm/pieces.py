"""The tokens of a vocabulary as bytes, and texts of bytes cut by the bare model of a tokenizer."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.text.encoded import encode
from limbeck.core.text.facts import Text
from limbeck.core.text.spelling import raw, spellings, spelt
from limbeck.errors import Missing, UsageError

PROBES = ("the fox says: 12\nhello", "na\u00efve caf\u00e9", "the fox says hello", "a b", "ab")
BLANKS = (b" ", b"\t", b"\n")


class Pieces:
    """A vocabulary.

    Attributes:
        names: (V,) tokens as the vocabulary writes them.
        spelled: (V,) their bytes; None of special tokens and of those that spell none.
        special: the numbers of special tokens.

    Raises:
        UsageError: it cannot be told what the tokens spell.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, size = tokenizer, len(tokenizer)
        told = [(text, encode(tokenizer, text, add_special=False).ids) for text in PROBES]
        readings = spellings(tokenizer)
        fits = [sum(spelt([r], ids, raw(text)) is not None for text, ids in told) for r in readings]
        if not max(fits):
            raise UsageError(
                f"it cannot be told which bytes the tokens of {type(tokenizer).__name__} stand "
                "for, as it drops white space; give append_space=False and merge='none'"
            )
        self.reading = readings[fits.index(max(fits))]
        self.special = frozenset(tokenizer.all_special_ids)
        self.names: list[str] = tokenizer.convert_ids_to_tokens(list(range(size)))
        self.spelled = [None if i in self.special else self.reading[i] for i in range(size)]

    @functools.cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The first token that spells some bytes."""
        found: dict[bytes, int] = {}
        for i, part in enumerate(self.spelled):
            if part:
                found.setdefault(part, i)
        return found

    @functools.cached_property
    def letters(self) -> dict[bytes, str]:
        """How the vocabulary writes single characters (or bytes, where they are its letters)."""
        single = {letter for name, part in zip(self.names, self.spelled, strict=True) if part
                  for letter in name if not self.is_byte(name)}  # fmt: skip
        return {part: letter for letter in sorted(single) if (part := self.reading.read(letter))}

    @staticmethod
    def is_byte(name: str) -> bool:
        """Whether a token is written as its byte, <0x0A>."""
        return len(name) == 6 and name.startswith("<0x") and name.endswith(">")

    def written(self, data: bytes) -> str | None:
        """Bytes in the vocabulary's own letters; None where it lacks one."""
        out, place = [], 0
        while place < len(data):
            size = next((n for n in (1, 2, 3, 4) if data[place : place + n] in self.letters), 0)
            if not size:
                return None
            out.append(self.letters[data[place : place + size]])
            place += size
        return "".join(out)

    def cut(self, text: str) -> list[int]:
        """The tokens of a text in the vocabulary's letters, not split into words before.

        Raises:
            UsageError: the tokenizer is not a fast one.
        """
        if not self.tokenizer.is_fast:
            raise UsageError(
                f"{type(self.tokenizer).__name__} is no fast tokenizer, which is needed to cut "
                "parts of words; use the fast tokenizer of the same model"
            )
        return [t.id for t in self.tokenizer.backend_tokenizer.model.tokenize(text)]

    def blanks(self, size: int) -> Tensor:
        """(size,) bool: tokens that begin with a space, a tab or a line break, and special ones."""
        found = torch.zeros(size, dtype=torch.bool)
        for i, part in enumerate(self.spelled[:size]):
            found[i] = i in self.special or (part is not None and part.startswith(BLANKS))
        return found


class Tools(nn.Module):
    """Which tokens of both vocabularies begin with white space, (V,) and (V',) bool."""

    blank: Tensor
    t_blank: Tensor

    def __init__(self, blank: Tensor, t_blank: Tensor) -> None:
        super().__init__()
        self.register_buffer("blank", blank)
        self.register_buffer("t_blank", t_blank)


def tokenizers_of(text: Text | None, instead: str) -> tuple[Any, Any]:
    """The student's and the teacher's."""
    if text is None or text.tokenizer is None or text.other is None:
        raise Missing(f"alm reads both tokenizers, and the task has not got them; give {instead}")
    return text.tokenizer, text.other
