"""What a run's language models are like on the judged set: prediction, writing, costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.data import Batch, Table, reader_of
from limbeck.core.evaluate import evaluating
from limbeck.core.method import Clock
from limbeck.core.signals import Signal, TopK, is_whole
from limbeck.core.task import Task
from limbeck.core.teacher import Setting
from limbeck.core.text.facts import TaggedText, Text
from limbeck.core.text.places import labels, told, wanted
from limbeck.core.views import Side, entries_of, shown
from limbeck.errors import Missing, UsageError
from limbeck.runs.measures import BINS
from limbeck.runs.seen import apart, seen
from limbeck.runs.tally import Tally
from limbeck.runs.written import written

__all__ = ["appraise"]

TOKENS = 20_000
"""How many tokens of the judged set all sides are compared on."""
_ROWS, _PLACES = 8, 256  # samples, and places of them, that are looked at together
_CLOCK = Clock(0, "appraisal", 0, 1, 1)


def appraise(task: Task, models: Mapping[str, nn.Module], device: torch.device) -> dict[str, Any]:
    """Measure language models beside their teacher, on at most 20,000 tokens of the judged set.

    Args:
        task: with its trained teacher.
        models: by side: "student", and "baseline" or "before" where they are.
        device: the run's.

    Returns:
        JSON without NaN: `kind` "text" or, of words' tags, "tags", `set`, `samples`, `tokens`,
        `score_name`, `score_higher`;
        `sides`: of each `nll` in nats a token with `nll_se` over texts, `perplexity`, `top1` (the
        next token is the likeliest), `entropy`, `ece` and `reliability` over tokens,
        `bits_per_byte` where bytes are known, `parameters`, `bytes`, `tokens_per_second` of greedy
        writing with its cache, `cache_bytes` of that at its largest, for so many texts as
        `written` holds, and `rouge_l` of what it wrote against the text; `agreement` with
        the teacher (`top1`, `kl` = mean KL(teacher || side), `kl_se`); `written`: what the sides
        wrote to some prompts.
    """
    table = Table(task.set(task.judged), task.judged)
    tallies, tokens, samples, silent = _tallied(task, models, table, device)
    compared = "teacher" in tallies
    told: dict[str, Any] = {
        "kind": "tags" if isinstance(task.data.get("text"), TaggedText) else "text",
        "set": task.judged,
        "samples": samples,
        "tokens": tokens,
        "score_name": task.score.name,
        "score_higher": task.score.higher,
        "sides": {},
        "agreement": {},
    }
    if silent:
        told["silent"] = silent
    with_bytes = "bytes" in table.rows(torch.zeros(1, dtype=torch.int64))
    for name, tally in tallies.items():
        side = tally.numbers(compared and name != "teacher", with_bytes)
        if "agreement" in side:
            told["agreement"][name] = side.pop("agreement")
        told["sides"][name] = side
    live = task.the_teacher()
    module = getattr(live, "module", None)
    every = dict(models) | ({"teacher": module} if isinstance(module, nn.Module) else {})
    for name, model in every.items():
        held = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
        told["sides"].setdefault(name, {}).update(
            parameters=sum(p.numel() for p in model.parameters()),
            bytes=sum(t.numel() * t.element_size() for t in held),
        )
    text = task.data.get("text")
    if isinstance(text, Text) and text.other is None:
        told["written"] = written(text, every, table, told["sides"], device)
    return told


def _tallied(
    task: Task, models: Mapping[str, nn.Module], table: Table, device: torch.device
) -> tuple[dict[str, Tally], int, int, str]:
    """What each side makes of the tokens, and why the teacher was left out, if it was."""
    side, silent = None, ""
    reader, tokens, samples = reader_of(task.readers, "student"), 0, 0
    tallies = {name: Tally() for name in models}
    teacher = _live(task, device)
    if teacher is not None:
        tallies["teacher"] = Tally()
    try:
        for batch in table.chunks(_ROWS):
            if tokens >= TOKENS:
                break
            batch = batch.to(device)
            signals: dict[str, Signal] = {}
            with torch.no_grad():
                for name, model in models.items():
                    with evaluating(model):
                        entries = entries_of(shown(model, batch.columns["x"], reader))
                        signals[name] = entries["signal"]
                if "teacher" in tallies:
                    side = teacher.side(batch, _CLOCK)
                    signal = _signal(side)
                    if isinstance(signal, str) or signal.shape[0] != len(batch):
                        silent = signal if isinstance(signal, str) else ""
                        tallies.pop("teacher")
                    else:
                        signals["teacher"] = signal
                _count(tallies, signals, batch, side)
            tokens += int(wanted(batch.y).sum())
            samples += len(batch)
    finally:
        if teacher is not None:
            teacher.close()
    return tallies, tokens, samples, silent


def _live(task: Task, device: torch.device) -> Any:
    """The teacher, where it sees the student's tokens; else None."""
    text = task.data.get("text")
    if isinstance(text, Text) and text.other is not None:
        return None
    try:
        return task.the_teacher().attach(
            Setting(reader=reader_of(task.readers, "teacher"), device=device)
        )
    except UsageError:
        return None


