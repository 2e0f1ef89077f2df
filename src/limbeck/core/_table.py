"""How the teacher cache lies on disk; `limbeck.core.cache` writes and reads it.

A table is a folder. Each view entry has one file of raw rows, `<entry>.rows`, one row a sample (and
epoch, where inputs are augmented) in order of sample number. Rows are guarded in *shards*, ranges
of `shard` rows: `cache.json` holds the checksum of each shard that is whole and on disk; it is
replaced atomically and carries its own checksum. `checksums` holds a checksum per row, by which a
killed writer knows its whole rows again, in whatever order bytes reached the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.core.files import as_bytes, digest_tensors, map_tensor, read_json, write_json
from limbeck.errors import Missing, UsageError

AGAIN = "write the cache again into the same folder, which asks only for the rows that it lacks"
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Entry(NamedTuple):
    """A view entry: `dtype` as the teacher gave it, `shape` of one row, `stored` dtype on disk."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stored: torch.dtype


@dataclass
class Table:
    """What `cache.json` says, and what reader and writer both ask of the rows."""

    folder: Path
    made: dict[str, Any]
    samples: int
    epochs: int
    shard: int
    dtype: str | None
    entries: dict[str, Entry] = field(default_factory=dict)
    done: dict[str, dict[str, str]] = field(default_factory=dict)  # shard -> entry -> checksum

    @classmethod
    def load(cls, folder: Path) -> Table:
        path = folder / "cache.json"
        try:
            raw = read_json(path)
        except Missing:
            raise Missing(f"there is no teacher cache in {folder}; write one first") from None
        if not isinstance(raw, dict) or raw.pop("checksum", None) != _seal(raw):
            raise UsageError(f"{path} is damaged; remove {folder} and write the cache again")
        if raw.pop("format") != 1:
            raise UsageError(f"{path} is of another version of limbeck; write the cache again")
        entries = {
            name: Entry(getattr(torch, given), tuple(shape), getattr(torch, stored))
            for name, (given, shape, stored) in raw.pop("entries").items()
        }
        return cls(folder, entries=entries, **raw)

    def save(self) -> None:
        write_json(self.folder / "cache.json", {**self._raw(), "checksum": self.digest})

    @property
    def digest(self) -> str:
        """A checksum of all that `cache.json` says, and so of all the rows that are done."""
        return _seal(self._raw())

    def _raw(self) -> dict[str, Any]:
        raw: dict[str, Any] = {"format": 1, **vars(self)}
        del raw["folder"]
        raw["entries"] = {n: [word(e[0]), e[1], word(e[2])] for n, e in self.entries.items()}
        return raw

    @property
    def rows(self) -> int:
        return self.samples * self.epochs

    def spans(self) -> dict[str, slice]:
        """The rows of each shard."""
        starts = range(0, self.rows, self.shard)
        return {str(i // self.shard): slice(i, min(i + self.shard, self.rows)) for i in starts}

    def open(self, name: str) -> Tensor:
        """Map an entry's file, to be read only: (rows, *shape)."""
        entry, path = self.entries[name], self.folder / f"{name}.rows"
        try:
            return map_tensor(path, (self.rows, *entry.shape), entry.stored)
        except UsageError as error:
            raise UsageError(f"{error}; {AGAIN}") from error

    def whole(self) -> NDArray[np.bool_]:
        """Read the whole table and say which rows are there, undamaged: (rows,)."""
        whole, sums = np.zeros(self.rows, np.bool_), np.zeros(self.rows, np.int64)
        data = {name: self.open(name) for name in self.entries}
        if data and (path := self.folder / "checksums").exists():
            found = np.fromfile(path, np.int64, self.rows)
            sums[: len(found)] = found
        for shard, span in self.spans().items():
            known = self.done.get(shard)
            if known and known == {name: shard_sum(d, span) for name, d in data.items()}:
                whole[span] = True
            elif len(rows := np.flatnonzero(sums[span]) + span.start):
                some = [as_bytes(d[torch.from_numpy(rows)]) for d in data.values()]
                whole[rows] = sums[rows] == row_sums(some)
        return whole

    def place(self, index: Tensor | Sequence[int], epoch: int) -> Tensor:
        """Turn an epoch's sample numbers (B,) into row numbers (B,), on the CPU."""
        index = torch.as_tensor(index)
        if index.dim() != 1 or (len(index) and index.dtype not in _WHOLE):
            raise UsageError(
                "a cache is asked for sample numbers (B,), whole numbers, not for "
                f"{word(index.dtype)} of shape {tuple(index.shape)}"
            )
        index = index.to("cpu", torch.int64)
        low, high = (int(v) for v in torch.aminmax(index)) if len(index) else (0, 0)
        for what, asked, there in (
            ("sample", low if low < 0 else high, self.samples),
            ("epoch", epoch, self.epochs),
        ):
            if not 0 <= asked < there:
                raise UsageError(
                    f"{what} {asked} was asked of the cache in {self.folder}, which is for {there} "
                    f"{what}s, numbered from 0"
                )
        return index + epoch * self.samples if epoch else index

    def fit(self, given: Mapping[str, Any], length: int) -> dict[str, Entry]:
        """Describe what was given for `length` samples, if this table can hold it."""
        entries = {name: _entry(name, given[name], length, self.dtype) for name in sorted(given)}
        if not entries:
            raise UsageError(f"the cache in {self.folder} was given no entries to write")
        if self.entries and entries != self.entries:
            raise UsageError(
                f"the cache in {self.folder} is of {_shown(self.entries)}, but was given "
                f"{_shown(entries)}"
            )
        return entries

    def encode(
        self, given: Mapping[str, Tensor], at: Tensor, entries: Mapping[str, Entry]
    ) -> dict[str, NDArray[np.uint8]]:
        """Give what is to be written of the samples `at` (B,), by file: (B, bytes)."""
        data = {
            f"{name}.rows": _encode(name, given[name].detach().cpu()[at], entry.stored)
            for name, entry in entries.items()
        }
        sums = torch.from_numpy(row_sums(list(data.values())))
        return {**data, "checksums": as_bytes(sums)}

    def identity(self) -> dict[str, Any]:
        """What a writer must agree with to go on with this table."""
        sizes = {"number of samples": self.samples, "number of epochs": self.epochs}
        return {**self.made, **sizes, "stored dtype": self.dtype}


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the parts in which two fingerprints differ; "" if in none."""
    now = json.loads(json.dumps(dict(now)))  # as the other one came from the disk
    return " and ".join(
        f"its {part} ({str(then.get(part))[:12]} then, {str(now.get(part))[:12]} now)"
        for part in {**then, **now}
        if then.get(part) != now.get(part)
    )


def word(dtype: torch.dtype) -> str:
    """Give a dtype's name: "float32"."""
    return str(dtype).removeprefix("torch.")


def shard_sum(data: Tensor, span: slice) -> str:
    """Give the checksum of a shard of an entry."""
    return hashlib.blake2b(as_bytes(data[span]).data, digest_size=16).hexdigest()


def row_sums(entries: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """Give a checksum of each row over all entries, each (B, bytes): (B,), never 0.

    Zero is what a file holds where nothing was written yet.
    """
    sums = np.empty(len(entries[0]), np.int64)
    for row in range(len(sums)):
        crc = 0
        for data in entries:
            crc = zlib.crc32(data[row], crc)
        sums[row] = crc | 1 << 32
    return sums


def probes(length: int) -> list[int]:
    """Give the numbers of the (at most) sixteen samples by which a data set is known again."""
    return sorted({i * (length - 1) // 15 for i in range(16)}) if length else []


def fingerprint(
    module: nn.Module | None, dataset_length: int, samples: Sequence[Any], reader: object = None
) -> dict[str, Any]:
    """Name what a table is made from: the parts "teacher", "length", "samples" and "reader".

    Args:
        module: the teacher, known by its weights and buffers; None leaves this part out.
        dataset_length: number of samples.
        samples: those numbered `probes(dataset_length)`, after the reader: tensors, or mappings
            and sequences of tensors, numbers and texts.
        reader: the teacher's reader, or its name; None if it has none.

    Raises:
        UsageError: a sample holds something else.
    """
    parts: dict[str, Any] = {}
    if module is not None:
        state = module.state_dict()
        parts["teacher"] = digest_tensors({n: v for n, v in state.items() if isinstance(v, Tensor)})
    if not isinstance(reader, str | None):
        reader = getattr(reader, "__qualname__", type(reader).__qualname__)
    return {
        **parts,
        "length": dataset_length,
        "samples": digest_tensors(dict(_leaves(samples))),
        "reader": reader,
    }


def _entry(name: str, value: object, length: int, dtype: str | None) -> Entry:
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):  # it becomes a file's name
        raise UsageError(f"a cache cannot hold an entry called {name!r}; use letters, digits and _")
    if not isinstance(value, Tensor):
        raise UsageError(f"a cache holds tensors, but entry {name!r} is {type(value).__name__}")
    if value.dim() < 1 or len(value) != length or not value.numel():
        raise UsageError(
            f"entry {name!r} has shape {tuple(value.shape)}, where one row is needed for each of "
            f"{length} sample numbers"
        )
    stored = getattr(torch, dtype) if dtype and value.is_floating_point() else value.dtype
    return Entry(value.dtype, tuple(value.shape[1:]), stored)


def _encode(name: str, value: Tensor, dtype: torch.dtype) -> NDArray[np.uint8]:
    stored = value.to(dtype)
    if dtype != value.dtype and bool((stored.isinf() & value.isfinite()).any()):
        raise UsageError(
            f"entry {name!r} holds {float(value[value.isfinite()].abs().max()):g}, too large for "
            f"{word(dtype)}; store the cache as bfloat16 or float32"
        )
    return as_bytes(stored)


def _shown(entries: Mapping[str, Entry]) -> str:
    return " and ".join(
        f"{name} {word(entry.dtype)} ({', '.join(['B', *map(str, entry.shape)])})"
        for name, entry in entries.items()
    )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Name the tensors in nested mappings and sequences of tensors, numbers and texts."""
    if isinstance(value, str):
        value = list(value.encode())
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{path}/{key}")
    elif isinstance(value, list | tuple) and not all(isinstance(v, int | float) for v in value):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{path}/{number}")
    else:
        try:
            yield path, torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(
                f"a sample holds {type(value).__name__}, by which it cannot be known again; "
                "let the reader make tensors, numbers or texts of it"
            ) from None


def _seal(raw: Mapping[str, Any]) -> str:
    text = json.dumps(raw, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
