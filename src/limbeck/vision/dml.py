"""DML - untrained networks learn together, each from labels and from what the others say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Method, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.task import Task, build_model
from limbeck.core.teachers import Nobody
from limbeck.core.updates import Phase
from limbeck.core.views import Side, entries_of, shown
from limbeck.errors import UsageError

CARD = Card(
    key="dml",
    title="Deep Mutual Learning",
    year=2018,
    arxiv="1706.00384",
    code="https://github.com/YingZhangDUT/Deep-Mutual-Learning",
    kinds=("online", "response"),
    needs=("student:logits", "weights", "y"),
    gives="model",
    world="digits(teacher='none')",
    stages=("fit",),
    tiny={},
    departs="The student is delivered, the first of the cohort, or the mean of all; the paper "
    "reports each network. The divergences from a network's peers are averaged, as in the paper; "
    "the authors' code adds them, and takes a fresh batch for each network's turn. A network that "
    "is asked during another one's turn does not move the running statistics of its BatchNorm.",
)


def ensemble(logits: Sequence[Tensor], tau: float = 1.0) -> Tensor:
    """Tau log of the mean over networks of softmax(z / tau).

    Shapes: logits is K times (B, C) -> (B, C).
    """
    logs = torch.stack([(z.float() / tau).log_softmax(-1) for z in logits])
    return tau * (logs.logsumexp(0) - math.log(len(logs)))


def mutual_loss(
    s: Tensor, others: Sequence[Tensor], tau: float = 1.0, towards: str = "each"
) -> Tensor:
    """tau^2 KL(softmax(o / tau) || softmax(s / tau)), the mean over others o and samples.

    towards = "ensemble": KL from the one distribution that is the others' mean probability.
    The others' logits are constants. Shapes: s (B, C), others K - 1 times (B, C) logits -> ().
    """
    targets = [o.detach() for o in others]
    if towards == "ensemble":
        targets = [ensemble(targets, tau)]
    return torch.stack([kl(s, t, tau).mean() for t in targets]).mean()


@contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """Where the network's BatchNorm layers use a batch's statistics without keeping them."""
    moving = [m for m in network.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    for m in moving:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in moving:
            m.track_running_stats = True


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks a and b have the same weights."""
    first, second = list(a.parameters()), list(b.parameters())
    return len(first) == len(second) and all(map(torch.equal, first, second))


class Ensemble(nn.Module):
    """The mean of several networks' probabilities, as logits: its logarithm."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """From what each member takes -> (B, C)."""
        return ensemble([entries_of(m(*args, **kwargs))["logits"] for m in self.members])


@dataclass(frozen=True)
class Cohort(Objective):
    """What each network minimises; the peers are the parts."""

    m: DML
    peers: nn.ModuleDict
    reader: Callable[[Any], Any] | None = None

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        return self.peers

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The terms of the network whose turn it is, or of all together."""
        together, zs = self.m.update_in == "together", dict[str, Tensor]()
        for name in ("student", *parts):
            network = s.model if name == "student" else parts[name]
            if together or name == clock.phase:
                zs[name] = self._logits(network, name, s, batch)
            else:
                with still(network), torch.no_grad():
                    zs[name] = self._logits(network, name, s, batch)
        m, out = self.m, {}
        for name in zs if together else (clock.phase,):
            of = "" if name == "student" else f"{name}."
            if m.label:
                out[f"{of}label"] = m.label * F.cross_entropy(zs[name].float(), batch.y)
            others = [z for n, z in zs.items() if n != name]
            if m.dml:
                out[f"{of}dml"] = m.dml * mutual_loss(zs[name], others, m.tau, m.towards)
        return out

    def _logits(self, network: nn.Module, name: str, s: Side, batch: Batch) -> Tensor:
        if name == "student":
            return s.logits  # type: ignore[no-any-return]
        return entries_of(shown(network, batch.x, self.reader))["logits"]  # type: ignore[no-any-return]

    def update(self) -> tuple[Phase, ...]:
        """A phase for each network, or one for all."""
        if self.m.update_in == "together":
            return (Phase(),)
        peers = tuple(Phase(n, train=(f"parts.{n}",)) for n in self.peers)
        return (Phase("student", train=("student",)), *peers)


@dataclass(frozen=True)
class DML(Method):
    """A student and its peers, all untrained, teach each other while they learn from labels.

    Network k minimises label * CE(y, p_k) + dml * the mean over the others l of
    tau^2 KL(p_l || p_k), p = softmax(z / tau), where the others' p_l are constants; `towards`
    "ensemble" takes KL from the mean of the p_l. At tau = 1 both have the same gradient.
    Peers are the networks of `task.data["peers"]`, {name: factory}, or else `cohort` - 1 further
    students with first weights of their own; all read as the student does.
    `update_in` "turns": in a step one network moves after the other, on one batch, each asked anew
    before the next one moves; "together": all from what was said before.

    `gives`: the "student", which is the first of the cohort, or the "ensemble", the mean
    probability of all networks. A teacher is not asked.
    Trained: all networks, by the task's optimiser. Frozen: none.
    Raises: UsageError where a peer starts with the student's weights, or is called "student".
    Source: Zhang et al., CVPR 2018, arXiv 1706.00384, section 2 (the cohort of K: 2.3, with
    DML_e); no weights and no temperature there, hence 1.
    Relatives: `ban` has one network after the other; `kd` a teacher that is larger and done.

    Example:
        >>> import torch
        >>> p = torch.tensor([[3.0, 1.0]]).log()
        >>> round(float(mutual_loss(torch.zeros(1, 2), [p])), 6)
        0.130812
    """

    label: float = number(1.0, least=0)
    dml: float = number(1.0, least=0)
    tau: float = number(1.0, above=0)
    cohort: int = number(2, least=2)
    towards: Literal["each", "ensemble"] = "each"
    update_in: Literal["turns", "together"] = "turns"
    gives: Literal["student", "ensemble"] = "student"
    card = CARD

    def run(self, task: Task) -> Result:
        """One fit of the cohort."""
        run, student = current(), current().student(task)
        factories = task.set_or_none("peers") or {
            f"peer{k}": task.student for k in range(1, self.cohort)
        }
        made = {n: build_model(f, run.seed, f"peer/{n}") for n, f in factories.items()}
        for name, peer in made.items():
            if name == "student" or same(student, peer):
                why = "is called so" if name == "student" else "starts with the student's weights"
                raise UsageError(
                    f"dml's peers learn from being different, but '{name}' {why}; give a student "
                    "as a factory that draws its weights, or name other networks in data['peers']"
                )
        peers, mine = nn.ModuleDict(made), task.readers.get("student")
        bare = replace(task, taps={})
        fitted = fit(
            Cohort(self, peers, mine), student, Nobody(), task.batches(), name="fit", task=bare
        )
        networks = [fitted.student, *fitted.parts.values()]
        model = Ensemble(networks) if self.gives == "ensemble" else fitted.student
        return Result(model=model, log=fitted.log)
