"""Which heads, neurons and channels a narrower copy of a model keeps: of models like Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["FIELDS", "axes_of", "dim_of", "narrowed"]

State = dict[str, Tensor]

# What the rows and the columns of a matrix are, in models that are built like Llama.
_AXES = {
    **dict.fromkeys(("embed_tokens", "lm_head", "score"), ("", "hidden")),
    **dict.fromkeys(("gate_proj", "up_proj"), ("wide", "hidden")),
    **dict.fromkeys(("k_proj", "v_proj"), ("groups", "hidden")),
    **{"q_proj": ("heads", "hidden"), "o_proj": ("hidden", "heads")},
    "down_proj": ("hidden", "wide"),
}
FIELDS = {"hidden": "hidden_size", "wide": "intermediate_size"}
FIELDS |= {"heads": "num_attention_heads", "groups": "num_key_value_heads"}


def dim_of(config: Any) -> int:
    """Channels of an attention head, which narrowing leaves alone."""
    dim = getattr(config, "head_dim", None)
    return int(dim or config.hidden_size // config.num_attention_heads)


def axes_of(key: str, value: Tensor, config: Any) -> tuple[str, ...] | None:
    """What the dimensions of a weight are ("": left whole); None where that is not known."""
    if not all(hasattr(config, field) for field in FIELDS.values()):
        return None
    name, dim = key.split(".")[-2], dim_of(config)
    if name in ("q_norm", "k_norm"):  # of each head
        return ("",) if value.shape == (dim,) else None
    size = {axis: getattr(config, field) for axis, field in FIELDS.items()}
    size |= {"": value.shape[0], "heads": size["heads"] * dim, "groups": size["groups"] * dim}
    axes = ("hidden",) if name.endswith("norm") else _AXES.get(name, ())[: value.dim()]
    return axes if value.shape == tuple(size[axis] for axis in axes) else None


def narrowed(state: State, config: Any, kept: dict[str, int]) -> State:
    """The weights between the channels, neurons and heads whose weights are largest."""
    axes = {key: axes_of(key, value, config) or () for key, value in state.items()}
    scores: dict[tuple[str, str], Any] = {}
    for key, value in state.items():
        if value.dim() == 2:
            square = value.double().square()  # each matrix counts alike, whatever its scale
            square /= square.mean().clamp_min(torch.finfo(torch.float64).tiny)
            for place, axis in enumerate(axes[key]):
                where = _where(key, axis)
                scores[where] = scores.get(where, 0) + square.mean(1 - place)
    picks = {where: _picked(*where, scores, kept, dim_of(config)) for where in scores if where[1]}
    for key in state:
        for place, axis in enumerate(axes[key]):
            if axis:
                state[key] = state[key].index_select(place, picks[_where(key, axis)])
    return state


def _where(key: str, axis: str) -> tuple[str, str]:
    """Each layer chooses its heads and neurons; the channels are one choice for all layers."""
    return ("" if axis == "hidden" else key.rsplit(".", 2)[0], axis)


def _picked(layer: str, axis: str, scores: Any, kept: dict[str, int], dim: int) -> Tensor:
    """Rows or columns to keep, rising; of each group of heads that share a key as many queries."""
    if axis in ("hidden", "wide"):
        return _top(scores[layer, axis], kept[axis])
    queries, keys = (scores[layer, a].view(-1, dim).sum(1) for a in ("heads", "groups"))
    queries = queries.view(len(keys), -1)
    heads = groups = _top(keys + queries.sum(1), kept["groups"])
    if axis == "heads":
        count, per = kept["heads"] // len(groups), queries.shape[1]
        heads = torch.cat([g * per + _top(queries[g], count) for g in groups])
    return (heads[:, None] * dim + torch.arange(dim, device=heads.device)).flatten()


def _top(scores: Tensor, count: int) -> Tensor:
    return scores.sort(descending=True, stable=True).indices[:count].sort().values
