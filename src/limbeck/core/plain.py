"""Tasks for modules on tensors and tables: the room `plain`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from limbeck.core.first_look import classes_of
from limbeck.core.sources import models, tables
from limbeck.core.sources.classes import check_teacher
from limbeck.core.sources.models import Made
from limbeck.core.sources.reading import Reader, teachers_reader
from limbeck.core.sources.sets import Standardise, parts, told
from limbeck.core.sources.specs import Model, data_of, model_of
from limbeck.core.task import Budget, Task, as_teacher, build_model
from limbeck.core.teacher import Teacher
from limbeck.core.teachers import Frozen, Nobody
from limbeck.core.untrained import Untrained
from limbeck.errors import UsageError

__all__ = ["task"]

LEAST_STEPS = 1500  # of a fit: ten epochs of a small table would be a handful of steps


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
    """Make a task of modules and labelled tensors or tables.

    The columns of a table (N, F) are standardised by the mean and deviation of train, for both
    sides; a trained teacher that does better on them as they are gets them so. Other tensors are
    left as they are. Without a test set, or a valid one, samples are held out, by class.

    Args:
        teacher: words ("nets.py:Teacher", a run's folder, an address, "none"), a module, a
            factory, a `Teacher`, or None.
        student: words ("nets.py:Student", a run's folder), a module or a factory.
        data: words ("wine.csv", "digits.npz", "sklearn:iris", "data.py:make"), (x, y), a Dataset,
            or a dict of train, valid and test.
        test: the same, for the test set alone.
        target: the column of the labels, where the data are a table with a header.
        taps: as in `Task`.
        pretrained: whether a teacher is trained that does not say it, as a factory's module.
        augment: only "none": tensors and tables are not augmented.
        requests: to a served teacher, at most; None for no limit.
        budget: of each fit; None for one that suits the number of samples.

    Raises:
        UsageError: models and data do not fit each other; the sentence says how.
    """
    if augment != "none":
        raise UsageError(
            f"the augmentation '{augment}' is for pictures; the room 'plain' has tensors and "
            "tables, so leave it out"
        )
    whole = _loaded(data, "--data", target)
    apart = None if test is None else _loaded(test, "--test", target, whole)
    if len(whole.names) < 2:
        raise UsageError(
            f"{data if isinstance(data, str) else 'the data'} has one class, '{whole.names[0]}'; a "
            "classifier needs two or more"
        )
    sets, held_out, cut = parts(whole, apart)
    x, classes = sets["train"][0], len(whole.names)
    scale = Standardise.of(x) if x.dim() == 2 and x.is_floating_point() else None
    taught = _teacher(teacher, x, whole.names, pretrained, requests)
    reader, said = teachers_reader(taught, sets, classes, scale)
    readers: dict[str, Reader] = {"teacher": reader, "student": scale}
    return Task(
        teacher=taught,
        student=_student(student, x, classes),
        train=sets["train"],
        valid=sets["valid"],
        test=sets["test"],
        budget=budget or _budget(len(x)),
        data={"names": tuple(whole.names)},
        taps=dict(taps or {}),
        readers={side: f for side, f in readers.items() if f is not None},
        classes=classes,
        name=data_of(str(data)).short if isinstance(data, str | Path) else "data",
        notes=(*whole.notes, *filter(None, (held_out, *said))),
        about={
            "inputs": _inputs(whole, scale),
            "names": list(whole.names),
            "source": told(data),
            "split": {n: len(sets[n][1]) for n in tables.PARTS} | {"made": held_out is not None},
        },
        split=cut,
    )


def _loaded(
    data: Any, flag: str, target: str | None, like: tables.Loaded | None = None
) -> tables.Loaded:
    if isinstance(data, str | Path):
        source = data_of(str(data), flag)
        return tables.load(source, target, like)
    return tables.of_value(data, f"the value of {flag[2:]}", like)


def _budget(samples: int) -> Budget:
    """Ten epochs, and more of them where those would be few steps; small batches of few samples."""
    batch = 64 if samples >= 1024 else 32 if samples >= 256 else min(16, samples)
    return Budget(epochs=max(10, math.ceil(LEAST_STEPS / (samples // batch))), batch=batch)


def _inputs(whole: tables.Loaded, scale: Standardise | None) -> dict[str, Any]:
    if scale is None:
        return {"kind": "tensors", "shape": list(whole.x.shape[1:])}
    columns = whole.columns or [str(i) for i in range(whole.x.shape[1])]
    return {
        "kind": "table",
        "columns": columns,
        "mean": scale.mean.tolist(),
        "std": scale.std.tolist(),
    }


# -- models ----------------------------------------------------------------------------------------


def _named(model: Model, x: Tensor, classes: int) -> Made:
    """The model that words name, as far as this room knows it."""
    if model.kind == "file":
        made = models.from_file(model, classes)
        usual = made.usual and _shaped(made.usual, x)
        return replace(made, make=_shaped(made.make, x), usual=usual)
    if model.kind == "run":
        return models.from_run(model)
    raise UsageError(
        f"the room 'plain' has modules on tensors and tables and does not know '{model.text}'; "
        "name another with --room"
    )


def _shaped(make: Callable[[], nn.Module], x: Tensor) -> Callable[[], nn.Module]:
    """The same, with layers that learn their sizes from the samples shown one."""

    def made() -> nn.Module:
        module = make()
        if any(is_lazy(p) for p in module.parameters()):
            classes_of(module, x[:2], f"the model {type(module).__name__}")
        return module

    return made


def _student(given: Any, x: Tensor, classes: int) -> Any:
    """The student as a task has it: a module, or a factory that gives one for these classes."""
    name = "the student"
    student = given
    if isinstance(given, str | Path):
        made = _named(model_of(str(given), "student"), x, classes)
        name += f" '{made.name}'"

        def student() -> nn.Module:
            return made.make()

        student.__qualname__ = str(given)  # what the run's record knows a factory by
    elif not callable(given):
        raise UsageError(f"the student is a {type(given).__name__}; give a torch module or words")
    gives = classes_of(build_model(student, 0, "student"), x[:2], name)
    if gives not in (classes, None):
        raise UsageError(
            f"{name} gives {gives} classes and the data have {classes}; make one with {classes}, "
            "or let its factory take 'classes'"
        )
    return student


def _teacher(
    given: Any, x: Tensor, names: list[str], pretrained: bool, requests: int | None
) -> Teacher:
    """The teacher as a value; one that is not trained, or not for these classes, is `Untrained`."""
    classes = len(names)
    if isinstance(given, str | Path):
        model = model_of(str(given), "teacher")
        if model.kind == "none":
            return Nobody()
        if model.kind == "url":
            from limbeck.core.remote import served

            return served(model.name, x[:1], names=names, requests=requests)
        check_teacher(model, names)
        made = _named(model, x, classes)
    elif given is None or isinstance(given, Teacher):
        return as_teacher(given)
    else:
        made = Made(lambda: _module_of(given), True, _name_of(given))
    name = f"the teacher '{made.name}'"
    if not (pretrained and made.trained):
        _same(classes_of(build_model(made.make, 0, "teacher"), x[:2], name), classes, name)
        why = "it has no weights" if pretrained else "it was said not to be trained yet"
        return Untrained(made.make, made.name, why)
    module = build_model(made.usual or made.make, 0, "teacher")
    gives = classes_of(module, x[:2], name)
    if made.usual is not None and gives not in (classes, None):
        _same(classes_of(build_model(made.make, 0, "teacher"), x[:2], name), classes, name)
        return Untrained(
            made.make, made.name, f"it has {gives} classes and the data have {classes}"
        )
    _same(gives, classes, name)
    return Frozen(module)


def _module_of(given: Any) -> nn.Module:
    teacher = as_teacher(given)
    if isinstance(teacher, Frozen):
        return teacher.module
    raise UsageError(f"the teacher's factory gave a {type(teacher).__name__}; give that itself")


def _name_of(given: Any) -> str:
    return getattr(given, "__qualname__", None) or type(given).__name__


def _same(gives: int | None, classes: int, name: str) -> None:
    if gives not in (classes, None):
        raise UsageError(
            f"{name} gives {gives} classes and the data have {classes}; give one for {classes}, or "
            "name a factory with an argument 'classes', whose model is then trained first"
        )
