"""`limbeck.vision.task`: from a teacher, a student and pictures to a task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from limbeck.core.data import Table
from limbeck.core.sources.classes import check_teacher
from limbeck.core.sources.sets import told
from limbeck.core.sources.specs import model_of
from limbeck.core.task import Budget, Task
from limbeck.errors import UsageError
from limbeck.vision._kit import sides, sources
from limbeck.vision._kit.keeping import Shape, check_augment, drawn, kept, statistics
from limbeck.vision._kit.pictures import Look, look
from limbeck.vision._kit.places import Loaded
from limbeck.vision._kit.readers import Reader
from limbeck.vision._kit.settling import Settled, settle

__all__ = ["task"]


def task(
    teacher: Any,
    student: Any,
    data: Any,
    *,
    test: Any = None,
    target: str | None = None,
    taps: Mapping[str, Any] | None = None,
    pretrained: bool = True,
    augment: str = "none",
    requests: int | None = None,
    budget: Budget | None = None,
) -> Task:
    """Make a task of classifying pictures.

    Args:
        teacher: words ("timm:resnet50", "torchvision:resnet18@weights.safetensors", "hf:ID",
            "nets.py:make", a run's folder, "none"), a module, a factory, a `Teacher`, or None. A
            library's model without weights for the data's classes is trained first.
        student: the same, without "none"; a library's model starts from scratch.
        data: a folder of class folders (or of train, valid, test folders of such), "hf:ID",
            "sklearn:digits", "FILE.py:NAME", tensors (x, y), a data set of (picture, label), or a
            dict of these with "train". Pictures are bytes, or floats in [0, 1]; floats beyond are
            taken as normalised already.
        test: further data for the score; without any, 15 % of the samples are held out.
        target: the column of labels, of a Hugging Face data set.
        taps: {"mid": (teacher path, student path)}.
        pretrained: whether the teacher of a library comes with its pretrained weights.
        augment: "none", "flip", "crop" or "crop,flip": of training pictures, alike for both sides.
        requests: to a served teacher, at most; None for no limit.
        budget: ten epochs by default.

    Raises:
        UsageError: something given cannot work; the sentence says what.

    Example:
        >>> from limbeck import vision
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> made = vision.task(None, net, "sklearn:digits")
        >>> made.name, made.classes, made.about["split"]["test"]
        ('Sequential-digits', 10, 269)
    """
    check_augment(augment)
    loaded, cut, notes = sources.with_parts(sources.load(data, "data", target), test, target)
    classes = len(loaded.names)
    one = sides.teacher_of(teacher, classes, pretrained, augment)
    if one.net is not None and set(one.net.names) == set(loaded.names):
        loaded = loaded.renamed(one.net.names)  # labels are numbered as its weights know them
    elif isinstance(teacher, str | Path):
        check_teacher(model_of(str(teacher), "teacher"), loaded.names)
    seen, x = _looked(loaded), loaded.sets["train"].x
    fit = partial(settle, look=seen, classes=classes, x=None if x is None else x[:2])
    two = fit(sides.student_of(student, classes))
    first = None if one.net is None else fit(one.net)
    shape = _shape(seen, [two] if first is None else [first, two])
    sets = kept(loaded.sets, shape)
    measured = (None, None) if seen.free else statistics(sets["train"])
    readers = {"student": two.reader(seen, measured)}
    if first is not None:
        readers["teacher"] = first.reader(seen, measured)
    elif one.asks:
        readers["teacher"] = Reader(seen.channels)
    side = seen.side if x is not None else shape.side
    sizes = {part: len(found.y) for part, found in loaded.sets.items()}

    def show() -> Any:
        return readers["teacher"](Table(sets["train"]).rows(torch.arange(1), "shown").x)

    return Task(
        teacher=sides.ready(one, first, show, loaded.names, requests),
        student=sides.factory(student, two, classes),
        train=drawn(sets["train"], augment, side),
        valid=sets.get("valid"),
        test=sets.get("test"),
        budget=budget or Budget(batch=min(64, max(1, sizes["train"] // 4))),
        data={"names": loaded.names},
        taps=dict(taps or {}),
        readers=readers,
        classes=classes,
        name=re.sub(r"[^A-Za-z0-9_.]+", "-", f"{two.net.name}-{loaded.short}"),
        notes=(*notes, *_shown(readers, side), *_said(one, seen, augment)),
        about={
            "inputs": _inputs(readers["student"], seen, side),
            "names": list(loaded.names),
            "source": told(data),
            "augment": augment,
            "split": {"train": 0, "valid": 0, "test": 0, **sizes, "made": bool(cut)},
        },
        split={part: list(loaded.sets[part].names) for part in cut},
    )


def _looked(loaded: Loaded) -> Look:
    """What the training pictures are like; those of the other parts must be of the same range."""
    seen = look(loaded.sets["train"], "train")
    for part, found in loaded.sets.items():
        if look(found, part).free != seen.free:
            raise UsageError(
                f"the pictures of one part of {loaded.text} leave the range 0..1 and those of "
                "another do not; bring all to one range"
            )
    return seen


def _shape(seen: Look, settled: Sequence[Settled]) -> Shape:
    """How pictures are kept: at the larger side's size, but never larger than they are."""
    largest = max(settled, key=lambda one: one.size or seen.side)
    size = largest.size or seen.side
    if seen.alike and seen.side < size:
        size = seen.side
    # as the student wants it, which is what its export says
    return Shape(size, seen.channels, settled[-1].net.wants.interpolation)


# --- what is said --------------------------------------------------------------------------------


def _inputs(reader: Reader, seen: Look, side: int) -> dict[str, Any]:
    if seen.free:
        return {"kind": "tensors", "shape": [reader.channels, side, side]}
    return reader.about(side)


def _shown(readers: Mapping[str, Reader], side: int) -> Iterator[str]:
    for name in sorted(readers, reverse=True):
        reader = readers[name]
        size, many = reader.size or side, "s" if reader.channels > 1 else ""
        what = f"the {name} is shown {size} x {size} pixels in {reader.channels} channel{many}"
        if reader.mean is None or reader.std is None:
            yield f"{what}, not normalised"
        else:
            mean, std = (" ".join(f"{v:g}" for v in vs) for vs in (reader.mean, reader.std))
            yield f"{what}, normalised by mean {mean} and deviation {std}"


def _said(one: sides.Given, seen: Look, augment: str) -> list[str]:
    notes = []
    if seen.free:
        notes.append("the pictures leave the range 0..1, so they are taken as normalised already")
    if one.net is not None and one.net.kept and not one.net.trained:
        notes.append(f"the teacher '{one.net.name}' keeps its pretrained body and gets a new head")
    if augment != "none":
        words = {"crop": "cropped", "flip": "mirrored"}
        how = " and ".join(words[word] for word in augment.split(","))
        notes.append(f"training pictures are {how} at random, alike for both sides")
    return notes
