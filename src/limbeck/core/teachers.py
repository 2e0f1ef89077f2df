"""Teachers that do not move: a module, nobody, a cache, a black box."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.cache import Cache, fingerprint, probes
from limbeck.core.data import Batch
from limbeck.core.files import digest_tensors
from limbeck.core.method import Clock
from limbeck.core.teacher import Setting, Teacher
from limbeck.core.text.kept import Packed
from limbeck.core.views import Fixed, Look, Side
from limbeck.errors import UsageError


@dataclass(eq=False)
class Frozen(Teacher):
    """A module in eval mode under `no_grad`.

    With `graph`, its weights are frozen and its graph is kept.
    """

    module: nn.Module
    graph: bool = False

    def _open(self, setting: Setting) -> None:
        graph = self.graph or setting.graph
        self._was = [(m, m.training) for m in self.module.modules()]
        self._required = [p for p in self.module.parameters() if p.requires_grad] if graph else []
        self.module.to(setting.device).eval()
        for p in self._required:
            p.requires_grad_(False)
        self._graph = graph
        self._look = Look(
            self.module,
            "teacher",
            setting.paths,
            setting.reader,
            graph,
            not graph,
            setting.autocast,
        )
        self._asked = self._look.asked

    def side(self, batch: Batch, clock: Clock) -> Side:
        return self._look.side_of(batch)

    def after_step(self, step: Any, clock: Clock) -> None:
        self._look.settle()

    def close(self) -> None:
        self._look.close()
        for module, training in self._was:
            module.training = training
        for p in self._required:
            p.requires_grad_(True)

    def identity(self) -> str:
        return digest_tensors(self.module.state_dict())

    @property
    def repeats(self) -> bool:
        return not self._graph


@dataclass(eq=False)
class Nobody(Teacher):
    """No teacher: whoever asks it gets a sentence."""

    def side(self, batch: Batch, clock: Clock) -> Side:
        return Fixed("teacher", dict, batch, self._asked, "this task has no teacher (teacher=None)")


def _listed(found: dict[str, Any]) -> dict[str, Any]:
    """The entries of a cache, of which NAME_0, NAME_1, ... were a list."""
    entries: dict[str, Any] = {}
    for name, value in found.items():
        base, _, number = name.rpartition("_")
        if base and number.isdigit():
            entries.setdefault(base, {})[int(number)] = value
        else:
            entries[name] = value
    return {k: [v[i] for i in range(len(v))] if isinstance(v, dict) else v
            for k, v in entries.items()}  # fmt: skip


@dataclass(eq=False)
class Cached(Teacher):
    """A teacher's outputs, read by sample number from a folder that `CacheWriter` wrote."""

    folder: str | FilePath
    module: nn.Module | None = None  # where the teacher is at hand, its weights are checked too
    box: BlackBox | None = None  # or the one that was asked, where it can be asked

    def _open(self, setting: Setting) -> None:
        self._cache = Cache(self.folder)
        self._device = setting.device
        self._reader = setting.reader

    def check(self, table: Any) -> None:
        """Refuse a cache of other data (or of another teacher, where it is at hand)."""
        self._cache.check(fingerprint_of(self.module or self.box, table, self._reader))

    def side(self, batch: Batch, clock: Clock) -> Side:
        if "changed" in batch:
            raise UsageError(
                "this method shows the teacher changed inputs (crops, masks, noise), which the "
                "cache does not hold; use the live teacher"
            )

        def rows() -> Mapping[str, Any]:
            found = self._cache.rows(batch.index.cpu(), epoch=self._epoch_of(batch))
            entries = _listed({k: v.to(self._device) for k, v in found.items()})
            if "keep" in self._cache.made:  # a signal, of which a few entries are kept
                entries["signal"] = Packed(entries.pop("packed"), self._cache.made["keep"])
            return entries

        return Fixed(
            "teacher",
            rows,
            batch,
            self._asked,
            f"it is a cache ({self.folder}); write the entry into it, or use the live teacher",
        )

    def _epoch_of(self, batch: Batch) -> int:
        """Which of the kept passes a batch is of, where inputs are augmented by (seed, epoch)."""
        seed = self._cache.made.get("seed")
        if seed is None:
            return 0
        if batch.place is None or batch.place[0] != seed:
            now = "no seed" if batch.place is None else f"seed {batch.place[0]}"
            raise UsageError(
                f"the cache in {self.folder} is of inputs augmented with seed {seed}, and this run "
                f"has {now}; give --seed {seed}, or write a cache for this one"
            )
        if batch.place[1] >= self._cache.epochs:
            raise UsageError(
                f"the cache in {self.folder} holds {self._cache.epochs} epochs, and this run goes "
                "on; write more epochs, or train for fewer"
            )
        return batch.place[1]

    def identity(self) -> str:
        return f"cache {Cache(self.folder).digest}"

    @property
    def repeats(self) -> bool:
        return True


