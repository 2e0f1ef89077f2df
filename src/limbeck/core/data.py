"""What a step trains on: data sets read in an order that is a function of (seed, epoch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from limbeck.core.rng import generator, seed_of
from limbeck.core.tables import Batch, Seeded, Table, collate
from limbeck.errors import UsageError

if TYPE_CHECKING:
    from limbeck.core.method import Clock

__all__ = ["Batch", "Batches", "Beside", "Epochs", "Table", "collate", "reader_of"]


class Batches(ABC):
    """What a step trains on: asked once for each micro-batch, with student, teacher and clock.

    The student is unwrapped, in eval mode and without gradient while it is asked, and layers'
    draws are seeded by place: a batch may be what the student wrote.
    """

    samples: int
    table: Table | None = None
    """The set that samples are numbered in, against which a cached teacher is checked."""

    @abstractmethod
    def __call__(self, student: nn.Module, teacher: Any, clock: Clock) -> Batch:
        """The micro-batch at the clock's place: `clock.batch / clock.of` samples."""

    def first(self) -> Batch:
        """A few samples, always the same, from which parts learn their shapes."""
        raise NotImplementedError

    def per_epoch(self, batch: int) -> int:
        """Whole batches in an epoch."""
        return max(1, self.samples // batch)

    def labels(self) -> Tensor | None:
        """All labels, where they are known without reading the data."""
        return None

    def state(self) -> dict[str, Any]:
        """What must be stored to go on exactly (tensors, JSON); all else is a function of place."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""


class Epochs(Batches):
    """A data set in epochs: epoch e is a permutation by (seed, e), cut into whole batches.

    The rest of an epoch is left out. A micro-batch is the n-th of `clock.of` equal cuts of a
    batch, so that processes and accumulation see the same samples.
    """

    table: Table

    def __init__(self, source: Any, name: str = "train", workers: int = 0) -> None:
        self.table = Table(source, name)
        self.samples = len(self.table)
        self.workers = workers
        self._order: tuple[Any, Tensor] = (None, torch.empty(0))
        self._stream: tuple[Any, Iterator[Any]] | None = None

    def first(self) -> Batch:
        return self.table.rows(torch.arange(min(4, self.samples)), "first")

    def labels(self) -> Tensor | None:
        return self.table.labels()

    def numbers(self, clock: Clock, draw: int, n: int) -> tuple[int, Tensor]:
        """The epoch of a draw, and the numbers of the samples of its n-th micro-batch."""
        if clock.batch > self.samples:
            raise UsageError(
                f"a batch of {clock.batch} samples was asked of '{self.table.name}', which has "
                f"{self.samples}; make the batch smaller"
            )
        epoch, place = divmod(draw, self.per_epoch(clock.batch))
        key = (clock.seed, epoch)
        if self._order[0] != key:
            self._order = (key, torch.randperm(self.samples, generator=generator(*key, "order")))
        size = clock.batch // clock.of
        start = place * clock.batch + n * size
        return epoch, self._order[1][start : start + size]

    def __call__(self, student: nn.Module, teacher: Any, clock: Clock) -> Batch:
        if self.workers and self.table.tensors is None:
            return self._streamed(clock)
        epoch, numbers = self.numbers(clock, clock.draw, clock.n)
        batch = self.table.rows(numbers, clock.seed, epoch)
        batch.place = (clock.seed, epoch)
        return batch

    def _streamed(self, clock: Clock) -> Batch:
        """From worker processes that read ahead; begun anew where the clock jumps."""
        epoch, numbers = self.numbers(clock, clock.draw, clock.n)
        place = (clock.seed, clock.batch, clock.of, clock.draw * clock.of + clock.n)
        if self._stream is None or self._stream[0] != place:
            loader: DataLoader[Any] = DataLoader(
                Seeded(self.table.source, ()),
                batch_sampler=_Ahead(self, clock),
                num_workers=self.workers,
                collate_fn=self.table.collate,
                generator=generator(clock.seed, "workers"),
            )
            self._stream = (place, iter(loader))
        stream = self._stream[1]
        draw, n = _next(clock.draw, clock.n, clock)
        self._stream = ((*place[:3], draw * clock.of + n), stream)
        batch = self.table.batch(numbers, next(stream))
        batch.place = (clock.seed, epoch)
        return batch


def _next(draw: int, n: int, clock: Clock) -> tuple[int, int]:
    """The place of this process's next micro-batch."""
    n += clock.stride
    return (draw, n) if n < clock.of else (draw + 1, n % clock.stride)


class _Ahead:
    """The numbers of this process's micro-batches from the clock's place onwards."""

    def __init__(self, epochs: Epochs, clock: Clock) -> None:
        self.epochs, self.clock = epochs, clock

    def __iter__(self) -> Iterator[list[Any]]:
        draw, n, clock = self.clock.draw, self.clock.n, self.clock
        while True:
            epoch, numbers = self.epochs.numbers(clock, draw, n)
            yield [((clock.seed, epoch), int(i)) for i in numbers]
            draw, n = _next(draw, n, clock)


class Beside(Batches):
    """Batches of one set with, as columns that are batches themselves, those of others.

    For a virtual step judged on other samples, unlabelled or made samples beside labelled ones,
    or a memory beside a stream. Each set has its own order; an epoch is one of the first.

    Example:
        >>> from limbeck.core.method import Clock
        >>> both = Beside(Epochs(torch.zeros(8, 2)), pool=Epochs(torch.ones(6, 3)))
        >>> batch = both(nn.Module(), None, Clock(0, "fit", 0, 2, 2, batch=4))
        >>> batch.x.shape, batch.pool.x.shape
        (torch.Size([4, 2]), torch.Size([4, 3]))
    """

    def __init__(self, main: Batches, **others: Batches) -> None:
        self.main, self.others = main, others
        self.samples, self.table = main.samples, main.table

    def __call__(self, student: nn.Module, teacher: Any, clock: Clock) -> Batch:
        beside = {
            name: each(student, teacher, replace(clock, seed=seed_of(clock.seed, name)))
            for name, each in self.others.items()
        }
        return self.main(student, teacher, clock).replace(**beside)

    def first(self) -> Batch:
        return self.main.first().replace(**{n: each.first() for n, each in self.others.items()})

    def per_epoch(self, batch: int) -> int:
        return self.main.per_epoch(batch)

    def labels(self) -> Tensor | None:
        return self.main.labels()

    def state(self) -> dict[str, Any]:
        return {n: each.state() for n, each in {"": self.main, **self.others}.items()}

    def load(self, state: dict[str, Any]) -> None:
        for n, each in {"": self.main, **self.others}.items():
            each.load(state[n])


def reader_of(
    readers: Mapping[str, Callable[[Any], Any]], side: str
) -> Callable[[Any], Any] | None:
    """The reader of a side, if the task brings one."""
    unknown = set(readers) - {"teacher", "student"}
    if unknown:
        raise UsageError(
            f"readers are given for 'teacher' and 'student', not for {sorted(unknown)}"
        )
    return readers.get(side)
