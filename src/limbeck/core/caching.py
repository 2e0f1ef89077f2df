"""Running a teacher once over a set, so that its outputs can be read many times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from limbeck.core.cache import CacheWriter
from limbeck.core.data import Table, reader_of
from limbeck.core.method import Clock
from limbeck.core.task import Task
from limbeck.core.teacher import Setting
from limbeck.core.teachers import Cached, Frozen, fingerprint_of
from limbeck.errors import UsageError


def cache_teacher(
    task: Task,
    folder: str | Path,
    entries: Sequence[str] = ("logits",),
    batch: int = 256,
    dtype: str | None = None,
    device: str = "cpu",
) -> Cached:
    """Write a teacher's view entries of the training set into a folder; killed, it goes on there.

    Args:
        task: its teacher must be a module; its taps and its teacher's reader are used.
        folder: the cache.
        entries: names of view entries: "logits", or what the taps name.
        batch: samples of a forward pass.
        dtype: "float16" or "bfloat16" to store floats in half the space; as they are when None.
        device: where the teacher runs.

    Returns:
        The cached teacher, to be given as `Task(teacher=...)`.

    Raises:
        UsageError: the teacher is not a module, lacks an entry, or the folder holds another cache.
    """
    teacher = task.the_teacher()
    if not isinstance(teacher, Frozen):
        raise UsageError(f"only a module's outputs are cached; this teacher is {teacher}")
    table, reader = Table(task.train), reader_of(task.readers, "teacher")
    made_of = fingerprint_of(teacher.module, table, reader)
    paths = {name: pair[0] for name, pair in task.taps.items() if name in entries}
    live = teacher.attach(Setting(paths, reader, torch.device(device)))
    clock = Clock(0, "cache", 0, 1, 1)
    try:
        with CacheWriter(folder, made_of, len(table), dtype=dtype) as writer, torch.no_grad():
            missing = writer.missing()
            for start in range(0, len(missing), batch):
                numbers = missing[start : start + batch]
                side = live.side(table.rows(numbers, "cache").to(torch.device(device)), clock)
                writer.write(numbers, {name: getattr(side, name) for name in entries})
    finally:
        live.close()
    return Cached(folder, teacher.module)
