"""The trainings beside a method's own: of a teacher that has yet to be, and of the baseline."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from limbeck import __version__
from limbeck.core import checkpoints, identity, processes
from limbeck.core.caching import cacheable, cached_as
from limbeck.core.data import Table, reader_of
from limbeck.core.engine import fit
from limbeck.core.evaluate import measure
from limbeck.core.files import cache_folder
from limbeck.core.method import Objective
from limbeck.core.objectives import Labels, NextTokens
from limbeck.core.run import Run
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen, Nobody
from limbeck.core.untrained import Untrained
from limbeck.errors import UsageError


def taught(run: Run, task: Task) -> Task:
    """The task with a teacher that is trained; as it is where its teacher needs no training.

    The training is a function of teacher, data and budget alone, so that all seeds and methods
    share its result, which lies in the cache folder and as teacher.safetensors in the run's.
    """
    teacher = task.the_teacher()
    if not isinstance(teacher, Untrained):
        return task
    if task.train is None:
        raise UsageError(f"the teacher {teacher.name} must be trained, but the task has no train")
    module = teacher.new()
    kept = _place(task, teacher)
    here = run.folder / "teacher.safetensors" if run.folder else None
    own = run.finished("teacher")  # then its stage is read, and told among the run's stages
    there = (p for p in (here, kept) if p is not None and p.exists() and not own)
    source = processes.as_the_first(next(there, None))
    if source is not None:
        checkpoints.into(module, checkpoints.load(source)[0])
        how = "was trained before"
    else:
        if not own:
            run.progress.say(
                f"the teacher {teacher.name} is trained first, on the task's own data, since "
                f"{teacher.why}"
            )
        readers = {k: v for k, v in (("student", reader_of(task.readers, "teacher")),) if v}
        alone = replace(task, teacher=None, taps={}, readers=readers)
        seed, run.seed = run.seed, 0
        try:
            fit(_truth(task), module, Nobody(), alone.batches(), name="teacher", task=alone)
        finally:
            run.seed = seed
        how = "was trained before" if own else "is trained"
    about = getattr(reader_of(task.readers, "teacher"), "about", None)
    meta = {"inputs": about(0)} if about is not None else None
    processes.by_the_first(lambda: _keep(module, meta, kept, here))
    module.eval()
    if (source_set := task.set_or_none(task.judged)) is not None:
        table = Table(source_set, task.judged)
        value = measure(module, table, task.score, reader_of(task.readers, "teacher"), run.device)
        run.progress.say(
            f"the teacher {teacher.name} {how}: {task.score.name} {value:.4f} on {task.judged}"
        )
    return replace(task, teacher=Frozen(module))


def cached(task: Task, folder: str | Path | None) -> Task:
    """The task with its teacher's outputs read from a cache, where one is named."""
    if folder is None:
        return task
    return replace(task, teacher=cached_as(folder, cacheable(task.the_teacher())))


def alone(run: Run, task: Task) -> nn.Module:
    """The student that learned from the labels alone: same budget, same seed, no teacher."""
    student = run.student(task)
    own = replace(task, teacher=None, taps={})
    truth = _truth(task)
    return fit(truth, student, Nobody(), own.batches(), name="baseline", task=own).student


def _truth(task: Task) -> Objective:
    """What is learned without a teacher: the labels, of a language model the next tokens."""
    return NextTokens() if task.score.each is not None else Labels()


def _place(task: Task, teacher: Untrained) -> Path:
    """The teacher's file in the cache: its name holds a digest of all that makes it."""
    made_of = identity.task_digests(task)
    parts = [__version__, *(made_of[name] for name in ("teacher", "train", "budget"))]
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", teacher.name)[:60]
    return cache_folder() / "teachers" / f"{slug}-{digest}.safetensors"


def _keep(module: nn.Module, meta: Any, kept: Path, here: Path | None) -> None:
    """Store the teacher in the cache, where that can be written, and in the run's folder.

    With it goes what its inputs are like, for whoever names the file as weights.
    """
    state = checkpoints.of_module(module)
    if not kept.exists():
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            checkpoints.save(kept, state, meta)
        except (OSError, UsageError):  # a cache saves time; without it all still works
            kept = Path(os.devnull)
    if here is None or here.exists():
        return
    try:
        os.link(kept, here)
    except OSError:  # another file system, or none that knows links
        if kept.is_file():
            shutil.copyfile(kept, here)
        else:
            checkpoints.save(here, state, meta)
