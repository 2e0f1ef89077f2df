"""What a user brings: teacher, student, data, score and budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from limbeck.core.arrays import as_tensors
from limbeck.core.data import Epochs, Table, reader_of
from limbeck.core.rng import globals_kept, seed_globals
from limbeck.core.score import Score, accuracy
from limbeck.core.teacher import Teacher
from limbeck.core.teachers import Frozen, Nobody
from limbeck.errors import Missing, UsageError, nearest

Schedule = Literal["constant", "cosine", "linear", "step"]
SCHEDULES = ("constant", "cosine", "linear", "step")
OPTIMISERS = ("adamw", "adam", "sgd", "rmsprop")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Optimiser:
    """An optimiser and its settings; `schedule` None follows the budget's; `maximise` climbs."""

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    maximise: bool = False
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise UsageError(
                f"the optimiser '{self.name}' is not known{nearest(self.name, OPTIMISERS)}"
            )
        if not self.lr > 0:
            raise UsageError(f"the learning rate is {self.lr}; it must be above 0")

    def make(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over these parameters."""
        common: dict[str, Any] = {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "maximize": self.maximise,
        }
        if self.name == "sgd":
            return torch.optim.SGD(params, momentum=self.momentum, nesterov=self.nesterov, **common)
        if self.name == "rmsprop":
            return torch.optim.RMSprop(params, momentum=self.momentum, **common)
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        return kind(params, betas=self.betas, **common)


@dataclass(frozen=True)
class Budget:
    """How long and how a fit trains.

    Give `steps` or `epochs`; `batch` counts all samples of a step, over micro-batches and
    processes.
    """

    steps: int | None = None
    epochs: float | None = None
    batch: int = 64
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = "cosine"
    warmup: float = 0.0  # fraction of the run
    clip: float | None = None  # norm of the gradient of all that a phase trains
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1
    patience: int | None = None  # evaluations on valid without gain before stopping
    keep: Literal["last", "best"] = "last"  # best by the score on valid
    evaluate: int | None = None  # steps between evaluations on valid; None is an epoch
    workers: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise UsageError(
                f"the budget gives both {self.steps} steps and {self.epochs} epochs; give one of "
                "them"
            )
        for name in ("steps", "epochs", "batch", "accumulate", "patience", "evaluate", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"the budget's {name} is {value}; it must be above 0")
        for name, known in (
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("keep", ("last", "best")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"the budget's {name} '{getattr(self, name)}' is not "
                    f"known{nearest(getattr(self, name), known)}"
                )
        if not 0 <= self.warmup <= 1:
            raise UsageError(
                f"the budget's warmup is {self.warmup}; it is a fraction of the run, from 0 to 1"
            )

    def total(self, steps_per_epoch: int) -> int:
        """Steps of one fit."""
        if self.steps is not None:
            return self.steps
        return max(1, round((10 if self.epochs is None else self.epochs) * steps_per_epoch))

    def part(self, share: float) -> Budget:
        """The same with a share of its steps or epochs."""
        if self.steps is not None:
            return replace(self, steps=max(1, round(share * self.steps)))
        return replace(self, epochs=share * (10 if self.epochs is None else self.epochs))

    @property
    def watches(self) -> bool:
        """Whether a fit measures itself on `valid` while it trains."""
        return self.patience is not None or self.keep == "best" or self.evaluate is not None

    def unwatched(self) -> Budget:
        """The same without evaluation on the way: for stages that the score cannot measure."""
        return replace(self, patience=None, keep="last", evaluate=None)


@dataclass
class Task:
    """What is taught to whom, on what, measured how, at what cost.

    Args:
        teacher: a `Teacher`, a module, a factory, or None.
        student: a module (copied, never changed) or a factory without arguments (called with
            seeded generators).
        train, valid, test: tensors (x, y), a Dataset of tuples or dicts, or a DataLoader over one.
            Arrays of numpy become tensors, their floats float32.
            The score is reported on `test`, without one on `valid`; nothing is selected on `test`.
        score: what is reported.
        budget: holds for each fit.
        data: further named things: unlabelled, public, clients, space, assistants, ...
        taps: {"mid": (teacher path, student path)}: where in each model a view entry is read.
        readers: {"teacher": f, "student": g}: from a batch's raw x to what the side's model takes.
        classes: the number of classes; from the labels when None.
        name: for the names of folders.
        notes: sentences on how the task was made (a split, a guess), to be said before it runs.
        about: plain facts for whoever uses the student later: what its inputs are, class names.
        split: {"train": [...], ...}: which of the given samples each set holds, where limbeck cut
            them: numbers from 0 on, or paths. A run writes it as split.json.
    """

    teacher: Any
    student: Any
    train: Any
    valid: Any = None
    test: Any = None
    score: Score = accuracy
    budget: Budget = field(default_factory=Budget)
    data: Mapping[str, Any] = field(default_factory=dict)
    taps: Mapping[str, Any] = field(default_factory=dict)
    readers: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    classes: int | None = None
    name: str = "task"
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Sequence[int | str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side in ("teacher", "student"):
            reader_of(self.readers, side)
        for name in ("train", "valid", "test"):
            setattr(self, name, as_tensors(getattr(self, name), name))
        for name, paths in self.taps.items():
            if not (isinstance(paths, tuple | list) and len(paths) == 2):
                raise UsageError(
                    f"the tap '{name}' is {paths!r}; give a pair (path in the teacher, path in "
                    "the student)"
                )
        if not isinstance(self.student, nn.Module) and not callable(self.student):
            raise UsageError(
                f"the student is a {type(self.student).__name__}; give a torch module or a factory"
            )
        self._teacher: Teacher | None = None

    def the_teacher(self) -> Teacher:
        """The teacher as a `Teacher` value, the same at each call.

        A module is frozen, None is nobody.
        """
        if self._teacher is None:
            self._teacher = as_teacher(self.teacher)
        return self._teacher

    def new_student(self, seed: int, name: str = "student") -> nn.Module:
        """A fresh student: a copy of the given module, or the factory's, drawn by (seed, name)."""
        return build_model(self.student, seed, name)

    def batches(self, name: str = "train") -> Epochs:
        """A set of this task in epochs."""
        return Epochs(self.set(name), name, self.budget.workers)

    def set(self, name: str) -> Any:
        """A set by name: train, valid, test or one of `data`."""
        source = self.set_or_none(name)
        if source is None:
            raise Missing(
                f"the task has no set '{name}'; give it as Task(..., data={{'{name}': ...}})"
            )
        return source

    def set_or_none(self, name: str) -> Any:
        """A set by name, or None."""
        return {"train": self.train, "valid": self.valid, "test": self.test, **self.data}.get(name)

    @property
    def judged(self) -> str:
        """The set that the reported score is of."""
        return "test" if self.test is not None else "valid"

    def count_classes(self) -> int | None:
        """Classes: as given, else one more than the largest label in memory."""
        if self.classes is not None:
            return self.classes
        y = None if self.train is None else Table(self.train).labels()
        return (
            int(y.max()) + 1
            if y is not None and y.dim() == 1 and not y.is_floating_point()
            else None
        )


def as_teacher(given: Any) -> Teacher:
    """A `Teacher` from a teacher, a module, a factory or None."""
    if given is None:
        return Nobody()
    if isinstance(given, Teacher):
        return given
    if isinstance(given, type):
        name = given.__name__
        more = (
            f"give an instance of it, {name}(...)"
            if issubclass(given, Teacher)
            else f"give a trained module, or limbeck.Untrained({name}) for one that is trained "
            "first"
        )
        raise UsageError(f"the teacher is the class {name}, not a model; {more}")
    if callable(given) and not isinstance(given, nn.Module):
        given = given()
        return as_teacher(given)
    if isinstance(given, nn.Module):
        return Frozen(given)
    raise UsageError(
        f"the teacher is a {type(given).__name__}; give a torch module, a factory, a Teacher or "
        "None"
    )


def build_model(given: Any, seed: int, name: str) -> nn.Module:
    """A module from a module (copied) or a factory, whose draws are a function of (seed, name)."""
    if isinstance(given, nn.Module):
        return copy.deepcopy(given)
    with globals_kept():
        seed_globals(seed, name)
        made = given()
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"the factory of the {name} gave a {type(made).__name__}; it must give a torch module"
        )
    return made
