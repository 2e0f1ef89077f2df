"""What every teacher is: a value that `attach` makes into the live one of a fit."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from limbeck.core.data import Batch
from limbeck.core.method import Clock
from limbeck.core.views import Side
from limbeck.errors import UsageError


@dataclass(frozen=True)
class Setting:
    """What a fit tells its teacher.

    Where taps lie, how raw inputs are read, on which device and precision, whether a graph is
    wanted.
    """

    paths: Mapping[str, Any] = field(default_factory=dict)
    reader: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    graph: bool = False

    def member(self, k: int, of: int) -> Setting:
        """The setting of the k-th member of a crowd; in tuples each member has its own."""

        def pick(value: Any) -> Any:
            if not isinstance(value, tuple):
                return value
            if len(value) != of:
                raise UsageError(
                    f"a crowd of {of} teachers was given {len(value)} paths or readers; give one "
                    f"for all, or a tuple of {of}"
                )
            return value[k]

        return Setting(
            {n: pick(p) for n, p in self.paths.items()},
            pick(self.reader),
            self.device,
            self.autocast,
            self.graph,
        )


class Teacher(ABC):
    """Gives a side for each batch.

    What it gives and how it moves is all that differs; methods do not know which it is.
    """

    _asked: set[str]

    def attach(self, setting: Setting) -> Self:
        """A live copy for one fit; the value itself stays as it is."""
        live = copy.copy(self)
        live._asked = set()
        live._open(setting)
        return live

    def _open(self, setting: Setting) -> None:
        return None

    @abstractmethod
    def side(self, batch: Batch, clock: Clock) -> Side:
        """The view of this batch."""

    def begin(self, step: Any) -> None:
        """Take from the student and its parts what a moving teacher starts from.

        Asked before the parts are built (the step has none yet), and after.
        """

    def check(self, table: Any) -> None:
        """Refuse a table that is not the one its answers were stored for."""

    def before_step(self, step: Any, clock: Clock) -> None:
        """Move before a step's views are taken."""

    def after_step(self, step: Any, clock: Clock) -> None:
        """Move after a step; settle the plans of early exit."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that must be stored to go on exactly."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""

    def close(self) -> None:
        """Leave the models as they were."""

    def identity(self) -> str:
        """A digest of what this teacher knows, for a run's identity."""
        return type(self).__name__

    @property
    def asked(self) -> set[str]:
        """All entries that were asked of it."""
        return self._asked

    @property
    def repeats(self) -> bool:
        """Whether one view may serve all phases of a step."""
        return False
