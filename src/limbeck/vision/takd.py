"""TAKD - networks of sizes in between pass the teacher's knowledge down to the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from torch import nn

from limbeck.core.card import Card
from limbeck.core.data import Table, reader_of
from limbeck.core.engine import Fitted, fit
from limbeck.core.evaluate import measure, score_teacher
from limbeck.core.method import Method, Objective, Result
from limbeck.core.objectives import Labels
from limbeck.core.run import current
from limbeck.core.task import Task, build_model
from limbeck.core.teacher import Teacher
from limbeck.core.teachers import Frozen, Nobody
from limbeck.errors import Missing, UsageError, nearest
from limbeck.registry import make

CARD = Card(
    key="takd",
    title="Improved Knowledge Distillation via Teacher Assistant",
    year=2020,
    arxiv="1902.03393",
    code="https://github.com/imirzadeh/Teacher-Assistant-Knowledge-Distillation",
    kinds=("assistant", "response", "stagewise"),
    needs=("logits", "y", "data:assistants"),
    gives="model",
    world="digits",
    stages=("alone", "assistant", "student"),
    tiny={},
    departs="lam and tau are not searched for: the paper takes the best of lam in 0.05, ..., 1 and "
    "tau in 1, 2, 5, 10, 15, 20 for each edge, here they are those of `kd` unless given. The soft "
    "term is summed over classes; the authors' code averages over them, which divides lam's share "
    "by the class count. Assistants are kept at their best on valid, where there is one; the "
    "student follows the task's budget, so that it compares with other methods' students.",
)

PLAIN: dict[str, dict[int, str]] = {
    # Convolutions by their channels, "/" halves the map, "fc" stands before hidden units.
    "cifar10": {
        2: "16 / 16 /",
        4: "16 16 / 32 32 /",
        6: "16 16 / 32 32 / 64 64 /",
        8: "16 16 / 32 32 / 64 64 / 128 128 / fc64",
        10: "32 32 / 64 64 / 128 128 / 256 256 256 256 / fc128",
    },
    "cifar100": {
        2: "32 / 32 /",
        4: "32 32 / 64 64 /",
        6: "32 32 / 64 64 / 128 128",
        8: "32 32 / 64 64 / 128 128 / 256 256 / fc64",
        10: "32 32 / 64 64 / 128 128 / 256 256 256 256 / fc512",
    },
}


def plain_cnn(spec: str, in_shape: Sequence[int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """A plain network by its layers, as in PLAIN: convolutions with BatchNorm and ReLU.

    Args:
        spec: such as "16 / 16 /".
        in_shape: (C, H, W).
        classes: number of logits.
    """
    (here, height, width), layers = in_shape, list[nn.Module]()
    maps, _, hidden = spec.partition("fc")
    for word in maps.split():
        if word == "/":
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        else:
            out = int(word)
            layers += [nn.Conv2d(here, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            here = out
    layers.append(nn.Flatten())
    here *= height * width
    if hidden:
        layers += [nn.Linear(here, int(hidden)), nn.ReLU()]
        here = int(hidden)
    return nn.Sequential(*layers, nn.Linear(here, classes))


def chains(between: Sequence[Any]) -> list[tuple[Any, ...]]:
    """All 2^k ways through some of k networks `between`, in their order; the direct one is ()."""
    return [some for n in range(len(between) + 1) for some in combinations(between, n)]


def midway(own: Mapping[str, float], student: float, teacher: float) -> str:
    """The network whose own score is nearest to half-way between student and teacher."""
    return min(own, key=lambda name: abs(own[name] - (student + teacher) / 2))


def best_chain(nodes: int, teach: Callable[[tuple[int, ...], int], float]) -> tuple[int, ...]:
    """The best chain from node 0 to the last, by dynamic programming over the edges.

    Each node is taught by every earlier one, itself reached by its own best chain, and keeps the
    best: n (n - 1) / 2 trainings for n nodes, where all chains take 2^(n - 1) - 1. It finds the
    best of all if a better network of one size is never the worse teacher.

    Args:
        nodes: how many, from the largest to the smallest.
        teach: (chain, node) -> how good the node is, taught by the chain's last; more is better.
    """
    best: dict[int, tuple[int, ...]] = {0: (0,)}
    for node in range(1, nodes):
        scores = {earlier: teach(best[earlier], node) for earlier in range(node)}
        best[node] = (*best[max(scores, key=lambda earlier: scores[earlier])], node)
    return best[nodes - 1]


def of_edge(name: str, values: tuple[float, ...], k: int, edges: int) -> float:
    """The k-th of as many values as edges, or the one for all; `name` is the field's."""
    if len(values) not in (1, edges):
        told = f", or {edges}: one for each edge" if edges else " where path='best'"
        raise UsageError(f"TAKD.{name} has {len(values)} values; give one{told}")
    return values[k % len(values)]


