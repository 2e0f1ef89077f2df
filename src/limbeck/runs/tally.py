"""What is counted of a language model's predictions, text by text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck.runs.measures import BINS

__all__ = ["Tally"]


@dataclass
class Tally:
    """Of one side: a row (nats, right, tokens, bytes, KL, agreement) for each text, and bins."""

    rows: list[list[float]] = field(default_factory=list)
    bins: Tensor = field(default_factory=lambda: torch.zeros(BINS, 3, dtype=torch.float64))
    entropy: float = 0.0

    def numbers(self, compared: bool, with_bytes: bool) -> dict[str, Any]:
        """Means over tokens with their standard errors over texts."""
        nats, right, tokens, size, kl, agree = torch.tensor(self.rows, dtype=torch.float64).T
        nll, spread = _ratio(nats, tokens)
        out: dict[str, Any] = {
            "nll": nll,
            "nll_se": spread,
            "perplexity": math.exp(min(nll, 700.0)),
            "top1": _ratio(right, tokens)[0],
            "entropy": self.entropy / float(tokens.sum()),
            "reliability": [[p / n, a / n, int(n)] for p, a, n in self.bins.tolist() if n],
        }
        sure = sum(p * n for p, _, n in out["reliability"])
        out["confidence"] = sure / float(tokens.sum())
        out["ece"] = sum(n * abs(p - a) for p, a, n in out["reliability"]) / float(tokens.sum())
        if with_bytes:
            out["bits_per_byte"], out["bits_per_byte_se"] = _ratio(nats / math.log(2), size)
        if compared:
            out["agreement"] = {"top1": _ratio(agree, tokens)[0]}
            out["agreement"]["kl"], out["agreement"]["kl_se"] = _ratio(kl, tokens)
        return out


def _ratio(part: Tensor, whole: Tensor) -> tuple[float, float | None]:
    """Sum over sum, and its standard error over the rows."""
    r = part.sum() / whole.sum()
    if len(part) < 2:
        return float(r), None
    return float(r), float((part - r * whole).std() / (len(part) ** 0.5 * whole.mean()))
