"""MEKD - a generator becomes the teacher's inverse, and logits are compared as its pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import Fitted, fit
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Method, Objective, Result, Rng, number
from limbeck.core.run import current, rng
from limbeck.core.task import Budget, Optimiser, Task, build_model
from limbeck.core.teachers import BlackBox
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision.mekd.gan import Critic, Latent, Painter, Rounds, Span, started

CARD = Card(
    key="mekd",
    title="Aligning Logits Generatively for Principled Black-Box Knowledge Distillation",
    year=2024,
    arxiv="2205.10490",
    code="https://github.com/HAIV-Lab/MEKD",
    kinds=("black_box", "response", "adversarial", "generative", "stagewise", "label_free"),
    needs=("student:logits", "teacher:logits|teacher:labels"),
    gives="model",
    world="digits",
    stages=("generator", "student"),
    tiny={"rate": 0.002},
    departs="The confidence is the teacher's largest probability, as the paper has it; the code "
    "takes the number of the class, and adds 1e-5 inside the logarithm. The pictures' [-1, 1] "
    "stands for the data's own range. Their sides need not be multiples of four, and the critic "
    "halves none below 2, without which it could not learn below 17 pixels. With hard responses "
    "the generator needs no answers, since their confidence is 1. An epoch of the second stage "
    "has as many made pictures as there are local ones (the code: 500 batches of 128), and the "
    "first stage is as long as the budget says times `share` (the code: 200 epochs of the data "
    "in batches of 64, then 240 of the second stage). The logarithms of a black box's "
    "probabilities lack what its logits have in common, which the alignment sees.",
)


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))), the mean over samples; `real`, `fake` logits (B,) -> ()."""
    return fool_loss(real) + fool_loss(-fake)


def fool_loss(fake: Tensor, sure: Tensor | None = None) -> Tensor:
    """-sure * log D(G(z)), the mean over samples; `fake` logits (B,), `sure` (B,) or 1 -> ()."""
    each: Tensor = F.softplus(-fake)
    return each.mean() if sure is None else (sure * each).mean()


def align_loss(
    generator: nn.Module, s: Tensor, t: Tensor, tau: float = 5.0, distance: str = "l1"
) -> Tensor:
    """|G(s / tau) - G(t / tau)|, the mean over pixels; its square where `distance` is "l2".

    Shapes: s, t (B, K) logits, `generator` (B, K) -> (B, C, H, W), -> ().
    """
    with torch.no_grad():
        there = generator(t.float() / tau)
    gap: Tensor = generator(s.float() / tau) - there
    return gap.abs().mean() if distance == "l1" else gap.square().mean()


def answers(t: Side, hard: bool, labels: bool, classes: int) -> Tensor:
    """The teacher's logits (B, K) as targets; one-hot of its first class if `hard`.

    `labels` says that the side `t` gives only them; K is the number of `classes`.
    """
    shown: Tensor = t.labels if labels else t.logits
    if not hard:
        return shown.float()
    return F.one_hot(shown if labels else shown.argmax(1), classes).float()


@dataclass(frozen=True)
class Deprivatise(Objective):
    """The first stage: the fit's student is the generator, its part the critic."""

    m: MEKD
    answered: bool  # whether the teacher is asked how sure it is

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        return nn.ModuleDict({"critic": started(Critic(s.logits.shape[1:]), rng("critic"))})

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        return batch, batch.replace(x=batch.made) if "made" in batch else batch

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m, out = self.m, {}
        if clock.phase == "critic":
            with torch.no_grad():
                made = s.logits
            if m.critic:
                real, fake = parts.critic(batch.real).float(), parts.critic(made).float()
                out["critic"] = m.critic * critic_loss(real, fake)
            return out
        fake = parts.critic(s.logits).float()
        if m.fool:
            out["fool"] = m.fool * fool_loss(fake)
        if m.im:
            sure = t.logits.float().softmax(1).amax(1) if self.answered else None
            out["im"] = m.im * fool_loss(fake, sure)
        return out

    def update(self) -> tuple[Phase, ...]:
        adam = Optimiser("adam", lr=self.m.rate, betas=(0.5, 0.999), schedule="constant")
        return (
            Phase("critic", ("parts",), optimisers={"parts": adam}),
            Phase("generator", ("student",), fresh=True, optimisers={"student": adam}),
        )


