"""How answers to several labels are judged: mAP, and F1 over all answers and over labels."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_average_precision(z: Tensor, y: Tensor) -> float:
    """The mean over labels of the average precision of ranking samples by their logit.

    Of a label it is sum_k (recall_k - recall_(k-1)) precision_k over the distinct logits, from the
    largest; labels without a positive sample are left out.
    Shapes: z (N, C) logits, y (N, C) of 0 and 1.
    """
    found = []
    for c in range(z.shape[1]):
        ranked, order = z[:, c].double().sort(descending=True)
        hits = y[order, c].double().cumsum(0)
        if not hits[-1]:
            continue
        last = torch.cat((ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)))
        place = torch.arange(1, len(ranked) + 1)[last]
        hits = hits[last]
        gain = torch.diff(hits, prepend=hits.new_zeros(1)) / hits[-1]
        found.append(float((gain * hits / place).sum()))
    return sum(found) / len(found) if found else float("nan")


def f1_scores(z: Tensor, y: Tensor) -> dict[str, float]:
    """OF1 of all answers together and CF1, the mean over labels, at probabilities above 0.5.

    A label that is neither there nor answered counts 0. Shapes: z (N, C), y (N, C) of 0 and 1.
    """
    said, true = z > 0, y > 0.5
    right = (said & true).sum(0).double()
    both = said.sum(0).double() + true.sum(0).double()
    each = 2 * right / both.clamp_min(1)
    return {"OF1": float(2 * right.sum() / both.sum().clamp_min(1)), "CF1": float(each.mean())}
