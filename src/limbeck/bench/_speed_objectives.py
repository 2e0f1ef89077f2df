"""Vision objectives alone, forward and backward, on sides that show fixed tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bench._speed_peers import peer_of
from limbeck.bench._speed_text import Way, back, in_turn
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts, Method, Objective
from limbeck.core.rng import generator
from limbeck.core.run import Run
from limbeck.core.step import value_of
from limbeck.core.views import Fixed, Lazy
from limbeck.errors import Missing, nearest
from limbeck.registry import Entry, cards, get, make

WHY = "only what it shows is here"
CLOCK = Clock(0, "fit", 0, 10, 5)
SECONDS, MOST = 0.3, 20  # of one objective, and runs of each of its ways at most
# What cannot be measured on fixed tensors, beside what looks at models again or at their weights.
NAMED = {
    "ab": "its stages are read before their ReLU, which modules must have",
    "dml": "it goes through peers, which are networks",
    "fsp": "its first stage, of layers alone, is a fit of its own",
    "ft": "its student's stage goes through a paraphraser that a first stage trains",
    "ofd": "its stages are read before their ReLU, which modules must have",
    "simkd": "it takes the teacher's classifier, which a tap must name",
    "sskd": "it turns pictures, and has heads that a first stage trains",
    "mekd": "its terms go through a generator and a critic of its own",
    "takd": "it minimises what kd does, at each edge of its chain",
}


@dataclass(frozen=True)
class Sizes:
    """Samples B, classes C, width D and side of the last map, samples of the set, labels of one."""

    batch: int = 64
    classes: int = 1000
    width: int = 512
    grid: int = 7
    samples: int = 50_000
    labels: int = 4

    def draw(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers, always the same under a name."""
        return torch.randn(*shape, generator=generator(0, "speed", name))


class Shelf(Fixed):
    """A side of fixed tensors; its module is a linear head on the embedding."""

    _head: nn.Module

    @property
    def model(self) -> nn.Module:
        """The head."""
        return self._head


def stages_of(key: str, method: Method, sizes: Sizes) -> dict[str, Objective]:
    """What a method of several fits minimises in each, by the stage's name.

    Raises:
        Missing: its stages are not known here.
    """
    file: Any = import_module(get(key).__module__)
    m: Any = method
    if isinstance(method, Objective):
        return {"": method}
    known: dict[str, Callable[[], dict[str, Objective]]] = {
        "ban": lambda: {"": file.Generation(m)},
        "churn_distill": lambda: {"": file.Mixed(0.5, 0.5)},
        "fitnets": lambda: {name: file.Stage(name, m) for name in ("hint", "kd")},
        "l2d": lambda: {"": file.Labelled(m.label, m.mld, m.cd, m.id)},
        "pad": lambda: {name: file.Stage(name, m) for name in ("l2", "pad")},
        "tfkd": lambda: {"": file.Taught(m)},
        "nd_loss": lambda: {"": file.Added(m, sizes.draw("means", sizes.classes, sizes.width))},
    }
    if key not in known:
        raise Missing("it makes its fits itself, and what they minimise is not known here")
    return known[key]()