@dataclass(frozen=True)
class Distil(Objective):
    """The second stage, on pictures of the frozen generator."""

    m: MEKD
    generator: nn.Module
    classes: int
    hard: bool
    labels: bool  # the teacher gives nothing else

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        if s.logits.shape[1] != self.classes:
            raise UsageError(
                f"the task has {self.classes} classes, but the student has {s.logits.shape[1]} "
                "logits; give a student with one logit a class"
            )
        return nn.Module()

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        seen = batch.replace(x=batch.made)
        return seen, seen

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        m, out = self.m, {}
        target = answers(t, self.hard, self.labels, self.classes)
        if m.align:
            pulled = align_loss(self.generator, s.logits, target, m.tau_align, m.distance)
            out["align"] = m.align * pulled
        if m.kl:
            out["kl"] = m.kl * kl(s.logits, target, m.tau).mean() / m.tau
        return out


@dataclass(frozen=True)
class MEKD(Method):
    """A student is taught by a black box that only answers, on pictures that a generator makes.

    Stage "generator": a DCGAN on the local pictures, with latent points z ~ N(0, I) of one number
    for each class, so that G lives where the logits do. With D's probabilities:
    critic * (-log D(x) - log(1 - D(G(z)))) for D, and for G
    -fool * log D(G(z)) - im * sure * log D(G(z)), where `sure` is the teacher's largest
    probability for G(z), without gradient; 1 for hard responses.
    Stage "student": G frozen, in eval mode. On x = G(z), with the answers t = T(x):
    align * |G(s / tau_align) - G(t / tau_align)|, the mean over pixels (its square by `distance`),
    + kl * tau KL(softmax(t / tau) || softmax(s / tau)).
    align = 0 is black-box KD on made pictures.

    `responses`: "soft" takes the teacher's logits (log p of a black box with probabilities p);
    "hard" its first class as a one-hot t, the only way where it gives labels alone.
    The report counts `queries`, one for each made picture that the teacher is asked about. It is
    asked about no local picture; the second stage reads none; true labels are not read.

    Trained: G and D by Adam at `rate`, in float32, for `share` of the budget; then the student.
    Frozen: the teacher, of which only answers are seen; in the second stage G.
    Raises: UsageError without a number of classes, where inputs are no pictures (B, C, H, W), or
    where the student has another number of logits.
    Source: Ma et al., CVPR 2024, arXiv 2205.10490, section 3; networks, weights, temperatures,
    the rate and the factor tau (not tau^2) from the authors' code.
    Relatives: `kd` on real pictures; a data-free method has no local pictures for its generator.

    Example:
        >>> import torch
        >>> doubt = torch.zeros(3)  # D says 1/2
        >>> round(float(fool_loss(doubt, torch.full((3,), 0.5)).exp() ** 2), 3)
        2.0
    """

    critic: float = number(1.0, least=0)
    fool: float = number(1.0, least=0)
    im: float = number(0.5, least=0)
    align: float = number(1.0, least=0)
    kl: float = number(1.0, least=0)
    tau_align: float = number(5.0, above=0)
    tau: float = number(5.0, above=0)
    distance: Literal["l1", "l2"] = "l1"
    responses: Literal["soft", "hard"] = "soft"
    rate: float = number(2e-4, above=0)
    share: float = number(1.0, above=0)
    card = CARD

    def run(self, task: Task) -> Result:
        """Both stages, and the count of queries."""
        classes, local = task.count_classes(), task.batches()
        if classes is None:
            raise UsageError(
                "mekd draws points with one number for each class, but the task has no labels to "
                "count classes by; give Task(..., classes=N)"
            )
        teacher, span = task.the_teacher(), Span.of(local.table)
        labels = isinstance(teacher, BlackBox) and teacher.gives == "labels"
        hard = labels or self.responses == "hard"
        asks = bool(self.im) and not hard
        shape = local.first().x.shape[1:]
        fresh = build_model(lambda: Painter(classes, shape), current().seed, "generator")
        reader = task.readers.get("teacher")
        made = fit(
            Deprivatise(self, asks),
            started(fresh, rng("generator")),
            teacher,
            Rounds(classes, span, local, asks),
            name="generator",
            task=replace(task, taps={}, readers={"teacher": reader} if reader else {}),
            budget=replace(task.budget.part(self.share).unwatched(), precision="fp32"),
        )
        queries = {"generator": asked(made) if asks else 0}
        generator = made.student.eval().requires_grad_(False)
        fitted = fit(
            Distil(self, generator, classes, hard, labels),
            current().student(task),
            teacher,
            Latent(classes, span, local.samples, generator),
            name="student",
        )
        queries["student"] = asked(fitted)
        report = {"queries": sum(queries.values())}
        report |= {f"queries_{stage}": n for stage, n in queries.items()}
        return Result(model=fitted.student, report=report, log=made.log + fitted.log)


def asked(fitted: Fitted) -> int:
    """Pictures that the fit which was just `fitted` asked about: one for each sample of a step."""
    return int(current().stages[-1]["batch"]) * (int(fitted.log[-1]["step"]) + 1)
