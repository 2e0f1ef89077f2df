"""Strips of dots: how values lie, row by row, against reference lines. Inline SVG."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from limbeck.report.page import Html, text
from limbeck.report.plots import label, short, svg, ticks

__all__ = ["Strip", "strips"]


@dataclass(frozen=True)
class Strip:
    """A row of dots: name, a number for each dot, what stands at its right end, its colour."""

    name: str
    values: Sequence[float]
    note: str = ""
    colour: int | None = 0  # one of six; None is grey


_ROW, _TOP, _BOTTOM = 58, 46, 40


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
    everything = [*(v for row in rows for v in row.values), *marks.values()]
    low, high = min(everything), max(everything)
    pad = 0.04 * (high - low) or 0.01
    low, high = low - pad, high + pad

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    def told(value: float) -> str:
        return f"{100 * value:.1f} %".replace(".0 ", " ") if percent else short(value)

    height = _TOP + _ROW * len(rows) + _BOTTOM
    foot = height - _BOTTOM
    out = []
    for value in ticks(low, high, 5):
        out.append(
            f'<line class="rule" x1="{at(value)}" x2="{at(value)}" y1="{_TOP}" y2="{foot}"/>'
        )
        out.append(label(at(value), foot + 18, told(value), "soft", "middle"))
    for i, (name, value) in enumerate(sorted(marks.items(), key=lambda item: item[1])):
        y = 14 + 17 * (i % 2)
        side = "end" if value - low > 0.5 * (high - low) else "start"
        out.append(
            f'<line class="mark" x1="{at(value)}" x2="{at(value)}" y1="{y + 4}" y2="{foot}"/>'
        )
        out.append(label(at(value), y, f"{name} {told(value)}", "soft", side))
    for i, row in enumerate(rows):
        out += _strip(row, _TOP + _ROW * i, at)
    return svg(title, desc, f'width="100%" height="{height}"', out)


def _strip(row: Strip, top: int, at: Callable[[float], str]) -> Iterator[str]:
    mean = statistics.fmean(row.values)
    spread = statistics.stdev(row.values) if len(row.values) > 1 else 0.0
    y = top + 38
    colour = "grey" if row.colour is None else f"c{row.colour % 6}"
    yield f'<text class="name" x="0" y="{top + 18}">{text(row.name)}</text>'
    yield label("100%", top + 18, row.note, "told", "end")
    yield f'<line class="rule" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
    yield (
        f'<line class="{colour}" stroke="var(--c)" stroke-width="9" opacity=".28" '
        f'x1="{at(mean - spread)}" x2="{at(mean + spread)}" y1="{y}" y2="{y}"/>'
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
