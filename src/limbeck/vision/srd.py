"""SRD - a linear projector, both sides standardised over the batch, a soft maximum of errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Facts, Objective, number
from limbeck.core.views import Side
from limbeck.errors import UsageError

CARD = Card(
    key="srd",
    title="Understanding the Role of the Projector in Knowledge Distillation",
    year=2024,
    arxiv="2303.11098",
    code="https://github.com/roymiles/Simple-Recipe-Distillation",
    kinds=("feature", "response"),
    needs=("embedding", "logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="Inside the logarithm is the mean over samples of the sum over numbers, in the code "
    "the sum over both: log B less, and the same gradient. 1e-12 is added to it, so that sides "
    "that agree have a value and no gradient; the code for ImageNet adds nothing, that for DeiT "
    "1e-5. The small number "
    "beside the variance is that for ImageNet in both forms. The soft term has tau^2, which the "
    "code's tau of 1 does not tell from none.",
)
EXEMPT = {
    "accumulate": "embeddings are standardised over a micro-batch, and the logarithm is of its sum"
}
LEAST = 1e-12  # inside the logarithm


def standardised(x: Tensor, eps: float = 1e-4) -> Tensor:
    """(x_bd - mean_b x_bd) / sqrt(var_b x_bd + eps), each number standardised over the batch.

    The variance is the biased one; the gradient passes through both moments.
    Shapes: x (B, D) -> (B, D), at least float32.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = x - x.mean(0)
    return centred / (centred.square().mean(0) + eps).sqrt()


def log_sum(u: Tensor, v: Tensor, alpha: float = 4.0, form: str = "differences") -> Tensor:
    """log(sum_d mean_b |e_bd|^alpha + 1e-12) of the errors e of standardised u and v.

    form: "differences", e_bd = u_bd - v_bd; "correlation", e_d = mean_b u_bd v_bd - 1 of all b.
    Shapes: u, v (B, D) -> ().
    """
    errors = u - v if form == "differences" else (u * v).mean(0, keepdim=True) - 1
    return (errors.abs().pow(alpha).mean(0).sum() + LEAST).log()


@dataclass(frozen=True)
class SRD(Objective):
    """A student is taught the teacher's embedding by a linear layer, however large the gap is.

    label * CE(y, s) + srd * log(mean over samples b of sum over d of |u_bd - v_bd|^alpha)
    + kd * tau^2 KL(softmax(t / tau) || softmax(s / tau)), u the student's embedding through a
    linear layer and v the teacher's, each number standardised over the batch with `eps` beside the
    variance. The logarithm keeps the gradient's size whatever that of the errors; the larger alpha,
    the more only the largest of them count. form="correlation" has the errors rho_d - 1 instead,
    rho_d the correlation of u_d and v_d over the batch.

    A batch of one says nothing: u and v are 0 then. With several processes or micro-batches each
    has its own moments. As the gradient does not shrink while both sides come near, the rate must.

    Trained: the student, and the linear layer, which is then dropped. Frozen: the teacher.
    Raises: UsageError where an embedding is no vector, or classes differ in number (kd = 0: may).
    Source: Miles and Mikolajczyk, AAAI 2024, arXiv 2303.11098; constants from the authors' code
    for ResNet34 to ResNet18 on ImageNet, the other form from that for DeiT.
    Relatives: `vkd` has an orthogonal projector and squared errors; `pad` learns how much each
    error counts; `luminet` standardises logits in this way.

    Example:
        >>> import torch
        >>> u, v = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [-1.0]])
        >>> round(float(log_sum(u, v).exp()), 4)
        16.0
    """

    label: float = number(1.0, least=0)
    srd: float = number(2.0, least=0)
    kd: float = number(1.0, least=0)
    tau: float = number(1.0, above=0)
    alpha: float = number(4.0, least=1)
    eps: float = number(1e-4, above=0)
    form: Literal["differences", "correlation"] = "differences"
    card = CARD

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """The linear layer from the student's width to the teacher's."""
        if not self.srd:
            return nn.Module()
        for name, side in (("student", s), ("teacher", t)):
            if side.embedding.dim() != 2:
                raise UsageError(
                    f"srd compares embeddings (B, D), but the {name}'s is "
                    f"{tuple(side.embedding.shape)}; tap the input of its head, as 'head:in'"
                )
        linear = nn.Linear(s.embedding.shape[1], t.embedding.shape[1])
        return nn.ModuleDict({"project": linear})

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `srd` and `kd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.srd:
            u = standardised(parts.project(s.embedding), self.eps)
            v = standardised(t.embedding, self.eps)
            out["srd"] = self.srd * log_sum(u, v, self.alpha, self.form)
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        return out
