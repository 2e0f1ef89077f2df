"""The sections of a run's page on what it cost, how it learned, and how to do it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.core.times import took
from limbeck.errors import UsageError
from limbeck.report.curves import Line, curves, key
from limbeck.report.logs import Metrics, fell, lines_of, read_metrics
from limbeck.report.page import Html, code, facts, figure, note, section, table, text
from limbeck.report.plots import short
from limbeck.report.reading import Told
from limbeck.report.words import bytes_of, ratio

__all__ = ["again", "costs", "learning", "settings"]

_ASIDE = ("teacher", "baseline")
"""Stages beside a method's own."""


def costs(told: Told) -> Html:
    """Parameters, multiply-adds, bytes and milliseconds, teacher against student."""
    rows: list[tuple[str, ...]] = []
    kinds = (
        ("parameters", "parameters", lambda v: f"{v:,.0f}"),
        ("macs", "multiply-adds for one sample", short),
        ("bytes", "size in memory", bytes_of),
        ("1", "time for one sample", lambda v: f"{v:.3g} ms"),
        ("32", "time for a batch of 32", lambda v: f"{v:.3g} ms"),
    )
    for name, called, shown in kinds:
        path = ("latency_ms", name) if name.isdigit() else (name,)
        t, s = (told.mean("sides", side, *path) for side in ("teacher", "student"))
        if s is None and name == "parameters":
            s = told.first.result.get("parameters")
        if s is not None:
            times = ratio(t, s) if t and s else ""
            rows.append((called, shown(t) if t is not None else "", shown(s), times))
    if len(rows) < 2:  # the number of parameters is said elsewhere
        return Html("")
    head = ["", "teacher", "student", "ratio"]
    if not any(row[1] for row in rows):
        head, rows = ["", "student"], [(row[0], row[2]) for row in rows]
    threads = told.first.run.get("threads")
    about = []
    if told.each("sides", "student", "latency_ms", "1"):
        on = (
            f", with {threads} thread{'s' if threads != 1 else ''} of the processor"
            if threads
            else ""
        )
        about.append(f"Times are medians of a few passes here, right after the run{on}.")
    if told.each("sides", "student", "macs"):
        about.append("Multiply-adds are those of matrix products and convolutions.")
    caption = "What it takes to keep and to use each model."
    return section("What each costs", table(head, rows, caption), note(*about))


# -- learning --------------------------------------------------------------------------------------


def learning(told: Told) -> Html:
    """Curves of every term, of the gradient norms and of the score on the way."""
    colours: dict[str, int] = {}  # a term has the same one in all pictures
    kinds = {"terms": "", "norms": "gradient norms", "valid": "score on valid"}
    drawn = []
    for what, called in kinds.items():
        logs = [read_metrics(seed.folder / "metrics.jsonl", what) for seed in told.seeds]
        if what == "terms":
            _, own = next(_groups(told.method, logs))
        for name, parts in _groups(told.method, logs):
            words = ", ".join(filter(None, (name, called)))
            drawn += _picture(words, parts, colours)
    if not drawn:
        return Html("")
    about = [
        "Each term of what is minimised, with its weight, over the steps of training; beside its "
        "name the last value."
    ]
    if any("gradient norms" in each for each in drawn):
        about.append(
            "Gradient norms are of each weighted term, taken in the student's weights a few times "
            "on the way: they show which term pulls how hard."
        )
    if (share := fell(own)) and share > 0.01:
        about.append(
            f"In its last quarter their sum was {share:.0%} below the quarter before: it was still "
            "falling, so a longer run would go further."
        )
    if told.many:
        about.append("Lines are means over the seeds, bands reach from the lowest to the highest.")
    inside = "\n".join(drawn)
    return section("How it learned", note(*about), Html(f'<div class="many">\n{inside}\n</div>'))


def _groups(method: str, logs: Sequence[Metrics]) -> Iterator[tuple[str, list[Metrics]]]:
    """The method's own stages, and each of those beside them."""
    own = [{s: v for s, v in log.items() if s not in _ASIDE} for log in logs]
    yield method, own
    for stage, called in (("baseline", "alone"), ("teacher", "the teacher's own training")):
        yield called, [{stage: log[stage]} for log in logs if stage in log]


