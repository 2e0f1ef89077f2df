"""Strips of dots: how values lie, row by row, against reference lines. Inline SVG."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from limbeck.report.page import Html, text
from limbeck.report.plots import label, short, svg, ticks, width

__all__ = ["Strip", "strips"]


@dataclass(frozen=True)
class Strip:
    """A row of dots: name, a number for each dot, what stands behind the name, its colour."""

    name: str
    values: Sequence[float]
    note: str = ""
    colour: int | None = 0  # one of six; None is grey


_ROW, _TOP, _BOTTOM, _WORDS, _LOWER = 58, 36, 40, 24, 31


def strips(
    rows: Sequence[Strip],
    marks: Mapping[str, float],
    *,
    title: str,
    desc: str,
    percent: bool = True,
) -> Html:
    """Draw a strip for each row: a dot for each value, a bar from mean - sd to mean + sd.

    It is as wide as the page, with letters of one size on any: along x all is in percent of the
    width.

    Args:
        rows: from top to bottom.
        marks: reference lines over all strips, by name; at most two.
        title: for who cannot see it.
        desc: the numbers, for who cannot see it.
        percent: whether the values are fractions to be shown in percent.
    """
    everything = [*(v for row in rows for v in (*row.values, *_band(row, percent)))]
    everything += marks.values()
    low, high = min(everything), max(everything)
    pad = 0.04 * (high - low) or 0.01
    low, high = low - pad, high + pad

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    def told(value: float) -> str:
        return f"{100 * value:.1f} %" if percent else short(value)

    height = _TOP + _ROW * len(rows) + _BOTTOM
    foot = height - _BOTTOM
    out = []
    values = ticks(low, min(high, 1.0) if percent else high, 5)
    for value in values:
        share = (value - low) / (high - low)
        side = "start" if share < 0.04 else "end" if share > 0.96 else "middle"
        out.append(label(at(value), foot + 18, told(value).replace(".0 ", " "), "soft", side))
    tops = list(
        _tops({f"{name} {told(v)}": 100 * (v - low) / (high - low) for name, v in marks.items()})
    )
    for x, y, words, side in tops:
        if y < _LOWER:
            ends = f'y1="{y + 4}" y2="{_TOP}"'
            out.append(f'<line class="mark" x1="{x:.2f}%" x2="{x:.2f}%" {ends}/>')
        out.append(label(f"{x:.2f}%", y, words, "soft", side))
    for i, row in enumerate(rows):
        top = _TOP + _ROW * i
        # Lines end where a row's words begin, which they would cross.
        span = f'y1="{top + _WORDS}" y2="{top + _ROW}"'
        for value in values:
            out.append(f'<line class="rule" x1="{at(value)}" x2="{at(value)}" {span}/>')
        out += [f'<line class="mark" x1="{x:.2f}%" x2="{x:.2f}%" {span}/>' for x, *_ in tops]
        out += _strip(row, top, at, _band(row, percent))
    return svg(title, desc, f'width="100%" height="{height}"', out)


_PHONE = 358.0  # pixels; where the words of two lines do not meet on a phone they meet nowhere


def _tops(marks: Mapping[str, float]) -> Iterator[tuple[float, float, str, str]]:
    """Place the words of at most two lines so that they meet neither each other nor a line.

    Gives for each x in percent, y, the words and whether they "start" or "end" at the line. The
    lower words must not lie across the line that comes down from the upper ones.
    """
    placed = sorted((x, words) for words, x in marks.items())
    sides = ["end" if x > 50 else "start" for x, _ in placed]
    lower = 0
    if len(placed) == 2:
        (a, words), (b, others) = placed
        if 100 * width(words) / _PHONE < a:
            sides[0] = "end"
        elif 100 * width(others) / _PHONE < 100 - b:
            lower, sides[1] = 1, "start"
    for i, (x, words) in enumerate(placed):
        yield x, _LOWER if i == lower else 14, words, sides[i]


def _band(row: Strip, percent: bool) -> tuple[float, float]:
    """One standard deviation to each side of the mean; of a fraction only what lies in [0, 1]."""
    mean = statistics.fmean(row.values)
    spread = statistics.stdev(row.values) if len(row.values) > 1 else 0.0
    low, high = mean - spread, mean + spread
    return (max(low, 0.0), min(high, 1.0)) if percent else (low, high)


def _strip(
    row: Strip, top: int, at: Callable[[float], str], band: tuple[float, float]
) -> Iterator[str]:
    mean = statistics.fmean(row.values)
    y = top + 38
    colour = "grey" if row.colour is None else f"c{row.colour % 6}"
    yield (
        f'<text x="0" y="{top + 18}"><tspan class="name">{text(row.name)}</tspan>'
        f'<tspan dx="10">{text(row.note)}</tspan></text>'
    )
    yield f'<line class="rule" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
    yield (
        f'<line class="{colour}" stroke="var(--c)" stroke-width="9" opacity=".28" '
        f'x1="{at(band[0])}" x2="{at(band[1])}" y1="{y}" y2="{y}"/>'
    )
    yield (
        f'<line class="{colour}" stroke="var(--c)" stroke-width="2.5" '
        f'x1="{at(mean)}" x2="{at(mean)}" y1="{y - 9}" y2="{y + 9}"/>'
    )
    for value in row.values:
        yield (
            f'<circle class="{colour}" fill="var(--paper)" stroke="var(--c)" stroke-width="1.75" '
            f'cx="{at(value)}" cy="{y}" r="4"/>'
        )
