"""GradMag: each term's gradient is scaled so that all are of one size at the last layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.method import Clock
from limbeck.core.updates import Gradients, Join, all_added

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class GradMag(Join):
    """sum_i w_i g_i with w_i = (1 / n_i) / sum_j (1 / n_j), n_i the norm of g_i at the last layer.

    So every term has the same norm there, and one term alone is left as it is. A term without a
    gradient there counts for nothing. The weights of the terms cancel out.
    """

    def join(self, grads: Mapping[str, Gradients], names: Sequence[str], clock: Clock) -> Gradients:
        rows = last_layer(names)
        size = {t: _norm([each[i] for i in rows]) for t, each in grads.items()}
        there = {t: n for t, n in size.items() if float(n) > 0}
        total = sum(1 / n for n in there.values())
        joined: Gradients = [None] * len(names)
        for t, n in there.items():
            weight = 1 / (n * total)
            joined = all_added(joined, [None if g is None else weight * g for g in grads[t]])
        return joined


def last_layer(names: Sequence[str]) -> list[int]:
    """Which parameters are of the last of the numbered layers; all where none is numbered."""
    depth = [int(found[1]) if (found := _LAYER.search(name)) else -1 for name in names]
    return [i for i, d in enumerate(depth) if d == max(depth)]


def _norm(grads: Gradients) -> Tensor:
    found = [g.float().norm() for g in grads if g is not None]
    return torch.stack(found).norm() if found else torch.zeros(())
