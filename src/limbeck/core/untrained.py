"""A teacher that has yet to be trained on the task's own data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from torch import nn

from limbeck.core.data import Batch
from limbeck.core.files import digest_tensors
from limbeck.core.method import Clock
from limbeck.core.rng import globals_kept, seed_globals
from limbeck.core.teacher import Setting, Teacher
from limbeck.core.views import Side
from limbeck.errors import UsageError


@dataclass(eq=False)
class Untrained(Teacher):
    """A factory whose model `limbeck.run` trains on `train` first, in the stage `teacher`.

    Args:
        make: gives the module, with the task's number of classes.
        name: of the model, for a sentence.
        why: half a sentence: why it is trained ("it has 1000 classes and the data have 10").
    """

    make: Callable[[], nn.Module]
    name: str = "teacher"
    why: str = "it has no weights"

    def new(self) -> nn.Module:
        """The module before training: always the same, whatever the run's seed."""
        with globals_kept():
            seed_globals("teacher", self.name)
            return self.make()

    def _open(self, setting: Setting) -> NoReturn:
        raise UsageError(
            f"the teacher '{self.name}' is not trained yet ({self.why}); limbeck.run trains it "
            "first"
        )

    def side(self, batch: Batch, clock: Clock) -> Side:
        self._open(Setting())

    def identity(self) -> str:
        return f"untrained {digest_tensors(self.new().state_dict())}"
