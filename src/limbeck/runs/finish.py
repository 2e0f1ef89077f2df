"""What a finished run leaves: scores, files, measures and a page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.core import checkpoints, processes
from limbeck.core.data import Table, reader_of
from limbeck.core.evaluate import measure, score_teacher
from limbeck.core.files import write_json
from limbeck.core.method import Result
from limbeck.core.run import Run
from limbeck.core.task import Task


def finish(
    run: Run, task: Task, result: Result, told: dict[str, Any], baseline: nn.Module | None
) -> None:
    """Measure what the run gave, and write its files, where it has a folder.

    Args:
        run: the run.
        task: with its trained teacher.
        result: what the method gave; its `facts` are filled.
        told: what the run is, as run.json says.
        baseline: the student that was trained without a teacher.
    """
    facts: dict[str, Any] = {k: told[k] for k in ("method", "fields", "world", "seed")}
    if result.model is not None and task.set_or_none(task.judged) is not None:
        table = Table(task.set(task.judged), task.judged)
        reader = reader_of(task.readers, "student")
        value = measure(result.model, table, task.score, reader, run.device)
        facts |= {"score": value, "score_of": task.judged, "score_name": task.score.name}
        facts["teacher"] = score_teacher(task, table, run.device)
        if baseline is not None:
            facts["baseline"] = measure(baseline, table, task.score, reader, run.device)
    if result.model is not None:
        facts["parameters"] = sum(p.numel() for p in result.model.parameters())
    if result.scores is not None:
        facts["scores"] = dict(result.scores)
    if result.report is not None:
        facts["report"] = dict(result.report)
    facts["stages"] = run.stages
    result.facts = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()
    }
    if run.folder is not None:
        folder = run.folder
        processes.by_the_first(lambda: _write(folder, result))


def _write(folder: Path, result: Result) -> None:
    """The files of a finished run; result.json comes last, and says that it is finished."""
    if result.model is not None:
        checkpoints.save(folder / "student.safetensors", checkpoints.of_module(result.model))
    if isinstance(result.data, dict):
        checkpoints.save(folder / "data.safetensors", result.data)
    write_json(folder / "result.json", result.facts)
