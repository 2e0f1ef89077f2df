"""PLD - the teacher's ranking of the classes, the true one first, as a chain of choices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import check_classes
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="pld",
    title="PLD: A Choice-Theoretic List-Wise Knowledge Distillation",
    year=2025,
    arxiv="2506.12542",
    code="",
    kinds=("response", "ranking"),
    needs=("logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="Classes that the teacher holds equal are ranked by number, where the paper's listing "
    "leaves it to an unstable sort. Position weights are the paper's 2^(C - k) - 1 over their "
    "sum, so that the loss keeps its size; its ablation states another formula for them, which is "
    "that of its default. Standardised logits have the deviation of logit standardisation's code, "
    "with C - 1 in it. Detectors, whose class logits the paper applies the loss to, are another "
    "task.",
)


def ranking(t: Tensor, y: Tensor) -> Tensor:
    """The class y first, then the others by falling logit of the teacher.

    Shapes: t (B, C) logits, y (B,) class numbers -> (B, C) class numbers.
    """
    first = t.scatter(1, y[:, None], torch.inf)
    return first.argsort(dim=1, descending=True, stable=True)


def choices(s: Tensor, alpha: Tensor) -> Tensor:
    """sum_k alpha_k (log sum_{l >= k} exp(s_l) - s_k): choosing one after the other, weighted.

    For alpha = 1 the negative log-likelihood of the order 1 .. C in the Plackett-Luce model.
    Shapes: s (B, C) logits in the order of choice, alpha (B, C) or (C,) -> (B,).
    """
    left = s.flip(1).logcumsumexp(1).flip(1)
    return (alpha * (left - s)).sum(1)


def by_position(classes: int) -> Tensor:
    """(2^(C - k) - 1) / sum_j (2^(C - j) - 1) for k = 1 .. C classes, without overflow. (C,)."""
    k = torch.arange(1, classes + 1, dtype=torch.float64)
    alpha = 2**-k - 2.0**-classes
    return alpha / alpha.sum()


def standardised(z: Tensor) -> Tensor:
    """(z - mean) / deviation over the classes; zero, without gradient, where all are equal.

    The deviation has C - 1 in it. Shapes: z (B, C) logits -> (B, C).
    """
    z = z - z.mean(1, keepdim=True)
    length: Tensor = z.norm(dim=1, keepdim=True)
    return math.sqrt(z.shape[1] - 1) * z / length.where(length > 0, torch.inf)


@dataclass(frozen=True)
class PLD(Objective):
    """A student is taught the teacher's ranking of the classes with the true label put first.

    pld * mean over samples of sum_k alpha_k (log sum_{l >= k} exp(s[pi_l]) - s[pi_k]),
    with pi_1 = y and pi_2 .. pi_C the other classes by falling teacher logit.
    `alpha`: "teacher", alpha_k = softmax(t / tau)[pi_k]; "uniform", 1 / C (ListMLE / C);
    "position", in proportion to 2^(C - k) - 1 (position-aware ListMLE). alpha = (1, 0, ..., 0)
    would be cross-entropy, so there is no term for labels: the first choice is it, weighted by the
    teacher's trust in the label. Convex in s; tau acts on the weights only.
    `standardise`: "none"; the "teacher", whose t is first brought to mean 0 and deviation 1; or
    "both", s too, for comparison: the paper finds neither to be better.

    Trained: the student. Frozen: the teacher.
    Raises: UsageError where the sides give different numbers of classes, or y is not one class
    number for each sample.
    Source: Bassam, Zhu and Bian, NeurIPS 2025, arXiv 2506.12542, section 4 and appendix C; tau 1 is
    the best on ImageNet and the listing's default, 4 that of the CIFAR-100 table.
    Relatives: `kd` matches probabilities, not their order; `dkd` weighs target and others apart.

    Example:
        >>> import torch
        >>> ranking(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1])).tolist()
        [[1, 0, 2]]
        >>> round(float(choices(torch.zeros(1, 3), torch.full((3,), 1 / 3))), 6)
        0.597253
    """

    pld: float = number(1.0, least=0)
    tau: float = number(1.0, above=0)
    alpha: Literal["teacher", "uniform", "position"] = "teacher"
    standardise: Literal["none", "teacher", "both"] = "none"
    card = CARD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `pld`."""
        if not self.pld:
            return {}
        check_classes(s.logits, t.logits)
        y, shape = batch.y, s.logits.shape
        if len(shape) != 2 or shape[1] < 2 or y.shape != shape[:1] or y.is_floating_point():
            raise UsageError(
                f"pld ranks a sample's class first, but y is {tuple(y.shape)} {y.dtype} and logits "
                f"are {tuple(shape)}; give one class number for each sample and logits (B, C) of "
                "two classes or more"
            )
        student, teacher = (
            z.to(torch.promote_types(z.dtype, torch.float32)) for z in (s.logits, t.logits)
        )
        if self.standardise != "none":
            teacher = standardised(teacher)
        if self.standardise == "both":
            student = standardised(student)
        order = ranking(teacher, y.long())
        if self.alpha == "teacher":
            alpha = (teacher / self.tau).softmax(1).gather(1, order)
        elif self.alpha == "uniform":
            alpha = torch.full_like(student[0], 1 / shape[1])
        else:
            alpha = by_position(shape[1]).to(student)
        return {"pld": self.pld * choices(student.gather(1, order), alpha).mean()}
