"""AEM - attention over the instances of a bag is kept from settling on a few of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.method import Clock, Objective, Rng, number
from limbeck.core.rng import Draws
from limbeck.core.views import Side, entries_of
from limbeck.errors import UsageError

CARD = Card(
    key="aem",
    title="AEM: Attention Entropy Maximization for Multiple Instance Learning based Whole Slide "
    "Image Classification",
    year=2024,
    arxiv="2406.15303",
    code="https://github.com/dazhangyu123/AEM",
    kinds=("regulariser", "attention", "teacher_free"),
    needs=("student:logits", "student:attention|student:attention+student:instances", "y", "index"),
    gives="model",
    world="bags(teacher='none')",
    stages=("fit",),
    tiny={"subsample": 0.8},
    departs="Bags of a step are as many as the budget says, and the terms their mean, where the "
    "code has one bag a step. The optimiser, AdamW with lr 2e-4, weight decay 1e-5 and a cosine to "
    "0 over 50 epochs, and what is chosen on valid, there AUC + F1, are the budget's. Of a bag so "
    "small that subsampling would leave nothing, one instance is kept. `top` holds for every row "
    "of attention, in the code for the one of ABMIL.",
)


def attention_entropy_penalty(scores: Tensor, top: int = 0) -> Tensor:
    """sum_i alpha_i log alpha_i, alpha = softmax_i(scores): the negative entropy of attention.

    The sum over instances, the mean over bags and their K rows of attention; from -log N, where
    all instances count alike, to 0, where one does. With `top`, of the `top` largest alpha alone,
    made to sum to 1 again. Its gradient in a row is alpha_i (log alpha_i - sum_j alpha_j log
    alpha_j) / (B K). Instances that are not there have a score of -1e9 or -inf.
    Shapes: scores (B, K, N) before softmax -> ().
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if 0 < top < scores.shape[-1]:
        scores = scores.topk(top).values  # softmax of these is theirs of all, made to sum to 1
    log = scores.log_softmax(-1)
    return (log.exp() * log.clamp_min(-1e30)).sum(-1).mean()


def subsampled(x: Any, share: float, draws: Draws) -> Any:
    """Bags with int(share * n) of their n instances, drawn without replacement; at least one.

    Of a mapping x with a `mask` (B, N) the mask is thinned; of a tensor x (B, N, ...), whose bags
    are all of N instances, the rows are taken, in random order.
    draws: for each bag.
    """
    if isinstance(x, Mapping) and isinstance(mask := x.get("mask"), Tensor):
        rank = draws.rand(mask.shape[1]).masked_fill(~mask, 2.0).argsort(1).argsort(1)
        kept = (share * mask.sum(1).double()).floor().clamp_min(1)
        return {**x, "mask": mask & (rank < kept[:, None])}
    if isinstance(x, Tensor) and x.dim() >= 3:
        few = max(1, int(share * x.shape[1]))
        rows = draws.rand(x.shape[1]).argsort(1)[:, :few]
        return x[torch.arange(len(x), device=x.device)[:, None], rows]
    raise UsageError(
        f"aem subsamples the instances of bags, and x is a {type(x).__name__}; give x as a tensor "
        "(B, N, D), or as a mapping with a mask (B, N)"
    )


class Averaged(nn.Module):
    """A bag model whose logits are log((softmax(max_i instances) + softmax(logits)) / 2)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Bags, as the model takes them, to logits (B, C)."""
        out = entries_of(self.model(*args, **kwargs))
        both = torch.stack((out["instances"].float().amax(1), out["logits"].float()))
        return both.log_softmax(-1).logsumexp(0) - math.log(2)


@dataclass(frozen=True)
class AEM(Objective):
    """A classifier of bags pays for attention that is not spread over the bag's instances.

    label * CE(y, s) + entropy * `attention_entropy_penalty` + instance * CE(y, max_i c_i): s the
    bag's logits, c_i those that the student gives its instances. The student shows `attention`,
    its scores before softmax (B, K, N), or a list of such; K is 1 for gated attention (ABMIL), the
    heads of multi-head attention, the classes of DSMIL. entropy=0 is plain ABMIL. For DSMIL
    label=0.5, instance=0.5: it also shows `instances` (B, N, C), and what ships averages the two
    probabilities. `subsample` is the share of each bag's instances that a step sees.

    The world `bags` has the three networks, and `padded`, which collates bags of different sizes.
    The penalty is a sum over instances of a bag, up to log N in size: an `entropy` that suits bags
    of 10,000 does not suit bags of 50; the paper looks among 0.001, 0.01, 0.1 and 1 for each set.

    Trained: the student. Frozen: whatever made the features of instances; there is no teacher.
    Raises: UsageError for attention of another shape, and with subsample below 1 for x that is no
    bag.
    Source: Yunlong Zhang et al., arXiv 2406.15303; constants, `top` and the two-stream loss from
    the authors' code.
    Relatives: none here; `sla` too does without a teacher.

    Example:
        >>> import torch
        >>> alpha = torch.tensor([[[0.7, 0.2, 0.1]]], dtype=torch.float64)
        >>> round(float(attention_entropy_penalty(alpha.log())), 6)
        -0.801819
    """

    label: float = number(1.0, least=0)
    entropy: float = number(0.1, least=0)
    # of the loss of the likeliest instance; 0.5, and label 0.5, for DSMIL
    instance: float = number(0.0, least=0)
    # only so many of the largest attentions are penalised; 0: all
    top: int = number(0, least=0)
    subsample: float = number(1.0, above=0, most=1)
    card = CARD

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        """The student sees some instances of each bag; a teacher, where one is added, all."""
        if self.subsample == 1:
            return batch, batch
        draws = rng("instances", batch.index)
        return batch.replace(x=subsampled(batch.x, self.subsample, draws)), batch

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `label`, `instance` and `entropy`."""
        out = {}
        if self.label:
            out["label"] = self.label * F.cross_entropy(s.logits.float(), batch.y)
        if self.instance:
            likeliest = s.instances.float().amax(1)
            out["instance"] = self.instance * F.cross_entropy(likeliest, batch.y)
        if self.entropy:
            layers = s.attention if isinstance(s.attention, list | tuple) else [s.attention]
            for scores in layers:
                if scores.dim() != 3:
                    raise UsageError(
                        f"the student's 'attention' is {tuple(scores.shape)}; aem takes scores of "
                        "instances before softmax, (B, K, N) with K rows of attention"
                    )
            each = [attention_entropy_penalty(scores, self.top) for scores in layers]
            out["entropy"] = self.entropy * torch.stack(each).mean()
        return out

    def deliver(self, student: nn.Module, parts: Any) -> nn.Module:
        """The student; one that learned by instances too answers by both."""
        return Averaged(student) if self.instance else student
