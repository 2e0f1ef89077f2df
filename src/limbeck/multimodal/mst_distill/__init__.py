"""MST-Distill - each sample chooses among teachers whose features were masked for the student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch, Table
from limbeck.core.engine import fit
from limbeck.core.evaluate import evaluating, predict
from limbeck.core.losses.divergences import check_classes, kl
from limbeck.core.method import Clock, Facts, Method, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.score import Score
from limbeck.core.task import Budget, Task, build_model
from limbeck.core.teachers import Frozen, Nobody
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.multimodal.mst_distill.losses import balance_loss, by_teacher, fallen
from limbeck.multimodal.mst_distill.stages import Masks, Routed, Together
from limbeck.multimodal.mst_distill.teachers import Group, Mask, chosen

CARD = Card(
    key="mst_distill",
    title="MST-Distill: Mixture of Specialized Teachers for Cross-Modal Knowledge Distillation",
    year=2025,
    arxiv="2507.07015",
    code="https://github.com/Gray-OREO/MST-Distill",
    kinds=("multi_teacher", "response", "cross_modal", "routing", "online", "masking", "stagewise"),
    needs=("student:logits", "y", "data:peers"),
    gives="model",
    world="pairs(teacher='none')",
    stages=("together", "masks", "student"),
    tiny={"rate": 0.0, "kd_every": 2, "balance_every": 1},
    departs="The student has the task's optimiser and is kept by the task's budget (the code: Adam "
    "at `rate` too, and the epoch of least loss on valid). The balance is the KL divergence, which "
    "the code divides by the number of teachers: balance=1/K is the code's. Layers to mask are the "
    "last before the logits, where the code lists them for each network by hand. The first two "
    "stages are as long as the third, as in the code's first release; since 2026 it gives them an "
    "epoch each. A mask's tokens are never smaller than its heads, where the code fails for fewer "
    "than six features.",
)
EXEMPT = {
    "accumulate": "the balance is of the gate's mean over a micro-batch, inside a logarithm, as "
    "over the paper's batch"
}


@dataclass(frozen=True)
class MSTDistill(Method):
    """A student of one modality learns from networks of others, each masked to what it can follow.

    With kd(p <- q) = tau^2 KL(softmax(q / tau) || softmax(p / tau)); `task.data["peers"]` is
    {name: factory} of networks that are called with the raw x: usually one of all modalities and
    one of the modality that the student does not see.
    "together": the student and the peers are trained from their beginnings on
    label * (the sum of their cross-entropies) + mutual * (kd over all ordered pairs, both sides
    with gradient).
    "masks": all of them frozen, each of K teachers is a peer with a mask network at one of its
    layers, h <- mask(h) * h, trained alone down mask * kd(teacher <- student); of `layers` layers
    of each peer, the last before its logits, or of those named `at` ("PEER.PATH"). Kept at their
    least kd on valid, where there is one. `mask` = 0: peers teach as they are.
    "student": with z the student's logits, r = softmax(gate(z)) and the k teachers of largest r,
    label * CE(y, z) + kd * mean over the k of kd(z <- teacher) + balance * KL(uniform || mean r).
    kd is multiplied by kd_fall after the first epoch and then after every kd_every epochs, balance
    by balance_fall every balance_every. balance_by "cv" takes the deviation of mean r over its
    mean. The choice is not differentiable, so that the gate (and through it
    the student) learns from `balance` alone; `weighted` weighs the k by r, for k > 1.

    The report has each teacher's share of the training samples and each peer's score.
    A mask attends with `heads` among F tokens of F / `factor` numbers, and its first layer has
    F^3 / factor weights: name narrow layers, or raise factor.
    Trained: first the student and the peers, then the masks, then the student further, with the
    gate. Frozen: what is not named in a stage. All but the student by Adam at `rate` (0: the
    task's optimiser). The first two stages have `together_share` and `masks_share` of the budget.
    Raises: Missing without peers; UsageError for layers or k that are not there.
    Source: Li et al., ACM Multimedia 2025, arXiv 2507.07015, section 3; weights, schedules, gate
    and mask networks from the authors' code.
    Relatives: `unic` learns from several teachers' features; `kd` has one teacher throughout.

    Example:
        >>> import torch
        >>> round(float(balance_loss(torch.tensor([[0.5, 0.25, 0.25]]).log())), 6)
        0.056633
        >>> [fallen(epoch, by=0.5, every=30) for epoch in (0, 1, 30, 31)]
        [1.0, 0.5, 0.5, 0.25]
    """

    label: float = number(1.0, least=0)
    mutual: float = number(1.0, least=0)
    mask: float = number(1.0, least=0)
    kd: float = number(1.0, least=0)
    balance: float = number(1.0, least=0)
    tau: float = number(4.0, above=0)
    k: int = number(1, least=1)
    weighted: bool = False
    layers: int = number(2, least=1)
    at: tuple[str, ...] = ()
    heads: int = number(3, least=1)
    factor: int = number(2, least=1)
    kd_fall: float = number(0.5, least=0, most=1)
    kd_every: int = number(30, least=1)
    balance_fall: float = number(0.9, least=0, most=1)
    balance_every: int = number(10, least=1)
    balance_by: Literal["kl", "cv"] = "kl"
    rate: float = number(1e-4, least=0)
    together_share: float = number(1.0, above=0)
    masks_share: float = number(1.0, above=0)
    card = CARD

    def run(self, task: Task) -> Result:
        """The three stages, and who taught."""
        run, bare = current(), replace(task, taps={})
        student = run.student(task)
        peers = nn.ModuleDict(
            {n: build_model(f, run.seed, f"peer/{n}") for n, f in task.set("peers").items()}
        )
        budget = task.budget.part(self.together_share).unwatched()
        first = fit(
            Together(self, peers), student, Nobody(), task.batches(), name="together", task=bare,
            budget=budget,
        )  # fmt: skip
        log, group = first.log, self._group(task, first.parts)
        if self.mask:
            log = log + self._train(group, student, task)
        mine = task.readers.get("student")
        third = replace(bare, readers={"student": mine} if mine else {})
        teacher, batches = Frozen(group), task.batches()
        fitted = fit(Routed(self), student, teacher, batches, name="student", task=third)
        report = self._report(task, group, fitted.student, fitted.parts)
        return Result(model=fitted.student, report=report, log=log + fitted.log)

    def _group(self, task: Task, peers: nn.ModuleDict) -> Group:
        """The teachers, with fresh masks."""
        run = current()
        if not self.mask:
            names = list(peers)
            return Group(peers, [(n, "") for n in names], [nn.Identity() for _ in names])
        x = task.batches().first().to(run.device).x
        with evaluating(peers):
            places = chosen(peers, x, self.layers, self.at)

        def make() -> nn.Module:
            shapes = [shape for _, _, shape in places]
            maps = [math.prod(s[2:]) > 1 for s in shapes]
            masks = [
                Mask(s[1], m, self.heads, self.factor) for s, m in zip(shapes, maps, strict=True)
            ]
            return Group(peers, [(n, path) for n, path, _ in places], masks)

        made = build_model(make, run.seed, "masks")
        assert isinstance(made, Group)
        return made

    def _train(self, group: Group, student: nn.Module, task: Task) -> list[dict[str, Any]]:
        """The second stage; it is kept where the kd on valid is least."""
        mine, budget = task.readers.get("student"), task.budget.part(self.masks_share)
        own = replace(
            task, taps={}, readers={"teacher": mine} if mine else {}, budget=budget.unwatched()
        )
        if task.valid is not None:
            device = current().device
            with evaluating(student):
                answers, _ = predict(student, Table(task.valid, "valid"), mine, device)

            def each(shown: Mapping[str, Any], batch: Batch) -> tuple[Tensor, Tensor]:
                z = shown["logits"]
                there = answers[batch.index.cpu()].to(z.device)
                losses = by_teacher(there, z, self.tau, back=True)
                return losses.sum(), losses.new_tensor(len(losses))

            watched = replace(own.budget, keep="best")
            own = replace(own, score=Score("kd", False, each=each), budget=watched)
        return fit(Masks(self), group, Frozen(student), task.batches(), name="masks", task=own).log

    def _report(
        self, task: Task, group: Group, student: nn.Module, gate: nn.Module
    ) -> dict[str, float]:
        """Each teacher's share of the training samples, and the scores of all peers."""
        device, mine = current().device, task.readers.get("student")
        names = [f"{name}.{path}".strip(".") for name, path in group.places]
        with evaluating(student), evaluating(gate), evaluating(group):
            z, _ = predict(student, Table(task.train, "train"), mine, device)
            top = gate(z.to(device)).topk(self.k, 1).indices.flatten()
            counts = torch.bincount(top, minlength=len(names)).double() / len(top)
            told = {f"share_{n}": float(c) for n, c in zip(names, counts, strict=True)}
            if task.set_or_none(task.judged) is not None and task.score.of is not None:
                judged = Table(task.set(task.judged), task.judged)
                for name, peer in group.peers.items():
                    told[f"score_{name}"] = task.score.of(*predict(peer, judged, None, device))
        return told
