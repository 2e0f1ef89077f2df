"""Confidence against accuracy: how far a model's probabilities can be believed. Inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from limbeck.report.page import Html
from limbeck.report.plots import label, svg

__all__ = ["Bins", "pooled", "reliability", "sample"]

Bins = Sequence[Sequence[float]]
"""For each bin that holds samples: mean confidence, accuracy, count."""

BINS = 15
_SIDE, _LEFT, _TOP, _FOOT = 260, 44, 12, 44
_LOOK = {
    "teacher": 'class="c1" fill="none" stroke-width="1.75"',
    "student": 'class="c0" fill="var(--c)" fill-opacity=".3"',
    "baseline": 'class="grey" fill="none" stroke-width="1.5" stroke-dasharray="2.5 1.5"',
}
"""Told apart by form as well: a ring, a disc, a dotted ring."""


def pooled(seeds: Sequence[Bins]) -> list[list[float]]:
    """The bins of all seeds' samples together."""
    sums: dict[int, list[float]] = {}
    for bins in seeds:
        for confidence, accuracy, count in bins:
            place = min(max(math.ceil(confidence * BINS - 1e-9), 1), BINS)
            held = sums.setdefault(place, [0.0, 0.0, 0.0])
            for i, value in enumerate((confidence * count, accuracy * count, count)):
                held[i] += value
    return [[c / n, a / n, n] for _, (c, a, n) in sorted(sums.items())]


def sample(side: str) -> Html:
    """The dot of a side, for a key."""
    dot = f'<circle {_LOOK[side]} stroke="var(--c)" cx="7" cy="7" r="5"/>'
    return Html(f'<svg width="14" height="14" aria-hidden="true">{dot}</svg>')


def reliability(sides: Mapping[str, Bins], desc: str) -> Html:
    """Draw the accuracy of each bin over its mean confidence; a dot's area is its share.

    Args:
        sides: the bins of "teacher", "student", "baseline".
        desc: what is to be seen, for who cannot see it.
    """

    def place(confidence: float, accuracy: float) -> tuple[float, float]:
        return _LEFT + _SIDE * confidence, _TOP + _SIDE * (1 - accuracy)

    foot = _TOP + _SIDE
    out = []
    for v in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = place(v, v)
        ends = f'x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{y:.1f}" y2="{y:.1f}"'
        out.append(f'<line class="rule" {ends}/>')
        out.append(label(f"{_LEFT - 8}", y + 4, f"{v:g}", "soft", "end"))
        out.append(label(f"{x:.1f}", foot + 18, f"{v:g}", "soft", "middle"))
    ends = f'x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{foot}" y2="{_TOP}"'
    out.append(f'<line class="mark" {ends}/>')
    out.append(label(f"{_LEFT + _SIDE}", foot + 36, "confidence", "soft", "end"))
    for side, bins in sides.items():
        total = sum(n for *_, n in bins) or 1
        for confidence, accuracy, n in bins:
            x, y = place(confidence, accuracy)
            out.append(
                f'<circle {_LOOK[side]} stroke="var(--c)" '
                f'cx="{x:.1f}" cy="{y:.1f}" r="{2 + 9 * math.sqrt(n / total):.1f}"/>'
            )
    size = f'viewBox="0 0 {_LEFT + _SIDE + 12} {foot + _FOOT}" width="100%" class="square"'
    return svg("Accuracy over confidence", desc, size, out)
