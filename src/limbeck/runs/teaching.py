"""The trainings beside a method's own: of a teacher that has yet to be, and of the baseline."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import __version__
from limbeck.core import checkpoints, identity, processes
from limbeck.core.caching import cacheable, cached_as
from limbeck.core.data import Table, reader_of
from limbeck.core.engine import fit
from limbeck.core.evaluate import measure
from limbeck.core.files import cache_folder
from limbeck.core.looking import asking
from limbeck.core.method import Objective
from limbeck.core.objectives import Labels, NextTokens
from limbeck.core.run import Run
from limbeck.core.sources import models
from limbeck.core.task import Task
from limbeck.core.teacher import Setting
from limbeck.core.teachers import BlackBox, Frozen, Nobody
from limbeck.core.text.facts import MaskedText
from limbeck.core.text.masking import MaskedTokens
from limbeck.core.untrained import Untrained
from limbeck.errors import UsageError

_ASKED = 64
"""Samples on which a black box is compared with the labels: one request of a served one."""


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
    place = _place(task, teacher)
    here = run.folder / "teacher.safetensors" if run.folder else None
    own = run.finished("teacher")  # then its stage is read, and told among the run's stages
    there = (p for p in (here, place) if p is not None and p.exists() and not own)
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
            if other := _another(task, place):
                run.progress.say(f"{other}, so it is trained anew")
        readers = {k: v for k, v in (("student", reader_of(task.readers, "teacher")),) if v}
        alone = replace(task, teacher=None, taps={}, readers=readers)
        seed, run.seed = run.seed, 0
        try:
            fit(truth(task), module, Nobody(), alone.batches(), name="teacher", task=alone)
        finally:
            run.seed = seed
        how = "was trained before" if own else "is trained"
    about = getattr(reader_of(task.readers, "teacher"), "about", None)
    meta = {"made_of": _made_of(task), "augment": _augment(task)}
    meta |= {"inputs": about(0)} if about is not None else {}
    processes.by_the_first(lambda: _keep(module, meta, place, here))
    module.eval()
    if (source_set := task.set_or_none(task.judged)) is not None:
        table = Table(source_set, task.judged)
        value = measure(module, table, task.score, reader_of(task.readers, "teacher"), run.device)
        run.progress.say(
            f"the teacher {teacher.name} {how}: {task.score.name} {value:.4f} on {task.judged}"
        )
    return replace(task, teacher=Frozen(module))


def kept(task: Task) -> Task:
    """The task with the teacher that an earlier run has trained and kept, if there is one.

    Where one is kept that was trained otherwise, a note of the task says how.
    """
    teacher = task.the_teacher()
    if not isinstance(teacher, Untrained) or task.train is None:
        return task
    place = _place(task, teacher)
    if not place.exists():
        other = _another(task, place)
        notes = (f"{other}, so a run trains it anew",) if other else ()
        return replace(task, notes=(*task.notes, *notes))
    module = teacher.new()
    checkpoints.into(module, checkpoints.load(place)[0])
    note = f"the teacher {teacher.name} was trained by an earlier run, and kept"
    return replace(task, teacher=Frozen(module.eval()), notes=(*task.notes, note))


def doubt(task: Task, device: torch.device) -> str | None:
    """A sentence where a black box agrees with too few labels of some training samples.

    It is asked about as many as a request holds, which training asks it for anyway.
    """
    teacher = task.the_teacher()
    if task.train is None or not isinstance(teacher, BlackBox) or teacher.gives == "text":
        return None
    table = Table(task.train)
    batch = table.rows(table.some(_ASKED), "in order").to(device)
    y, classes = batch.columns.get("y"), task.count_classes()
    if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point() or not classes:
        return None
    setting = Setting(reader=reader_of(task.readers, "teacher"), device=device)
    with asking(teacher, setting, table) as view:
        guess = view(batch).labels
    right = float((torch.as_tensor(guess).cpu() == y.cpu()).double().mean())
    if right >= min(2 / classes, (1 + 1 / classes) / 2):  # of two classes twice chance is all
        return None
    return (
        f"the teacher {teacher.name} agrees with {right:.0%} of the labels of {len(y)} "
        f"training samples, where guessing would with {1 / classes:.0%}: look at the order of its "
        "classes (that of the labels is in run.json under about, names), and at its inputs"
    )


def cached(task: Task, folder: str | Path | None) -> Task:
    """The task with its teacher's outputs read from a cache, where one is named."""
    if folder is None:
        return task
    return replace(task, teacher=cached_as(folder, cacheable(task.the_teacher())))


