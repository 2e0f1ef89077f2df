"""A teacher behind HTTP: asked in batches, patiently, within a budget, and never twice.

The protocol is that of the common model servers: a POST of `{"instances": [x, ...]}` is answered by
`{"predictions": [...]}` with, for each instance, a label (a number or a class name), a list of the
probabilities of all classes, or the likeliest of them as `[{"label": ..., "score": ...}, ...]`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core.answers import Store, plain
from limbeck.core.files import cache_folder
from limbeck.core.posting import Post
from limbeck.core.sources.specs import KEY
from limbeck.core.teachers import BlackBox, check_probabilities
from limbeck.errors import UsageError, nearest


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
        requests: requests of this teacher at most, attempts that fail with them; None for no
            limit. `teacher.ask.asked` counts them.
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
        self._post = Post(url, KEY, timeout, retries, requests)
        self.names, self.classes = {n: i for i, n in enumerate(names)}, classes
        self.shown, self.batch = self._post.shown, batch
        self._form: torch.Size | None = None  # of one answer: () of labels, (C,) of probabilities
        self._store = Store(cache_folder() / "served", url)

    @property
    def asked(self) -> int:
        """Requests so far."""
        return self._post.asked

    def gives_on(self, sample: Any) -> Literal["labels", "probabilities"]:
        """What an answer about a sample is."""
        return "labels" if self(sample).dim() == 1 else "probabilities"

    def __call__(self, x: Any) -> Tensor:
        """Labels (B,) int64, or probabilities (B, C) float32, of a batch of raw samples."""
        rows = [json.dumps(row, separators=(",", ":")) for row in plain(x)]
        found = self._kept(rows)
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        for i in range(0, len(missing), self.batch):
            some = missing[i : i + self.batch]
            new = self._predictions(some)
            found |= zip(some, self._alike(self._tensor(new)), strict=True)
            self._store.write(dict(zip(some, new, strict=True)))
        return torch.stack([found[row] for row in rows])

    def _kept(self, rows: list[str]) -> dict[str, Tensor]:
        """The answers that are on the disk."""
        found = self._store.read(rows)
        if not found:
            return {}
        try:
            answers = self._tensor(list(found.values()))
        except UsageError as error:
            raise UsageError(
                f"{error} (an answer that was kept: if server or classes have changed since, "
                f"remove {self._store.path})"
            ) from None
        return dict(zip(found, self._alike(answers), strict=True))

    def _alike(self, answers: Tensor) -> Tensor:
        """The same, if they are of the form of all answers before."""
        form = answers.shape[1:]
        if self._form is not None and form != self._form:
            raise UsageError(
                f"{self.shown} gave {_form(form)} for each sample, and {_form(self._form)} before; "
                f"if the server has changed, remove {self._store.path}, where answers are kept"
            )
        self._form = form
        return answers

    def _predictions(self, rows: list[str]) -> list[Any]:
        told = self._post.send(f'{{"instances":[{",".join(rows)}]}}'.encode())
        try:
            answer = json.loads(told)
            predictions = answer["predictions"] if isinstance(answer, dict) else answer
        except (ValueError, KeyError, RecursionError):
            predictions = None
        if not isinstance(predictions, list):
            raise UsageError(
                f'{self.shown} answered what is no {{"predictions": [...]}}: '
                f"{self._start(told) or 'nothing'}; name the address where predictions are made"
            )
        if len(predictions) != len(rows):
            raise UsageError(
                f"{self.shown} gave {len(predictions)} predictions for {len(rows)} instances; it "
                "must give one each"
            )
        return predictions

    def _start(self, told: str | bytes) -> str:
        return self._post.start(told)

    def _tensor(self, predictions: list[Any]) -> Tensor:
        """Answers, checked before any is kept: labels (B,) or probabilities (B, C)."""
        read = [
            self._probabilities(p) if isinstance(p, list) else self._label(p) for p in predictions
        ]
        forms = [_form(shape) for shape in dict.fromkeys(each.shape for each in read)]
        if len(forms) > 1:
            raise UsageError(
                f"{self.shown} gave {forms[0]} for a sample and {forms[1]} for another"
            )
        out = torch.stack(read)
        if out.dim() == 2:
            check_probabilities(out, self.shown)
        return out

    def _label(self, value: Any) -> Tensor:
        if isinstance(value, str) and value in self.names:
            return torch.tensor(self.names[value])
        if isinstance(value, bool) or not isinstance(value, int):
            told = f"{self.shown} gave the label {self._start(repr(value))}"
            if not self.names:
                raise UsageError(f"{told}, and the classes have no names; give whole numbers")
            number = "; a number stands without quotes" if str(value).isdecimal() else ""
            raise UsageError(
                f"{told}, which is no class's name or number{nearest(str(value), self.names)}"
                f"{number}"
            )
        if not 0 <= value < (self.classes or 2**31):
            raise UsageError(
                f"{self.shown} gave the label {value}, and there are {self.classes} classes"
            )
        if self.names.get(str(value), value) != value:
            raise UsageError(
                f"{self.shown} gave the label {value}, which may be the class '{value}' or that of "
                f"number {value}, '{list(self.names)[value]}'; let it give class names, as texts"
            )
        return torch.tensor(value)

    def _probabilities(self, value: list[Any]) -> Tensor:
        if value and isinstance(value[0], dict):
            return self._likeliest(value)
        try:
            p = torch.tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(
                f"{self.shown} gave {self._start(repr(value))} for probabilities"
            ) from None
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
        given: dict[int, float] = {}
        for each in value:
            try:
                label, score = each["label"], float(each["score"])
            except (TypeError, ValueError, LookupError):
                raise UsageError(
                    f"{self.shown} gave {self._start(repr(each))}; write label and score, a number"
                ) from None
            given[int(self._label(label))] = score
        if len(given) < len(value):
            raise UsageError(f"{self.shown} named a class twice: {self._start(repr(value))}")
        rest = max(0.0, 1.0 - sum(given.values())) / max(1, self.classes - len(given))
        return torch.tensor([given.get(label, rest) for label in range(self.classes)])


def _form(shape: Sequence[int]) -> str:
    return f"{shape[0]} probabilities" if shape else "a label"