@dataclass(frozen=True)
class Desk:
    """One objective with parts, sides and a batch: what it is asked, as often as one likes."""

    key: str
    objective: Objective
    sizes: Sizes
    clock: Clock = CLOCK
    leaves: list[Tensor] = field(default_factory=list)  # of the student, that were asked for

    @cached_property
    def batch(self) -> Batch:
        """Its labels: class numbers (B,), or some of several (B, C)."""
        z, labels = self.sizes, self.facts.labels
        assert labels is not None
        index = torch.randperm(z.samples, generator=generator(0, "speed", "index"))[: z.batch]
        y = labels[index]
        if self.key == "l2d":
            y = torch.zeros(z.batch, z.classes, dtype=torch.long)
            drawn = z.draw("several", z.batch, z.classes).topk(z.labels, 1).indices
            y.scatter_(1, drawn, 1)
        return Batch(x=torch.zeros(z.batch, 1), y=y, index=index)

    @cached_property
    def facts(self) -> Facts:
        """Those of a set of so many samples."""
        z = self.sizes
        numbers = torch.arange(z.samples) % z.classes
        return Facts(z.samples, z.classes, self.clock.steps, self.clock.steps_per_epoch, numbers)

    def side(self, name: str, members: int = 2) -> Shelf:
        """The student's side, whose tensors take a gradient, or the teacher's."""
        z, student = self.sizes, name == "student"
        rows = z.batch * (4 if self.key == "sla" else 1)  # it sees four versions of a picture
        labelled = (z.classes,) if self.key == "l2d" else ()  # an embedding for each label

        def made(entry: str, *shape: int) -> Tensor:
            x = z.draw(f"{name} {entry}", *shape)
            if student:
                self.leaves.append(x.requires_grad_())
            return x

        def blocks() -> list[Tensor]:  # the four stages of a ResNet
            halvings = range(3, -1, -1)
            shapes = [(z.width >> k, z.grid << k, z.grid << k) for k in halvings]
            return [made(f"block {i}", z.batch, *shape) for i, shape in enumerate(shapes)]

        last = (z.batch, z.width, z.grid, z.grid)
        entries = Lazy(
            logits=lambda: made("logits", rows, z.classes),
            embedding=lambda: made("embedding", rows, *labelled, z.width),
            feature=lambda: made("feature", *last),
            mid=lambda: made("mid", *last),
            blocks=blocks,
            attention=lambda: made("attention", z.batch, 1, z.grid**2),
            members=lambda: [self.side(f"{name} {k}", 0) for k in range(members)],
        )
        shelf = Shelf(name, lambda: entries, self.batch, set(), WHY)
        shelf._head = nn.Linear(z.width, z.classes)
        return shelf

    @cached_property
    def sides(self) -> tuple[Shelf, Shelf]:
        """Student and teacher."""
        return self.side("student"), self.side("teacher")

    @cached_property
    def parts(self) -> Any:
        """What the objective builds."""
        torch.manual_seed(0)
        with Run(device="cpu"), torch.no_grad():
            return self.objective.build(*self.sides, self.batch, self.facts)

    def value(self) -> Tensor:
        """The sum of the terms, ()."""
        terms = self.objective.terms(self.parts, *self.sides, self.batch, self.clock)
        return sum((value_of(n, v, 1, {}) for n, v in terms.items()), torch.zeros(()))

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        """What is measured beside each other, each giving the value: torchdistill's, and this."""
        self.value()  # makes parts and tensors
        there = peer_of(self)
        return {**({"torchdistill": there} if there else {}), "limbeck": self.value}


def why_not(entry: Entry) -> str:
    """Why an objective cannot be measured on fixed tensors; empty where it can."""
    looks = {need.rpartition(":")[2] for need in entry.card.needs} & {"again", "weights"}
    if looks:
        return "it looks at the models themselves, not only at what they show"
    return NAMED.get(entry.card.key, "")


def asked(keys: Sequence[str]) -> list[Entry]:
    """The cards of vision's methods, or of some.

    Raises:
        Missing: there is none of such a key.
    """
    there = {entry.card.key: entry for entry in cards(room="vision")}
    for key in keys:
        if key not in there:
            raise Missing(f"no vision method is called {key!r}{nearest(key, there)}")
    return [there[key] for key in keys or there]


def desks(key: str, sizes: Sizes) -> dict[str, Desk]:
    """A method's objectives, by what their rows are called.

    Raises:
        Missing: it cannot be measured on these sides.
    """
    found = stages_of(key, make(key), sizes)
    return {f"{key} {stage}".strip(): Desk(key, o, sizes) for stage, o in found.items()}


def measured(desk: Desk, times: int) -> dict[str, tuple[float, float]]:
    """Seconds and bytes of each way's forward and backward pass, in turn."""
    ways: Mapping[str, Callable[[], Tensor]] = desk.ways()

    def run(way: Callable[[], Tensor]) -> None:
        back(way())

    runs: dict[str, Way] = {name: partial(run, way) for name, way in ways.items()}
    for first in runs.values():  # what is made once is no cost of a step
        first()
    start = time.perf_counter()
    for again in runs.values():
        again()
    short = int(SECONDS / (time.perf_counter() - start))  # what is short is measured more often
    return in_turn(runs, min(max(times, short), MOST), [*desk.leaves, *desk.parts.parameters()])


def told(
    keys: Sequence[str], quick: bool, sizes: Sizes | None = None
) -> Iterator[tuple[str, Mapping[str, float], Mapping[str, float], str]]:
    """Rows: name, seconds, bytes, and why nothing was measured (else empty)."""
    z, times = sizes or Sizes(), 1 if quick else 3
    for entry in asked(keys):
        key, why = entry.card.key, why_not(entry)
        if why:
            yield key, {}, {}, why
            continue
        try:
            for name, desk in desks(key, z).items():
                found = measured(desk, times)
                seconds = {way: pair[0] for way, pair in found.items()}
                yield name, seconds, {way: pair[1] for way, pair in found.items()}, ""
        except Missing as error:
            yield key, {}, {}, str(error)
