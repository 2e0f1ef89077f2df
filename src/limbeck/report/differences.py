"""Paired differences against a line at zero: a dot for each seed, the mean and its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from limbeck.report.page import Html
from limbeck.report.plots import label, short, svg, ticks

__all__ = ["differences_plot"]

_TOP, _DOT, _FOOT = 24, 8, 42
_APART = 2.3  # percent of a phone's width that a dot takes


def differences_plot(
    values: Sequence[float], told: Mapping[str, float], sides: tuple[str, str], title: str
) -> Html:
    """Draw differences, those above zero to the right of a line.

    Args:
        values: a difference for each seed.
        told: their "mean", "low" and "high", the ends of the 95 % interval.
        sides: what the left and the right of the line speak for.
        title: for who cannot see it; the numbers follow.
    """
    everything = [0.0, *values, told["low"], told["high"]]
    low, high = min(everything), max(everything)
    pad = 0.05 * (high - low) or 0.01
    low, high = low - pad, high + pad

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    placed = list(_stacked([at(value) for value in values]))
    ground = _TOP + _DOT * max(level for _, level in placed) + _DOT
    foot = ground + _FOOT - 22
    colour = "c2" if told["low"] > 0 else "c5" if told["high"] < 0 else "c4"
    out = [
        label("0", 12, f"← {sides[0]}", "soft", "start"),
        label("100%", 12, f"{sides[1]} →", "soft", "end"),
    ]
    for value in ticks(low, high, 5):
        x = f"{at(value):.2f}%"
        kind = "zero" if value == 0 else "rule"
        out.append(f'<line class="{kind}" x1="{x}" x2="{x}" y1="{_TOP - 6}" y2="{foot}"/>')
        side = "start" if at(value) < 3 else "end" if at(value) > 97 else "middle"
        sign = "+" if value > 0 else ""
        out.append(label(x, foot + 16, f"{sign}{short(value)}", "soft", side))
    out += [
        f'<circle class="{colour}" fill="var(--c)" cx="{x:.2f}%" cy="{ground - _DOT * level}" '
        'r="3.5"/>'
        for x, level in placed
    ]
    y = ground + 12
    ends = f'x1="{at(told["low"]):.2f}%" x2="{at(told["high"]):.2f}%"'
    mean = f"{at(told['mean']):.2f}%"
    out += [
        f'<line class="{colour}" stroke="var(--c)" stroke-width="7" opacity=".35" {ends} '
        f'y1="{y}" y2="{y}"/>',
        f'<line class="{colour}" stroke="var(--c)" stroke-width="2.5" x1="{mean}" x2="{mean}" '
        f'y1="{y - 7}" y2="{y + 7}"/>',
    ]
    desc = f"mean {told['mean']:+.4f}, 95 % interval {told['low']:+.4f} to {told['high']:+.4f}"
    return svg(title, desc, f'width="100%" height="{foot + 20}"', out)


def _stacked(places: Sequence[float]) -> Iterator[tuple[float, int]]:
    """Each place, in percent, with the lowest level on which it meets no other."""
    ends: list[float] = []
    for x in sorted(places):
        level = next((i for i, end in enumerate(ends) if x - end >= _APART), len(ends))
        ends[level:] = [x, *ends[level + 1 :]]
        yield x, level
