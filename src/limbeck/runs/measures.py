"""Numbers of classifiers: calibration, entropy, classes one by one, agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.core.losses.divergences import kl

__all__ = ["agreements", "are_classes", "finite", "of_classes", "of_rows"]

BINS = 15
CHUNK = 4096  # bounds the memory of doubles


def are_classes(z: Tensor, y: Tensor | None) -> bool:
    """Whether the answers are of classes (N, C) and the labels, if any, numbers of them."""
    if not z.is_floating_point() or z.dim() != 2 or z.shape[1] < 2:
        return False
    if y is None:
        return True
    whole = y.dim() == 1 and not y.is_floating_point()
    return whole and int(y.min()) >= 0 and int(y.max()) < z.shape[1]


def of_classes(z: Tensor, y: Tensor | None) -> dict[str, Any]:
    """What is known of a side with logits z (N, C) on labels y (N,)."""
    rows = [of_rows(piece) for piece in torch.split(z, CHUNK)]
    confidence, pick, entropy, total = map(torch.cat, zip(*rows, strict=True))
    told = {"confidence": float(confidence.mean()), "entropy": float(entropy.mean())}
    if y is None:
        return told
    right = (pick == y).double()
    nll = total - z.gather(1, y.long()[:, None])[:, 0].double()
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # (0, 1/15], (1/15, 2/15], ...
    bins = []
    for b in range(BINS):
        inside = place == b
        if count := int(inside.sum()):
            bins.append([float(confidence[inside].mean()), float(right[inside].mean()), count])
    counts = torch.bincount(y.long(), minlength=z.shape[1])
    hits = torch.bincount(y.long(), right, minlength=z.shape[1])
    pairs = list(zip(hits.tolist(), counts.tolist(), strict=True))
    return {
        **told,
        "nll": float(nll.mean()),
        "ece": sum(n * abs(p - a) for p, a, n in bins) / len(y),
        "reliability": bins,
        "per_class": [hit / n if n else None for hit, n in pairs],
        "per_class_count": counts.tolist(),
    }


def of_rows(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Largest probability, its class, entropy and log-sum-exp of each row."""
    p = z.double().softmax(-1)
    top = p.max(-1)
    return top.values, top.indices, torch.special.entr(p).sum(-1), z.double().logsumexp(-1)


def _pick(z: Tensor) -> Tensor:
    return z.argmax(-1) if z.is_floating_point() else z


def agreements(answers: Mapping[str, Tensor]) -> dict[str, Any]:
    """How far student and baseline answer as the teacher does."""
    t = answers["teacher"]
    told: dict[str, Any] = {}
    for name in ("student", "baseline"):
        z = answers.get(name)
        if z is None or (t.is_floating_point() and t.shape != z.shape):
            continue
        told[name] = {"top1": float((_pick(z) == _pick(t)).double().mean())}
        if t.is_floating_point():
            pairs = zip(torch.split(z, CHUNK), torch.split(t, CHUNK), strict=True)
            total = sum(float(kl(a.double(), b.double()).sum()) for a, b in pairs)
            told[name]["kl"] = max(0.0, total / len(z))
    return told


def finite(value: Any) -> Any:
    """The same with None for what is not finite."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
