"""ML-Decoder: one embedding for each label from a feature map, and a logit from each."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.taps import UpTo
from limbeck.errors import UsageError

MOST = 100  # embeddings; of more labels several share one


class Decoder(nn.Module):
    """A decoder layer whose fixed random queries, one for each label, look at the map's places.

    No query looks at another. Labels share a query in groups where there are more than `MOST`.

    Args:
        here: channels of the map.
        labels: how many there are.
        dim: width of the embeddings, a multiple of heads.
        inner: width of the feed-forward layer.
        heads: of the attention.
        draw: draws the queries.
    """

    queries: Tensor

    def __init__(
        self, here: int, labels: int, dim: int, inner: int, heads: int, draw: torch.Generator
    ) -> None:
        super().__init__()
        groups = min(labels, MOST)
        self.labels, self.share = labels, -(-labels // groups)
        self.register_buffer("queries", torch.randn(groups, dim, generator=draw))
        self.embed = nn.Linear(here, dim)
        self.attention = nn.MultiheadAttention(dim, heads, dropout=0.1)
        self.inner, self.outer = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(0.1)
        # Xavier's deviation for a table of so many groups, dim and labels a group.
        scale = math.sqrt(2 / ((groups + dim) * self.share))
        weight = torch.randn(groups, dim, self.share, generator=draw) * scale
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(labels))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """A map (B, K, h, w) or tokens (B, T, K) -> logits (B, C), embedding (B, C, dim)."""
        if x.dim() not in (3, 4):
            raise UsageError(
                f"l2d's 'feature' is of shape {tuple(x.shape)}, which is no map (B, K, h, w) and "
                "no tokens (B, T, K); tap another module"
            )
        tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
        seen = self.embed(tokens).relu().transpose(0, 1)
        h = self.queries[:, None].expand(-1, len(x), -1)
        h = self.norms[0](h + self.dropout(h))
        # Asking for each head's weights keeps torch on one path, in train and in eval mode.
        found = self.attention(h, seen, seen, average_attn_weights=False)[0]
        h = self.norms[1](h + self.dropout(found))
        h = self.norms[2](h + self.dropout(self.outer(self.dropout(self.inner(h).relu()))))
        each = torch.einsum("gbd,gdf->bgf", h, self.weight).flatten(1)
        own = torch.arange(self.labels, device=x.device) // self.share
        return {
            "logits": each[:, : self.labels] + self.bias,
            "embedding": h.transpose(0, 1)[:, own],
        }


class Headed(nn.Module):
    """A model up to its feature map, with an ML-Decoder as its head.

    `whole` makes it show embeddings beside its logits; without, it gives the logits (B, C).
    """

    def __init__(self, model: nn.Module, path: str, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = UpTo(model, path, "feature"), head
        self.whole = True

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor] | Tensor:
        """From what the model takes."""
        out: dict[str, Tensor] = self.head(self.backbone(*args, **kwargs)["feature"])
        return out if self.whole else out["logits"]


def channels_of(model: nn.Module, path: str, x: Any) -> int:
    """Channels of the map (B, K, h, w), or width of the tokens (B, T, K), that a model shows."""
    was = [(m, m.training) for m in model.modules()]
    model.eval()
    up_to = UpTo(model, path, "feature")
    with torch.no_grad():
        feature = up_to(**x)["feature"] if isinstance(x, dict) else up_to(x)["feature"]
    for module, training in was:
        module.training = training
    return int(feature.shape[1 if feature.dim() == 4 else -1])


def one_hot(y: Tensor, labels: int) -> Tensor:
    """Labels as numbers of 0 and 1, (B, C); class numbers (B,) are one label each."""
    return F.one_hot(y, labels).float() if y.dim() == 1 else y.float()
