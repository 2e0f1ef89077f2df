"""Layers of both sides, one beside the other, and how the student's get the teacher's channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision._kit.maps import spatial

__all__ = ["Fitted", "Layers", "layers", "matched", "same_channels"]

Layers = list[Tensor]


def matched(blocks: Sequence[Tensor] | Tensor, count: int) -> list[Tensor]:
    """So many of some blocks, evenly from the first part to the last, which is always one.

    Of twelve blocks four are the third, sixth, ninth and twelfth; a lone tensor is one block.
    """
    blocks = [blocks] if isinstance(blocks, Tensor) else blocks
    return [blocks[(i + 1) * len(blocks) // count - 1] for i in range(count)]


def layers(s: Side, t: Side, does: str, least: int = 1) -> tuple[Layers, Layers]:
    """The `blocks` of both sides as maps, as many of each: of the longer list some (`matched`).

    Args:
        s: the student.
        t: the teacher.
        does: who asks and what for, to begin a sentence with, such as "fsp relates layers".
        least: how many there must be.

    Raises:
        UsageError: there are fewer, or one is of another form.
    """
    each = [[b] if isinstance(b, Tensor) else list(b) for b in (s.blocks, t.blocks)]
    count = min(map(len, each))
    if count < least:
        raise UsageError(
            f"{does}, but the student shows {len(each[0])} blocks and the teacher {len(each[1])}; "
            f"tap at least {least} modules of each as `blocks`"
        )
    ours, theirs = ([spatial(x, does) for x in matched(side, count)] for side in each)
    return ours, theirs


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
