"""Running a teacher once over a set, so that its outputs can be read many times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.cache import CacheWriter
from limbeck.core.data import Table, reader_of
from limbeck.core.looking import asking
from limbeck.core.task import Task
from limbeck.core.teacher import Setting, Teacher
from limbeck.core.teachers import BlackBox, Cached, Frozen, fingerprint_of
from limbeck.core.text.facts import text_of
from limbeck.core.text.kept import Keep, packed
from limbeck.core.views import Side
from limbeck.errors import UsageError

Told = Callable[[int, int], None]


def cache_teacher(
    task: Task,
    folder: str | Path,
    entries: Sequence[str] = ("logits",),
    batch: int = 256,
    dtype: str | None = None,
    device: str = "cpu",
    epochs: int | None = None,
    seed: int = 0,
    keep: Keep | None = None,
    told: Told = lambda done, rows: None,
) -> Cached:
    """Write a teacher's view entries of the training set into a folder; killed, it goes on there.

    Args:
        task: its teacher must be a module, or give a signal; its taps and its teacher's reader are
            used.
        folder: the cache.
        entries: names of view entries: "logits", or what the taps name.
        batch: samples of a forward pass.
        dtype: "float16" or "bfloat16" to store floats in half the space; as they are when None.
        device: where the teacher runs.
        epochs: passes to keep, where the set augments its samples: as many as the run will have.
        seed: of that run; augmentation is a function of (seed, epoch, sample).
        keep: of a language teacher's signal, the entries that are kept; `entries` is then not read.
        told: called with (rows done, rows in all) after each forward pass.

    Returns:
        The cached teacher, to be given as `Task(teacher=...)`.

    Raises:
        UsageError: the teacher is neither, lacks an entry, or the folder holds another cache;
            the set augments its samples and epochs is None.
    """
    teacher = cacheable(task.the_teacher())
    if isinstance(teacher, BlackBox) and keep is not None:
        teacher = replace(teacher, ask=teacher.ask.of(max(teacher.ask.top, keep.k)))  # type: ignore[attr-defined]
    table, reader = Table(task.train), reader_of(task.readers, "teacher")
    made_of: dict[str, Any] = fingerprint_of(
        teacher.module if isinstance(teacher, Frozen) else teacher, table, reader
    )
    if augments(table):
        if epochs is None:
            raise UsageError(
                "the training set augments its samples, anew in each epoch; say how many epochs "
                "to keep, and the seed of the run that will read them"
            )
        made_of["seed"] = seed
    passes = epochs if "seed" in made_of and epochs else 1
    if keep is not None:
        made_of["keep"] = keep.to_json(text_of(task).vocab)
        if keep.kind == "sampled":
            made_of["seed of draws"] = seed
    paths = {name: pair[0] for name, pair in task.taps.items() if name in entries}
    setting = Setting(paths, reader, torch.device(device))
    with (
        asking(teacher, setting, table) as view,
        CacheWriter(folder, made_of, len(table), epochs=passes, dtype=dtype) as writer,
        torch.no_grad(),
    ):
        for epoch in range(passes):
            missing = writer.missing(epoch)
            for numbers in torch.split(missing, batch) if len(missing) else ():
                rows = table.rows(numbers, seed, epoch).to(setting.device)
                side = view(rows)
                if keep is None:
                    shown = dict(_rows(side, entries))
                else:
                    shown = {"packed": packed(keep, side.signal, rows, seed)}
                writer.write(numbers, shown, epoch)
                told(passes * len(table) - writer.left, passes * len(table))
    return cached_as(folder, teacher)


def _rows(side: Side, entries: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """What is kept of a view: a list of tensors as entries NAME_0, NAME_1, ... ."""
    for name in entries:
        value = getattr(side, name)
        if isinstance(value, list | tuple):
            yield from ((f"{name}_{k}", one) for k, one in enumerate(value))
        else:
            yield name, value


def cacheable(teacher: Teacher) -> Frozen | BlackBox:
    """The same, if its outputs can be cached.

    Raises:
        UsageError: they cannot.
    """
    if isinstance(teacher, BlackBox) and teacher.shows_signal:
        return teacher
    if not isinstance(teacher, Frozen):
        raise UsageError(
            f"only a module's outputs are cached, and this teacher is a {type(teacher).__name__} "
            "(what a served one answers is kept anyway)"
        )
    return teacher


def cached_as(folder: str | Path, teacher: Frozen | BlackBox) -> Cached:
    """The cache of a teacher that is at hand."""
    if isinstance(teacher, BlackBox):
        return Cached(folder, box=teacher)
    return Cached(folder, teacher.module)


def augments(table: Table) -> bool:
    """Whether a set gives a sample otherwise in another epoch."""
    if table.tensors is not None:
        return False
    some = torch.arange(min(4, len(table)))
    one, two = (table.rows(some, 0, epoch).columns["x"] for epoch in (0, 1))
    return not _same(one, two)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(_same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(v, w) for v, w in zip(a, b, strict=True))
    return bool(a == b)
