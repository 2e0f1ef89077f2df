"""Labels of any kind as class numbers with names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import UsageError

__all__ = ["numbered"]

FEW = 20
"""As many different labels as this are never too many."""


def numbered(
    given: Any,
    what: str,
    known: Sequence[str] | None = None,
    place: Callable[[int], str] = "sample {}".format,
) -> tuple[Tensor, list[str]]:
    """Class numbers of labels.

    Whole numbers that begin at 0, without many gaps, stand as they are. All else is numbered in its
    order, numbers by their size, texts by their letters, and keeps its names.

    Args:
        given: (N,) numbers (an array or tensor) or texts (an array or list).
        what: where they come from, for a sentence.
        known: names of the classes, of the data that came before; None for the first.
        place: says where sample i stands.

    Returns:
        Class numbers (N,), int64, and the names of the classes.

    Raises:
        UsageError: they are not one for each sample, are missing, too many to be classes, or new.
    """
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.ndim != 1:
        raise UsageError(
            f"the labels of {what} are of shape {tuple(array.shape)}; give one label for each "
            "sample, (N,)"
        )
    numbers = array if array.dtype.kind in "biuf" else _as_numbers(array)
    if numbers is None:
        texts = [str(value).strip() for value in array.tolist()]
        different = sorted(set(texts))
        names, fractions = different, False
    else:
        if not np.isfinite(numbers).all():
            row = int((~np.isfinite(numbers)).argmax())
            raise UsageError(f"the labels of {what} lack a value (the first in {place(row)})")
        texts = [_text(value) for value in numbers.tolist()]
        unique = np.unique(numbers)
        different = [_text(value) for value in unique.tolist()]
        fractions = bool((unique % 1).any())
        whole = not fractions and _stands(unique)
        names = [str(i) for i in range(int(unique[-1]) + 1)] if whole else different
    if known is None:
        _few(len(different), len(texts), fractions, what)
    names = names if known is None else list(known)
    return _places(texts, names, what, place), names


def _as_numbers(texts: NDArray[Any]) -> NDArray[Any] | None:
    """Texts as the numbers that all of them are, or None."""
    try:
        return texts.astype(np.float64)
    except (TypeError, ValueError):
        return None


def _stands(unique: NDArray[Any]) -> bool:
    """Whether ascending whole numbers are class numbers: from 0 on, half of them or more there."""
    return bool(unique[0] == 0 and unique[-1] < 2 * len(unique))


def _text(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _few(different: int, samples: int, fractions: bool, what: str) -> None:
    """Refuse what is no set of classes."""
    most = FEW if fractions else max(FEW, samples // 5)
    if different > most or different == samples > 2:
        raise UsageError(
            f"the labels of {what} hold {different} different values in {samples} samples, which "
            "are no classes; a student here learns classes (name the right column with --target, "
            "or sort the values into a few)"
        )


def _places(
    texts: list[str], names: Sequence[str], what: str, place: Callable[[int], str]
) -> Tensor:
    order = {name: i for i, name in enumerate(names)}
    for i, text in enumerate(texts):
        if text not in order:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise UsageError(
                f"{what} has the class '{text}' in {place(i)}, which the training data lack; "
                f"theirs are: {shown}"
            )
    return torch.tensor([order[text] for text in texts], dtype=torch.int64)
