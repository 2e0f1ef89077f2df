"""The sections of a run's page on what was measured on the judged set."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limbeck.report.dots import CALLED, class_table
from limbeck.report.page import Html, facts, figure, note, section, table, text
from limbeck.report.reading import SIDES, Told
from limbeck.report.reliability import pooled, reliability, sample
from limbeck.report.strips import Strip, strips
from limbeck.report.words import Measure, number, percent

__all__ = ["agreement", "calibration", "classes", "gave", "scores"]

SHOWN = 20
"""Classes in the plot, at most."""


def _sides(told: Told, *path: str) -> list[str]:
    """The sides of which a number is known."""
    return [side for side in SIDES if told.each("sides", side, *path)]


def scores(told: Told) -> Html:
    """The scores of student, baseline and teacher, seed by seed."""
    measure, student = told.measure, told.scores("student")
    if not student:
        return Html("")
    alone, teacher = told.scores("baseline"), told.scores("teacher")
    rows = [Strip(f"taught by {told.method}", student, measure.told(student))]
    marks = {}
    if alone:
        rows.append(Strip("alone, on the labels", alone, measure.told(alone), None))
        marks["alone"] = statistics.fmean(alone)
    if teacher:
        marks["teacher"] = statistics.fmean(teacher)
    if len(set(student + list(marks.values()))) < 2:
        return Html("")
    desc = "; ".join([*(f"{row.name} {row.note}" for row in rows)])
    desc += f"; teacher {measure.told(teacher)}" if teacher else ""
    name = told.first.result.get("score_of", "test")
    picture = strips(
        rows,
        marks,
        title=f"{measure.name} on the {name} set",
        desc=desc,
        percent=measure.percent,
    )
    caption = "Each ring is the student of one seed. " if told.many else ""
    if told.many:
        caption += "The upright bar is the mean, the band one standard deviation to each side. "
    if not measure.higher:
        caption += "Less is better."
    return section(
        f"{measure.name} on the {name} set".capitalize(), figure(picture, caption.strip())
    )


# -- numbers side by side --------------------------------------------------------------------------


def _rows(told: Told) -> Iterator[tuple[str, list[str]]]:
    """Each number's name and its words for teacher, student, baseline."""
    measure = told.measure
    yield measure.name, [measure.told(told.scores(side)) for side in SIDES]
    train = told.first.at("train", "samples")
    if train:
        cells = [measure.told(told.each("train", side)) for side in SIDES]
        yield f"{measure.name} on {train:,} training samples", cells
    if told.each("agreement", "student", "top1"):
        tops = [told.each("agreement", side, "top1") for side in SIDES]
        yield "same answer as the teacher", [_percent(v) for v in tops]
    if told.each("agreement", "student", "kl"):
        kls = [told.each("agreement", side, "kl") for side in SIDES]
        yield "KL divergence from the teacher", [number(v) for v in kls]
    for key, name in (("nll", "negative log-likelihood"), ("entropy", "entropy of its answers")):
        if _sides(told, key):
            yield name, [number(told.each("sides", side, key)) for side in SIDES]
    for key, name in (("confidence", "mean confidence"), ("ece", "calibration error (ECE)")):
        if _sides(told, key):
            yield name, [_percent(told.each("sides", side, key)) for side in SIDES]


def _percent(values: Sequence[float]) -> str:
    return Measure("accuracy").told(values)


def agreement(told: Told) -> Html:
    """The numbers of all sides in one table, agreement with the teacher among them."""
    rows = [(name, cells) for name, cells in _rows(told) if any(cells)]
    if len(rows) < 2:
        return Html("")
    used = [i for i in range(len(SIDES)) if any(cells[i] for _, cells in rows)]
    head = ["", *(CALLED[SIDES[i]] for i in used)]
    body = [(name, *(cells[i] for i in used)) for name, cells in rows]
    where, count = told.first.at("set"), told.first.at("samples")
    caption = f"On {count:,} samples of the {where} set, unless it says otherwise."
    if told.many:
        caption += f" Means and standard deviations over {len(told.seeds)} seeds."
    about = [
        "KL divergence, negative log-likelihood and entropy are means in nats, at temperature 1; "
        "less divergence is more agreement."
    ]
    if 2 in used:
        about.append("Alone: the same student, trained on the labels without the teacher.")
    return section("Side by side", table(head, body, caption), note(*about))


