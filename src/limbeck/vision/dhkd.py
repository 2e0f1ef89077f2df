"""DHKD - a second head takes the loss on logits, and is dropped when the student ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.joins import Gradients, Surgery, added, all_added
from limbeck.core.losses.divergences import check_classes
from limbeck.core.method import Clock, Facts, Objective, number
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="dhkd",
    title="Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head",
    year=2024,
    arxiv="2411.08937",
    code="https://github.com/penghui-yang/DHKD",
    kinds=("response", "optimiser"),
    needs=("logits", "student:embedding", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The two binary divergences are in closed form. The code clamps probabilities, so that "
    "its norm loss is infinite where a logit is 17 tau too large, and has no gradient there nor "
    "where one is 19 tau too small; elsewhere they agree. After `until` the second loss is 0 "
    "and not computed, where the code's ImageNet run gives it the weight 0.",
)


def bkl_norm(s: Tensor, t: Tensor, tau: float = 2.0) -> Tensor:
    """tau^2 sum_c KL(Bern(1/2) || Bern(sigmoid((s_c - t_c) / tau))), the mean over samples.

    That is tau^2 sum_c log cosh((s_c - t_c) / (2 tau)): even and zero only where s = t; its
    gradient tau / 2 tanh(. / (2 tau)) is bounded by tau / 2.
    Shapes: s, t (B, C) logits -> ().
    """
    check_classes(s, t)
    half = (s.float() - t.float()).abs() / (2 * tau)
    # log cosh a = a + log((1 + exp(-2 a)) / 2), which neither overflows nor cancels at 0
    each = half + torch.log1p(torch.expm1(-2 * half) / 2)
    return tau**2 * each.sum(1).mean()


def bkl(s: Tensor, t: Tensor, tau: float = 2.0) -> Tensor:
    """tau^2 sum_c KL(Bern(sigmoid(t_c / tau)) || Bern(sigmoid(s_c / tau))), the mean over samples.

    Shapes: s, t (B, C) logits -> ().
    """
    check_classes(s, t)
    a, b = s.float() / tau, t.float() / tau
    cross, own = (
        F.binary_cross_entropy_with_logits(z, b.sigmoid(), reduction="none") for z in (a, b)
    )
    return tau**2 * (cross - own).sum(1).mean()


def aligned(grads: Mapping[str, Gradients], clock: Clock) -> Gradients:
    """The sum of g_label and the other term's g, without what in g goes against g_label.

    g <- g - min(0, <g, g_label>) / |g_label|^2 g_label, over all parameters as one vector; where a
    term does not reach, its gradient counts as zero. Nothing is drawn from clock.
    Shapes: grads holds a list for each term, with a gradient or None for each parameter.
    """
    label = grads.get("label", [])
    against = {n: g for n, g in grads.items() if n != "label"}
    if not label:
        return next(iter(against.values()))
    total: Gradients = label
    for g in against.values():
        both = [(a, b) for a, b in zip(g, label, strict=True) if a is not None and b is not None]
        if both:
            dot = torch.stack([(a * b).sum() for a, b in both]).sum()
            norm = torch.stack([b.square().sum() for b in label if b is not None]).sum()
            share = dot.clamp(max=0) / norm.clamp_min(1e-30)
            g = [added(a, None if b is None else -share * b) for a, b in zip(g, label, strict=True)]
        total = all_added(total, g)
    return total


def auxiliary(kind: str, width: int, classes: int, hidden: int, drop: float) -> nn.Module:
    """The second head, from (B, width) to (B, classes): a "linear" layer, or the "mlp".

    The latter is linear to hidden units, dropout with probability drop, BatchNorm, ReLU, linear.
    kind: which of the two.
    """
    if kind == "linear":
        return nn.Linear(width, classes)
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.Dropout(drop),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


@dataclass(frozen=True)
class DHKD(Objective):
    """A student's backbone is taught the teacher's logits through a second head of its own.

    label * CE(y, s) + bkl * L(s2, t): s the student's own logits, s2 those of the second head on
    the student's embedding, t the teacher's. L is `loss`: "norm", `bkl_norm`, or "plain", `bkl`, at
    `tau`. On one head the two gradients pull against each other, in the backbone they do not; so
    each head gets one of them, and the backbone both. `head` is the second head: "mlp" with
    `hidden` units and dropout `drop`, "linear", or "none", where L acts on s itself, the control.
    With `align` the gradient of L loses its part against that of CE (`aligned`), over everything
    that is trained. `until` is the fraction of the steps after which L is left out.

    Trained: the student and the second head, which is not delivered. Frozen: the teacher.
    Raises: UsageError where the student's embedding is no vector, or with head="none" the sides
    have different numbers of classes; the second head has as many as the teacher.
    Source: Yang et al., arXiv 2411.08937; all constants from the authors' code for CIFAR-100.
    For ImageNet head="linear", bkl=0.1, align=False, until=0.49.
    Relatives: `kd` matches probabilities by the one head; `dot` gives the two terms momenta of
    their own instead of heads.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 1.0]])
        >>> round(float(bkl_norm(z, z - torch.tensor([[2.0, 0.0]]))), 6)
        0.480458
    """

    label: float = number(1.0, least=0)
    bkl: float = number(1.0, least=0)
    tau: float = number(2.0, above=0)
    loss: Literal["norm", "plain"] = "norm"
    head: Literal["mlp", "linear", "none"] = "mlp"
    hidden: int = number(200, least=1)
    drop: float = number(0.1, least=0, below=1)
    align: bool = True
    until: float = number(1.0, least=0, most=1)
    card = CARD

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The second head, on what the student's own takes."""
        if not self.bkl or self.head == "none":
            return nn.Module()
        embedding, classes = s.embedding, t.logits.shape[1]
        if embedding.dim() != 2:
            raise UsageError(
                f"dhkd's second head takes an embedding (B, D), but the student's is "
                f"{tuple(embedding.shape)}; tap the input of its head, as 'head:in'"
            )
        head = auxiliary(self.head, embedding.shape[1], classes, self.hidden, self.drop)
        return nn.ModuleDict({"head": head})

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label` and `bkl`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.bkl and clock.step >= self.until * clock.steps:
            out["bkl"] = s.logits.new_zeros((), dtype=torch.float32)
        elif self.bkl:
            second = s.logits if self.head == "none" else parts.head(s.embedding)
            loss = bkl_norm if self.loss == "norm" else bkl
            out["bkl"] = self.bkl * loss(second, t.logits, self.tau)
        return out

    def update(self) -> tuple[Phase, ...]:
        """One phase; with `align` each term's gradient by itself."""
        return (Phase(join=Surgery(aligned)) if self.align else Phase(),)
