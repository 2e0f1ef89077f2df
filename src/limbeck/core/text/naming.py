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
            The share of the texts that are of other tokens, and one of them with what it should be.
        """
        forms = {how: self._spelt(ids, how) for how in _HOW}
        hits = {how: sum(map(str.__eq__, forms[how], texts)) for how in _HOW}
        self.how, self._table = max(_HOW, key=hits.__getitem__), {}
        rows = zip(texts, forms["decoded"], forms["written"], strict=True)
        clear = [row for row in rows if _LOST not in row[1] and not row[0].startswith("bytes:")]
        wrong = [row for row in clear if row[0].strip() not in (row[1].strip(), row[2].strip())]
        return len(wrong) / max(1, len(clear)), wrong[0][:2] if wrong else ("", "")

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
