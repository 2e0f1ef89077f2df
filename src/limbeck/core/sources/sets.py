"""Labelled samples as the three sets of a task, and columns brought to one scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.sources.specs import data_of
from limbeck.core.sources.split import hold_out, split
from limbeck.core.sources.tables import Loaded
from limbeck.errors import UsageError

__all__ = ["LISTED", "Sets", "Standardise", "parts", "told"]

Sets = dict[str, tuple[Tensor, Tensor]]
HELD_OUT = 0.15
LISTED = "the run's folder lists them in split.json"


class Standardise(nn.Module):
    """Columns brought to mean 0 and deviation 1: (B, F) -> (B, F).

    Args:
        mean: of each column (F,).
        std: of each column (F,), above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def of(cls, x: Tensor) -> Standardise:
        """By the columns of x (N, F); those that are constant are only shifted."""
        wide = x.double()
        constant = wide.amax(0) == wide.amin(0)
        std = torch.where(constant, 1.0, wide.std(0, correction=0))
        return cls(wide.mean(0).float(), std.float())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x.device)) / self.std.to(x.device)

    def extra_repr(self) -> str:
        return f"{len(self.mean)} columns"


def told(data: Any) -> str:
    """What the data were, without the folders of a path: whoever gets the student reads it."""
    if not isinstance(data, str | Path):
        return type(data).__name__
    found = data_of(str(data))
    place = Path(found.name)
    if found.kind == "sklearn" or (found.kind == "hf" and not place.is_dir()):
        return found.text
    return ("hf:" if found.kind == "hf" else "") + place.resolve().name


def parts(whole: Loaded, apart: Loaded | None) -> tuple[Sets, str | None, dict[str, list[int]]]:
    """The sets train, valid and test, with samples held out for those that were not given.

    Args:
        whole: what was given as data, perhaps in parts.
        apart: what was given as the test set.

    Returns:
        x and y of each; a sentence on what was held out, if anything was; and by set the numbers,
        within the training samples as they were given, of those that were cut.

    Raises:
        UsageError: two test sets, or too few samples to hold any out.
    """
    rows = dict(whole.rows) or {"train": torch.arange(len(whole.y))}
    if apart is not None and "test" in rows:
        raise UsageError("the data have a part 'test', and a test set was given too; leave one out")
    train = rows["train"]
    lacking = [n for n in ("valid", "test") if n not in rows and not (n == "test" and apart)]
    y = whole.y[train]
    if len(lacking) == 2:
        cuts: tuple[Tensor, ...] = split(y, (1 - 2 * HELD_OUT, HELD_OUT, HELD_OUT))
    else:
        cuts = hold_out(y, HELD_OUT) if lacking else ()
    cut = dict(zip(("train", *lacking), cuts, strict=False))
    rows |= {name: train[numbers] for name, numbers in cut.items()}
    sets = {name: (whole.x[numbers], whole.y[numbers]) for name, numbers in rows.items()}
    if apart is not None:
        chosen = apart.rows.get("test", torch.arange(len(apart.y)))
        sets["test"] = (apart.x[chosen], apart.y[chosen])
    for name, (_, labels) in sets.items():
        if not len(labels):
            raise UsageError(
                f"{len(train)} samples are too few to hold any out as '{name}'; each class needs "
                "three or more"
            )
    return sets, _said(sets, lacking), {name: numbers.tolist() for name, numbers in cut.items()}


def _said(sets: Sets, lacking: list[str]) -> str | None:
    if not lacking:
        return None
    counts = ", ".join(f"{len(y)} {name}" for name, (_, y) in sets.items())
    share = f"{HELD_OUT:.0%}".replace("%", " %")
    if len(lacking) == 2:
        return (
            f"no test set was given, so {share} of the samples were held out for it, and {share} "
            f"as valid: {counts}; {LISTED}"
        )
    what = "test set" if lacking == ["test"] else "valid set"
    return (
        f"no {what} was given, so {share} of the training samples were held out: {counts}; {LISTED}"
    )
