"""DIST - the student's probabilities relate as the teacher's do, by Pearson's correlation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import check_classes
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="dist",
    title="Knowledge Distillation from A Stronger Teacher",
    year=2022,
    arxiv="2205.10536",
    code="https://github.com/hunto/image_classification_sota",
    kinds=("response", "relation"),
    needs=("logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="tau^2 before both relations is the authors' code's; the paper's formula has none (at "
    "tau 1, the default, it is 1). A row or column that does not vary at all has correlation 0 and "
    "no gradient, where that code gives it one of 1 / eps. Maps of logits, of which the authors "
    "take every pixel as a sample, are another task.",
)
EXEMPT = {"accumulate": "a class is related over the samples of a micro-batch; others are not seen"}


def correlation(u: Tensor, v: Tensor, eps: float = 1e-8) -> Tensor:
    """<u', v'> / (|u'| |v'| + eps), u' and v' centred along the last dimension.

    Pearson's for eps = 0; with eps it fades where both lengths' product comes near eps. 0, without
    gradient, where u or v does not vary.
    Shapes: u, v (..., N) -> (...).
    """
    u, v = (x - x.mean(-1, keepdim=True) for x in (u, v))
    lengths: Tensor = u.norm(dim=-1) * v.norm(dim=-1)
    varies = lengths > 0
    return (u * v).sum(-1).where(varies, 0) / (lengths + eps).where(varies, 1)


def relations(s: Tensor, t: Tensor, tau: float = 1.0, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
    """tau^2 (1 - rho) of each sample over its classes, and of each class over the samples.

    rho is the `correlation` of softmax(s / tau) and softmax(t / tau), faded by eps.
    Shapes: s, t (B, C) logits -> (B,), (C,).
    """
    check_classes(s, t)
    q, p = ((z.to(torch.promote_types(z.dtype, torch.float32)) / tau).softmax(1) for z in (s, t))
    return tau**2 * (1 - correlation(q, p, eps)), tau**2 * (1 - correlation(q.mT, p.mT, eps))


@dataclass(frozen=True)
class DIST(Objective):
    """A student is taught how the teacher's probabilities relate, not what they are.

    label * CE(y, s) + inter * mean_i tau^2 (1 - rho(q_i, p_i)) + intra * mean_c tau^2 (1 -
    rho(q_c, p_c)), with q and p the softmaxes of s and t at tau, rows q_i of samples, columns q_c
    of classes, and rho Pearson's correlation: which classes are likelier for a sample, and which
    samples of a class. The student may scale and move each as it likes.

    `eps` is added to the product of two lengths below the correlation. A class that no sample of
    the batch comes near (probabilities below its square root) hardly counts then; 0 counts all.

    Trained: the student. Frozen: the teacher.
    Raises: UsageError where the sides give different numbers of classes, or no logits (B, C).
    Source: Huang et al., NeurIPS 2022, arXiv 2205.10536, section 3; weights (the paper's beta and
    gamma) and tau are those of ImageNet, tau^2 and eps the authors' code's; tau 4 on CIFAR-100.
    Relatives: `kd` matches the probabilities; `rkd` relates samples by embeddings; `luminet` and
    `lskd` let the logits' scale go free.

    Example:
        >>> import torch
        >>> u, v = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
        >>> round(float(correlation(u, v)), 4), round(float(correlation(u, 3 * u + 1)), 4)
        (-0.5, 1.0)
    """

    label: float = number(1.0, least=0)
    inter: float = number(2.0, least=0)
    intra: float = number(2.0, least=0)
    tau: float = number(1.0, above=0)
    eps: float = number(1e-8, least=0)
    card = CARD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `inter` and `intra`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if not (self.inter or self.intra):
            return out
        if s.logits.dim() != 2:
            raise UsageError(
                f"dist relates samples and classes, but logits are {tuple(s.logits.shape)}; give "
                "one row of logits (B, C) for each sample"
            )
        inter, intra = relations(s.logits, t.logits, self.tau, self.eps)
        if self.inter:
            out["inter"] = self.inter * inter.mean()
        if self.intra:
            out["intra"] = self.intra * intra.mean()
        return out
