"""Which token a server means by a text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Names"]

_BY_ID = re.compile(r"token_id:(\d+)")  # as vLLM writes tokens, where it is asked to
_LOST = "\ufffd"  # stands in a text for bytes that are no whole character
_HOW = ("decoded", "written")


class Names:
    """Reads a server's texts of tokens as ids of a tokenizer.

    A server writes a token as it is decoded ("the", with or without the blank before it), as it
    stands in the vocabulary ("Ġthe"), or as "token_id:N". A text that several tokens have cannot be
    told.

    Attributes:
        vocab: how many tokens there are.
        how: "decoded" or "written".
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.vocab, self.how = tokenizer, len(tokenizer), _HOW[0]
        self._table: dict[str, int] = {}
        known = "\n".join(f"{i} {t}" for t, i in sorted(tokenizer.get_vocab().items()))
        self.digest = hashlib.blake2b(known.encode("utf-8", "replace"), digest_size=8).hexdigest()

    def _spelt(self, ids: Iterable[int], how: str) -> list[str]:
        if how == "written":
            return [str(text) for text in self._tokenizer.convert_ids_to_tokens(list(ids))]
        return list(self._tokenizer.batch_decode([[i] for i in ids]))

    def settle(self, ids: Sequence[int], texts: Sequence[str]) -> tuple[float, tuple[str, str]]:
        """Choose how texts are read by those of known tokens.

        Returns:
            The share of the texts that are of other tokens, 1 where one is another token's for
            sure, and one of them with what it should be.
        """
        forms = {how: self._spelt(ids, how) for how in _HOW}
        hits = {how: sum(map(str.__eq__, forms[how], texts)) for how in _HOW}
        self.how, self._table = max(_HOW, key=hits.__getitem__), {}
        rows = list(zip(ids, texts, forms["decoded"], forms["written"], strict=True))
        for token, text, own, _ in rows:
            if self.is_other(token, text):
                return 1.0, (text, own)
        clear = [row for row in rows if _LOST not in row[2] and not row[1].startswith("bytes:")]
        wrong = [row for row in clear if row[1].strip() not in (row[2].strip(), row[3].strip())]
        return len(wrong) / max(1, len(clear)), wrong[0][1:3] if wrong else ("", "")

    def is_other(self, token: int, text: str) -> bool:
        """Whether a text is that of one token alone, and not this one, but for blanks around it."""
        found = self.id_of(text)
        if found in (-1, token) or not text.strip():
            return False
        return text.strip() not in [self._spelt([token], how)[0].strip() for how in _HOW]

    def text_of(self, token: int) -> str:
        """A token as it is decoded."""
        return self._spelt([token], "decoded")[0]

    def spread(self, count: int) -> list[int]:
        """Some tokens from all over the vocabulary whose texts can be told, ascending."""
        special = set(self._tokenizer.all_special_ids)
        step = max(1, self.vocab // (4 * count))
        some = [i for i in range(step - 1, self.vocab, step) if i not in special]
        texts = zip(some, self._spelt(some, "decoded"), strict=True)
        clear = [i for i, text in texts if text.strip() and _LOST not in text]
        return clear[:: max(1, -(-len(clear) // count))]

    def id_of(self, text: str) -> int:
        """The token of a text; -1 where it is none, or one of several."""
        if found := _BY_ID.fullmatch(text):
            number = int(found[1])
            return number if number < self.vocab else -1
        if not self._table:
            for i, own in enumerate(self._spelt(range(self.vocab), self.how)):
                self._table[own] = -1 if own in self._table else i
        return self._table.get(text, -1)

    @staticmethod
    def are_ids(texts: Sequence[str]) -> bool:
        """Whether all are of the form token_id:N."""
        return all(_BY_ID.fullmatch(text) for text in texts)
