"""The leaderboard: the classification methods on one grid of small tasks, each beside KD.

A cell is a world with a pair of models. In each, a method's few settings are tried on `valid` with
one seed, and the best of them is run on `test` with others, the same for all methods, so that
differences to KD are paired. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from limbeck import registry
from limbeck.bench.arms import Job
from limbeck.bench.trial import defined, keys
from limbeck.bench.trials._shared import SHARED
from limbeck.core.card import call

__all__ = ["CELLS", "LEFT_OUT", "SEEDS", "Cell", "contenders", "definition", "jobs_of", "settings"]

SEEDS = range(4000, 4004)
"""What is reported: no trial has these seeds."""

TUNING_SEED = 1
_MOST = 4  # settings that are tried of a method
_BUDGET = ("epochs", "steps", "batch")  # words of a setting that would give it another budget

LEFT_OUT = {
    "aem": "it distils attention over the instances of a bag",
    "l2d": "it is for several labels of a picture",
    "masked_counterfactual_ft": "it tunes a trained student again, on biased data",
    "mekd": "it is for a teacher that is only asked from outside, and learns a generator",
    "unic": "it is for several teachers",
}
"""Vision methods that are for something else than one teacher and one label, with the reason."""


@dataclass(frozen=True)
class Cell:
    """One task of the grid.

    Attributes:
        name: as in "digits, thinner".
        world: with its options.
        pair: how the student differs from the teacher, in words.
        epochs: of each fit.
    """

    name: str
    world: str
    pair: str
    epochs: int


_PAIRS = {
    "thinner": (
        "cnn-large",
        "cnn-small",
        "the same family, 4, 6 and 8 channels for 32, 64 and 128",
    ),
    "shallower": ("resnet-large", "resnet-small", "7 layers for 13, a quarter as wide"),
    "across": ("cnn-large", "vit-small", "a transformer taught by a convolutional network"),
}
_WORLDS = {"digits": ("digits({})", 50), "fashion": ("fashion(size='14x14', {})", 7)}

CELLS = tuple(
    Cell(f"{world}, {name}", text.format(f"teacher='{t}', student='{s}'"), told, epochs)
    for world, (text, epochs) in _WORLDS.items()
    for name, (t, s, told) in _PAIRS.items()
)


def contenders() -> Iterator[str]:
    """The methods of the grid: those of vision that give a model and are not in `LEFT_OUT`."""
    for entry in registry.cards("vision"):
        if entry.card.gives == "model" and entry.card.key not in LEFT_OUT:
            yield entry.card.key


def settings(arm: str) -> tuple[str, ...]:
    """What is tried of an arm: what its trial tries, in the grid's budget; else two rates."""
    if arm in SHARED:
        return SHARED[arm]
    usual = (f"{arm}()", f"{arm}(lr_factor=0.5)")
    if arm not in keys():
        return usual
    tried = defined(arm)[-1].trial.settings[arm]
    own = tuple(s for s in tried if not any(word in call(s)[1] for word in _BUDGET))
    return own[:_MOST] or usual


def jobs_of(cell: Cell, arm: str, setting: str, on: str) -> list[Job]:
    """The runs of one setting in a cell, for choosing ("valid") or to be reported ("test")."""
    seeds = (TUNING_SEED,) if on == "valid" else SEEDS
    budget = (("epochs", cell.epochs),)
    return [Job(arm, setting, cell.world, budget, seed, "score", on) for seed in seeds]


def definition(arm: str) -> str:
    """A digest of what decides an arm's rows: cells, seeds and settings."""
    facts = (CELLS, SEEDS, TUNING_SEED, settings(arm))
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
