"""How a teacher reads samples that are plain tensors, and how good it is on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from limbeck.core.data import Table
from limbeck.core.evaluate import evaluating, predict
from limbeck.core.first_look import classes_of
from limbeck.core.looking import asking
from limbeck.core.sources.sets import Sets, Standardise
from limbeck.core.teacher import Setting, Teacher
from limbeck.core.teachers import BlackBox, Cached, Frozen
from limbeck.errors import UsageError

__all__ = ["Reader", "teachers_reader"]

Reader = Callable[[Tensor], Tensor] | None

ASKED = 2000  # as many samples tell how good a teacher is


def teachers_reader(
    teacher: Teacher, sets: Sets, classes: int, scale: Standardise | None
) -> tuple[Reader, list[str]]:
    """What the teacher's samples go through, and sentences on what its answers look like.

    A trained teacher does not say whether it learned on standardised columns; valid tells.
    """
    if isinstance(teacher, BlackBox):  # it lives elsewhere and knows nothing of these columns
        return None, []
    if isinstance(teacher, Cached):
        return _cached_reader(teacher, sets, scale), []
    if not isinstance(teacher, Frozen):
        return scale, []
    if classes_of(teacher.module, sets["train"][0][:2], "the teacher") is None:
        return scale, []
    value, least = _recall(teacher.module, sets["valid"], scale), _beyond_chance(sets, classes)
    raw = value if scale is None else _recall(teacher.module, sets["valid"], None)
    if raw > max(value, least):
        told = f"{raw:.4f} on valid, {value:.4f} when they are standardised"
        return None, [f"the teacher is given the columns as they are (mean recall {told})"]
    if value > least:
        return scale, []
    return scale, [
        f"the teacher is right on valid about as often as chance (mean recall {value:.4f} for "
        f"{classes} classes); if it is not trained yet, say --pretrained no"
    ]


def _cached_reader(teacher: Cached, sets: Sets, scale: Standardise | None) -> Reader:
    """The reader that a cache was written with."""
    table = Table(sets["train"])
    for reader in (scale, None):
        with suppress(UsageError), asking(teacher, Setting(reader=reader), table):
            return reader
    return scale  # the run says what differs


def _recall(module: nn.Module, valid: tuple[Tensor, Tensor], reader: Reader) -> float:
    """The mean over classes of the share that a model gets right; by chance 1 / classes."""
    rows = torch.linspace(0, len(valid[1]) - 1, min(ASKED, len(valid[1]))).long()
    with evaluating(module):
        logits, y = predict(module, Table((valid[0][rows], valid[1][rows])), reader)
    right = (logits.argmax(-1) == y).double()
    return float(torch.stack([right[y == label].mean() for label in torch.unique(y)]).mean())


def _beyond_chance(sets: Sets, classes: int) -> float:
    """Two deviations above the mean recall that a guess has."""
    chance = 1 / classes
    return chance + 2 * math.sqrt(chance * (1 - chance) / len(sets["valid"][1]))
