"""What a run's models are like on the judged set: scores, calibration, agreement, costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.data import Batch, Table, reader_of
from limbeck.core.evaluate import evaluating
from limbeck.core.looking import asking
from limbeck.core.score import Score
from limbeck.core.task import Task
from limbeck.core.teacher import Setting
from limbeck.core.views import Side, entries_of
from limbeck.core.views import shown as seen
from limbeck.errors import Missing, UsageError
from limbeck.runs import text
from limbeck.runs.costs import costs, latencies
from limbeck.runs.measures import agreements, are_classes, finite, of_classes, of_rows
from limbeck.runs.samples import shown

__all__ = ["appraise"]

APART = 12
TRAIN = 2000
_CHUNK = 512

Answers = dict[str, Tensor]
"""By side what it answered, on the CPU: logits (N, C, ...), or labels (N,) of a black box."""


def appraise(
    task: Task,
    student: nn.Module,
    baseline: nn.Module | None,
    device: torch.device,
    before: nn.Module | None = None,
) -> dict[str, Any]:
    """Measure a student beside its teacher, and beside the same student taught by nobody.

    Each side sees the judged set once, and at most 2000 training samples, drawn from all of them.
    Without classes (real-valued labels, dense outputs) there are scores and costs only.

    Args:
        task: with its trained teacher.
        student: what the run delivers, on `device`.
        baseline: the student that learned from the labels alone, if there is one.
        device: the run's.
        before: the student as it began, where it is a language model made of its teacher.

    Returns:
        JSON without NaN (of language models see `text.appraise`): `set`, `samples`, `score_name`,
        `score_higher`, `sides` (for student, teacher and baseline: `score`, `nll` and `entropy` in
        nats, `ece` and `reliability` over 15 equal bins of the largest probability, `confidence`
        (its mean), `per_class` and its count, `parameters`, `macs` of one sample, `bytes`,
        `latency_ms` of batches of 1 and 32); `agreement` with the teacher (`top1`, `kl` = mean
        KL(teacher || side) at tau 1); `train`
        (scores on training samples); `classes`; `apart` (samples to which student and teacher
        answer differently); `silent`, why the teacher could not be asked.
    """
    table = Table(task.set(task.judged), task.judged)
    models = {"student": student} | ({} if baseline is None else {"baseline": baseline})
    if task.score.each is not None:  # of places of a text, which are too many to keep
        models |= {} if before is None else {"before": before}
        return {key: finite(value) for key, value in text.appraise(task, models, device).items()}
    y, answers, silent = _ask(task, models, table, torch.arange(len(table)), device)
    told: dict[str, Any] = {
        "set": task.judged,
        "samples": len(table),
        "score_name": task.score.name,
        "score_higher": task.score.higher,
        "sides": {name: {} for name in models} | {name: {} for name in answers},
    }
    sides = told["sides"]
    if "teacher" in silent:
        told["silent"] = silent["teacher"]
    for name, z in answers.items():
        sides[name]["score"] = _score(task.score, z, y, answers.get("student"))
    mine = answers.get("student")
    if mine is not None and are_classes(mine, y):
        told["classes"] = _names(task, mine.shape[1])
        for name, z in answers.items():
            if z.shape == mine.shape:
                sides[name] |= of_classes(z, y)
        if "teacher" in answers:
            told["agreement"] = agreements(answers)
            told["apart"] = _apart(task, table, y, answers)
    _add_costs(task, models, sides, table, device)
    if (train := _train(task, models, device)) is not None:
        told["train"] = train
    return {key: finite(value) for key, value in told.items()}


def _ask(
    task: Task, models: Mapping[str, nn.Module], table: Table, rows: Tensor, device: torch.device
) -> tuple[Tensor | None, Answers, dict[str, str]]:
    """Labels and answers to samples by number, and why a side that gave none did not."""
    silent: dict[str, str] = {}
    reader = reader_of(task.readers, "student")

    def of_model(model: nn.Module) -> Callable[[Batch], Tensor]:
        def ask(batch: Batch) -> Tensor:
            x = batch.columns["x"]
            logits = entries_of(seen(model, x, reader)).get("logits")
            if logits is None:
                raise Missing("the model gives no logits")
            return torch.as_tensor(logits)

        return ask

    with ExitStack() as stack:
        asks = {name: of_model(model) for name, model in models.items()}
        for model in models.values():
            stack.enter_context(evaluating(model))
        setting = Setting(reader=reader_of(task.readers, "teacher"), device=device)
        with suppress(UsageError):  # not trained, or a cache of other samples: it knows nothing
            view = stack.enter_context(asking(task.the_teacher(), setting, table))
            asks["teacher"] = lambda batch: _answer(view(batch))
        labels: list[Tensor] = []
        got: dict[str, list[Tensor]] = {name: [] for name in asks}
        for numbers in torch.split(rows, _CHUNK):
            batch = table.rows(numbers, "in order").to(device)
            if "y" in batch:
                labels.append(torch.as_tensor(batch.columns["y"]).cpu())
            for name in list(got):
                try:
                    got[name].append(_host(asks[name](batch)))
                except UsageError as error:
                    del got[name]
                    silent[name] = str(error)
    y = torch.cat(labels) if labels else None
    return y, {name: torch.cat(pieces) for name, pieces in got.items()}, silent


def _answer(side: Side) -> Tensor:
    """Logits, or what stands for them: log-probabilities, or labels (B,)."""
    for name in ("logits", "probabilities", "labels"):
        try:
            value = getattr(side, name)
        except Missing:
            continue
        value = torch.as_tensor(value)
        return value.double().clamp_min(1e-12).log() if name == "probabilities" else value
    raise Missing("the teacher gives nothing that can be compared")


def _host(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


# -- scores, names, examples -----------------------------------------------------------------------


def _score(score: Score, z: Tensor, y: Tensor | None, like: Tensor | None) -> float | None:
    """The task's score; labels count as logits that are sure of them."""
    if y is None or score.of is None:
        return None
    if not z.is_floating_point():
        if like is None or like.dim() != 2 or int(z.max()) >= like.shape[1]:
            return None
        z = F.one_hot(z.long(), like.shape[1]).float()
    return float(score.of(z, y))


