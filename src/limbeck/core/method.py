"""The two abstract classes, and the values that pass between a method and the engine."""

from __future__ import annotations

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.rng import Draws, generator
from limbeck.errors import UsageError

if TYPE_CHECKING:
    from limbeck.core.task import Task
    from limbeck.core.updates import Phase
    from limbeck.core.views import Side


@dataclass(frozen=True)
class Mean:
    """A term whose natural average is not over samples.

    Its value is `sum / count`, with the count of the whole step.
    """

    sum: Tensor
    count: Tensor | float


@dataclass(frozen=True)
class Given:
    """A term that is a ready gradient, by parameter name: {"parts.weigh.0.weight": tensor}.

    `value` is only logged.
    """

    gradient: Mapping[str, Tensor]
    value: Tensor | None = None


Term = Tensor | Mean | Given
Rng = Callable[..., Any]  # rng(name) -> torch.Generator; rng(name, index) -> Draws


@dataclass(frozen=True, slots=True)
class Clock:
    """Where in a run this is; all randomness is a function of it.

    Micro-batch m of process r of W has n = m * W + r.
    """

    seed: int
    stage: str
    step: int
    steps: int
    steps_per_epoch: int
    phase: str = ""
    repeat: int = 0
    n: int = 0
    of: int = 1  # micro-batches in a step, over all processes
    stride: int = 1  # processes
    draw: int = 0  # number of the batch since the fit began
    batch: int = 1  # samples of a step

    @property
    def epoch(self) -> int:
        """Whole epochs before this step."""
        return self.step // self.steps_per_epoch

    @property
    def epochs(self) -> int:
        """Epochs of the fit, rounded up."""
        return -(-self.steps // self.steps_per_epoch)

    @property
    def fraction(self) -> float:
        """How far the fit is: 0 at the first step, 1 at the last."""
        return self.step / max(1, self.steps - 1)

    @overload
    def rng(self, name: str) -> torch.Generator: ...
    @overload
    def rng(self, name: str, index: Tensor) -> Draws: ...
    def rng(self, name: str, index: Tensor | None = None) -> torch.Generator | Draws:
        """A generator seeded by place and name.

        With sample numbers (B,), draws for each sample that do not depend on n.
        """
        place = (self.seed, self.stage, self.step, self.phase, self.repeat)
        if index is None:
            return generator(*place, self.n, name)
        return Draws(index, *place, name)


@dataclass(frozen=True)
class Facts:
    """What parts may be sized by; classes and labels (N,) are None where they are not known."""

    samples: int
    classes: int | None
    steps: int
    steps_per_epoch: int
    labels: Tensor | None = None


@dataclass
class Result:
    """What a method gives: one of the first six, and the log (a row per logged step).

    `facts` is what result.json says.
    """

    model: nn.Module | None = None
    data: Any = None
    sampler: Callable[..., Tensor] | None = None
    policy: Any = None
    scores: Mapping[str, float] | None = None
    report: Mapping[str, Any] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def number(
    default: float,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Any:
    """A numeric field and its range.

    above < value, least <= value, value < below, value <= most.
    """
    return field(
        default=default, metadata={"above": above, "least": least, "below": below, "most": most}
    )


_SIGNS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "above": ("above", lambda v, b: v > b),
    "least": ("at least", lambda v, b: v >= b),
    "below": ("below", lambda v, b: v < b),
    "most": ("at most", lambda v, b: v <= b),
}


def _fits(value: Any, kind: Any) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        return len(kinds) == len(value) and all(
            _fits(v, k) for v, k in zip(value, kinds, strict=True)
        )
    if kind is float:
        return isinstance(value, float) or (type(value) is int and abs(value) < 2**1000)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


_WORDS = {float: "a number", int: "a whole number", bool: "True or False", str: "a text"}


def _told(kind: Any) -> str:
    """What a value of a type is, for a sentence."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_told, args))
    if kind is types.NoneType:
        return "None"
    return _WORDS.get(kind) or str(kind if origin else getattr(kind, "__name__", kind))


def check_fields(owner: Any) -> None:
    """Raise UsageError for the first field whose value has the wrong type or is out of range."""
    kinds = typing.get_type_hints(type(owner))
    for f in dataclasses.fields(owner):
        value, kind = getattr(owner, f.name), kinds[f.name]
        if not _fits(value, kind):
            shown = repr(value)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise UsageError(
                f"{type(owner).__name__}.{f.name} is {shown}; it must be {_told(kind)}"
            )
        for sign, (word, holds) in _SIGNS.items():
            bound = f.metadata.get(sign)
            if bound is not None and value is not None and not holds(value, bound):
                raise UsageError(
                    f"{type(owner).__name__}.{f.name} is {value}; it must be {word} {bound}"
                )


class Method(ABC):
    """One paper.

    Published methods are frozen dataclasses of plain values with the paper's defaults; they are
    final.
    """

    card: ClassVar[Card]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        published = [b.__name__ for b in cls.__mro__[1:] if "card" in b.__dict__]
        if published:
            raise TypeError(
                f"{published[0]} is a published method and final: wrap it (a field `of`), do not "
                "inherit from it"
            )

    def __post_init__(self) -> None:
        check_fields(self)

    def asks(self) -> tuple[str, ...]:
        """What it needs, as its card says.

        Overridden by what has a method inside it, and where a teacher's graph is needed.
        """
        card = getattr(self, "card", None)
        return card.needs if card else ()

    @abstractmethod
    def run(self, task: Task) -> Result:
        """Do what the paper does, on this task, inside the current run."""


class Objective(Method):
    """A method that is one fit: it answers with named terms, and changes nothing while it does.

    `terms` is required; the hooks below have a do-nothing default.
    """

    @abstractmethod
    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> Mapping[str, Term]:
        """The weighted terms by name; scalars in float32 or wider.

        The term on true labels is called `label`.
        """

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """Projectors, banks, critics: made once.

        From a first look at a few samples, in eval mode without gradient.
        """
        return nn.Module()

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        """What student and teacher get to see: crops, masks, noise; draws only from `rng`."""
        return batch, batch

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        """For each `Mean` term its count in this micro-batch, from the batch alone."""
        return {}

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> Mapping[str, Tensor]:
        """What `after_step` needs: small, detached; rows along the first dimension."""
        return {}

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        """Move what a paper moves without gradient: once a step, and after each phase that looks.

        `seen` is joined over micro-batches and processes.
        """

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        """What ships: the student, or it sliced, quantised, with a head or a projector."""
        return student

    def update(self) -> tuple[Phase, ...]:
        """The phases of a step; by default one, on student and parts, down the sum of the terms."""
        from limbeck.core.updates import Phase

        return (Phase(),)

    def run(self, task: Task) -> Result:
        """One fit of a fresh student on the task's training set."""
        from limbeck.core.engine import fit
        from limbeck.core.run import current

        student, teacher = current().student(task), task.the_teacher()
        fitted = fit(self, student, teacher, task.batches(), name="fit", task=task)
        return Result(model=self.deliver(fitted.student, fitted.parts), log=fitted.log)
