"""A run that ends after the first step of a fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from limbeck.check.asked import is_given
from limbeck.check.look import weights_of
from limbeck.core.passes import Passes
from limbeck.core.run import Run
from limbeck.core.task import Task

__all__ = ["Enough", "First", "Short"]


@dataclasses.dataclass
class First:
    """The first step of a fit.

    Attributes:
        terms: each term's value.
        before: student's and parts' tensors, by name, before the step.
        after: the same after it.
    """

    terms: dict[str, float] = dataclasses.field(default_factory=dict)
    before: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    after: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


class Enough(BaseException):
    """Ends a run of which enough was seen."""


class Short(Run):
    """A run in memory that ends after the first step of a fit."""

    def __init__(self, task: Task, seed: int, taught: bool) -> None:
        super().__init__(task, seed, device="cpu", on_fit=self._begin)
        self.first = First()
        self._given, self._taught = task, taught
        self._fit: Passes | None = None

    def _begin(self, passes: Passes) -> None:
        if self._fit is None and (not self._taught or is_given(passes.teacher, self._given)):
            self._fit = passes
            self.first.before = weights_of(passes.step)

    def log(self, row: Mapping[str, Any]) -> None:
        """The row of the first step is written when it is over."""
        if self._fit is not None and "terms" in row:
            self.first.terms = dict(row["terms"])
            self.first.after = weights_of(self._fit.step)
            raise Enough
