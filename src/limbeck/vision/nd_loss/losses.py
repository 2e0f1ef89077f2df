"""Class means, the losses on norm and direction, and the map between widths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def nd_loss(s: Tensor, t: Tensor, mu: Tensor) -> Tensor:
    """1 - <s, mu / |mu|> / max(|s|, |t|), of each sample.

    While |s| < |t| that is 1 - cos |s| / |t|, which falls with the norm too where cos > 0.
    Shapes: s, t (B, D) features, mu (B, D) the mean of each sample's class -> (B,).
    """
    longest = torch.maximum(s.norm(dim=1), t.norm(dim=1))
    along = (s * F.normalize(mu, dim=1)).sum(1)
    return 1 - along / longest.where(longest > 0, torch.inf)


def cosine_loss(s: Tensor, mu: Tensor) -> Tensor:
    """1 - cos(s, mu), of each sample: the direction alone. Shapes: s, mu (B, D) -> (B,)."""
    return 1 - F.cosine_similarity(s, mu)


def norm_loss(s: Tensor, rise: float = 1.0) -> Tensor:
    """(|s| - (|s| + rise))^2 of each sample, the second |s| a constant: the norm alone.

    Its value is always rise^2, its gradient -2 rise s / |s|. Shapes: s (B, D) -> (B,).
    """
    length: Tensor = s.norm(dim=1)
    return (length - (length.detach() + rise)).square()


class Means(nn.Module):
    """The class means, and the map from the student's features to the teacher's width.

    Buffer: `mu` (C, D).

    Args:
        mu: (C, D).
        widths: of the student's and the teacher's features; where they are equal nothing is mapped.
        dropout: before the linear map.
    """

    mu: Tensor

    def __init__(self, mu: Tensor, widths: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.register_buffer("mu", mu)
        here, there = widths
        self.fit: nn.Module = nn.Identity()
        if here != there:
            linear = nn.Linear(here, there)
            nn.init.zeros_(linear.bias)
            self.fit = nn.Sequential(nn.BatchNorm1d(here), nn.Dropout(dropout), linear)
