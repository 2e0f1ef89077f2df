"""The teacher cache: a table of what a teacher shows of each sample, written once and read often.

A batch is read by one gather from a memory-mapped file of rows, however many shards it meets. Rows
are not compressed, since compressed rows cannot be gathered from a mapping; what saves room is half
precision (`CacheWriter(dtype="float16")`). Nothing is pickled. How a table lies on disk is told in
`limbeck.core._table`.

Example:
    >>> import tempfile, torch; folder = tempfile.mkdtemp()
    >>> with CacheWriter(folder, {"weights": "abc"}, samples=3) as writer:
    ...     writer.write([2, 0, 1], {"logits": torch.tensor([[2.0], [0.0], [1.0]])})
    >>> cache = Cache(folder)
    >>> cache.check({"weights": "abc"})
    >>> cache.rows([1, 1, 2])["logits"].tolist()
    [[1.0], [1.0], [2.0]]
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core._table import AGAIN, Entry, Table, difference, fingerprint, probes, shard_sum
from limbeck.core.files import Lock, put_rows, refusal, sweep
from limbeck.errors import Missing, UsageError, nearest

__all__ = ["Cache", "CacheWriter", "Entry", "fingerprint", "probes"]


class CacheWriter:
    """Writes a table, or goes on with one that is unfinished or damaged.

    Args:
        folder: made if need be; holds nothing else.
        fingerprint: named parts (JSON) of what the table is made from; see `fingerprint`.
        samples: length of the data set.
        shard: rows guarded by one checksum.
        epochs: passes to keep, where inputs are augmented by (epoch, index).
        dtype: how floating-point entries are stored: "float32", "float16", "bfloat16", or None: as
            the teacher gives them. They are read in the dtype that the teacher gave.

    Raises:
        UsageError: the folder holds other things, or a table made from something else, or cannot
            be written, or is being written by another process.
    """

    _lock: Lock | None = None

    def __init__(
        self,
        folder: str | os.PathLike[str],
        fingerprint: Mapping[str, Any],
        samples: int,
        shard: int = 4096,
        *,
        epochs: int = 1,
        dtype: str | None = None,
    ) -> None:
        if min(samples, epochs, shard) < 1:
            raise UsageError(f"no cache has {samples} samples, {epochs} epochs, {shard}-row shards")
        if dtype not in (None, "float32", "float16", "bfloat16"):
            raise UsageError(f"a cache stores float32, float16 or bfloat16, not {dtype!r}")
        asked = Table(Path(folder), dict(fingerprint), samples, epochs, shard, dtype)
        self._table, self._spans, self._files = asked, asked.spans(), dict[str, int]()
        try:
            asked.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refusal(folder, error) from error
        self._lock = Lock(asked.folder / "lock")
        try:
            self._begin(asked)
        except BaseException:
            self.close()
            raise

    def _begin(self, asked: Table) -> None:
        sweep(asked.folder)
        if (asked.folder / "cache.json").exists():
            self._table = there = Table.load(asked.folder)
            if differs := difference(there.identity(), asked.identity()):
                raise UsageError(
                    f"{asked.folder} holds another cache, which differs in {differs}; name a new "
                    "folder, or remove that one"
                )
        elif any(path.name != "lock" for path in asked.folder.iterdir()):
            raise UsageError(f"{asked.folder} holds other files; name a new or an empty folder")
        if self._table.entries:
            self._open(self._table.entries)
        self._whole, self._spans = self._table.whole(), self._table.spans()
        full = {shard for shard, span in self._spans.items() if self._whole[span].all()}
        done = self._table.done
        self._table.done = {shard: done[shard] for shard in done if shard in full}
        self._finish(full - done.keys())

    def _open(self, entries: Mapping[str, Entry]) -> None:
        """Open the files at their full size; rows that are not written yet take no room."""
        widths = {f"{n}.rows": math.prod(e.shape) * e.stored.itemsize for n, e in entries.items()}
        for name, width in {**widths, "checksums": 8}.items():
            path = self._table.folder / name
            try:
                if name not in self._files:
                    self._files[name] = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                os.ftruncate(self._files[name], width * self._table.rows)
            except OSError as error:
                raise refusal(path, error) from error

    def _finish(self, shards: Iterable[str]) -> None:
        """Force the rows to the disk, then say in `cache.json` that these shards are done."""
        table = self._table
        try:
            for file in self._files.values():
                os.fsync(file)
        except OSError as error:
            raise refusal(table.folder, error) from error
        for shard in shards:
            span = self._spans[shard]
            table.done[shard] = {n: shard_sum(table.open(n), span) for n in table.entries}
        table.save()

    @property
    def left(self) -> int:
        """How many rows are still missing, over all epochs."""
        return int((~self._whole).sum())

    def missing(self, epoch: int = 0) -> Tensor:
        """Give the sample numbers that an epoch still lacks, ascending: (M,) int64."""
        start = int(self._table.place([0], epoch))
        return torch.from_numpy(np.flatnonzero(~self._whole[start : start + self._table.samples]))

    def write(
        self, index: Tensor | Sequence[int], entries: Mapping[str, Tensor], epoch: int = 0
    ) -> None:
        """Write rows; those that are there and whole already are left as they are.

        Args:
            index: sample numbers (B,).
            entries: by name (B, ...), on any device; the first call fixes names, dtypes, shapes.
            epoch: the pass that they were seen in.

        Raises:
            UsageError: the entries do not fit the index, those of the first call, or the dtype in
                which they are stored; or the disk is full (the rows before are kept).
        """
        table, place = self._table, self._table.place(index, epoch).numpy()
        if self._lock is None:
            raise UsageError(f"the writer of {table.folder} was closed; open it again")
        rows, first = np.unique(place, return_index=True)
        new = ~self._whole[rows]
        rows, at = rows[new], torch.from_numpy(first[new])
        if not len(rows):
            return
        given = table.fit(entries, len(place))
        data = table.encode(entries, at, given)
        if not table.entries:
            self._open(given)
            table.entries = given
            table.save()
        try:
            for name, values in data.items():
                put_rows(self._files[name], values, rows)
        except OSError as error:
            raise UsageError(
                f"could not write to {table.folder}: {error.strerror}; {self.left} of {table.rows} "
                "rows are missing: make room and start again, it goes on from there"
            ) from error
        self._whole[rows] = True
        touched = map(str, np.unique(rows // table.shard))
        if full := [shard for shard in touched if self._whole[self._spans[shard]].all()]:
            self._finish(full)

    def close(self) -> None:
        """Let go of the folder; what is missing can be written another time."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    def __del__(self) -> None:
        if self._lock is not None:
            self.close()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Cache:
    """Reads a table. Any number of processes may, also from a read-only place.

    Args:
        folder: what `CacheWriter` wrote.

    Attributes:
        entries: what there is, by name.
        samples: length of the data set.
        epochs: how many passes are kept.
        made: what it was made from.
        digest: a checksum of the whole table and of what it was made from.

    Raises:
        Missing: there is no cache in the folder.
        UsageError: the cache is damaged, or lacks rows.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._table = table = Table.load(Path(folder))
        self.digest, self.made = table.digest, table.made
        self.entries, self.samples, self.epochs = table.entries, table.samples, table.epochs
        self._spans = table.spans()
        self._maps: dict[str, Tensor] = {}
        self._unread: dict[str, set[str]] = {}  # shards whose checksum was not compared yet
        if table.done.keys() != self._spans.keys():
            raise UsageError(
                f"the cache in {folder} lacks {int((~table.whole()).sum())} of its {table.rows} "
                f"rows; {AGAIN}"
            )

    def __reduce__(self) -> tuple[type[Cache], tuple[Path]]:
        return Cache, (self._table.folder,)  # a data loader's worker maps the files itself

    def rows(
        self, index: Tensor | Sequence[int], names: Iterable[str] | None = None, epoch: int = 0
    ) -> dict[str, Tensor]:
        """Read entries of samples, in any order and with repeats.

        The first time that a shard is touched its checksum is compared, which reads it once.

        Args:
            index: sample numbers (B,).
            names: the entries that are wanted; None for all.
            epoch: the pass that they were seen in.

        Returns:
            By name (B, ...), the caller's own, on the CPU, in the dtype that the teacher gave.

        Raises:
            Missing: there is no such entry.
            UsageError: there is no such sample or epoch; or a shard is damaged.
        """
        place, found = self._table.place(index, epoch), dict[str, Tensor]()
        for name in self.entries if names is None else names:
            if name not in self._maps:
                self._map(name)
            if self._unread[name]:
                self._compare(name, map(str, torch.unique(place // self._table.shard).tolist()))
            found[name] = self._maps[name].index_select(0, place).to(self.entries[name].dtype)
        return found

    def _map(self, name: str) -> None:
        if name not in self.entries:
            tail = nearest(name, self.entries)
            raise Missing(f"the cache in {self._table.folder} has no entry {name!r}{tail}")
        self._maps[name], self._unread[name] = self._table.open(name), set(self._spans)

    def _compare(self, name: str, shards: Iterable[str]) -> None:
        for shard in self._unread[name].intersection(shards):
            span = self._spans[shard]
            if shard_sum(self._maps[name], span) != self._table.done[shard][name]:
                raise UsageError(
                    f"{self._table.folder / name}.rows is damaged in rows {span.start} to "
                    f"{span.stop - 1}; {AGAIN}"
                )
            self._unread[name].remove(shard)

    def verify(self) -> None:
        """Compare all checksums, which reads the whole table.

        Raises:
            UsageError: a file is damaged.
        """
        for name in self.entries:
            self._map(name)
            self._compare(name, self._spans)

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """Refuse to stand in for what the table was not made from.

        Raises:
            UsageError: parts that this fingerprint has differ; they are named.
        """
        said = {"teacher": "teacher's weights, or its budget", "samples": "samples, or augment"}
        made = {part: v for part, v in self._table.made.items() if part in fingerprint}
        then, now = ({said.get(p, p): v for p, v in d.items()} for d in (made, fingerprint))
        if differs := difference(then, now):
            raise UsageError(
                f"the cache in {self._table.folder} is stale: it differs in {differs}; write a new "
                "one into another folder"
            )
