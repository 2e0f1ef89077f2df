"""Teachers made of networks with a mask at one of their features each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.taps import module_at
from limbeck.core.views import call_model, entries_of
from limbeck.errors import UsageError, nearest


class Mask(nn.Module):
    """A mask in (0, 1) for each of F features, from the feature itself.

    A map (B, F, H, W) is first brought to (B, F): a depthwise 3x3 convolution of stride 2, a 1x1
    one, BatchNorm, ReLU and the mean over places. Then a linear layer to F tokens of size e, one
    layer of self-attention, a linear layer to one number a token, and a sigmoid.

    Args:
        width: F.
        maps: whether features are maps with more than one place.
        heads: of the attention.
        factor: e is F / factor, rounded down to a multiple of `heads`, but not to 0.
    """

    def __init__(self, width: int, maps: bool, heads: int, factor: int) -> None:
        super().__init__()
        size = max(1, width // (factor * heads)) * heads
        self.reduce: nn.Module = nn.Identity()
        if maps:
            self.reduce = nn.Sequential(
                nn.Conv2d(width, width, 3, 2, 1, groups=width, bias=False),
                nn.Conv2d(width, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
            )
        self.embed = nn.Linear(width, width * size)
        self.attention = nn.MultiheadAttention(size, heads)
        self.out = nn.Linear(size, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, F) or (B, F, H, W) -> mask(h) * h of the same shape."""
        tokens = self.embed(self.reduce(h).flatten(1)).view(len(h), h.shape[1], -1).transpose(0, 1)
        # Tokens come first, and weights are asked for: both keep torch on its plain path.
        seen = self.attention(tokens, tokens, tokens, average_attn_weights=False)[0]
        mask = self.out(seen.transpose(0, 1)).squeeze(-1).sigmoid()
        masked: Tensor = h * mask.view(*mask.shape, *[1] * (h.dim() - 2)).to(h.dtype)
        return masked


class Group(nn.Module):
    """Several teachers made of a few frozen networks: each is one of them with a mask at a place.

    Args:
        peers: the networks by name; they are frozen and stay in eval mode.
        places: (peer, path of a module) of each teacher; the path "" is no mask.
        masks: a mask for each teacher, `nn.Identity` for none.
    """

    def __init__(
        self, peers: nn.ModuleDict, places: Sequence[tuple[str, str]], masks: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.peers = peers.requires_grad_(False)
        self.places = tuple(places)
        self.masks = nn.ModuleList(masks)

    def train(self, mode: bool = True) -> Group:
        """Of the masks alone."""
        super().train(mode)
        self.peers.eval()
        return self

    def forward(self, *args: Any, **x: Any) -> Tensor:
        """From what each peer takes -> (B, K, C, ...) logits of the K teachers."""
        given: Any = x or (args[0] if len(args) == 1 else args)
        return torch.stack([self._one(k, given) for k in range(len(self.places))], 1)

    def _one(self, k: int, x: Any) -> Tensor:
        (name, path), mask = self.places[k], self.masks[k]
        peer = self.peers[name]
        if not path:
            return logits_of(peer, x)
        hook = module_at(peer, path).register_forward_hook(lambda m, args, out: mask(out))
        try:
            return logits_of(peer, x)
        finally:
            hook.remove()


def logits_of(model: nn.Module, x: Any) -> Tensor:
    """A model's logits on inputs x."""
    logits: Tensor = entries_of(call_model(model, x))["logits"]
    return logits


def features_of(model: nn.Module, x: Any) -> dict[str, torch.Size]:
    """The shapes of what convolutions and linear layers give, in the order in which they run.

    Only of vectors (B, F) and maps (B, F, H, W), and of layers that run once; without the last
    layer, which gives the logits.
    """
    shapes: dict[str, list[torch.Size]] = {}
    hooks = []

    def note(name: str) -> Any:
        return lambda m, args, out: shapes.setdefault(name, []).append(out.shape)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            hooks.append(module.register_forward_hook(note(name)))
    try:
        call_model(model, x)
    finally:
        for hook in hooks:
            hook.remove()
    once = {n: s[0] for n, s in shapes.items() if len(s) == 1 and len(s[0]) in (2, 4)}
    last = next(reversed(shapes), None)
    return {n: shape for n, shape in once.items() if n != last}


def chosen(
    peers: nn.ModuleDict, x: Any, layers: int, at: Sequence[str]
) -> list[tuple[str, str, torch.Size]]:
    """Where masks go: (peer, path, shape of the feature).

    Args:
        peers: the networks by name, in eval mode.
        x: a few inputs.
        layers: of each peer so many of the last layers before the logits, where `at` is empty.
        at: "PEER.PATH", for masks elsewhere.

    Raises:
        UsageError: a peer has fewer layers; or `at` names no such layer.
    """
    found = {name: features_of(peer, x) for name, peer in peers.items()}
    if not at:
        for name, shapes in found.items():
            if len(shapes) < layers:
                raise UsageError(
                    f"mst_distill masks {layers} layers of each peer, but {name!r} has "
                    f"{len(shapes)} before its logits; give fewer layers, or name modules by at"
                )
        return [(n, p, s[p]) for n, s in found.items() for p in list(s)[-layers:]]
    every: Mapping[str, tuple[str, str, torch.Size]] = {
        f"{n}.{p}": (n, p, shape) for n, s in found.items() for p, shape in s.items()
    }
    for place in at:
        if place not in every:
            raise UsageError(
                f"mst_distill was given at={place!r}, which is no convolution or linear layer of a "
                f"peer that gives (B, F) or (B, F, H, W) once{nearest(place, every)}"
            )
    return [every[place] for place in at]
