"""Networks for bags of instances: gated attention, multi-head attention and DSMIL.

Each takes x (B, N, D), the features of at most N instances in a bag, and mask (B, N), which of them
are there (all, without one). It shows `logits` (B, C) and `attention`, a list with the scores
before softmax (B, K, N): K rows of attention, `ABSENT` where no instance is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from limbeck.errors import Missing, nearest

ABSENT = -1e9  # of which softmax makes 0


def padded(samples: Sequence[tuple[Tensor, Any]]) -> dict[str, Any]:
    """Collate bags of different sizes: the `collate_fn` of a DataLoader over them.

    Args:
        samples: each a bag (N_i, D) and its label.

    Returns:
        x with x (B, N, D), filled up with zeros, and mask (B, N); y (B,).
    """
    bags = [torch.as_tensor(bag) for bag, _ in samples]
    sizes = torch.tensor([len(bag) for bag in bags])
    mask = torch.arange(int(sizes.max())) < sizes[:, None]
    y = torch.as_tensor([int(label) for _, label in samples])
    return {"x": {"x": pad_sequence(bags, batch_first=True), "mask": mask}, "y": y}


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores (B, K, N) in float32, `ABSENT` where no instance is."""
    scores = scores.float()
    return scores if mask is None else scores.masked_fill(~mask[:, None], ABSENT)


class Gated(nn.Module):
    """ABMIL: h = relu(W x), a = w (tanh(V h) * sigmoid(U h)), logits = C sum_i softmax(a)_i h_i.

    Args:
        instance: D, numbers of an instance.
        classes: of a bag.
        width: of h.
        inner: of V h and U h.
    """

    def __init__(self, instance: int, classes: int, width: int = 128, inner: int = 128) -> None:
        super().__init__()
        self.reduce = nn.Linear(instance, width, bias=False)
        self.v, self.u = nn.Linear(width, inner), nn.Linear(width, inner)
        self.w = nn.Linear(inner, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """Bags to logits (B, C) and scores (B, 1, N)."""
        h = self.reduce(x).relu()
        scores = self.w(self.v(h).tanh() * self.u(h).sigmoid()).transpose(1, 2)
        scores = _masked(scores, mask)
        bag = (scores.softmax(-1).to(h.dtype) @ h).squeeze(1)
        return {"logits": self.head(bag), "attention": [scores]}


class MultiHead(nn.Module):
    """One learned query attends to h = relu(W x) with several heads; LayerNorm, then logits.

    Args:
        instance: D, numbers of an instance.
        classes: of a bag.
        width: of h, a multiple of heads.
        heads: rows of attention.
        drop: dropout before the LayerNorm.
    """

    def __init__(
        self, instance: int, classes: int, width: int = 128, heads: int = 8, drop: float = 0.1
    ) -> None:
        super().__init__()
        self.heads = heads
        self.reduce = nn.Linear(instance, width, bias=False)
        self.query = nn.Parameter(1e-6 * torch.randn(1, 1, width))
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out, self.drop = nn.Linear(width, width), nn.Dropout(drop)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """Bags to logits (B, C) and scores (B, heads, N)."""
        h = self.reduce(x).relu()
        q, k, v = (
            f(z).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f, z in ((self.q, self.query), (self.k, h), (self.v, h))
        )
        scores = (q * k).sum(-1) / math.sqrt(k.shape[-1])
        scores = _masked(scores, mask)
        found = torch.einsum("bkn,bknd->bkd", scores.softmax(-1).to(v.dtype), v)
        bag = self.norm(self.drop(self.out(found.flatten(1))))
        return {"logits": self.head(bag), "attention": [scores]}


class DSMIL(nn.Module):
    """Two streams: each instance has logits; each class's best instance asks how near others are.

    c = W x (N, C); for class k the instance m_k with the largest c_k; scores q(x_i) q(m_k) /
    sqrt(width), q linear; the bag's logits are linear in its C vectors sum_i softmax(scores)_i x_i.
    It shows `instances` (B, N, C) too, the logits c, `ABSENT` where no instance is.

    Args:
        instance: D, numbers of an instance.
        classes: C.
        width: of q.
    """

    def __init__(self, instance: int, classes: int, width: int = 128) -> None:
        super().__init__()
        self.each, self.q = nn.Linear(instance, classes), nn.Linear(instance, width)
        self.head = nn.Conv1d(classes, classes, instance)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """Bags to logits (B, C), scores (B, C, N) and the logits of instances."""
        each = _masked(self.each(x).transpose(1, 2), mask)
        best = each.argmax(-1)[..., None].expand(-1, -1, x.shape[-1])
        q, asked = self.q(x), self.q(x.gather(1, best))
        scores = _masked(asked @ q.transpose(1, 2) / math.sqrt(q.shape[-1]), mask)
        bag = scores.softmax(-1).to(x.dtype) @ x
        return {
            "logits": self.head(bag).squeeze(-1),
            "attention": [scores],
            "instances": each.transpose(1, 2),
        }


FAMILIES: Mapping[str, Callable[..., nn.Module]] = {
    "abmil": Gated,
    "abmil-small": partial(Gated, width=16, inner=16),
    "mha": MultiHead,
    "dsmil": DSMIL,
}


def factory(family: str, instance: int, classes: int) -> Callable[[], nn.Module]:
    """Give the factory of a family's networks.

    Raises:
        Missing: no family of bags is called so.
    """
    if family not in FAMILIES:
        raise Missing(f"no model family of bags is called {family!r}{nearest(family, FAMILIES)}")
    return partial(FAMILIES[family], instance, classes)