def calibration(told: Told) -> Html:
    """The reliability plot and what it means."""
    sides: dict[str, Any] = {}
    for side in SIDES:
        bins = [b for seed in told.seeds if (b := seed.at("sides", side, "reliability"))]
        if bins:
            sides[side] = pooled(bins)
    if "student" not in sides:
        return Html("")
    means = {side: (told.mean("sides", side, "ece") or 0.0) for side in sides}
    words = {side: f"{CALLED[side]}: ECE {percent(value)}" for side, value in means.items()}
    picture = reliability(sides, "; ".join(words.values()))
    confidence = told.mean("sides", "student", "confidence") or 0.0
    right = sum(a * n for _, a, n in sides["student"]) / sum(n for *_, n in sides["student"])
    keys = "".join(f"<span>{sample(side)}{text(word)}</span>" for side, word in words.items())
    sure = (
        f"On average the student believes its answer to {percent(confidence)} and is right in "
        f"{percent(right)} of cases"
    )
    gap = confidence - right
    if abs(gap) < 0.02:
        sure += ": about as sure as it should be."
    else:
        sure += f": it is {'too sure of itself' if gap > 0 else 'too modest'}."
    about = note(
        sure,
        "Each dot is a fifteenth of the scale, as large as its share of the samples; on the dashed "
        "line confidence and accuracy agree. ECE is the mean distance from that line.",
    )
    inside = f'{figure(picture)}\n<div>\n<p class="key">{keys}</p>\n{about}\n</div>'
    return section(
        "How far its confidence can be believed", Html(f'<div class="halves">\n{inside}\n</div>')
    )


# -- classes ---------------------------------------------------------------------------------------


def classes(told: Told) -> Html:
    """Accuracy by class."""
    names = told.names()
    values: dict[str, list[float | None]] = {}
    for side in SIDES:
        rows = [r for seed in told.seeds if (r := seed.at("sides", side, "per_class"))]
        if rows and len(rows[0]) == len(names):
            values[side] = [_mean(each) for each in zip(*rows, strict=True)]
    if "student" not in values:
        return Html("")
    order = list(range(len(names)))
    caption = "Of the samples of each class, percent that get their right name."
    if len(names) > SHOWN:
        order = sorted(order, key=lambda i: _gap(values, i))[:SHOWN]
        caption += f" Of {len(names)} classes, the {SHOWN} in which the student lacks most."
    chosen = {side: [row[i] for i in order] for side, row in values.items()}
    return section("Class by class", class_table([names[i] for i in order], chosen, caption))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _gap(values: dict[str, list[float | None]], i: int) -> float:
    """How far the student is above the teacher (or above 0) in a class; classes without last."""
    student = values["student"][i]
    teacher = values["teacher"][i] if "teacher" in values else 0.0
    return 9.0 if student is None or teacher is None else student - teacher


def gave(told: Told) -> Html:
    """What a method gives that is no model: scores of candidates, a report."""
    result = told.first.result
    body = []
    if isinstance(result.get("scores"), Mapping) and result["scores"]:
        ranked = sorted(result["scores"].items(), key=lambda item: -item[1])
        rows = [(name, f"{value:.4g}") for name, value in ranked[:50]]
        caption = (
            "Candidates, best first."
            if len(ranked) <= 50
            else (f"The best 50 of {len(ranked):,} candidates.")
        )
        body.append(table(["candidate", "score"], rows, caption, best=0))
    if isinstance(result.get("report"), Mapping) and result["report"]:
        body.append(facts(result["report"]))
    return section("What it gave", *body) if body else Html("")
