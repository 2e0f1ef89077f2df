"""Where student, teacher, label and the teacher's class mean lie, and a ratio learnt from it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Fusion", "State", "state_of"]

State = Literal[
    "points+sides", "points", "sides", "angles", "points+angles", "sides+angles", "all", "summary"
]


def state_of(s: Tensor, t: Tensor, g: Tensor, o: Tensor, kind: State = "points+sides") -> Tensor:
    """What is known of a sample's four points S, T, G and O, the teacher's mean of its class.

    The points are s, t, g, o; the sides, element by element, (o - s)^2, (g - s)^2, (t - s)^2, and
    where points stand beside them without angles also (t - g)^2, (o - g)^2; the angles at S are
    (o - s) * (g - s) and (t - s) * (g - s). "all" has points, three sides and angles. "summary" is
    ten numbers, whatever C: the five sides' lengths, both angles' sums, and s, t, o at the label.
    Shapes: each (B, C) probabilities -> (B, k C): k = 9 for "points+sides" and "all", 4, 3 and 2
    for one of the three, 6 and 5 for "points+angles" and "sides+angles"; (B, 10) for "summary".
    """
    points = [s, t, g, o]
    pairs = [(o, s), (g, s), (t, s), (t, g), (o, g)]
    sides = [(a - b).square() for a, b in pairs]
    angles = [(o - s) * (g - s), (t - s) * (g - s)]
    if kind == "summary":
        lengths = [d.sum(1).sqrt() for d in sides]
        at = [(p * g).sum(1) for p in (s, t, o)]
        return torch.stack([*lengths, *(a.sum(1) for a in angles), *at], 1)
    chosen = {
        "points+sides": points + sides,
        "points": points,
        "sides": sides[:3],
        "angles": angles,
        "points+angles": points + angles,
        "sides+angles": sides[:3] + angles,
        "all": points + sides[:3] + angles,
    }
    return torch.cat(chosen[kind], 1)


class Fusion(nn.Module):
    """f_w: a sample's ratio in (0, 1) from its state, by LeakyReLU layers and a sigmoid.

    Buffer: `means` (C, C), the teacher's mean probabilities of each class.

    Args:
        means: the buffer.
        hidden: widths of the layers between.
        kind: of the state.
    """

    means: Tensor

    def __init__(self, means: Tensor, hidden: Sequence[int], kind: State) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("means", means)
        some = torch.zeros(1, len(means))
        widths = [state_of(some, some, some, some, kind).shape[1], *hidden]
        layers: list[nn.Module] = []
        for here, there in pairwise(widths):
            layers += [nn.Linear(here, there), nn.LeakyReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], 1), nn.Sigmoid())

    def forward(self, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The ratios (B,) from labels (B,) and logits (B, C), which get no gradient."""
        wide = self.means.dtype
        g = F.one_hot(y, s.shape[1]).to(wide)
        p, q = s.detach().to(wide).softmax(1), t.detach().to(wide).softmax(1)
        ratio: Tensor = self.net(state_of(p, q, g, self.means[y], self.kind))[:, 0]
        return ratio.to(wide)