def alone(run: Run, task: Task) -> nn.Module:
    """The student that learned from the labels alone: same budget, same seed, no teacher."""
    student = run.student(task)
    own = replace(task, teacher=None, taps={})
    fitted = fit(truth(task), student, Nobody(), own.batches(), name="baseline", task=own)
    return fitted.student


def truth(task: Task) -> Objective:
    """What is learned without a teacher: the labels; next tokens, or those hidden at each step."""
    text = task.data.get("text")
    if isinstance(text, MaskedText):
        return MaskedTokens(text.mask, text.vocab)
    return NextTokens() if task.score.each is not None else Labels()


def _place(task: Task, teacher: Untrained) -> Path:
    """The teacher's file in the cache: its name holds a digest of all that makes it."""
    parts = "\n".join([__version__, *_made_of(task).values()])
    digest = hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", teacher.name)[:60]
    return cache_folder() / "teachers" / f"{slug}-{digest}.safetensors"


def _made_of(task: Task) -> dict[str, str]:
    """What a teacher's training is a function of."""
    digests = identity.task_digests(task)
    return {name: digests[name] for name in ("teacher", "train", "budget")}


def _another(task: Task, place: Path) -> str | None:
    """Half a sentence on the newest teacher that is kept and was trained otherwise, if any."""
    teacher, want = task.the_teacher(), _made_of(task)
    stem = place.stem.rpartition("-")[0]
    files = sorted(place.parent.glob(f"{stem}-*.safetensors"), key=os.path.getmtime, reverse=True)
    for file in files:
        meta = models.meta_of(file)
        had = meta.get("made_of") or {}
        if had.get("teacher") != want["teacher"] or had == want:
            continue
        told = f"a teacher {getattr(teacher, 'name', '')} is kept that was trained"
        if had.get("train") != want["train"]:
            if (then := meta.get("augment", "none")) != (now := _augment(task)):
                return f"{told} with --augment {then}, and this run has --augment {now}"
            then, now = (str(d).partition(" ")[0] for d in (had.get("train"), want["train"]))
            return f"{told} on other samples ({then} there, {now} here)"
        mine, theirs = (_budget(text) for text in (want["budget"], had.get("budget", "")))
        apart = [name for name in mine if mine[name] != theirs.get(name)]
        both = [
            ", ".join(_said(n, b.get(n)) for n in apart if _counts(n, b)) for b in (theirs, mine)
        ]
        return f"{told} with {both[0]}, and this run asks for {both[1]}"
    return None


def _augment(task: Task) -> str:
    return str(task.about.get("augment", "none"))


def _budget(text: str) -> dict[str, Any]:
    """A budget by its digest, flat; empty where it is of another form."""
    try:
        told = dict(ast.literal_eval(text))
        told |= told.pop("optimiser")
        if told["steps"] is None and told["epochs"] is None:
            told["epochs"] = 10  # what a budget without either means
        return told
    except (ValueError, SyntaxError, KeyError, TypeError):
        return {}


def _counts(name: str, budget: dict[str, Any]) -> bool:
    """Whether a part of a budget is to be told: of epochs and steps one is not given."""
    return name not in ("epochs", "steps") or budget.get(name) is not None


def _said(name: str, value: Any) -> str:
    """A part of a budget in words."""
    return f"{value:g} {name}" if name in ("epochs", "steps") else f"{name} {value}"


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
