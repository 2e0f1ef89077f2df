"""ND loss - a student's features point to the teacher's class means, and are no shorter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.looking import look_over
from limbeck.core.method import Clock, Facts, Method, Objective, Result, Rng, Term, number
from limbeck.core.run import current, stage
from limbeck.core.task import Task
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.registry import make
from limbeck.vision._kit.classes import class_means, class_numbers
from limbeck.vision.nd_loss.losses import Means, cosine_loss, nd_loss, norm_loss

CARD = Card(
    key="nd_loss",
    title="Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
    year=2023,
    arxiv="2305.17007",
    code="https://github.com/WangYZ1608/Knowledge-Distillation-via-ND",
    kinds=("feature", "prototype", "response"),
    needs=("logits", "embedding", "y"),
    gives="model",
    world="digits",
    stages=("means", "fit"),
    tiny={},
    departs="The code rounds features and means to four digits, and lets the soft term of KD++ and "
    "DKD++ warm up over 20 epochs; here a warm-up is that of `of`, which dkd has and kd has not. A "
    "feature of length 0 before a teacher's of length 0 has loss 1, where the code divides by 0. "
    "The means are of the training set as its first epoch shows it, augmented if it is. Of the "
    "loss on norms alone, which the paper compares and the code has not, the form is that of "
    "stepwise larger norms in domain adaptation (Xu et al. 2019). Detectors, of which the "
    "paper takes the features of proposals, are another task.",
)
_NEEDS = "nd_loss takes the mean of each class"


@dataclass(frozen=True)
class NDLoss(Method):
    """A student is taught by another method, and to point its features to the teacher's class mean.

    First ("means") mu_c, the mean of the teacher's embeddings of class c over the training set;
    then ("fit") the terms of `of` + nd * L, the mean over samples of, for s and t the embeddings of
    student and teacher, by `loss`:
    "nd": 1 - <s, mu_y / |mu_y|> / max(|s|, |t|); "cosine": 1 - cos(s, mu_y); "norm":
    (|s| - (|s| stopped + rise))^2, the last two for comparison.
    A student of another width has its s mapped first, by BatchNorm, `dropout` and a linear layer,
    for this loss alone; its logits come from what its own head takes.
    KD++ is the default; DKD++ is of="dkd(...)", and so on.

    Trained: the student, and the map, which is then dropped; what `of` trains. Frozen: the teacher,
    mu.
    Raises: UsageError where `of` is no single fit with one training phase, y is not one class
    number for each sample, or sides show different samples.
    Source: Wang et al., ECCV 2024, arXiv 2305.17007, section 3; weights and the map from the
    authors' code: kd 1 and nd 2 for ResNet56 to ResNet20 on CIFAR-100; kd from 1 to 4 and nd from
    0.5 to 2 for other pairs, tau 1 on ImageNet.
    Relatives: nd = 0 is `of`; `kd` and `dkd` are what it is mostly added to; `crd` tells a sample's
    embedding from others'.

    Example:
        >>> import torch
        >>> s, t, mu = torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]]), torch.eye(2)[:1]
        >>> round(float(nd_loss(s, t, mu)), 3)
        0.4
    """

    of: str = "kd(label=1.0, kd=1.0, tau=4.0)"
    nd: float = number(2.0, least=0)
    loss: Literal["nd", "cosine", "norm"] = "nd"
    rise: float = number(1.0, above=0)
    dropout: float = number(0.5, least=0, below=1)
    card = CARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(bool(phase.train) for phase in self.inner.update()) != 1:
            raise UsageError(
                f"'{self.of}' trains in several phases; nd_loss takes a method that trains in one"
            )

    @cached_property
    def inner(self) -> Objective:
        """The method that it is added to."""
        made = make(self.of)
        if not isinstance(made, Objective) or type(made).run is not Objective.run:
            raise UsageError(
                f"'{self.of}' is not one fit with named terms; nd_loss takes a method that is, as "
                "'kd'"
            )
        return made

    def asks(self) -> tuple[str, ...]:
        return (*CARD.needs, *self.inner.asks())

    def run(self, task: Task) -> Result:
        """The means, and one fit."""
        compares = self.nd and self.loss != "norm"
        mu = stage("means", lambda: means_of(task)) if compares else torch.zeros(0, 0)
        student, teacher = current().student(task), task.the_teacher()
        added = Added(self, mu)
        fitted = fit(added, student, teacher, task.batches(), name="fit", task=task)
        return Result(model=added.deliver(fitted.student, fitted.parts), log=fitted.log)


def means_of(task: Task) -> Tensor:
    """The class means (C, D) of the teacher's embeddings over the training set of a task."""
    with torch.no_grad():
        return class_means(
            (t.embedding.flatten(1), class_numbers(b, _NEEDS)) for b, t in look_over(task)
        )


@dataclass(frozen=True, eq=False)
class Added(Objective):
    """What the fit minimises: the terms of a method, and `nd`."""

    m: NDLoss
    mu: Tensor

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        parts = nn.ModuleDict({"of": self.m.inner.build(s, t, batch, facts)})
        if self.m.nd:
            here = s.embedding.flatten(1).shape[1]
            widths = here, self.mu.shape[1] or here  # norms alone are compared with no mean
            parts["means"] = Means(self.mu, widths, self.m.dropout)
        return parts

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Term]:
        out = dict(self.m.inner.terms(parts["of"], s, t, batch, clock))
        if self.m.nd:
            out["nd"] = (
                self.m.nd * self._loss(parts.means, s, t, class_numbers(batch, _NEEDS)).mean()
            )
        return out

    def _loss(self, means: Any, s: Side, t: Side, y: Tensor) -> Tensor:
        mine = means.fit(s.embedding.flatten(1).to(means.mu.dtype)).float()
        if len(mine) != len(y):
            raise UsageError(
                f"'{self.m.of}' shows the student {len(mine)} samples for {len(y)} labels; nd_loss "
                "needs a method that shows it the samples of the batch"
            )
        if self.m.loss == "norm":
            return norm_loss(mine, self.m.rise)
        if self.m.loss == "cosine":
            return cosine_loss(mine, means.mu[y])
        return nd_loss(mine, t.embedding.detach().flatten(1).float(), means.mu[y])

    def asks(self) -> tuple[str, ...]:
        return self.m.inner.asks()

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        return self.m.inner.prepare(batch, rng)

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return self.m.inner.counts(batch)

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> Mapping[str, Tensor]:
        return self.m.inner.observe(parts["of"], s, t, batch)

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        self.m.inner.after_step(parts["of"], seen, clock)

    def update(self) -> tuple[Phase, ...]:
        return self.m.inner.update()

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        return self.m.inner.deliver(student, parts["of"])
