"""The page of the demo, made from its folder: `result.json` and each run's `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.report.curves import Line, curves, key
from limbeck.report.logs import Metrics, lines_of, read_metrics
from limbeck.report.page import Html, code, facts, figure, lead, note, page, section, table
from limbeck.report.plots import pictures
from limbeck.report.strips import Strip, strips
from limbeck.report.words import percent, points, spread, wins

__all__ = ["crowds_of", "demo_page", "rows_of"]


def demo_page(folder: Path) -> Html:
    """Make the page of a finished demo.

    Args:
        folder: the demo's folder.

    Raises:
        OSError: there is no `result.json`. Curves whose `metrics.jsonl` is missing are left out.
        ValueError: it is not JSON.
    """
    told = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    logs = {
        name: [read_metrics(folder / run / "metrics.jsonl") for run in arm.get("runs", ())]
        for name, arm in {"scratch": told["scratch"], **told["students"]}.items()
    }
    title = "What a small student learns from a large teacher"
    head = [lead(*_story(told)), *_pictures(told)]
    body = [_accuracies(told), _numbers(told), _learning(logs), _taught(told), _again(told)]
    return page("limbeck demo", title, head, [part for part in body if part])


# -- words -----------------------------------------------------------------------------------------


def _gain(told: Mapping[str, Any], name: str) -> float:
    return float(told["students"][name]["gain"]["mean"])


def _best(told: Mapping[str, Any]) -> str:
    return max(map(str, told["students"]), key=lambda name: _gain(told, name))


def _story(told: Mapping[str, Any]) -> Iterable[str]:
    teacher, scratch, data = told["teacher"], told["scratch"], told["data"]
    name = _best(told)
    best = told["students"][name]
    share = 100 * scratch["parameters"] / teacher["parameters"]
    yield (
        f"The teacher, {_model(teacher)}, names {percent(teacher['accuracy']['mean'])} of "
        f"{data['test']} {data['what']}, right."
    )
    yield (
        f"The student, {_model(scratch)} ({share:.2g} % as many), reaches "
        f"{percent(scratch['accuracy']['mean'])} when it learns from the labels alone."
    )
    if _gain(told, name) <= 0:
        yield "None of the taught students is better than that here."
        return
    same = best["steps"] == scratch["steps"]
    cost = (
        "after as many steps"
        if same
        else f"after {best['steps'] / scratch['steps']:.2g} times the steps"
    )
    by = f"{name}, with {best['teacher']['name']}" if "teacher" in best else name
    yield (
        f"Taught by {by}, it reaches {percent(best['accuracy']['mean'])}, "
        f"{100 * _gain(told, name):.1f} points more, {cost}: better in "
        f"{wins(best['gain']['each'], 'seeds')}."
    )


def _model(arm: Mapping[str, Any]) -> str:
    return f"{arm['name']} with {arm['parameters']:,} parameters"


def _pictures(told: Mapping[str, Any]) -> Iterable[Html]:
    shown = told["data"].get("pictures")
    if shown:
        names = ", ".join(map(str, told["data"]["classes"]))
        levels = [[[int(v, 16) / 15 for v in row] for row in p.split()] for p in shown]
        yield pictures(levels, f"one training picture of each class: {names}")


# -- sections --------------------------------------------------------------------------------------


def _accuracies(told: Mapping[str, Any]) -> Html:
    scratch, teacher = told["scratch"], told["teacher"]
    arms = {"scratch": scratch, **told["students"]}
    rows = [
        Strip(
            name,
            arm["accuracy"]["each"],
            spread(arm["accuracy"]),
            None if name == "scratch" else 0,
        )
        for name, arm in arms.items()
    ]
    marks = {"scratch": scratch["accuracy"]["mean"], "teacher": teacher["accuracy"]["mean"]}
    desc = "; ".join(f"{row.name} {row.note}" for row in rows)
    desc += f"; teacher {percent(teacher['accuracy']['mean'])}"
    picture = strips(rows, marks, title="Accuracy of each student on the test set", desc=desc)
    caption = (
        f"Each ring is the student of one seed ({_seeds(told)}); the upright bar is their mean, "
        "the band one standard deviation to each side. Dashed lines: the teacher, and the mean of "
        "scratch, which is the student that learned from the labels alone."
    )
    return section("Accuracy on the test set", figure(picture, caption))


def rows_of(told: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table: name, accuracy, over scratch, better in, steps, parameters, one sample."""
    rows: list[tuple[str, ...]] = []
    for name, arm in {"teacher": told["teacher"], "scratch": told["scratch"]}.items():
        steps = f"{arm['steps']:,}" if "steps" in arm else ""
        rows.append((name, spread(arm["accuracy"]), "", "", steps, *_cost(arm)))
    for name, arm in told["students"].items():
        won = points(arm["gain"]), wins(arm["gain"]["each"])
        rows.append((name, spread(arm["accuracy"]), *won, f"{arm['steps']:,}", *_cost(arm)))
    return rows


