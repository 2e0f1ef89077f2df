"""Sides: what a model shows of itself, looked at lazily, as often as a method likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.taps import Path, Taps
from limbeck.errors import Missing, UsageError

Entries = Mapping[str, Any]


class Lazy(Entries):
    """Entries that are made when they are asked for, once."""

    def __init__(self, **makers: Callable[[], Any]) -> None:
        self._makers, self._made = makers, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def entries_of(output: Any) -> Entries:
    """Named entries of a model's output.

    A tensor is `logits`; dicts keep their names; of a tuple the first is `logits`.
    """
    if isinstance(output, Tensor):
        return {"logits": output}
    if isinstance(output, Lazy):
        return output
    if isinstance(output, Mapping):
        return {k: v for k, v in output.items() if v is not None}
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return {"logits": output[0], **{f"output{i}": v for i, v in enumerate(output[1:], 1)}}
    raise UsageError(
        f"a model's output is a {type(output).__name__}; a view needs a tensor, a dict of tensors "
        "or a tuple that begins with one"
    )


def call_model(model: Callable[..., Any], x: Any) -> Any:
    """A model called with x: a dict as keywords, a tuple as positions, else the one argument."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def shown(model: Callable[..., Any], x: Any, reader: Any = None) -> Any:
    """What a model shows of itself on raw inputs: its output, or entries that its reader makes.

    A reader maps raw inputs to the model's; one with a `view(model, inputs)` also says how the
    model is looked at.
    """
    inputs = x if reader is None else reader(x)
    view = getattr(reader, "view", None)
    return call_model(model, inputs) if view is None else view(model, inputs)


class Look:
    """How one model is looked at: reader, taps, gradient, and the plan for stopping early."""

    def __init__(
        self,
        model: nn.Module,
        side: str,
        paths: Mapping[str, Path] | None = None,
        reader: Callable[[Any], Any] | None = None,
        grad: bool = True,
        early: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.side, self.reader = model, side, reader
        self.taps = Taps(model, paths or {}, side)
        self.grad, self.early, self.autocast = grad, early, autocast
        self.asked: set[str] = set()  # all entries ever asked
        self._plan: frozenset[str] | None = None
        self._now: set[str] = set()

    def side_of(self, batch: Batch | Any) -> Side:
        """A lazy view of the model on a batch, or on raw inputs."""
        return Side(self, batch if isinstance(batch, Batch) else Batch(x=batch))

    def pass_(self, batch: Batch, whole: bool) -> tuple[Any, dict[str, tuple[Tensor, int]]]:
        """One forward pass; it may stop after the last tap that the plan knows."""
        x = batch.columns["x"]
        only = None if whole or not self.early else self._plan
        with self.within():
            return self.taps.run(lambda: shown(self.model, x, self.reader), only)

    @contextmanager
    def within(self) -> Iterator[None]:
        """Where entries are made: with or without gradient, in the run's precision."""
        with torch.set_grad_enabled(self.grad and torch.is_grad_enabled()), self.autocast():
            yield

    def ask(self, name: str) -> None:
        """Note an ask, for the plan and for the declared needs."""
        self.asked.add(name)
        self._now.add(name)

    def settle(self) -> None:
        """At the end of a step: what was asked in it is the plan of the next one."""
        now = self._now - {"again", "weights"}
        self._plan = frozenset(now) if now and now <= set(self.taps.paths) else None
        self._now = set()

    def close(self) -> None:
        """Remove the hooks."""
        self.taps.close()


class Side:
    """A view: `s.logits`, `s.mid`, ...

    `s(batch)` looks again; `s.model` is the module; `s.batch` what it looks at.
    """

    parts: Any  # an Ema's copies of parts; asked of another side, it is an entry like all others

    def __init__(self, look: Look, batch: Batch) -> None:
        self._look, self._batch = look, batch
        self._output: Any = None
        self._seen: dict[str, tuple[Tensor, int]] | None = None

    def __call__(self, batch: Batch | Any) -> Side:
        """The same model on other inputs: crops, hard negatives, a point that the student made."""
        self._look.ask("again")
        return self._look.side_of(batch)

    @property
    def model(self) -> nn.Module:
        """The module itself, for methods about weights, masks or a virtual step."""
        self._look.ask("weights")
        return self._look.model

    @property
    def batch(self) -> Batch:
        """The batch as this side sees it."""
        return self._batch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._look.ask(name)
        taps = self._look.taps
        if self._seen is None:
            self._output, self._seen = self._look.pass_(self._batch, whole=False)
        value = self._entry(name)
        if value is None and self._output is None and self._look.early:  # the plan was too narrow
            self._output, self._seen = self._look.pass_(self._batch, whole=True)
            value = self._entry(name)
        if value is None:
            gives = sorted({*taps.paths, *entries_of(self._output)})
            hint = f'name a module for it, as taps={{"{name}": ("teacher path", "student path")}}'
            if name == "members":
                hint = "give several teachers, as Crowd((one, another))"
            raise Missing(
                f"the {self._look.side} was asked for '{name}', but it gives {', '.join(gives)}; "
                f"{hint}"
            )
        return value

    def _entry(self, name: str) -> Any:
        taps, seen = self._look.taps, self._seen or {}
        if name in taps.paths:
            return taps.entry(name, seen)
        if self._output is None:
            return None
        with self._look.within():
            return entries_of(self._output).get(name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._look.taps.paths]


class Fixed(Side):
    """A view of entries that are already there: of a cache, a black box, a mixture.

    It cannot look again.
    """

    def __init__(
        self, side: str, entries: Callable[[], Entries], batch: Batch, asked: set[str], why: str
    ) -> None:
        self._side, self._make, self._batch = side, entries, batch
        self._asked, self._why = asked, why
        self._entries: Entries | None = None

    def __call__(self, batch: Batch | Any) -> Side:
        self._asked.add("again")
        raise Missing(f"this method looks at the {self._side} again, on other inputs; {self._why}")

    @property
    def model(self) -> nn.Module:
        """Refused: there is no module here."""
        self._asked.add("weights")
        raise Missing(f"this method asked for the {self._side}'s module; {self._why}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._asked.add(name)
        if self._entries is None:
            self._entries = self._make()
        if name not in self._entries:
            gives = ", ".join(sorted(self._entries)) or "nothing"
            raise Missing(
                f"the {self._side} was asked for '{name}', but it gives {gives}; {self._why}"
            )
        return self._entries[name]

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *(self._entries or ())]
