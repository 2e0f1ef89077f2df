"""Teacher and student, from what a user gives to what a task holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.core.sources.specs import Model, model_of
from limbeck.core.teacher import Teacher
from limbeck.core.teachers import Cached, Frozen, Nobody
from limbeck.core.untrained import Untrained
from limbeck.errors import UsageError
from limbeck.vision._kit import models
from limbeck.vision._kit.settling import Settled

__all__ = ["Given", "factory", "ready", "student_of", "teacher_of"]


@dataclass(frozen=True)
class Given:
    """A teacher.

    Args:
        value: that is ready.
        net: that is to be fitted to the data; it may be what `value` holds.
        url: where it is served.
    """

    value: Teacher | None = None
    net: models.Net | None = None
    url: str | None = None

    @property
    def asks(self) -> bool:
        """Whether it is shown pictures though no module of it is here."""
        return self.net is None and not isinstance(self.value, Nobody)


def teacher_of(given: Any, classes: int, pretrained: bool, augment: str) -> Given:
    """What a user gives as the teacher; words for a library's model get its weights."""
    if isinstance(given, str | Path):
        found = _in_words(model_of(str(given), "teacher"), classes, pretrained)
    elif given is None or isinstance(given, Teacher):
        found = _of_teacher(given or Nobody())
    elif isinstance(given, nn.Module) or callable(given):
        found = Given(net=models.of_module(given, "teacher", _name(given), True))
    else:
        raise UsageError(
            f"the teacher is a {type(given).__name__}; give words, a torch module, a factory, a "
            "Teacher or None"
        )
    if isinstance(found.value, Cached) and augment != "none":
        raise UsageError(
            f"the teacher is a cache of pictures as they are, and augment is '{augment}'; leave it "
            "out, or use the live teacher"
        )
    return found


def _in_words(model: Model, classes: int, pretrained: bool) -> Given:
    if model.kind == "none":
        return Given(Nobody())
    if model.kind == "url":
        return Given(url=model.name)
    return Given(net=models.of_words(model, "teacher", classes, pretrained))


def _of_teacher(teacher: Teacher) -> Given:
    """A `Teacher` of Python's; the module that it holds is looked at."""
    if isinstance(teacher, Frozen):
        module = teacher.module
        return Given(teacher, models.of_module(module, "teacher", _name(module), True))
    if isinstance(teacher, Untrained):
        net = models.of_module(teacher.new, "teacher", teacher.name, False)
        return Given(teacher, net)
    return Given(teacher)


def student_of(given: Any, classes: int) -> models.Net:
    """What a user gives as the student; words for a library's model start from scratch."""
    if isinstance(given, str | Path):
        return models.of_words(model_of(str(given), "student"), "student", classes)
    if isinstance(given, nn.Module) or callable(given):
        return models.of_module(given, "student", _name(given), False)
    raise UsageError(
        f"the student is a {type(given).__name__}; give words, a torch module or a factory"
    )


def _name(given: Any) -> str:
    return str(getattr(given, "__name__", type(given).__name__))


def ready(
    given: Given,
    settled: Settled | None,
    show: Callable[[], Any],
    names: Sequence[str],
    requests: int | None,
) -> Teacher:
    """The teacher as a task has it: frozen where it is trained, else to be trained first.

    Args:
        given: the teacher.
        settled: its net, where it has one.
        show: gives one picture as it is shown to it.
        names: of the classes.
        requests: to a served one, at most.
    """
    if given.url is not None:
        from limbeck.core.remote import served

        return served(given.url, show(), names=names, requests=requests)
    if given.value is not None:
        return given.value
    assert settled is not None  # what is neither served nor ready is a net
    if settled.net.trained:
        return Frozen(settled.module)
    return Untrained(settled.make, settled.net.name, settled.net.why)


def factory(given: Any, settled: Settled, classes: int) -> Any:
    """The student as a task has it; what words make is known by these words and their numbers."""
    if not isinstance(given, str | Path):
        return given

    def make() -> nn.Module:
        return settled.make()

    make.__qualname__ = f"{given} ({classes} classes, {settled.size} pixels)"
    return make
