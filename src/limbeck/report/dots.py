"""Classes one by one: a table with a dot for each side. HTML with inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from limbeck.report.page import Html, text
from limbeck.report.plots import ticks

__all__ = ["CALLED", "class_table"]

_HIGH = 22
_COLOUR = {"teacher": "c1", "student": "c0", "baseline": "grey"}
CALLED = {"teacher": "teacher", "student": "student", "baseline": "alone"}
"""How a page calls each side."""


def sign(side: str, x: str = "7", y: float = 7) -> str:
    """The sign of a side, told apart by shape and colour: a ring, a disc, a cross."""
    kind = f'class="{_COLOUR[side]}"'
    if side == "student":
        return f'<circle {kind} fill="var(--c)" cx="{x}" cy="{y:g}" r="4.5"/>'
    if side == "teacher":
        ring = 'fill="none" stroke="var(--c)" stroke-width="2"'
        return f'<circle {kind} {ring} cx="{x}" cy="{y:g}" r="5"/>'
    lines = "".join(
        f'<line {kind} stroke="var(--c)" stroke-width="1.75" x1="-4" x2="4" y1="{a}" y2="{-a}"/>'
        for a in (-4, 4)
    )
    # A nested picture, since only that takes a place in percent.
    return f'<svg x="{x}" y="{y:g}" overflow="visible">{lines}</svg>'


def _drawn(side: str) -> Html:
    """The sign of a side for a key."""
    return Html(f'<svg width="14" height="14" aria-hidden="true">{sign(side)}</svg>')


def class_table(
    names: Sequence[str], values: Mapping[str, Sequence[float | None]], caption: str
) -> Html:
    """Show the accuracy of each class.

    Args:
        names: of the rows.
        values: for each side, "teacher", "student", "baseline", a fraction or None for each row.
        caption: what is to be seen.
    """
    known = [v for row in values.values() for v in row if v is not None] or [0.0, 1.0]
    low = 0.9 if min(known) >= 0.9 else math.floor(5 * min(known) + 1e-9) / 5
    high = 1.0

    def at(value: float) -> str:
        return f"{4 + 92 * (value - low) / (high - low):.2f}%"

    rule = "".join(
        f'<line class="rule" x1="{at(v)}" x2="{at(v)}" y1="0" y2="{_HIGH}"/>'
        for v in ticks(low, high, 3)
    )
    scale = "".join(
        f'<text class="soft" x="{at(v)}" y="14" text-anchor="middle">{100 * v:.0f}</text>'
        for v in ticks(low, high, 3)
    )
    tops = "".join(
        f'<th scope="col" class="n">{_drawn(side)}{text(CALLED[side])}</th>' for side in values
    )
    lines = []
    for i, name in enumerate(names):
        row = {side: each[i] for side, each in values.items()}
        cells = "".join(
            f'<td class="n">{"" if v is None else f"{100 * v:.0f}"}</td>' for v in row.values()
        )
        lines.append(
            f'<tr><th scope="row"><span class="who">{text(name)}</span></th>'
            f'<td class="plot">{_row(row, rule, at)}</td>{cells}</tr>'
        )
    body = "\n".join(lines)
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">\n'
        f'<table class="dots">\n<caption><span>{text(caption)}</span></caption>\n<thead><tr>'
        '<th scope="col">class</th><th scope="col" class="plot">'
        f'<svg width="100%" height="18" aria-hidden="true">{scale}</svg></th>{tops}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _row(row: Mapping[str, float | None], rule: str, at: Callable[[float], str]) -> str:
    places = {side: at(v) for side, v in row.items() if v is not None}
    y = _HIGH / 2
    joined = ""
    if "teacher" in places and "student" in places:
        ends = f'x1="{places["teacher"]}" x2="{places["student"]}"'
        joined = f'<line class="c0" stroke="var(--c)" opacity=".5" {ends} y1="{y}" y2="{y}"/>'
    order = [side for side in ("baseline", "student", "teacher") if side in places]
    signs = "".join(sign(side, places[side], y) for side in order)
    return f'<svg width="100%" height="{_HIGH}" aria-hidden="true">{rule}{joined}{signs}</svg>'