def _picture(name: str, logs: Sequence[Metrics], colours: dict[str, int]) -> list[Html]:
    lines, parts = lines_of([log for log in logs if log])
    lines = [replace(x, colour=colours.setdefault(x.name, len(colours))) for x in lines]
    if not lines:
        return []
    if all(len(piece) < 2 for line in lines for piece in line.pieces):
        return [Html(f"<figure>\n<h3>{text(name)}</h3>\n{facts(_spoken(lines, parts))}\n</figure>")]
    ends = ", ".join(f"{line.name} ends at {line.last:.3g}" for line in lines)
    picture = curves(lines, title=f"{name} over steps", desc=ends, parts=parts)
    stages = ", ".join(stage for stage, _ in parts)
    stages = f"Stages from left to right: {stages}." if len(parts) > 1 else ""
    return [figure(picture, stages, title=name, key=key(_named(lines)))]


def _spoken(lines: Sequence[Line], parts: Sequence[tuple[str, float]]) -> dict[str, str]:
    """What was looked at once only, which is no curve: for each stage, step and numbers."""
    told: dict[str, list[str]] = {}
    begin = 0.0
    for stage, end in parts:
        for line in lines:
            for ((x, middle, *_),) in line.pieces:
                if begin <= x < end:
                    when = f"step {x - begin:,.0f}"
                    when = f"{stage}, {when}" if len(parts) > 1 else when
                    told.setdefault(when, []).append(f"{line.name} {middle:.3g}")
        begin = end
    return {when: ", ".join(numbers) for when, numbers in told.items()}


def _named(lines: Sequence[Line]) -> list[Line]:
    return [replace(line, name=f"{line.name} {line.last:.3g}") for line in lines]


# -- settings --------------------------------------------------------------------------------------


def settings(told: Told) -> Html:
    """What the method is and with which settings, on what it ran, and what each stage took."""
    first = told.first
    about = {
        **_paper(first.run),
        "settings": _words(first.run.get("fields", {})),
        "data": told.asked("data") or told.asked("world") or first.run.get("world"),
        "sets": _sets(first.run.get("task", {})),
        "teacher": told.asked("teacher"),
        "student": told.asked("student"),
        "seed" if not told.many else "seeds": ", ".join(
            str(seed.result.get("seed")) for seed in told.seeds
        ),
        "time": ", ".join(filter(None, (took(seed.time) for seed in told.seeds))),
        "made with": _words(first.run.get("versions", {}), " "),
    }
    body = [facts({name: value for name, value in about.items() if value})]
    stages = [each for each in first.result.get("stages", ()) if isinstance(each, Mapping)]
    if stages:
        rows = [
            (
                str(each.get("stage", "")),
                *(f"{each.get(k, 0):,}" for k in ("steps", "batch", "parameters", "parts")),
            )
            for each in stages
        ]
        head = ["stage", "steps", "batch", "parameters", "in parts"]
        told_of = (
            "What was trained, in this order: steps, samples a step, parameters that learned, and "
            "those that are a method's own parts beside a model."
        )
        body.append(table(head, rows, told_of))
    return section("What was done", *body)


def _paper(run: Mapping[str, Any]) -> dict[str, str]:
    """What the method's card says, where its file can be read."""
    from limbeck.registry import find

    request = run.get("request")
    named = request.get("method") if isinstance(request, Mapping) else None
    try:
        card = find(str(named or run["method"])).card
    except UsageError:  # a class of one's own, or a file that is gone
        return {"method": str(run["method"])}
    where = ", ".join(filter(None, [str(card.year), card.arxiv and f"arXiv {card.arxiv}"]))
    return {"method": f"{card.key}: {card.title} ({where})"}


def _words(values: Any, between: str = " = ") -> str:
    if not isinstance(values, Mapping):
        return ""
    return ", ".join(f"{name}{between}{value}" for name, value in values.items())


def _sets(task: Any) -> str:
    """Sizes of the sets, from their digests, which begin with them."""
    found = []
    for name in ("train", "valid", "test"):
        words = str(task.get(name, "") if isinstance(task, Mapping) else "").split()
        if words and words[0].isdigit():
            found.append(f"{name} {int(words[0]):,}")
    return f"{', '.join(found)} samples" if found else ""


def again(told: Told) -> Html:
    """The command that does it again, and where things lie."""
    command = told.first.run.get("command")
    body = []
    if command:
        body.append(code(str(command)))
    else:
        body.append(note("This run was begun from Python, with limbeck.run."))
    files = _files(told.folder, told.many)
    if files:
        body.append(note(f"Beside this page: {files}."))
    return section("Do it again", *body)


def _files(folder: Path, many: bool) -> str:
    if many:
        return "a folder for each seed, with its own page"
    known = {
        "student.safetensors": "the student's weights",
        "teacher.safetensors": "the teacher's",
        "data.safetensors": "the data that were made",
        "metrics.jsonl": "the log",
        "result.json": "the scores",
        "appraisal.json": "all that was measured",
    }
    return ", ".join(f"{name} ({what})" for name, what in known.items() if (folder / name).exists())
