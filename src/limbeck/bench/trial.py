"""What a trial is: a paper's central claim, made runnable before it is run.

A file `bench/trials/ROOM/KEY.py` holds `TRIALS`, the definitions in their order; the last one is in
force. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from limbeck import registry
from limbeck.bench.trials._shared import SHARED
from limbeck.core.card import call
from limbeck.errors import Missing, UsageError

__all__ = ["SETTINGS_MOST", "TUNING_SEEDS", "Defined", "Trial", "defined", "keys"]

SETTINGS_MOST = 8
"""Settings that are tried for an arm, at most."""

TUNING_SEEDS = (1, 2)
"""Seeds of the tuning, below all that are reported."""

_FIRST_SEED = 1000
"""The first definition reports seeds from here on, the second from twice as much, and so on."""

STANDARD = ("score", "agreement", "reverse_kl")
"""Measures that every trial may name; any other is a function in its file."""


@dataclass(frozen=True)
class Trial:
    """One definition of a trial. An arm is a method, or labels alone, with its settings.

    Attributes:
        claim: the paper's central claim in the small, as one sentence.
        world: a world, with its options.
        settings: for each arm but those of `SHARED` what is tried, as "rkd(distance=25)"; among
            a method's fields may stand `lr_factor` (of the world's learning rate), `epochs`,
            `steps` and `batch`. The setting that does best on `valid` is reported. The method's
            own arm is called by its key.
        against: the arms that the claim names. It is *shown* if the method does better than each.
        beside: arms that are measured and told, and do not decide.
        measure: "score" (the world's own), "agreement" (the share of answers that are the
            teacher's), "reverse_kl" (of the student's own texts to the teacher's distribution), or
            the name of a function in the file, `f(task, result, on) -> float`, with `on` "valid" or
            "test".
        better: the direction.
        seeds: how many are reported.
        budget: of all arms, instead of the world's: `epochs`, `steps`, `batch`.
        why: what differs from the paper's own comparison, and of a later definition why the one
            before was ill-posed.
    """

    claim: str
    world: str
    settings: Mapping[str, tuple[str, ...]]
    against: tuple[str, ...]
    beside: tuple[str, ...] = ()
    measure: str = "score"
    better: Literal["higher", "lower"] = "higher"
    seeds: int = 20
    budget: Mapping[str, float] = field(default_factory=dict)
    why: str = ""

    def __post_init__(self) -> None:
        if not self.against:
            raise UsageError("a trial's 'against' is empty; name the arms that its claim names")
        if self.seeds < 12:
            raise UsageError(f"a trial reports {self.seeds} seeds; it must be 12 or more")
        for arm, tried in self.settings.items():
            if arm in SHARED:
                raise UsageError(f"the arm {arm!r} is shared by all trials; give no settings")
            if not 1 <= len(tried) <= SETTINGS_MOST:
                raise UsageError(
                    f"the arm {arm!r} has {len(tried)} settings; give 1 to {SETTINGS_MOST}"
                )
        for arm in (*self.against, *self.beside):
            if arm not in self.settings and arm not in SHARED:
                raise UsageError(f"the arm {arm!r} has no settings; give them in 'settings'")

    def tried(self, arm: str) -> tuple[str, ...]:
        """The settings of an arm."""
        return SHARED[arm] if arm in SHARED else self.settings[arm]


@dataclass(frozen=True)
class Defined:
    """A method's trial as its file defines it, in one of its definitions.

    Attributes:
        key: the method's.
        room: the method's.
        number: of the definition, from 1 on.
        trial: what it says.
        path: the file.
        measure: the function, where the measure is none of `STANDARD`.
    """

    key: str
    room: str
    number: int
    trial: Trial
    path: Path
    measure: Callable[[Any, Any, str], float] | None

    @property
    def arms(self) -> tuple[str, ...]:
        """The method's own arm, then those it is compared with."""
        return (self.key, *self.trial.against, *self.trial.beside)

    @property
    def seeds(self) -> range:
        """The seeds that are reported."""
        first = _FIRST_SEED * self.number
        return range(first, first + self.trial.seeds)

    @property
    def hash(self) -> str:
        """A digest of all that the definition says, comments and docstrings aside."""
        said = {arm: self.trial.tried(arm) for arm in self.arms}
        facts = {**asdict(self.trial), "settings": said, "number": self.number}
        text = repr(sorted(facts.items()))
        if self.measure is not None:
            text += bare(inspect.getsource(self.measure))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def bare(source: str) -> str:
    """The code of a text without comments, docstrings, layout and what only tells of it: cards."""
    tree = ast.parse(inspect.cleandoc(source) if source[:1].isspace() else source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [n for n in body if not _only_tells(n)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _only_tells(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id in ("CARD", "EXEMPT")
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def keys(room: str | None = None) -> Iterator[str]:
    """The methods that have a trial, by room and key."""
    here = Path(__file__).parent / "trials"
    for entry in registry.cards(room):
        if (here / entry.room / f"{entry.card.key}.py").is_file():
            yield entry.card.key


def defined(key: str) -> tuple[Defined, ...]:
    """All definitions of a method's trial, in their order.

    Raises:
        Missing: there is no such method, or it has no trial.
        UsageError: the file does not say what it must.
    """
    entry = registry.find(key)
    name = f"limbeck.bench.trials.{entry.room}.{key}"
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise Missing(
            f"the method {key!r} has no trial; write bench/trials/{entry.room}/{key}.py"
        ) from None
    found = []
    for number, trial in enumerate(module.TRIALS, 1):
        _check(key, trial)
        found.append(
            Defined(key, entry.room, number, trial, Path(str(module.__file__)), _of(module, trial))
        )
    return tuple(found)


def _check(key: str, trial: Trial) -> None:
    if key not in trial.settings and key not in SHARED:
        raise UsageError(f"the trial of {key!r} has no settings of {key!r} itself")
    for arm in trial.settings:
        for text in trial.settings[arm]:
            call(text)
    if key in trial.against:
        raise UsageError(f"the trial of {key!r} compares it with itself")


def _of(module: ModuleType, trial: Trial) -> Callable[[Any, Any, str], float] | None:
    if trial.measure in STANDARD:
        return None
    function = getattr(module, trial.measure, None)
    if not callable(function):
        raise UsageError(
            f"the measure {trial.measure!r} is no function of {module.__name__}; define it there, "
            f"or name one of {', '.join(STANDARD)}"
        )
    checked: Callable[[Any, Any, str], float] = function
    return checked
