"""SP - which samples of a batch excite alike activations is the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.losses.divergences import kl
from limbeck.core.method import Clock, Objective, number
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.grams import Norm, gram, layers, samples

CARD = Card(
    key="sp",
    title="Similarity-Preserving Knowledge Distillation",
    year=2019,
    arxiv="1907.09682",
    code="",
    kinds=("feature", "relation"),
    needs=("feature|blocks", "student:logits", "y"),
    gives="model",
    world="digits",
    stages=("fit",),
    tiny={},
    departs="The paper compares feature maps of convolutional networks. Here patch tokens count as "
    "such, without those of the class, and vectors are taken as they are. A sample without any "
    "activation has a row of zeros and passes no gradient through it.",
)
EXEMPT = {
    "accumulate": "it relates the samples of a micro-batch; pairs across two are not seen",
    "doubled": "a row of length 1 has smaller numbers in a larger batch, and is divided by B again",
}
DOES = "sp relates the samples of a micro-batch"


def similarity_loss(s: Tensor, t: Tensor, norm: Norm = "rows") -> Tensor:
    """|G_s - G_t|_F^2 / B^2, G = Q Q^T of the activations Q, normalised by `norm` as in `gram`.

    With rows of length 1 this is (2 / B^2) sum_i (1 - cos(A_s[i], A_t[i])), A the products.
    Shapes: s (B, D), t (B, E) -> ().
    """
    return (gram(s, norm) - gram(t, norm)).square().mean()


@dataclass(frozen=True)
class SP(Objective):
    """A student is taught which samples of a batch the teacher finds alike.

    label * CE(y, s) + sp * (the sum over layers of |G_s - G_t|_F^2 / B^2) + kd * tau^2 KL(t || s)
    (0), with G = Q Q^T of the flattened activations Q (B, C H W), each row of it divided by its
    length (`norm` "matrix": G by its Frobenius norm; "none": as it is).
    Layers: `feature`, the last map before pooling, or with layers = "blocks" the stages of both
    sides, which must be as many. Widths and sizes of the two sides may differ, as only (B, B)
    matrices are compared; nothing is projected. A pair of layers counts 4 / B at most, so the
    weight belongs to a batch size.

    Trained: the student. Frozen: the teacher.
    Raises: UsageError for a single sample, for layers of unlike numbers, and for features that are
    no maps, squares of tokens or vectors.
    Source: Tung and Mori, ICCV 2019, arXiv 1907.09682, section 3; the weight 3000 is that of its
    CIFAR-10 comparisons and of RepDistiller's on CIFAR-100.
    Relatives: `cc` and `pkt` relate samples by other kernels, `rkd` by distances and angles; `ickd`
    relates channels in the same way.

    Example:
        >>> import torch
        >>> s, t = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> round(float(similarity_loss(s, t)), 6)
        0.199233
    """

    label: float = number(1.0, least=0)
    sp: float = number(3000.0, least=0)
    norm: Norm = "rows"
    layers: Literal["feature", "blocks"] = "feature"
    kd: float = number(0.0, least=0)
    tau: float = number(4.0, above=0)
    card = CARD

    def asks(self) -> tuple[str, ...]:
        """The card's needs, with the stages in place of the last map where they are compared."""
        return (self.layers, *CARD.needs[1:])

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `sp` and `kd`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.sp:
            mine, theirs = (layers(getattr(side, self.layers), DOES) for side in (s, t))
            if len(mine) != len(theirs):
                raise UsageError(
                    f"sp compares the layers of both sides in pairs, but the student shows "
                    f"{len(mine)} and the teacher {len(theirs)}; tap as many of each"
                )
            pairs = zip(mine, theirs, strict=True)
            each = [
                similarity_loss(samples(a, DOES), samples(b, DOES), self.norm) for a, b in pairs
            ]
            out["sp"] = self.sp * torch.stack(each).sum()
        if self.kd:
            out["kd"] = self.kd * kl(s.logits, t.logits, self.tau).mean()
        return out
