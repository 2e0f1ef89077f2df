"""What is reported of a model: a number, its name and its direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from limbeck.core.tables import Batch

__all__ = ["Score", "accuracy"]


@dataclass(frozen=True)
class Score:
    """A number for a model on a data set.

    Attributes:
        name: of the number.
        higher: whether more of it is better.
        of: from all predictions: logits (N, C), y (N,) -> the number.
        each: instead of `of`, where predictions are too many to keep: from what the model shows of
            a chunk and that batch -> (sum, count), both (); the number is the quotient of their
            sums over the set.
    """

    name: str
    higher: bool
    of: Callable[[Tensor, Tensor], float] | None = None
    each: Callable[[Mapping[str, Any], Batch], tuple[Tensor, Tensor]] | None = None

    def better(self, a: float, b: float | None) -> bool:
        """Whether a beats b (anything beats None)."""
        return b is None or (a > b if self.higher else a < b)


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(-1) == y).double().mean())


accuracy = Score("accuracy", True, _accuracy)
