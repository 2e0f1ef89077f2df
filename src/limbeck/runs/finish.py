"""What a finished run leaves: scores, files, measures and a page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.core import checkpoints, processes
from limbeck.core.data import Table, reader_of
from limbeck.core.evaluate import measure, score_teacher
from limbeck.core.files import write_atomic, write_json
from limbeck.core.method import Result
from limbeck.core.run import Run
from limbeck.core.task import Task
from limbeck.core.teachers import Cached, Frozen, Nobody
from limbeck.report import run as page
from limbeck.runs.appraisal import appraise


def finish(
    run: Run,
    task: Task,
    result: Result,
    told: dict[str, Any],
    baseline: nn.Module | None,
    doubt: str | None = None,
) -> None:
    """Measure what the run gave, and write its files, where it has a folder.

    Args:
        run: the run.
        task: with its trained teacher.
        result: what the method gave; its `facts` are filled.
        told: what the run is, as run.json says.
        baseline: the student that was trained without a teacher.
        doubt: a sentence on a teacher that seems to be wrong, if it does.
    """
    facts: dict[str, Any] = {k: told[k] for k in ("method", "fields", "world", "seed")}
    teacher = task.the_teacher()
    if isinstance(teacher, Cached):  # it knows only `train`
        if teacher.module is not None:
            task = replace(task, teacher=Frozen(teacher.module))
        elif teacher.box is not None:
            task = replace(task, teacher=teacher.box)
    judged = result.model is not None and task.set_or_none(task.judged) is not None
    if result.model is not None and judged:
        facts |= _scores(run, task, result.model, baseline)
    if result.model is not None:
        facts["parameters"] = sum(p.numel() for p in result.model.parameters())
    if result.scores is not None:
        facts["scores"] = dict(result.scores)
    if result.report is not None:
        facts["report"] = dict(result.report)
    if doubt is not None:
        facts["doubt"] = doubt
    facts["stages"] = run.stages
    result.facts = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()
    }
    if run.folder is not None:
        folder = run.folder
        processes.by_the_first(lambda: _write(folder, run, task, result, baseline, judged))


def _scores(run: Run, task: Task, model: nn.Module, baseline: nn.Module | None) -> dict[str, Any]:
    """The scores of all sides on the judged set, which every process needs."""
    table = Table(task.set(task.judged), task.judged)
    reader = reader_of(task.readers, "student")
    value = measure(model, table, task.score, reader, run.device)
    scores = {"score": value, "score_of": task.judged, "score_name": task.score.name}
    scores["teacher"] = score_teacher(task, table, run.device)
    if baseline is not None:
        scores["baseline"] = measure(baseline, table, task.score, reader, run.device)
    return scores


def _write(
    folder: Path,
    run: Run,
    task: Task,
    result: Result,
    baseline: nn.Module | None,
    judged: bool,
) -> None:
    """The files of a finished run; result.json says that it is finished, the page shows it."""
    if result.model is not None:
        checkpoints.save(folder / "student.safetensors", checkpoints.of_module(result.model))
    if isinstance(result.data, dict):
        checkpoints.save(folder / "data.safetensors", result.data)
    if result.model is not None and judged:
        before = run.student(task) if "begins" in task.about else None
        measured = appraise(task, result.model, baseline, run.device, before)
        write_json(folder / "appraisal.json", measured)
        if result.facts["teacher"] is None:  # no module, but one that answered
            result.facts["teacher"] = measured["sides"].get("teacher", {}).get("score")
        if "silent" in measured and not isinstance(task.the_teacher(), Nobody | Cached):
            run.progress.say(f"the teacher was not measured: {measured['silent']}")
    client: Any = getattr(task.the_teacher(), "ask", None)
    if hasattr(client, "asked"):
        result.facts["requests"] = client.asked
    if untold := getattr(client, "untold", 0):
        run.progress.say(
            f"{untold:,} of {client.entries:,} tokens that the teacher's server named cannot be "
            "told from their texts; they count to the tail"
        )
    if task.split:
        rows = json.dumps(dict(task.split), separators=(",", ":"))
        write_atomic(folder / "split.json", rows.encode())
    run.time.keep(still=True)
    write_json(folder / "result.json", result.facts)
    page.write(folder)
