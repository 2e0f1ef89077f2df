"""KD - the teacher's softened class probabilities as targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side

CARD = Card(
    key="kd",
    title="Distilling the Knowledge in a Neural Network",
    year=2015,
    arxiv="1503.02531",
    code="",
    kinds=("response",),
    needs=("logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The paper gives no weights; 0.1 and 0.9 at tau 4 are those of the field's CIFAR-100 "
    "comparisons. The soft term is the KL divergence, which differs from the paper's cross-entropy "
    "by the teacher's entropy only: the same gradient.",
)


def kd_loss(s: Tensor, t: Tensor, tau: float = 4.0) -> Tensor:
    """tau^2 KL(softmax(t / tau) || softmax(s / tau)), the mean over samples.

    Shapes: s, t (B, C) logits -> ().
    """
    return kl(s, t, tau).mean()


@dataclass(frozen=True)
class KD(Objective):
    """A student is taught the teacher's class probabilities, softened, beside the true labels.

    label * CE(y, s) + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)).

    Trained: the student. Frozen: the teacher.
    Raises: UsageError where the sides give different numbers of classes.
    Source: Hinton, Vinyals and Dean, NIPS 2014 workshop, arXiv 1503.02531, section 2: tau^2 keeps
    the soft gradient's size when tau changes.
    Relatives: `fitnets` adds a hint from inside, `takd` puts networks between, `dot` gives the two
    terms momenta of their own.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0, -1.0]])
        >>> float(kd_loss(z, z))
        0.0
    """

    label: float = number(0.1, least=0)
    kd: float = number(0.9, least=0)
    tau: float = number(4.0, above=0)
    card = CARD

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label` and `kd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.kd:
            out["kd"] = self.kd * kd_loss(s.logits, t.logits, self.tau)
        return out
