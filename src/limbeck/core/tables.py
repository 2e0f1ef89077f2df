"""Batches of named columns, and any data set as a table of rows by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from limbeck.core.rng import generator, globals_kept, seed_globals
from limbeck.errors import Missing, UsageError

LABELS = ("y", "label", "labels")


class Batch:
    """Named columns of equal length.

    `x` inputs, `y` labels, `index` (B,) sample numbers, and whatever else a sample holds.

    Attributes:
        place: the (seed, epoch) that its samples' own transforms drew from; None where there is
            none.
    """

    def __init__(self, **columns: Any) -> None:
        self.columns = {k: v for k, v in columns.items() if v is not None}
        self.asked: set[str] = set()
        self.place: tuple[int, int] | None = None

    def __getattr__(self, name: str) -> Any:
        # copy and pickle probe early
        if name.startswith("_") or name in ("columns", "asked", "place"):
            raise AttributeError(name)
        self.asked.add(name)
        try:
            return self.columns[name]
        except KeyError:
            have = ", ".join(self.columns)
            no_index = " (a DataLoader has no sample numbers: give its data set)"
            hint = no_index if name == "index" else ""
            raise Missing(f"the batch was asked for '{name}', but it holds {have}{hint}") from None

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return length(self.columns["x"])

    def replace(self, **columns: Any) -> Batch:
        """The same batch with some columns changed or added."""
        other = Batch(**{**self.columns, **columns})
        other.asked = self.asked  # what is read of a prepared batch is read of this one
        other.place = self.place
        return other

    def select(self, rows: Any) -> Batch:
        """Some rows of every column; `rows` is a slice, a list or a tensor of row numbers."""
        return self.replace(**{k: _pick(v, rows) for k, v in self.columns.items()})

    def to(self, device: torch.device) -> Batch:
        """All tensors on a device."""
        if device.type == "cpu":
            return self
        return self.replace(**{k: _to(v, device) for k, v in self.columns.items()})


def length(x: Any) -> int:
    """Samples in a column: of a mapping, in its first value."""
    return length(next(iter(x.values()))) if isinstance(x, Mapping) else len(x)


def _pick(x: Any, rows: Any) -> Any:
    if isinstance(x, Mapping):
        return {k: _pick(v, rows) for k, v in x.items()}
    if isinstance(x, Batch):
        return x.select(rows)
    if isinstance(x, Tensor) or isinstance(rows, slice):
        return x[rows]
    return [x[int(i)] for i in rows]


def _to(x: Any, device: torch.device) -> Any:
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    if isinstance(x, Mapping):
        return {k: _to(v, device) for k, v in x.items()}
    return x.to(device) if isinstance(x, Batch) else x


def _columns(sample: Any) -> dict[str, Any]:
    """Names for a sample's fields.

    Tuples are (x, y); dicts keep theirs, labels become `y`, the one or several others `x`.
    """
    if isinstance(sample, tuple | list):
        names = ("x", "y", *(f"field{i}" for i in range(2, len(sample))))
        return dict(zip(names, sample, strict=False))
    if not isinstance(sample, Mapping):
        return {"x": sample}
    label = next((k for k in LABELS if k in sample), None)
    named = {} if label is None else {"y": sample[label]}
    rest = {k: v for k, v in sample.items() if k != label}
    if "x" in rest:
        return {**rest, **named}
    return {"x": next(iter(rest.values())) if len(rest) == 1 else rest, **named}


def collate(samples: Sequence[Any]) -> dict[str, Any]:
    """Columns from samples: equal tensors and numbers are stacked, everything else stays a list."""
    rows = [_columns(s) for s in samples]
    return {k: _stack([r[k] for r in rows]) for k in rows[0]}


def _stack(values: list[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {k: _stack([v[k] for v in values]) for k in values[0]}
    try:
        return default_collate(values)
    except (TypeError, RuntimeError):  # pictures, ragged tensors: the side's reader takes the list
        return values


class Table:
    """Any data set as rows by number: `rows(numbers, place) -> Batch`; `len(table)`."""

    def __init__(self, source: Any, name: str = "train") -> None:
        self.collate: Callable[[Sequence[Any]], Any] = collate
        if isinstance(source, DataLoader):
            source = self._of_loader(source, name)
        if isinstance(source, TensorDataset):
            source = source.tensors
        self.name = name
        self.tensors: dict[str, Any] | None = None
        if isinstance(source, Tensor | Mapping) or (
            isinstance(source, tuple) and source and isinstance(source[0], Tensor | Mapping)
        ):
            self.tensors = _columns(source)
            self._check_lengths(self.tensors)
        elif not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
            raise UsageError(
                f"'{name}' is a {type(source).__name__}; give tensors (x, y), a Dataset with a "
                "length, or a DataLoader over one"
            )
        self.source = source
        if len(self) == 0:
            raise UsageError(f"'{name}' is empty; it needs at least one sample")

    def _check_lengths(self, columns: Mapping[str, Any]) -> None:
        lengths = {k: length(v) for k, v in columns.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{k} {n}" for k, n in lengths.items())
            raise UsageError(
                f"the columns of '{self.name}' differ in length ({told}); each sample needs one "
                "row in each"
            )

    def _of_loader(self, loader: DataLoader[Any], name: str) -> Any:
        """A loader's data set and way of collating; order and batch size are the run's own."""
        if not isinstance(loader.sampler, SequentialSampler | RandomSampler):
            told = type(loader.sampler).__name__
            raise UsageError(
                f"the DataLoader of '{name}' samples by {told}, which a run cannot replay; give "
                "its data set, or a subclass of Batches"
            )
        if loader.collate_fn is not None and loader.collate_fn is not default_collate:
            fn = loader.collate_fn
            self.collate = lambda samples: _columns(fn(list(samples)))
        return loader.dataset

    def __len__(self) -> int:
        return length(self.tensors["x"]) if self.tensors else len(self.source)

    def rows(self, numbers: Tensor, *place: Any) -> Batch:
        """The rows with these numbers.

        A data set's own transforms draw from generators seeded by (place, number).
        """
        if self.tensors is not None:
            return self.batch(numbers, {k: _pick(v, numbers) for k, v in self.tensors.items()})
        seeded = Seeded(self.source, place)
        return self.batch(numbers, self.collate([seeded[int(i)] for i in numbers]))

    def batch(self, numbers: Tensor, columns: Mapping[str, Any]) -> Batch:
        """A batch of columns and the numbers of its samples."""
        if "index" in columns:
            raise UsageError(
                f"the samples of '{self.name}' have a field 'index', which is the name of a "
                "sample's number; rename it"
            )
        return Batch(index=numbers, **columns)

    def some(self, most: int) -> Tensor:
        """The numbers of at most so many rows, from all over: data often lie class by class.

        The order is always the same, so that the fewer are among the more.
        """
        return torch.randperm(len(self), generator=generator(0, "doctor"))[:most]

    def labels(self) -> Tensor | None:
        """All labels (N,), where the table has them in memory."""
        y = (self.tensors or {}).get("y")
        return y if isinstance(y, Tensor) else None

    def chunks(self, size: int) -> Iterator[Batch]:
        """All rows in their order."""
        for i in range(0, len(self), size):
            yield self.rows(torch.arange(i, min(i + size, len(self))), "in order")


class Seeded(Dataset[Any]):
    """A data set whose random transforms are a function of (place, number), in any worker."""

    def __init__(self, source: Any, place: tuple[Any, ...]) -> None:
        self.source, self.place = source, place

    def __getitem__(self, number: Any) -> Any:
        place, number = number if isinstance(number, tuple) else (self.place, number)
        with globals_kept():
            seed_globals(*place, "sample", number)
            return self.source[number]
