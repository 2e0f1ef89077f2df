"""Curves over steps, with a band around each. Inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from limbeck.report.page import Html, text
from limbeck.report.plots import label, short, svg, ticks, width

__all__ = ["Line", "Point", "curves", "key"]

_DASHES = ("none", "6 3", "2 3", "9 3 2 3", "12 4", "1 4")  # told apart without colours, too

Point = tuple[float, float, float, float]


@dataclass(frozen=True)
class Line:
    """A curve: its name, pieces of points (x, middle, low, high) in order of x, its colour."""

    name: str
    pieces: Sequence[Sequence[Point]]
    colour: int = 0  # and dashes: one of six

    @property
    def last(self) -> float:
        """The middle of the last point."""
        return self.pieces[-1][-1][1]


_WIDE, _HIGH, _LEFT, _RIGHT, _HEAD, _FOOT = 340, 190, 40, 8, 20, 36


def curves(
    lines: Sequence[Line],
    *,
    title: str,
    desc: str,
    across: str = "step",
    parts: Sequence[tuple[str, float]] = (),
) -> Html:
    """Draw curves with a band from low to high around each.

    The vertical axis is logarithmic where all values are positive and differ more than twentyfold.

    Args:
        lines: the curves; a piece of one point is drawn as a dot.
        title: for who cannot see it.
        desc: what is to be seen, for who cannot see it.
        across: the name of the horizontal axis.
        parts: stretches of the horizontal axis, (name, where it ends); drawn if there are several.
    """
    every = [point for line in lines for piece in line.pieces for point in piece]
    xs = [point[0] for point in every] or [0.0, 1.0]
    ys = [value for point in every for value in point[1:]] or [0.0, 1.0]
    log = min(ys) > 0 and max(ys) > 20 * min(ys)
    low, high = _range(ys, log)
    left, right = min(0.0, *xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def across_at(x: float) -> float:
        return _LEFT + (_WIDE - _LEFT - _RIGHT) * (x - left) / (right - left)

    def up_at(y: float) -> float:
        f = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return _HIGH - _FOOT - (_HIGH - _FOOT - _HEAD) * f

    foot = _HIGH - _FOOT
    out = []
    for y in _log_ticks(low, high) if log else ticks(low, high, 4):
        at = f'y1="{up_at(y):.1f}" y2="{up_at(y):.1f}"'
        out.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" {at}/>')
        out.append(label(f"{_LEFT - 6}", up_at(y) + 4, short(y), "soft", "end"))
    for x in ticks(left, right, 5):
        at_end = across_at(x) + width(short(x)) / 2 > _WIDE
        place = f"{_WIDE if at_end else across_at(x):.1f}"
        out.append(label(place, foot + 17, short(x), "soft", "end" if at_end else "middle"))
    out.append(label(f"{_WIDE - _RIGHT}", foot + 33, across, "soft", "end"))
    out += _stages([(name, across_at(end)) for name, end in parts], across_at(left), foot)
    for line in lines:
        for piece in line.pieces:
            out += _curve(
                line.colour % 6, [(across_at(x), *(up_at(y) for y in rest)) for x, *rest in piece]
            )
    return svg(title, desc, f'viewBox="0 0 {_WIDE} {_HIGH}" width="100%"', out)


def _stages(parts: Sequence[tuple[str, float]], begin: float, foot: float) -> Iterator[str]:
    """Name several stages above the curves, and part them by lines."""
    for i, (name, end) in enumerate(parts if len(parts) > 1 else ()):
        if i:
            yield f'<line class="mark" x1="{begin:.1f}" x2="{begin:.1f}" y1="4" y2="{foot}"/>'
        if width(name) < end - begin:  # else it would run into the next one
            yield label(f"{begin + 4:.1f}", 12, name, "soft", "start")
        begin = end


def _range(ys: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(ys), max(ys)
    if log:
        return low / 1.15, high * 1.15
    low = min(low, 0.0) if low > -0.5 * abs(high) else low
    return low, high + (0.05 * (high - low) or 1.0)


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; where there are less than two, steps of 1, 2, 5 as well."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        every = max(1, (last - first) // 5) if factors == (1.0,) else 1
        found = [m * 10.0**e for e in range(first, last + 1, every) for m in factors]
        inside = [float(f"{v:.3g}") for v in found if low <= v <= high]
        if len(inside) > 2:
            break
    return inside


def _curve(i: int, points: Sequence[Sequence[float]]) -> Iterator[str]:
    colour = f"c{i}"
    if len(points) == 1:
        x, y = points[0][:2]
        yield f'<circle class="{colour}" fill="var(--c)" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        return
    band = [(p[0], p[2]) for p in points] + [(p[0], p[3]) for p in reversed(points)]
    yield (
        f'<polygon class="{colour}" fill="var(--c)" opacity=".16" '
        f'points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in band)}"/>'
    )
    yield (
        f'<polyline class="line {colour}" stroke="var(--c)" stroke-dasharray="{_DASHES[i]}" '
        f'points="{" ".join(f"{p[0]:.1f},{p[1]:.1f}" for p in points)}"/>'
    )


def key(lines: Sequence[Line]) -> Html:
    """Make the key of curves: a piece of each line with its name."""
    pieces = []
    for line in lines:
        i = line.colour % 6
        sample = (
            f'<line class="line c{i}" stroke="var(--c)" stroke-dasharray="{_DASHES[i]}" '
            'x1="0" x2="24" y1="4" y2="4"/>'
        )
        drawn = f'<svg width="24" height="8" aria-hidden="true">{sample}</svg>'
        pieces.append(f"<span>{drawn}{text(line.name)}</span>")
    return Html(f'<div class="key">{"".join(pieces)}</div>')
