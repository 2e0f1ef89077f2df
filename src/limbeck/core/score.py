"""What is reported of a model: a number, its name and its direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from limbeck.core.tables import Batch

__all__ = ["Score", "accuracy", "ccc", "concordance"]


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


def concordance(p: Tensor, y: Tensor) -> Tensor:
    """The concordance correlation coefficient of two series, from -1 to 1, each value on its own.

    2 cov / (var p + var y + (mean p - mean y)^2 + 1e-8), with biased variances; 0 where p is
    constant. Shapes: p, y (N, D) -> (D,), float32 or wider.
    """
    p, y = (z if z.dtype.itemsize > 2 else z.float() for z in (p, y))
    dp, dy = p - p.mean(0), y - y.mean(0)
    gap = (p.mean(0) - y.mean(0)).square()
    return 2 * (dp * dy).mean(0) / (dp.square().mean(0) + dy.square().mean(0) + gap + 1e-8)


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(-1) == y).double().mean())


def _ccc(values: Tensor, y: Tensor) -> float:
    wide = values.shape[-1] if values.dim() > 2 else 1
    return float(concordance(values.double().view(-1, wide), y.double().view(-1, wide)).mean())


accuracy = Score("accuracy", True, _accuracy)
ccc = Score("ccc", True, _ccc)
"""Of sequences (N, T), or (N, T, D): the concordance over all of them in a row, mean over D."""
