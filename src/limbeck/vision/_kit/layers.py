"""Layers of both sides, one beside the other, and how the student's get the teacher's channels."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.stages import paired

__all__ = ["Fitted", "Layers", "layers", "same_channels"]

Layers = list[Tensor]


def layers(s: Side, t: Side, does: str, least: int = 1) -> tuple[Layers, Layers]:
    """The `blocks` of both sides as maps in float32 or wider, as many of each (`stages.paired`).

    Args:
        s: the student.
        t: the teacher.
        does: who asks and what for, to begin a sentence with, such as "fsp relates layers".
        least: how many there must be.

    Raises:
        UsageError: there are fewer, or one is of another form.
    """
    counts = [1 if isinstance(b, Tensor) else len(b) for b in (s.blocks, t.blocks)]
    if min(counts) < least:
        raise UsageError(
            f"{does}, but the student shows {counts[0]} blocks and the teacher {counts[1]}; "
            f"tap at least {least} modules of each as `blocks`"
        )
    pairs = paired(s.blocks, t.blocks, does)
    return [a for a, _ in pairs], [b for _, b in pairs]


class Fitted(nn.ModuleList):
    """One 1x1 convolution for each of the student's maps, to the channels of the teacher's."""

    def __init__(self, s: Layers, t: Layers) -> None:
        pairs = zip(s, t, strict=True)
        super().__init__(nn.Conv2d(a.shape[1], b.shape[1], 1, bias=False) for a, b in pairs)

    def forward(self, s: Layers) -> Layers:
        """Maps (B, C, H, W) of the student -> (B, D, H, W), D the teacher's channels."""
        return [fit(x) for fit, x in zip(self, s, strict=True)]


def same_channels(s: Layers, t: Layers, does: str) -> None:
    """Refuse layers whose channels are not the teacher's.

    Raises:
        UsageError: those of one are not.
    """
    for k, (a, b) in enumerate(zip(s, t, strict=True), 1):
        if a.shape[1] != b.shape[1]:
            raise UsageError(
                f"{does} of the same channels, but layer {k} has {a.shape[1]} in the student and "
                f"{b.shape[1]} in the teacher; tap other `blocks`, or set project=True"
            )
