"""A teacher behind HTTP: asked in batches, patiently, within a budget, and never twice.

The protocol is that of the common model servers: a POST of `{"instances": [x, ...]}` is answered by
`{"predictions": [...]}` with, for each instance, a label (a number or a class name), a list of the
probabilities of all classes, or the likeliest of them as `[{"label": ..., "score": ...}, ...]`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from torch import Tensor

from limbeck.core.files import cache_folder
from limbeck.core.teachers import BlackBox
from limbeck.errors import UsageError

KEY = "LIMBECK_API_KEY"
"""The environment variable whose value is sent as a bearer token."""

_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # answers after which a server may be asked again
_LONGEST = 60.0  # seconds between two attempts, whatever the server says


def served(
    url: str,
    sample: Any,
    *,
    names: Sequence[str] = (),
    classes: int | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    requests: int | None = None,
    batch: int = 64,
) -> BlackBox:
    """Give the teacher behind a URL; it is asked about one sample to learn what it gives.

    Answers are kept on disk, in a file that only its owner may read, so that no sample is asked
    about twice: a run that was killed asks again at most for the request that was under way.

    Args:
        url: where predictions are made. A token is read from the variable LIMBECK_API_KEY.
        sample: one raw sample as a batch (1, ...): what the server will be sent.
        names: class names, in the order of the labels; answers may use them.
        classes: the number of classes, where there are no names.
        timeout: seconds for one request.
        retries: further attempts after a failure that may pass, with growing pauses.
        requests: requests at most, in this process; None for no limit.
        batch: samples in a request.

    Raises:
        UsageError: the server cannot be reached, or answers what cannot be read.
    """
    client = Client(url, names, classes or len(names), timeout, retries, requests, batch)
    return BlackBox(client, client.gives_on(sample), name=client.shown)


class Client:
    """What asks: `client(x) -> (B,) labels` or `(B, C)` probabilities."""

    def __init__(
        self,
        url: str,
        names: Sequence[str],
        classes: int,
        timeout: float,
        retries: int,
        requests: int | None,
        batch: int,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"'{url}' is no address of a server; write it as https://host/predict")
        if parts.username or parts.password:
            raise UsageError(
                f"the address of the teacher on {parts.hostname} holds a name or password; leave "
                f"it out and put a token into the variable {KEY}"
            )
        self.url, self.names, self.classes = url, {n: i for i, n in enumerate(names)}, classes
        self.timeout, self.retries, self.left, self.batch = timeout, retries, requests, batch
        self.asked = 0  # requests so far
        self.shown = parts._replace(query="", fragment="").geturl()
        self._store = _Store(cache_folder() / "served", url)

    def gives_on(self, sample: Any) -> Literal["labels", "probabilities"]:
        """What an answer about a sample is."""
        return "labels" if self(sample).dim() == 1 else "probabilities"

    def __call__(self, x: Any) -> Tensor:
        """Labels (B,) int64, or probabilities (B, C) float32, of a batch of raw samples."""
        rows = [json.dumps(row, separators=(",", ":")) for row in _plain(x)]
        found = self._store.read(rows)
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        for i in range(0, len(missing), self.batch):
            some = missing[i : i + self.batch]
            new = dict(zip(some, self._predictions(some), strict=True))
            self._store.write(new)
            found |= new
        return self._tensor([found[row] for row in rows])

    def _predictions(self, rows: list[str]) -> list[Any]:
        told = self._post(f'{{"instances":[{",".join(rows)}]}}'.encode())
        try:
            answer = json.loads(told)
            predictions = answer["predictions"] if isinstance(answer, dict) else answer
        except (ValueError, KeyError, RecursionError):
            predictions = None
        if not isinstance(predictions, list):
            raise UsageError(
                f'{self.shown} answered what is no {{"predictions": [...]}}: {_start(told)}'
            )
        if len(predictions) != len(rows):
            raise UsageError(
                f"{self.shown} gave {len(predictions)} predictions for {len(rows)} instances; it "
                "must give one each"
            )
        return predictions

    def _post(self, body: bytes) -> bytes:
        """One request, repeated where a failure may pass."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        opener = urllib.request.build_opener(_Stay)
        for attempt in range(self.retries + 1):
            if self.left is not None and self.asked >= self.left:
                raise UsageError(
                    f"the budget of {self.left} requests to {self.shown} is spent; all answers are "
                    "kept, so run it again with a larger one"
                )
            self.asked += 1
            wait = min(2.0**attempt / 2, _LONGEST)
            try:
                request = urllib.request.Request(self.url, body, headers)
                with opener.open(request, timeout=self.timeout) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                why = f"it answered {error.code} {error.reason}: {_start(error.read(400))}"
                if error.code not in _AGAIN:
                    raise UsageError(f"the teacher at {self.shown} refused: {why}") from None
                wait = _asked_to_wait(error.headers.get("Retry-After"), wait)
            except (OSError, ValueError) as error:  # no connection, a time-out, a broken answer
                why = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt < self.retries:
                time.sleep(wait)
        raise UsageError(
            f"the teacher at {self.shown} could not be asked, {self.retries + 1} times in a row "
            f"({why}); all answers so far are kept"
        )

    def _tensor(self, predictions: list[Any]) -> Tensor:
        first = predictions[0]
        if isinstance(first, list | tuple):
            return torch.stack([self._probabilities(p) for p in predictions])
        return torch.tensor([self._label(p) for p in predictions])

    def _label(self, value: Any) -> int:
        if isinstance(value, str) and value in self.names:
            return self.names[value]
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(
                f"{self.shown} gave the label {value!r}; it must be a class name or a whole number"
            )
        if not 0 <= value < (self.classes or value + 1):
            raise UsageError(
                f"{self.shown} gave the label {value}, and there are {self.classes} classes"
            )
        return value

    def _probabilities(self, value: Any) -> Tensor:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return self._likeliest(value)
        try:
            p = torch.tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(f"{self.shown} gave {str(value)[:60]!r} for probabilities") from None
        if p.dim() != 1 or (self.classes and len(p) != self.classes):
            raise UsageError(
                f"{self.shown} gave probabilities of shape {tuple(p.shape)}, and there are "
                f"{self.classes} classes"
            )
        return p

    def _likeliest(self, value: list[dict[str, Any]]) -> Tensor:
        """All probabilities from some; what is left of 1 is shared by the other classes alike."""
        if not self.classes:
            raise UsageError(f"{self.shown} names likely classes; say how many classes there are")
        p = torch.full((self.classes,), float("nan"))
        for each in value:
            if not isinstance(each, dict) or not {"label", "score"} <= set(each):
                raise UsageError(f"{self.shown} gave {str(each)[:60]!r}; write label and score")
            p[self._label(each["label"])] = float(each["score"])
        others = p.isnan()
        rest = max(0.0, 1.0 - float(p[~others].sum()))
        p[others] = rest / max(1, int(others.sum()))
        return p if bool(others.any()) else p / p.sum()


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would carry the token to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Store:
    """Answers by request, in one file that only its owner may read."""

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


def _plain(x: Any) -> list[Any]:
    """A batch of samples as JSON has them."""
    if isinstance(x, Tensor):
        return list(x.cpu().tolist())
    if isinstance(x, dict):
        columns = {k: _plain(v) for k, v in x.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [row.tolist() if isinstance(row, Tensor) else row for row in x]


def _start(told: bytes) -> str:
    text = " ".join(told.decode("utf-8", "replace").split())
    return text[:120] or "nothing"


def _asked_to_wait(header: str | None, usual: float) -> float:
    try:
        return min(max(float(header or usual), 0.0), _LONGEST)
    except ValueError:  # a date
        return usual
