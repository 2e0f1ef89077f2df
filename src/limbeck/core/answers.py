"""The questions to a served teacher, and its answers, kept on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck.errors import UsageError

__all__ = ["Store", "plain"]


class Store:
    """Answers by request, in one file that only its owner may read.

    Args:
        folder: where the file is, which is named by the address.
        url: the teacher's.

    Raises:
        UsageError: the file cannot be made, read or written.
    """

    def __init__(self, folder: Path, url: str) -> None:
        digest = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
        self.path = folder / f"{digest}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._do("CREATE TABLE IF NOT EXISTS answers (request BLOB PRIMARY KEY, answer TEXT)")
        except OSError as error:
            raise UsageError(
                f"answers cannot be kept in {self.path} ({error.strerror}); name another place in "
                "LIMBECK_CACHE"
            ) from None

    def _do(self, words: str, rows: Sequence[tuple[Any, ...]] = ((),)) -> list[tuple[Any, ...]]:
        """Carry out and commit, by a connection of its own: processes and forks share the file."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as link, link:
                return [found for row in rows for found in link.execute(words, row).fetchall()]
        except sqlite3.Error as error:
            raise UsageError(
                f"the answers in {self.path} cannot be read or written ({error}); remove the file "
                "if it is damaged, or make room"
            ) from None

    def read(self, requests: Sequence[str]) -> dict[str, Any]:
        """The answers that are there, by request."""
        digests = {_digest(r): r for r in requests}
        found = self._do(
            "SELECT request, answer FROM answers WHERE request = ?", [(d,) for d in digests]
        )
        return {digests[d]: json.loads(answer) for d, answer in found}

    def write(self, answers: dict[str, Any]) -> None:
        """Keep answers; they are on the disk when this returns."""
        self._do(
            "INSERT OR REPLACE INTO answers VALUES (?, ?)",
            [(_digest(r), json.dumps(a)) for r, a in answers.items()],
        )


def _digest(request: str) -> bytes:
    return hashlib.blake2b(request.encode(), digest_size=16).digest()


def plain(x: Any) -> list[Any]:
    """A batch of samples as JSON has them."""
    if isinstance(x, Tensor):
        return list(x.cpu().tolist())
    if isinstance(x, dict):
        columns = {k: plain(v) for k, v in x.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [row.tolist() if isinstance(row, Tensor) else row for row in x]