def fingerprint_of(of: nn.Module | BlackBox | None, table: Any, reader: Any) -> dict[str, Any]:
    """The identity of a teacher's outputs on a table.

    Its weights (or what is known of a black box), the table's length, sixteen fixed samples after
    the reader.
    """
    x = table.rows(torch.tensor(probes(len(table))), "fingerprint").columns["x"]
    module = of if isinstance(of, nn.Module) else None
    parts = fingerprint(module, len(table), [reader(x) if reader is not None else x], reader)
    return {**parts, "teacher": of.identity()} if isinstance(of, BlackBox) else parts


@dataclass(eq=False)
class BlackBox(Teacher):
    """A teacher that only answers: `ask(x) -> (B,) labels`, (B, C) probabilities, or B texts.

    One that gives a "signal" answers with view entries, `signal` among them (`text/served.py`).

    Probabilities are shown as `logits` too, which are their logarithms: softmax(log(p) / tau) is
    softmax(z / tau) for any logits z of the same probabilities. They also give `labels`.
    """

    ask: Callable[[Any], Any]
    gives: Literal["labels", "probabilities", "text", "signal"] = "labels"
    name: str = "a function"

    def _open(self, setting: Setting) -> None:
        self._setting = setting

    def side(self, batch: Batch, clock: Clock) -> Side:
        def answer() -> Mapping[str, Any]:
            x = batch.columns["x"]
            with torch.no_grad():
                value = self.ask(self._setting.reader(x) if self._setting.reader else x)
            if self.gives == "signal":
                return dict(value)
            if len(value) != len(batch):
                raise UsageError(
                    f"the black-box teacher answered {len(value)} times to {len(batch)} samples; "
                    "it must give one answer each"
                )
            if self.gives == "text":
                return {"text": value}
            value = torch.as_tensor(value, device=self._setting.device)
            if self.gives == "labels":
                return {"labels": value}
            check_probabilities(value)
            tiny = torch.finfo(torch.float32).tiny
            return {
                "probabilities": value,
                "logits": value.float().clamp_min(tiny).log(),
                "labels": value.argmax(-1),
            }

        why = f"it is a black box that gives {self.gives} only"
        if self.gives == "labels":
            why += (
                "; methods that take them: limbeck list --needs labels (of pictures), or give "
                "labels as probabilities of 0 and 1, as docs/own-model.md shows"
            )
        return Fixed("teacher", answer, batch, self._asked, why)

    def identity(self) -> str:
        return f"black box {self.name} {self.gives}"

    @property
    def repeats(self) -> bool:
        return True

    @property
    def shows_signal(self) -> bool:
        """Whether it gives distributions over a language's tokens, which are worth keeping."""
        return self.gives == "signal"


def check_probabilities(p: Tensor, who: str = "the black-box teacher") -> None:
    """Refuse what are no probabilities (B, C): finite, at least 0, of sum 1 up to rounding.

    Raises:
        UsageError: they are none; the sentence is about `who`.
    """
    if p.dim() != 2 or not p.is_floating_point():
        raise UsageError(
            f"{who} gave {p.dtype} of shape {tuple(p.shape)} for probabilities; it must give "
            "(B, C) floats"
        )
    sums = p.sum(-1)
    if not bool((p >= 0).all()) or not bool((sums - 1).abs().max() < 0.01):
        worst = float(sums[(sums - 1).abs().argmax()])
        raise UsageError(
            f"{who} gave probabilities that sum to {worst:.3g} for a sample (the smallest is "
            f"{float(p.min()):.3g}); they must be at least 0 and sum to 1, as after a softmax"
        )
