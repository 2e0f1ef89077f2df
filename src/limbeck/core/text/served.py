"""A language model behind an OpenAI-compatible server: the likeliest next tokens at each place.

A request is a POST of token ids to /completions with `echo` and `logprobs`, which vLLM and SGLang
answer with the log-probabilities of the prompt's own tokens. What is read of an answer is kept on
the disk, so that no text is asked about twice.
"""

from __future__ import annotations

import base64
import copy
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from limbeck.core.answers import Store
from limbeck.core.files import cache_folder
from limbeck.core.posting import Post, Refused
from limbeck.core.signals import TopK
from limbeck.core.sources.addresses import OPENAI_KEY
from limbeck.core.teachers import BlackBox
from limbeck.core.text.completions import WHERE, Endpoint
from limbeck.core.text.naming import Names
from limbeck.errors import UsageError

__all__ = ["TOP", "Completions", "served"]

TOP = 20  # what vLLM gives without a word; OpenAI gives 5
FEW = 5
LOOKED = 32  # tokens of a text that a server is first asked about, and so many of the vocabulary
OTHER, LOST = 0.25, 0.2  # shares of texts of other tokens, and of tokens that cannot be told
_NOTHING = -9000.0  # below it vLLM's -9999, which stands for minus infinity


def served(
    url: str,
    model: str,
    tokenizer: Any,
    ids: Sequence[int],
    *,
    top: int = TOP,
    timeout: float = 120.0,
    retries: int = 4,
    requests: int | None = None,
    batch: int = 16,
) -> BlackBox:
    """Give the teacher behind a server; it is asked about one text to learn how it answers.

    Args:
        url: what `/completions` is put behind, as in "http://localhost:8000/v1". A key is read from
            the variable OPENAI_API_KEY.
        model: its name there; empty where the server has one.
        tokenizer: the one that the server's model reads.
        ids: a text's tokens.
        top: tokens of each place that are asked for; where the server refuses, 5.
        timeout: seconds for one request.
        retries: further attempts after a failure that may pass, with growing pauses.
        requests: requests at most; None for no limit. `teacher.ask.asked` counts them.
        batch: texts in a request.

    Raises:
        UsageError: the server cannot be reached, answers what cannot be read or no
            log-probabilities, or has other tokens.
    """
    post = Post(url, OPENAI_KEY, timeout, retries, requests)
    client = Completions(post, model, tokenizer, top, batch)
    client.look(ids)
    return BlackBox(client, "signal", name=f"{client.shown}#{client.model}")