def _signal(side: Side) -> Signal | str:
    """What a teacher shows, if it can be measured; else why it cannot."""
    try:
        found: Signal = side.signal
    except (Missing, UsageError) as error:  # nobody, text only, a cache of other samples
        return str(error)
    if is_whole(found) or (isinstance(found, TopK) and "truth" in dir(side)):
        return found
    return f"it shows {found}, without the text's own tokens"


def _truth(side: Side | None, batch: Batch) -> Tensor | None:
    """The log-probabilities (N,) of the text's own tokens, where a teacher tells them beside."""
    if side is None or "truth" not in dir(side):
        return None
    found: Tensor = side.truth
    return found[wanted(batch.y)[:, : found.shape[1]]]


def _count(
    tallies: dict[str, Tally], signals: dict[str, Signal], batch: Batch, side: Side | None
) -> None:
    """Add a batch to the tallies, some places at a time.

    A teacher that shows its likeliest tokens is compared over these and the rest as one outcome.
    """
    y = batch.y
    where = wanted(y)
    row = where.nonzero()[:, 0].cpu()
    ids = labels(y)
    sizes = batch.columns.get("bytes", torch.zeros(len(y))).tolist()
    sums = {name: torch.zeros(len(y), 6, dtype=torch.float64) for name in tallies}
    flat = {name: signals[name].at(told(y, signals[name])) for name in tallies}
    truth = _truth(side, batch)
    for part in _parts(len(ids)):
        own = None if truth is None else truth[part]
        sides = {name: seen(signal.at(part), ids[part], own) for name, signal in flat.items()}
        theirs = sides.get("teacher")
        for name, each in sides.items():
            right = (each.likeliest == ids[part]).double().cpu()
            stats = torch.zeros(len(right), 6, dtype=torch.float64)
            stats[:, 0] = -each.own.double().cpu()
            stats[:, 1], stats[:, 2] = right, 1
            if theirs is not None and name != "teacher":
                stats[:, 4] = apart(each, theirs).double().cpu()
                stats[:, 5] = (each.likeliest == theirs.likeliest).double().cpu()
            sums[name].index_add_(0, row[part], stats)
            sure = each.best.exp().double().cpu()
            place = (sure * BINS).ceil().long().clamp(1, BINS) - 1
            one = torch.stack([sure, right, torch.ones_like(sure)], 1)
            tallies[name].bins.index_add_(0, place, one)
            tallies[name].entropy += each.entropy
    for name, tally in tallies.items():
        sums[name][:, 3] = torch.tensor(sizes, dtype=torch.float64)
        tally.rows += [r for r in sums[name].tolist() if r[2]]


def _parts(n: int) -> Iterator[slice]:
    for start in range(0, n, _PLACES):
        yield slice(start, min(n, start + _PLACES))
