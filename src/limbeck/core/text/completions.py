"""The requests to an OpenAI-compatible server, and the shape of its answers."""

from __future__ import annotations

import json
from typing import Any

from limbeck.core.posting import Post, Refused
from limbeck.errors import UsageError

__all__ = ["WHERE", "Endpoint"]

WHERE = "as openai:URL#MODEL@hf:ID or @FOLDER"
"""How a server's tokenizer is named, for sentences."""


class Endpoint:
    """A server's `/completions` and `/models`.

    Attributes:
        shown: the address, for sentences.
        model: what is asked; set when it is known.
    """

    model = ""

    def __init__(self, post: Post) -> None:
        self._post, self.shown = post, post.shown

    @property
    def asked(self) -> int:
        """Requests so far."""
        return self._post.asked

    def models(self) -> list[str]:
        """The names of the models that the server has.

        Raises:
            Refused: it will not say.
            UsageError: it cannot be reached, or answers something else.
        """
        told = self._post.send(None, "/models")
        try:
            return [str(model["id"]) for model in json.loads(told)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Refused(
                f"{self.shown}/models answered no list of models ({self._start(told)})"
            ) from None

    def choices(self, texts: list[list[int]], top: int, by_id: bool) -> list[Any]:
        """What the server says of each text."""
        asked = {
            "model": self.model,
            "prompt": texts,
            "max_tokens": 1,  # none at all is refused by some
            "temperature": 0,
            "echo": True,
            "logprobs": top,
            **({"return_tokens_as_token_ids": True} if by_id else {}),
        }
        told = self._post.send(json.dumps(asked).encode(), "/completions")
        try:
            choices = json.loads(told)["choices"]
            choices = sorted(choices, key=lambda choice: choice.get("index", 0))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UsageError(
                f'{self.shown}/completions answered what is no {{"choices": [...]}}: '
                f"{self._start(told)}; it must be an OpenAI-compatible server"
            ) from None
        if len(choices) != len(texts):
            raise UsageError(
                f"{self.shown} gave {len(choices)} choices for {len(texts)} texts; it must give "
                "one each"
            )
        return choices

    def places(self, choice: Any, ids: list[int]) -> tuple[list[str], list[Any], list[Any]]:
        """Of each token of a text its name, log-probability and the likeliest in its place."""
        told = choice.get("logprobs")
        told = told if isinstance(told, dict) else {}
        parts = [told.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")]
        sizes = {len(part) if isinstance(part, list) else 0 for part in parts}
        if min(sizes) <= 1 < len(ids) - 1 or min(sizes) == 0:
            raise UsageError(
                f"{self.shown} gives no log-probabilities of the prompt (echo, logprobs), from "
                "which a student could learn; vLLM and SGLang do, llama.cpp's server and chat "
                "services do not"
            )
        if sizes not in ({len(ids)}, {len(ids) + 1}):
            raise UsageError(
                f"{self.shown} was sent a text of {len(ids)} tokens and answered about "
                f"{min(sizes)}; if {self.model} has another tokenizer, name it, {WHERE}"
            )
        names, own, tops = (part[: len(ids)] for part in parts if part is not None)
        return [str(name) for name in names], own, tops

    def _start(self, told: bytes) -> str:
        return self._post.start(told) or "nothing"
