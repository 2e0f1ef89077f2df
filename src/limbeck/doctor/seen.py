"""All that the questions are answered from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from limbeck.core.card import parse_needs
from limbeck.core.method import Method
from limbeck.core.task import Task
from limbeck.doctor import limits
from limbeck.doctor.feed import Better, Order
from limbeck.doctor.probe import Tried
from limbeck.doctor.rates import Alone
from limbeck.doctor.records import Records, Row
from limbeck.doctor.sides import Answers
from limbeck.doctor.words import Finding
from limbeck.errors import UsageError

Place = tuple[str, str]  # side (teacher, student, alone), set (train, held)


@dataclass(frozen=True)
class Tapped:
    """One tap: the shapes of a sample's features on both sides, and their likeness."""

    name: str
    teacher: tuple[int, ...] = ()
    student: tuple[int, ...] = ()
    cka: float | None = None
    error: str = ""


@dataclass
class Seen:
    """All that is known; what could not be measured is missing, and `faults` says why."""

    key: str
    method: Method | None = None
    task: Task | None = None
    records: Records | None = None
    classes: int = 0
    steps: int = 0  # of a short fit
    samples: dict[str, int] = field(default_factory=dict)
    held: str = ""  # the name of the set of held-out samples, where it is known
    answers: dict[Place, Answers] = field(default_factory=dict)
    told: dict[Place, float] = field(default_factory=dict)  # accuracies that records give
    scored: dict[str, float] = field(default_factory=dict)  # by side, where no accuracy is meant
    errors: dict[str, float] = field(default_factory=dict)  # their standard errors, where known
    score_name: str = ""
    score_higher: bool = True
    rows: Sequence[Row] = ()
    tried: Tried | None = None
    slower: Tried | None = None  # the same at a tenth of the rate
    alone: Alone | None = None
    heart: tuple[int, float] | None = None
    taps: list[Tapped] = field(default_factory=list)
    trained_by_run: bool = False  # the run that is proposed trains the teacher, if none is kept
    inputs: Better | None = None
    scales: int = 0  # of the inputs that were tried beside the one given
    softmaxed: bool = False  # what is read as the teacher's logits are probabilities
    order: Order | None = None
    faults: dict[str, str] = field(default_factory=dict)

    def score(self, side: str, where: str) -> float | None:
        """The accuracy of a side on a set: measured here, else as the records have it."""
        found = self.answers.get((side, where))
        return self.told.get((side, where)) if found is None else found.accuracy

    def share(self, where: str) -> float | None:
        """The share of the most frequent class of a set; None where it is not known."""
        for (_, place), a in self.answers.items():
            if place == where:
                return float(torch.bincount(a.y).max()) / len(a)
        told = self.records.appraisal if self.records and where == "held" else {}
        counts = told.get("sides", {}).get("student", {}).get("per_class_count")
        return max(counts) / sum(counts) if counts and sum(counts) else None

    @property
    def held_out(self) -> str:
        """The samples that scores are of, in words."""
        return f"held-out samples of '{self.held}'" if self.held else "held-out samples"

    @property
    def raised(self) -> bool:
        """Whether the run trained its teacher itself, with its own budget."""
        return self.records is not None and self.records.teacher.exists()

    def count(self, where: str) -> int:
        """Samples behind a score."""
        each = [len(a) for (_, place), a in self.answers.items() if place == where]
        return max(each, default=self.samples.get(where, 0))

    @property
    def misread(self) -> bool:
        """Whether the teacher is fed or read wrongly, so that what it taught counts for nothing."""
        return self.inputs is not None or self.order is not None or self.softmaxed

    @property
    def at_chance(self) -> bool:
        """Whether the teacher, fed and read rightly, is at chance on held-out samples."""
        t, share = self.score("teacher", "held"), self.share("held")
        if t is None or share is None or self.misread:
            return False
        return t < min(limits.CHANCE * share, share + limits.ABOVE)

    def needs(self) -> set[str]:
        """What the method asks of the teacher, by its card and as it did."""
        asked = set(self.tried.asked) if self.tried else set()
        card = getattr(self.method, "card", None)
        for need in parse_needs(card.needs) if card else ():
            asked |= {n.name for some in need for n in some if n.side in ("both", "teacher")}
        return asked

    def unknown(self, name: str, otherwise: str) -> Finding:
        """What cannot be said of the teacher, with the first reason there is."""
        why = self.faults.get("teacher") or self.faults.get("task") or otherwise
        return Finding(name, "unknown", f"not known: {why}")

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Keep the sentence of what could not be measured, and go on without it."""
        try:
            yield
        except (UsageError, RuntimeError) as error:
            self.faults.setdefault(name, first_line(error))


def first_line(error: Exception) -> str:
    """An error in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
