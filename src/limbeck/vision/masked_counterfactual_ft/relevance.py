"""Which patches a logit rests on, by a model's attention or by Grad-CAM."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from limbeck.errors import UsageError
from limbeck.vision._kit.patches import leading

__all__ = ["Attentions", "attention_relevance", "grad_cam", "normalised", "square"]


class Attentions(TorchFunctionMode):
    """While it is on, attention is computed plainly, and the maps (B, heads, L, L) are kept.

    Layers of torch, timm and transformers all come down to one function of torch. With `hidden`
    (B, P) no token looks at those of the last P tokens that are marked.
    """

    def __init__(self, hidden: Tensor | None = None) -> None:
        super().__init__()
        self.maps: list[Tensor] = []
        self.hidden = hidden

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """One call of a function of torch."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward and _usual(args, kwargs):
            return self._layer(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._plain(*args, **kwargs)
        return func(*args, **kwargs)

    def _layer(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """What torch's own layer computes for tokens (L, B, D), which looks at no mode inside."""
        sides, heads, weight, bias = args[:3], args[4], args[5], args[6]
        biases = bias.chunk(3) if bias is not None else (None,) * 3
        parts = zip(sides, weight.chunk(3), biases, strict=True)
        q, k, v = (
            F.linear(x, w, b).view(*x.shape[:2], heads, -1).permute(1, 2, 0, 3) for x, w, b in parts
        )
        dropout = args[10] if kwargs.get("training", True) else 0.0
        out = self._plain(q, k, v, kwargs.get("attn_mask"), dropout)
        out = F.linear(out.permute(2, 0, 1, 3).flatten(2), args[11], args[12])
        if not kwargs.get("need_weights", True):
            return out, None
        a = self.maps[-1]
        return out, a.mean(1) if kwargs.get("average_attn_weights", True) else a

    def _plain(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """softmax(Q K^T scale + mask) V, and its map is kept."""
        if is_causal or enable_gqa:
            raise UsageError("masked_counterfactual_ft reads attention of pictures, not of text")
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            dark = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if dark else scores + attn_mask
        if self.hidden is not None:
            lead = key.shape[-2] - self.hidden.shape[1]
            if lead < 0 or len(scores) != len(self.hidden):
                raise UsageError(
                    "fill='none' hides patches from attention, but a layer has other tokens than "
                    "the first one; give fill='single' or 'multi'"
                )
            scores = scores.masked_fill(F.pad(self.hidden, (lead, 0))[:, None, None], -torch.inf)
        weights = scores.softmax(-1)
        self.maps.append(weights)
        return F.dropout(weights, dropout_p) @ value


def _usual(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is plain attention among tokens of a batch: nothing added, nothing apart."""
    added = args[7] is not None or args[8] is not None or args[9]
    mask, apart = kwargs.get("attn_mask"), kwargs.get("use_separate_proj_weight", False)
    padded = kwargs.get("key_padding_mask") is not None or kwargs.get("is_causal", False)
    flat = args[0].dim() == 3 and (mask is None or mask.dim() == 2)
    return flat and not (added or apart or padded)


def attention_relevance(z: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """R[class token, patches], R <- R + mean_heads(relu(dz / dA * A)) R over layers, from R = 1.

    Where no token comes before the patches, which are then pooled, it is R's mean row.
    Shapes: z (B,) logits, maps each (B, heads, L, L) -> (B, P) with P the square of patches.
    """
    if any(a.dim() != 4 or a.shape[0] != len(z) or a.shape != maps[0].shape for a in maps):
        raise UsageError(
            "the student's attention maps differ from layer to layer, so that no relevance goes "
            "through them; give relevance='gradcam' and a tap 'feature'"
        )
    slopes = torch.autograd.grad(z.sum(), list(maps), retain_graph=True, allow_unused=True)
    tokens = maps[0].shape[-1]
    r = torch.eye(tokens, device=z.device).expand(len(z), -1, -1)
    for a, slope in zip(maps, slopes, strict=True):
        if slope is not None:
            r = r + (slope.float() * a.detach().float()).relu().mean(1) @ r
    lead = leading(tokens)
    if lead is None:
        raise UsageError(
            f"the student attends to {tokens} tokens, which are no square of patches; give "
            "relevance='gradcam' and a tap 'feature'"
        )
    return r[:, 0, lead:] if lead else r.mean(1)


def grad_cam(z: Tensor, feature: Tensor) -> Tensor:
    """relu(sum_k w_k a_k), w_k the sum over places of dz / da_k.

    Shapes: z (B,) logits, feature a map (B, K, h, w), or tokens (B, T, K) whose last ones are a
    square of patches -> (B, h, w) or (B, P).
    """
    lead = leading(feature.shape[1]) if feature.dim() == 3 else 0
    if feature.dim() not in (3, 4) or lead is None:
        raise UsageError(
            f"masked_counterfactual_ft's 'feature' is of shape {tuple(feature.shape)}, which is no "
            "map (B, K, h, w) and no square of tokens; tap another module"
        )
    slope = None
    if z.requires_grad and feature.requires_grad:
        (slope,) = torch.autograd.grad(z.sum(), feature, retain_graph=True, allow_unused=True)
    if slope is None:
        raise UsageError(
            "no gradient of the logits reaches the tap 'feature'; tap a module below the head, "
            "whose output the logits are made of"
        )
    a, slope = feature.detach().float(), slope.float()
    if a.dim() == 4:
        return (slope.sum((2, 3), keepdim=True) * a).sum(1).relu()
    return (slope.sum(1, keepdim=True) * a).sum(2).relu()[:, lead:]


def normalised(cam: Tensor) -> Tensor:
    """Each map over its maximum, in [0, 1]; a map of zeros stays. Shapes: cam (B, ...)."""
    return cam / (cam.flatten(1).amax(1) + 1e-8).view(-1, *[1] * (cam.dim() - 1))


def square(cam: Tensor) -> Tensor:
    """(B, P) patches as (B, h, h); a map cam stays."""
    side = math.isqrt(cam.shape[1])
    return cam if cam.dim() == 3 else cam.view(-1, side, side)
