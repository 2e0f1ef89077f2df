"""At which size a model takes the data's pictures, and what its reader is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.evaluate import evaluating
from limbeck.core.hub import reason
from limbeck.core.task import build_model
from limbeck.core.views import call_model, entries_of
from limbeck.errors import UsageError
from limbeck.vision._kit.models import MOST, Net
from limbeck.vision._kit.pictures import Look
from limbeck.vision._kit.readers import Reader

__all__ = ["Settled", "settle"]

LEAST = 32  # pixels a side below which few architectures work


@dataclass(frozen=True)
class Settled:
    """A model that takes the data's pictures.

    Args:
        net: as it was before.
        module: one of it.
        size: pixels a side that it is shown; None: as they come.
        channels: that it takes.
        logits: how many it gives; None where it gives none.
    """

    net: Net
    module: nn.Module = field(repr=False)
    size: int | None
    channels: int
    logits: int | None

    def make(self) -> nn.Module:
        """Another module, drawn anew where it is not trained."""
        return self.net.at(self.size or MOST)

    def reader(self, look: Look, measured: tuple[Any, Any]) -> Reader:
        """Its reader.

        Args:
            look: what the pictures are like.
            measured: mean and deviation of the training pictures, for a model without its own.
        """
        wants = self.net.wants
        mean, std = (wants.mean, wants.std) if self.net.kept or self.net.trained else measured
        if look.free:
            mean = std = None
        return Reader(
            self.channels,
            self.size,
            _for(mean, self.channels),
            _for(std, self.channels),
            wants.interpolation,
            wants.keyword,
        )


def _for(values: Any, channels: int) -> tuple[float, ...] | None:
    """Numbers of each channel, for so many channels."""
    if values is None or len(values) == channels:
        return values  # type: ignore[no-any-return]
    return (round(sum(values) / len(values), 4),) * channels


def settle(net: Net, look: Look, classes: int | None, x: Tensor | None) -> Settled:
    """Find the size at which a model takes the data's pictures, and check its classes.

    Args:
        net: the model.
        look: what the pictures are like.
        classes: of the data; None: any number of the model's is right.
        x: a few pictures, where they are in memory.

    Raises:
        UsageError: it takes them at no size, or gives another number of classes.
    """
    if net.usual is not None:
        own = settle(replace(net, at=net.usual, usual=None), look, None, x)
        if own.logits in (classes, None):
            return own
        why = f"it has {own.logits} classes and the data have {classes}"
        net = replace(net, usual=None, trained=False, why=why)
    error: Exception | None = None
    for size in _sizes(net, look, x):
        try:
            module = build_model(partial(net.at, size or MOST), 0, net.side)
            channels = net.wants.channels or look.channels
            logits = _logits(module, Reader(channels, size, keyword=net.wants.keyword), look, x)
        except UsageError:
            raise
        except Exception as tried:  # whatever a forward pass that does not fit may raise
            error = error or tried
            continue
        if None not in (logits, classes) and logits != classes:
            raise UsageError(
                f"the {net.side} '{net.name}' gives {logits} classes and the data have {classes}; "
                f"give one with {classes}, or name a library's model in words, whose head is "
                "replaced"
            )
        return Settled(net, module, size, channels, logits)
    assert error is not None
    raise UsageError(
        f"the {net.side} '{net.name}' does not take pictures of {look.side} x {look.side} pixels "
        f"({reason(error)}); give one that does"
    ) from error


def _sizes(net: Net, look: Look, x: Tensor | None) -> list[int | None]:
    """Sizes to try: a pretrained model's own, else as small as the pictures are."""
    own = net.wants.size
    if net.kept and own:
        return [own]
    if not net.sized:
        several = dict.fromkeys((min(look.side, MOST), LEAST, own or MOST))
        return [None, *several] if x is not None else list(several)
    first = max(LEAST, min(look.side, own or MOST))
    return list(dict.fromkeys((first, -(-first // 32) * 32, own or MOST)))


def _logits(module: nn.Module, reader: Reader, look: Look, x: Tensor | None) -> int | None:
    """How many logits a module gives on two pictures."""
    if x is None:
        x = torch.zeros(2, look.channels, look.side, look.side)
    place = next((p.device for p in module.parameters()), x.device)
    with evaluating(module):
        out = call_model(module, reader(x.to(place)))
        logits = entries_of(out).get("logits")
    return logits.shape[-1] if isinstance(logits, Tensor) and logits.dim() == 2 else None