class Completions:
    """What asks: `client({"input_ids", "attention_mask"})` gives the entries `signal` and `truth`.

    Attributes:
        top: entries of a place.
        untold, entries: how many of the entries that were answered now are of tokens that cannot
            be told from their texts, and how many there were; the former are left in the tail.
    """

    def __init__(self, post: Post, model: str, tokenizer: Any, top: int, batch: int) -> None:
        self._post, self._end, self.shown = post, Endpoint(post), post.shown
        self.batch, self.top = batch, top
        self._store = Store(cache_folder() / "served", post.url)
        self._names, self._by_id = Names(tokenizer), False
        self.model = self._end.model = model or self._only()
        self.untold = self.entries = 0
        self.notes: tuple[str, ...] = ()

    @property
    def asked(self) -> int:
        """Requests so far."""
        return self._end.asked

    def of(self, top: int) -> Self:
        """The same, asking for so many tokens of a place."""
        new = copy.copy(self)
        new.top = top
        return new

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """What it gives of texts (B, T), padded on the right.

        Returns:
            `signal`, a TopK of (B, T) places, and `truth` (B, T): the log-probability of the next
            token of the text. After a text's last token there is nothing.
        """
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        texts = [row[there.bool()].tolist() for row, there in zip(ids, mask, strict=True)]
        found = self._answers([text for text in texts if len(text) > 1])
        shape = (*ids.shape, self.top)
        some = torch.full(shape, -1), torch.full(shape, -torch.inf), torch.zeros(ids.shape)
        for b, text in enumerate(texts):
            if len(text) > 1:
                for part, value in zip(some, _unpacked(found[tuple(text)], self.top), strict=True):
                    part[b, : len(text) - 1] = torch.from_numpy(value)
        number, logp, truth = (part.to(ids.device) for part in some)
        return {"signal": TopK(number, logp, self._names.vocab), "truth": truth}

    def _answers(self, texts: list[list[int]]) -> dict[tuple[int, ...], Any]:
        """What is known of each text, asked where it is not on the disk."""
        reading = "ids" if self._by_id else f"{self._names.how} {self._names.digest}"
        keys = {json.dumps([self.model, self.top, reading, text]): text for text in texts}
        found = self._store.read(list(keys))
        missing = [key for key in keys if key not in found]
        for i in range(0, len(missing), self.batch):
            some = missing[i : i + self.batch]
            asked = [keys[key] for key in some]
            choices = self._end.choices(asked, self.top, self._by_id)
            read = [self._read(c, ids) for c, ids in zip(choices, asked, strict=True)]
            new = dict(zip(some, read, strict=True))
            self._store.write(new)
            found |= new
        return {tuple(keys[key]): answer for key, answer in found.items()}

    def _only(self) -> str:
        """The one model that the server has; the one that it had where it cannot be reached."""
        key = json.dumps(["models"])
        try:
            names = self._end.models()
        except UsageError as error:
            if (kept := self._store.read([key]).get(key)) and not isinstance(error, Refused):
                return str(kept)
            raise UsageError(
                f"{error}; it was asked which models it has: name one, as openai:URL#MODEL"
            ) from None
        if len(names) != 1:
            there = ", ".join(names[:6]) or "none"
            raise UsageError(
                f"{self.shown} has {len(names)} models ({there}); name one, as openai:URL#MODEL"
            )
        self._store.write({key: names[0]})
        return names[0]

    # --- how this server answers ------------------------------------------------------------------

    def look(self, ids: Sequence[int]) -> None:
        """Ask about a text, once ever, to learn how many tokens are given, and in which words."""
        ids = list(ids)[:LOOKED]
        key = json.dumps(["look", self.model, self.top, self._names.digest, ids])
        told, asked = self._store.read([key]).get(key), self.top
        if told is None:
            told = self._looked(ids)
            self._store.write({key: told})
        self.top = told["top"]
        self._by_id, self._names.how, lost = told["by_id"], told["how"], told["lost"]
        notes = [f"the teacher is {self.model} at {self.shown}, the {self.top} likeliest tokens"]
        if self.top < asked:
            notes[0] += f" (it refused {asked})"
        if lost:
            notes.append(
                f"{lost:.1%} of the tokens that {self.shown} names cannot be told from their texts "
                "and count to the tail (vLLM can name them by number, other servers cannot)"
            )
        self.notes = tuple(notes)

    def _looked(self, ids: list[int]) -> dict[str, Any]:
        asked = [*ids, *self._names.spread(LOOKED)]  # after the text, which they do not change
        choice, top = self._first(asked)
        names = self._end.places(choice, asked)[0]
        by_id = Names.are_ids(names)
        told = {name: part[: len(ids)] for name, part in choice["logprobs"].items() if part}
        choice = {**choice, "logprobs": told}
        if not by_id:
            share, (there, own) = self._names.settle(asked, names)
            if share > OTHER:
                raise self._other(there, own)
            try:
                numbered = self._end.choices([ids], top, True)[0]
                by_id = Names.are_ids(self._end.places(numbered, ids)[0])
                choice = numbered if by_id else choice
            except Refused as error:
                if error.code not in (400, 422):
                    raise
        self.top = top
        self._read(choice, ids)
        lost = self.untold / max(1, self.entries)
        if lost > LOST:
            raise UsageError(
                f"{lost:.0%} of the tokens that {self.shown} names are none of the "
                f"{self._names.vocab:,} of the tokenizer, or cannot be told from their texts; name "
                f"the tokenizer of {self.model}, {WHERE}, or use a server that names tokens by "
                "number, as vLLM does"
            )
        return {"top": top, "by_id": by_id, "how": self._names.how, "lost": lost}

    def _other(self, there: str, own: str) -> UsageError:
        return UsageError(
            f"{self.shown} was sent tokens of one tokenizer and reads them by another ({there!r} "
            f"for {own!r}); name the tokenizer of {self.model}, {WHERE}"
        )

    def _first(self, ids: list[int]) -> tuple[Any, int]:
        """A first answer, and how many tokens of a place the server gives."""
        refusals = []
        for top in dict.fromkeys((self.top, min(self.top, FEW))):
            try:
                return self._end.choices([ids], top, False)[0], top
            except Refused as error:
                refusals.append(error)
                if error.code not in (400, 422):
                    break
        hints = {
            404: f"the address usually ends in /v1, and the model that was asked is {self.model}",
            **dict.fromkeys((401, 403), f"put its key into the variable {OPENAI_KEY}"),
        }
        usual = "it must answer /completions of token ids with echo and logprobs, as vLLM does"
        raise UsageError(f"{refusals[0]}; {hints.get(refusals[-1].code, usual)}") from None

    # --- what is read of an answer ----------------------------------------------------------------

    def _read(self, choice: Any, ids: list[int]) -> dict[str, str]:
        """An answer about T tokens as it is kept: T - 1 places of ids, values and the truth."""
        names, own, tops = self._end.places(choice, ids)
        for token, name in zip(ids, names, strict=True):
            if self._names.is_other(token, name):
                raise self._other(name, self._names.text_of(token))
        number = np.full((len(ids) - 1, self.top), -1, dtype="<i4")
        logp = np.full(number.shape, -np.inf, dtype="<f4")
        truth = np.zeros(len(number), dtype="<f4")
        for place in range(len(number)):
            at = place + 1
            entries = self._entries(tops[at], names[at], own[at], ids[at])
            best = sorted(entries.items(), key=lambda pair: -pair[1])[: self.top]
            for k, (token, value) in enumerate(sorted(best)):
                number[place, k], logp[place, k] = token, value
            truth[place] = own[at]
        parts = {"ids": number, "logp": logp, "truth": truth}
        return {name: base64.b64encode(part.tobytes()).decode() for name, part in parts.items()}

    def _entries(self, top: Any, name: str, own: Any, true: int) -> dict[int, float]:
        """One place's tokens with their log-probabilities; those that cannot be told are counted.

        The text's own token may be told from its value, where several have its text.
        """
        values = list(top.values()) if isinstance(top, dict) else []
        bad = not values or not all(map(_is_log, [own, *values]))
        if bad or sum(map(math.exp, values)) > 1.01:
            raise UsageError(
                f"{self.shown} gave {self._post.start(repr(own))} and {self._post.start(repr(top))}"
                " for log-probabilities of a token; they must be numbers, at most 0, of "
                "probabilities that sum to 1 at most"
            )
        found: dict[int, float] = {}
        for text, value in top.items():
            token = self._names.id_of(text)
            if token < 0 and text == name and abs(value - own) < 1e-6:
                token = true
            self.entries += 1
            self.untold += token < 0
            if token >= 0 and value > _NOTHING:
                found[token] = max(value, found.get(token, value))
        return found


def _is_log(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value < 1e-3


def _unpacked(kept: Mapping[str, str], top: int) -> tuple[Any, Any, Any]:
    """Ids and values (T - 1, top) and the truth (T - 1,), as `_read` packed them."""
    raw = {name: base64.b64decode(text) for name, text in kept.items()}
    ids = np.frombuffer(raw["ids"], "<i4").reshape(-1, top).astype(np.int64)
    logp = np.frombuffer(raw["logp"], "<f4").reshape(-1, top).copy()
    return ids, logp, np.frombuffer(raw["truth"], "<f4").copy()