def _names(task: Task, classes: int) -> list[str]:
    for names in (task.about.get("names"), task.data.get("names")):
        if isinstance(names, list | tuple) and len(names) == classes:
            return [str(name) for name in names]
    return [str(i) for i in range(classes)]


def _apart(task: Task, table: Table, y: Tensor | None, answers: Answers) -> list[dict[str, Any]]:
    """Samples to which the two answer differently, each sure of itself.

    First those where the teacher is right; among them by the product of both confidences.
    """
    mine, theirs = answers["student"], answers["teacher"]
    sure = theirs.is_floating_point()
    if sure and theirs.shape != mine.shape:  # of other classes
        return []
    p_s, s = of_rows(mine)[:2]
    p_t, t = of_rows(theirs)[:2] if sure else (torch.ones(len(s)), theirs)
    lesson = (t == y).double() if y is not None else torch.zeros(len(s)).double()
    order = (2 * lesson + p_s * p_t).argsort(descending=True, stable=True)
    chosen = [int(i) for i in order if s[i] != t[i]][:APART]
    return [
        {
            "index": i,
            "y": None if y is None else int(y[i]),
            "student": [int(s[i]), float(p_s[i])],
            "teacher": [int(t[i]), float(p_t[i]) if sure else None],
            "x": x,
        }
        for i, x in zip(chosen, shown(task, table, chosen), strict=True)
    ]


def _add_costs(
    task: Task,
    models: Mapping[str, nn.Module],
    sides: dict[str, dict[str, Any]],
    table: Table,
    device: torch.device,
) -> None:
    """Add what each side costs; of a teacher without a module nothing is known."""
    mine = reader_of(task.readers, "student")
    timed = {name: (model, mine) for name, model in models.items()}
    teacher = getattr(task.the_teacher(), "module", None)
    if isinstance(teacher, nn.Module):
        timed["teacher"] = (teacher, reader_of(task.readers, "teacher"))
    speed = latencies(timed, table, device)
    for name, (model, reader) in timed.items():
        told = costs(model, reader, table, device)
        sides.setdefault(name, {}).update(told, latency_ms=speed[name])


def _train(
    task: Task, models: Mapping[str, nn.Module], device: torch.device
) -> dict[str, Any] | None:
    """Scores on training samples from all over the set, where these have labels."""
    if task.train is None:
        return None
    table = Table(task.train, "train")
    rows = table.some(TRAIN)
    y, answers, _ = _ask(task, models, table, rows, device)
    like = answers.get("student")
    scores = {name: _score(task.score, z, y, like) for name, z in answers.items()}
    return None if y is None else {"samples": len(rows), **scores}