def crowds_of(told: Mapping[str, Any]) -> list[str]:
    """A sentence on each method that had several teachers."""
    return [
        f"{name} had {arm['teacher']['name']}: {spread(arm['teacher']['accuracy'])} together."
        for name, arm in told["students"].items()
        if "teacher" in arm
    ]


def _cost(arm: Mapping[str, Any]) -> tuple[str, str]:
    return f"{arm['parameters']:,}", f"{arm['latency_ms']:.2f} ms"


def _numbers(told: Mapping[str, Any]) -> Html:
    head = ["", "accuracy", "over scratch", "better in", "steps", "parameters", "one sample"]
    caption = (
        f"Means and standard deviations over {len(told['seeds'])} seeds. Over scratch: percentage "
        "points, seed by seed."
    )
    about = [
        "Steps: of all that a method trains, helpers too. One sample: the median time for a batch "
        "of one on one thread, here.",
        *crowds_of(told),
    ]
    if len(told["seeds"]) < 12:
        about.append("So few seeds give an impression, no proof.")
    name = _best(told)
    best = 2 + list(told["students"]).index(name) if _gain(told, name) > 0 else None
    return section("The numbers", table(head, rows_of(told), caption, best), note(*about))


def _learning(logs: Mapping[str, Sequence[Metrics]]) -> Html:
    drawn = []
    colours: dict[str, int] = {}  # a term has the same one in all pictures
    for name, runs in logs.items():
        lines, parts = lines_of([run for run in runs if run])
        lines = [replace(x, colour=colours.setdefault(x.name, len(colours))) for x in lines]
        if lines:
            drawn.append(_curves(name, lines, parts))
    if not drawn:
        return Html("")
    about = note(
        "Each term of what a student minimises, with its weight, over the steps of training: the "
        "mean over the seeds and the band between the lowest and the highest of them."
    )
    inside = "\n".join(drawn)
    return section("How they learned", about, Html(f'<div class="many">\n{inside}\n</div>'))


def _curves(name: str, lines: Sequence[Line], parts: Sequence[tuple[str, float]]) -> Html:
    ends = ", ".join(f"{line.name} ends at {line.last:.3g}" for line in lines)
    picture = curves(lines, title=f"Terms of {name} over steps", desc=ends, parts=parts)
    return figure(picture, title=name, key=key(lines))


def _taught(told: Mapping[str, Any]) -> Html:
    data, budget = told["data"], told["budget"]
    about = {
        "data": f"{data['what']}: {data['train']} to learn from, {data['valid']} to choose "
        f"settings by, {data['test']} to judge by",
        "classes": ", ".join(map(str, data["classes"])),
        "teacher": f"{_model(told['teacher'])}, trained on the same {data['train']} samples",
        "student": _model(told["scratch"]),
        "training": ", ".join(f"{name} {value}" for name, value in budget.items()),
        "seeds": _seeds(told),
    }
    methods = {"scratch": "cross-entropy on the labels, no teacher"}
    for name, arm in told["students"].items():
        fields = ", ".join(f"{k}={v!r}" for k, v in arm["fields"].items())
        source = ", ".join(
            filter(None, [str(arm["year"]), arm["arxiv"] and f"arXiv {arm['arxiv']}"])
        )
        methods[name] = f"{arm['title']} ({source}); {fields}"
        if "teacher" in arm:
            methods[name] += f"; {arm['teacher']['name']}"
    honest = note(told["tuning"]) if told.get("tuning") else Html("")
    return section("What was taught to whom", facts(about), facts(methods), honest)


def _again(told: Mapping[str, Any]) -> Html:
    machine = ", ".join(f"{name} {value}" for name, value in told["machine"].items())
    return section(
        "Do it again",
        code(told["command"]),
        note(
            f"It took {told['seconds']:.0f} seconds ({machine}). Every run has a folder of its own "
            "beside this page, with its settings, its log and the student's weights."
        ),
    )


def _seeds(told: Mapping[str, Any]) -> str:
    return ", ".join(map(str, told["seeds"]))
