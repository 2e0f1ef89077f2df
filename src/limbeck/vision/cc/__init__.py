"""CC - soft targets of each sample, and how alike any two samples are, are the teacher's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, Result, number
from limbeck.core.run import current
from limbeck.core.task import Task
from limbeck.core.views import Side
from limbeck.vision._kit.grams import products, samples
from limbeck.vision._kit.maps import unit
from limbeck.vision.cc.sampling import Grouped, groups_of

CARD = Card(
    key="cc",
    title="Correlation Congruence for Knowledge Distillation",
    year=2019,
    arxiv="1904.01802",
    code="",
    kinds=("response", "feature", "relation"),
    needs=("logits", "embedding"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="Vectors have length 1, without which the series is of no gaussian (normalise=False "
    "takes them as they are). The weight cc is this library's own: the paper's was not at hand, "
    "and the 0.003 of torchdistill's example goes with vectors of any length and would do nothing. "
    "Nothing is projected where widths differ, as only (B, B) matrices are compared. Batches are "
    "drawn as for any task; sampler='class' and 'superclass' are the paper's, whose numbers of "
    "samples and of clusters (by k-means of the teacher's vectors) are chosen here.",
)
EXEMPT = {"accumulate": "it relates the samples of a micro-batch; pairs across two are not seen"}
DOES = "cc relates the samples of a micro-batch"
Kernel = Literal["gaussian", "bilinear", "mmd"]


def congruence(
    e: Tensor,
    kernel: Kernel = "gaussian",
    gamma: float = 0.4,
    order: int = 2,
    normalise: bool = True,
) -> Tensor:
    """C_ij, how alike samples i and j are, of vectors that are brought to length 1 (`normalise`).

    By `kernel`, with x . y a product of two vectors: "bilinear" x . y; "gaussian" exp(-2 gamma)
    times the sum over p up to `order` of (2 gamma x . y)^p / p!, which for length 1 tends to
    exp(-gamma |x - y|^2); "mmd" |mean of x's numbers - mean of y's|.
    Shapes: e (B, D) -> (B, B).
    """
    e = unit(e) if normalise else e
    if kernel == "mmd":
        mean = e.mean(1)
        return (mean[:, None] - mean).abs()
    dots = products(e)
    if kernel == "bilinear":
        return dots
    series = dots.new_ones(dots.shape)
    for p in range(order, 0, -1):
        series = 1 + 2 * gamma / p * dots * series
    return math.exp(-2 * gamma) * series


@dataclass(frozen=True)
class CC(Objective):
    """A student is taught each sample's soft targets, and how alike any two samples are.

    label * CE(y, s) + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau))
        + cc * mean_ij (C_s[i, j] - C_t[i, j])^2,
    C_ij = k(e_i, e_j) of the embeddings of a micro-batch, brought to length 1 (`normalise`). The
    kernel k is "gaussian", exp(-gamma |x - y|^2) by its Taylor series up to `order`; "bilinear",
    x . y; or "mmd", the distance of two vectors' means. In the paper label = alpha, kd = 1 - alpha.

    Batches: "random"; "class", with `each` samples of as many classes as there is room for, all
    classes alike often; "superclass", the same of clusters of the teacher's embeddings.

    Trained: the student. Frozen: the teacher.
    Raises: UsageError for a single sample, and with sampler = "class" for data whose class numbers
    are not known.
    Source: Peng et al., ICCV 2019, arXiv 1904.01802, section 3; gamma, order and label = 0 as in
    torchdistill's example, tau as in the CIFAR-100 comparisons of others.
    Relatives: `kd` has the soft targets alone; `sp` and `pkt` relate samples by other kernels.

    Example:
        >>> import torch
        >>> c = congruence(torch.eye(2))
        >>> round(float(c[0, 0]), 6), round(float(c[0, 1]), 6)
        (0.952577, 0.449329)
    """

    label: float = number(0.0, least=0)
    kd: float = number(1.0, least=0)
    tau: float = number(4.0, above=0)
    cc: float = number(10.0, least=0)
    kernel: Kernel = "gaussian"
    gamma: float = number(0.4, above=0)
    order: int = number(2, least=0)
    normalise: bool = True
    sampler: Literal["random", "class", "superclass"] = "random"
    each: int = number(4, least=1)  # samples of a group in a batch
    superclasses: int = number(20, least=2)  # clusters
    card = CARD

    def asks(self) -> tuple[str, ...]:
        """The card's needs, and labels where they are learnt."""
        return (*CARD.needs, "y") if self.label else CARD.needs

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `kd` and `cc`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        if self.cc:
            how = (self.kernel, self.gamma, self.order, self.normalise)
            mine, theirs = (congruence(samples(e, DOES), *how) for e in (s.embedding, t.embedding))
            out["cc"] = self.cc * (mine - theirs).square().mean()
        return out

    def run(self, task: Task) -> Result:
        """One fit of a fresh student, on batches of the sampler."""
        if self.sampler == "random":
            return super().run(task)
        student, teacher = current().student(task), task.the_teacher()
        groups = groups_of(task, self.superclasses if self.sampler == "superclass" else None)
        batches = Grouped(task.set("train"), groups, self.each, workers=task.budget.workers)
        fitted = fit(self, student, teacher, batches, name="fit", task=task)
        return Result(model=self.deliver(fitted.student, fitted.parts), log=fitted.log)
