"""The section of a run's page on samples to which student and teacher answer differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.report.page import Html, note, section, text
from limbeck.report.plots import png
from limbeck.report.reading import Told

__all__ = ["apart"]


def apart(told: Told) -> Html:
    """Samples to which student and teacher answer differently."""
    found = told.first.at("apart") or []
    if not found:
        return Html("")
    names, one = told.names(), "row" if told.inputs().get("kind") == "table" else "sample"
    agree = told.first.at("agreement", "student", "top1")
    count = told.first.at("samples")
    about = []
    if agree is not None and count:
        about.append(f"They differ on {round((1 - agree) * count):,} of {count:,} samples.")
    about.append(_first(found))
    if told.many:
        about.append(f"All are of {told.first.folder.name}.")
    shown = max(len(each["x"].get("values") or ()) for each in found)
    columns = told.columns()
    if 0 < shown < columns:
        about.append(f"Of a {one} the first {shown} of {columns:,} columns are shown.")
    where = told.first.at("set") or "test"
    about.append(f"{one.capitalize()}s are counted from 0, within the {where} set{_split(told)}.")
    cards = "\n".join(_card(each, names, f"{where} {one} {each['index']}") for each in found)
    wide = " wide" if shown else ""
    return section(
        "Where student and teacher part",
        note(*about),
        Html(f'<ul class="cards{wide}">\n{cards}\n</ul>'),
    )


def _first(found: Sequence[dict[str, Any]]) -> str:
    """Which samples stand first: those where the teacher is right, if there are any."""
    unsure = any(each["teacher"][1] is None for each in found)  # it gave labels alone
    surest = "the student is surest of itself" if unsure else "both are surest of themselves"
    if any(each["y"] is not None and each["teacher"][0] == each["y"] for each in found):
        return f"Shown first: where the teacher is right, and {surest}."
    none = "" if found[0]["y"] is None else "The teacher is right on none of them. "
    return f"{none}Shown first: where {surest}."


def _split(told: Told) -> str:
    there = (told.first.folder / "split.json").exists()
    return "; split.json lists where in the data these lie" if there else ""


def _card(each: dict[str, Any], names: Sequence[str], sample: str) -> str:
    def called(i: Any) -> str:
        return names[i] if isinstance(i, int) and 0 <= i < len(names) else str(i)

    lines = []
    for side in ("teacher", "student"):
        pick, p = each[side]
        sure = "" if p is None else f"{100 * p:.0f} %"
        right = each["y"] is not None and pick == each["y"]
        mark = (
            '<b class="yes">✓</b>'
            if right
            else '<b class="no">✗</b>'
            if each["y"] is not None
            else ""
        )
        lines.append(f"<dt>{side}</dt><dd>{mark} {text(called(pick))} <span>{sure}</span></dd>")
    truth = "" if each["y"] is None else f"<dt>label</dt><dd>{text(called(each['y']))}</dd>"
    picture, values = _sample(each["x"], sample)
    return f"<li>{picture}<p>{text(sample)}</p><dl>{truth}{''.join(lines)}</dl>{values}</li>"


def _sample(x: dict[str, Any], describe: str) -> tuple[str, str]:
    """What stands above the answers to a sample, and what below."""
    if x.get("kind") == "picture":
        pixels = x["pixels"]
        colour = isinstance(pixels[0][0], list)
        lines = [bytes(v for p in row for v in p) if colour else bytes(row) for row in pixels]
        crisp = ' class="crisp"' if max(len(pixels), len(pixels[0])) < 48 else ""
        source = png(lines, 2 if colour else 0)
        return f'<img{crisp} alt="{text(describe)}" src="{source}">', ""
    names, values = x.get("names") or [], x.get("values") or []
    if not names:
        return "", f"<p>{text(', '.join(f'{v:.4g}' for v in values))}</p>"
    pairs = zip(names, values, strict=False)
    rows = (f"<dt>{text(name)}</dt><dd>{v:.4g}</dd>" for name, v in pairs)
    return "", f'<dl class="values">{"".join(rows)}</dl>'
