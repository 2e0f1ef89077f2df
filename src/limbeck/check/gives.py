"""Checks on what a method gives: one for each word that a card may have for it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from limbeck.check.case import SEED, Case, NotApplicable
from limbeck.check.look import Kept, leaves, same
from limbeck.check.seen import modes_of
from limbeck.core.card import GIVES
from limbeck.core.data import reader_of
from limbeck.core.evaluate import evaluating
from limbeck.core.method import Objective, Result
from limbeck.core.rng import generator, globals_kept
from limbeck.core.run import Run
from limbeck.core.tables import Table
from limbeck.core.task import Task
from limbeck.core.views import call_model, entries_of
from limbeck.runs.door import run

__all__ = ["GIVEN"]


def gives(case: Case) -> Iterator[str]:
    """Its result holds what its card says, and that works."""
    result = case.watched.result
    filled = [name for name in GIVES if getattr(result, name) is not None]
    if case.card.gives not in filled:
        there = " and ".join(filled) or "nothing"
        yield f"its card says that it gives {case.card.gives}, but its result holds {there}"
        return
    yield from KINDS[case.card.gives](case, result)


def delivers(case: Case) -> Iterator[str]:
    """Delivering changes nothing: it is also asked for in the middle of a fit."""
    method = case.method
    if not isinstance(method, Objective) or not case.watched.fits:
        raise NotApplicable("it is no single fit")
    seen = case.watched.fits[-1].passes
    kept = Kept(step=seen.step)
    modes = modes_of(seen.step)
    with globals_kept(), Run(case.watched.task, SEED, device="cpu"):
        made = [method.deliver(seen.student, seen.parts) for _ in range(2)]
    one, two = (dict(leaves(m.state_dict())) for m in made)
    if {*one} != {*two} or any(not same(tensor, two[name]) for name, tensor in one.items()):
        yield "it delivers something else when it is asked again"
    yield from (f"delivering changes '{name}'" for name in kept.changed())
    if modes_of(seen.step) != modes:
        yield "delivering changes modes, requires_grad or hooks"


def _model(case: Case, result: Result) -> Iterator[str]:
    """A model answers samples of the task with finite numbers, one row each."""
    model, task = result.model, case.task()
    if not isinstance(model, nn.Module):
        yield f"the model is a {type(model).__name__}"
        return
    if len({m.training for m in model.modules()}) > 1:
        yield "a part of the model is in train mode, another in eval mode"
    rows = torch.arange(min(8, len(Table(task.train))))
    x = Table(task.train).rows(rows).columns["x"]
    reader = reader_of(task.readers, "student")
    kept = Kept(model=model)
    with evaluating(model):
        out = entries_of(call_model(model, reader(x) if reader else x))
    if kept.changed():
        yield f"asking the model changes its '{kept.changed()[0]}'"
    for name, tensor in leaves(out):
        if not bool(torch.isfinite(tensor).all()):
            yield f"the model's {name} are not finite"
        elif tensor.requires_grad:
            yield f"the model's {name} keep a graph in eval mode"
    classes, logits = task.count_classes(), out.get("logits")
    wanted = (len(rows), classes)
    if classes and logits is not None and tuple(logits.shape) != wanted:
        yield f"the model's logits are {tuple(logits.shape)}, where {wanted} is wanted"


def _scores(case: Case, result: Result) -> Iterator[str]:
    """Scores are one finite number for each candidate."""
    scores = dict(result.scores or {})
    bad = [n for n, v in scores.items() if not isinstance(v, float) or not math.isfinite(v)]
    yield from (f"the score of '{n}' is {scores[n]!r}" for n in bad)
    space = case.task().data.get("space")
    if space is not None and {*space} != {*scores}:
        yield f"it scores {sorted(scores)}, but the candidates are {sorted(space)}"
    if not scores:
        yield "it gives no scores"


def _data(case: Case, result: Result) -> Iterator[str]:
    """A data set has rows, as many in each column, and finite numbers."""
    table = Table(result.data)
    for name, tensor in leaves(table.tensors or {}):
        if not bool(torch.isfinite(tensor).all()):
            yield f"the data's '{name}' is not finite"
    y, classes = table.labels(), case.task().count_classes()
    if y is not None and classes and (int(y.min()) < 0 or int(y.max()) >= classes):
        yield "the data have labels out of range"


def _sampler(case: Case, result: Result) -> Iterator[str]:
    """A sampler draws finite numbers, fixed by its generator."""
    sample: Any = result.sampler
    one, two = (sample(16, generator("sampler")) for _ in range(2))
    if len(one) != 16 or not bool(torch.isfinite(one).all()):
        yield "the sampler's draws are not 16 finite ones"
    if not torch.equal(one, two):
        yield "the sampler draws other numbers from an equal generator"


def _policy(case: Case, result: Result) -> Iterator[str]:
    """A policy can be asked."""
    if not callable(result.policy):
        yield f"the policy is a {type(result.policy).__name__}, which cannot be asked"


def _report(case: Case, result: Result) -> Iterator[str]:
    """A report is a table that JSON can hold."""
    try:
        json.dumps(dict(result.report or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        yield f"the report does not go into a file: {error}"
    if not result.report:
        yield "the report is empty"


KINDS: dict[str, Callable[[Case, Result], Iterator[str]]] = {
    "model": _model,
    "scores": _scores,
    "data": _data,
    "sampler": _sampler,
    "policy": _policy,
    "report": _report,
}


def permuted(case: Case) -> Iterator[str]:
    """Scores do not depend on the order in which the candidates stand."""
    if case.card.gives != "scores":
        raise NotApplicable(f"it gives {case.card.gives}")
    before = dict(case.watched.result.scores or {})
    task: Task = case.task()
    turned = {
        n: dict(reversed(d.items())) if isinstance(d, dict) else d for n, d in task.data.items()
    }
    with globals_kept():
        after = run(
            case.method, dataclasses.replace(task, data=turned), seed=SEED, device="cpu"
        ).scores
    for name, there in before.items():
        here = (after or {}).get(name, math.nan)
        if not math.isclose(here, there, rel_tol=1e-6, abs_tol=1e-9):
            yield f"the score of '{name}' is {here:g} in the reversed order, else {there:g}"


GIVEN = (gives, delivers, permuted)