@dataclass(frozen=True)
class TAKD(Method):
    """A student is taught by an assistant of a size in between, which the teacher taught before.

    Each edge of the chain teacher -> assistants -> student is plain KD from the network before:
    (1 - lam) CE(y, s) + lam * tau^2 KL(softmax(t / tau) || softmax(s / tau)).
    The assistants are task.data["assistants"], {name: factory}, largest first. `path` chooses:
    "midway", the one whose own score, trained on labels alone, is nearest to half-way between the
    student's and the teacher's; "all"; "none", which is `kd`; "best", by `best_chain`. A list of
    names in `assistants` goes before. "midway" among several and "best" measure on valid.

    Trained: each network of the chain in turn, afresh. Frozen: whoever teaches it. Each fit has
    the task's budget, and the run counts them all. An assistant reads inputs as the student does.
    Raises: Missing for an unknown assistant or a missing valid set; UsageError for a teacher that
    cannot be measured, or another number of lam or tau than one or one for each edge.
    Source: Mirzadeh et al., AAAI 2020, arXiv 1902.03393: equation 3 and the sections on the
    assistant's size and on longer paths; PLAIN from the authors' code.
    Relatives: `kd` is one edge; `fitnets` bridges the gap from inside.

    Example:
        >>> len(chains((8, 6, 4)))
        8
        >>> midway({"large": 0.9, "small": 0.7}, student=0.5, teacher=0.95)
        'small'
    """

    path: Literal["midway", "all", "none", "best"] = "midway"
    assistants: tuple[str, ...] = ()
    lam: tuple[float, ...] = (0.9,)  # 0 to 1; one for all edges, or one for each
    tau: tuple[float, ...] = (4.0,)  # above 0; likewise
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lam or not all(0 <= v <= 1 for v in self.lam):
            raise UsageError(f"TAKD.lam is {self.lam}; each must be from 0 to 1")
        if not self.tau or not all(v > 0 for v in self.tau):
            raise UsageError(f"TAKD.tau is {self.tau}; each must be above 0")

    def run(self, task: Task) -> Result:
        """The choice of a chain, and its edges one after the other."""
        chain = self._chain(task)
        if self.path == "best" and not self.assistants:
            return self._best(task, chain)
        teacher, result = task.the_teacher(), Result()
        for k, name in enumerate([*chain, ""]):
            stage = f"assistant/{name}" if name else "student"
            fitted = self._edge(task, teacher, name, stage, k, len(chain) + 1)
            teacher = Frozen(fitted.student)
            result = Result(model=fitted.student, log=result.log + fitted.log)
        return result

    def _chain(self, task: Task) -> Sequence[str]:
        """The assistants that teach, or those to choose from where path = "best"."""
        there = list(task.set("assistants"))
        for name in self.assistants:
            if name not in there:
                raise Missing(f"the task has no assistant {name!r}{nearest(name, there)}")
        if self.assistants or self.path == "none":
            return self.assistants
        if self.path != "midway" or len(there) < 2:
            return there
        valid = self._valid(task)
        teacher = score_teacher(task, valid, current().device)
        if teacher is None:
            raise UsageError(
                "takd chooses an assistant by the teacher's own score, but this teacher is no "
                "module with logits; name the assistants (--assistants NAME,NAME), or give "
                "path='all' (--path all)"
            )
        own, bare = {}, replace(task, taps={})
        for name in ["", *there]:
            network, stage = self._network(task, name), f"alone/{name or 'student'}"
            alone = fit(Labels(), network, Nobody(), task.batches(), name=stage, task=bare)
            own[name] = self._score(task, alone, valid)
        return [midway({name: own[name] for name in there}, own[""], teacher)]

    def _best(self, task: Task, between: Sequence[str]) -> Result:
        """The chain that dynamic programming finds; its networks are trained on the way."""
        valid, names = self._valid(task), ["teacher", *between, ""]
        fits: dict[tuple[int, ...], Fitted] = {}

        def teach(chain: tuple[int, ...], node: int) -> float:
            teacher = Frozen(fits[chain].student) if len(chain) > 1 else task.the_teacher()
            name, whose = names[node], names[chain[-1]]
            stage = f"assistant/{name}/{whose}" if name else f"student/{whose}"
            fitted = fits[(*chain, node)] = self._edge(task, teacher, name, stage)
            return self._score(task, fitted, valid) * (1 if task.score.higher else -1)

        chain = best_chain(len(names), teach)
        log = [row for end in range(2, len(chain) + 1) for row in fits[chain[:end]].log]
        return Result(model=fits[chain].student, log=log)

    def _edge(
        self, task: Task, teacher: Teacher, name: str, stage: str, k: int = 0, edges: int = 0
    ) -> Fitted:
        """One network taught by another: an assistant, or the student for ""."""
        lam, tau = of_edge("lam", self.lam, k, edges), of_edge("tau", self.tau, k, edges)
        kd = make("kd", label=round(1 - lam, 12), kd=lam, tau=tau)
        assert isinstance(kd, Objective)
        read, budget = task.readers, task.budget
        if teacher is not task.the_teacher():  # an assistant, which reads as the student does
            mine = read.get("student")
            read = {"teacher": mine, "student": mine} if mine else {}
        if name and task.valid is not None:
            budget = replace(budget, keep="best")
        edge = replace(task, taps={}, readers=read, budget=budget)
        return fit(kd, self._network(task, name), teacher, task.batches(), name=stage, task=edge)

    def _network(self, task: Task, name: str) -> nn.Module:
        """A fresh assistant, or student for ""."""
        if not name:
            return current().student(task)
        return build_model(task.set("assistants")[name], current().seed, f"assistant/{name}")

    def _valid(self, task: Task) -> Table:
        if task.valid is None:
            raise Missing(
                f"takd with path='{self.path}' chooses on the valid set, and there is none; give "
                "one, name the assistants (--assistants NAME,NAME), or give path='all' (--path all)"
            )
        return Table(task.valid, "valid")

    def _score(self, task: Task, fitted: Fitted, valid: Table) -> float:
        reader = reader_of(task.readers, "student")
        return measure(fitted.student, valid, task.score, reader, current().device)
