"""What a run's language models are like on the judged set: prediction, writing, costs."""

from __future__ import annotations

import time
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
from limbeck.core.text.facts import Text
from limbeck.core.text.generate import beams, generate
from limbeck.core.text.places import IGNORED, labels, told, wanted
from limbeck.core.text.replay import prompts_of
from limbeck.core.text.rouge import mean_rouge_l
from limbeck.core.text.seq2seq import is_pair
from limbeck.core.views import Side, entries_of, shown
from limbeck.errors import Missing, UsageError
from limbeck.runs.measures import BINS
from limbeck.runs.seen import apart, seen
from limbeck.runs.tally import Tally

__all__ = ["appraise"]

TOKENS = 20_000
"""How many tokens of the judged set all sides are compared on."""
PROMPTS, NEW = 8, 32
_ROWS, _PLACES = 8, 256  # samples, and places of them, that are looked at together
_CLOCK = Clock(0, "appraisal", 0, 1, 1)


def appraise(task: Task, models: Mapping[str, nn.Module], device: torch.device) -> dict[str, Any]:
    """Measure language models beside their teacher, on at most 20,000 tokens of the judged set.

    Args:
        task: with its trained teacher.
        models: by side: "student", and "baseline" or "before" where they are.
        device: the run's.

    Returns:
        JSON without NaN: `kind` "text", `set`, `samples`, `tokens`, `score_name`, `score_higher`;
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
        "kind": "text",
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
        told["written"] = _written(text, every, table, told["sides"], device)
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


def _written(
    text: Text,
    models: Mapping[str, nn.Module],
    table: Table,
    sides: dict[str, dict[str, Any]],
    device: torch.device,
) -> list[dict[str, Any]]:
    """What each side writes, greedily, to the first prompts; how fast; how near to the text."""
    batch = table.rows(torch.arange(min(PROMPTS, len(table)))).to(device)
    new = min(NEW, text.context // 2)
    ids, mask, true = _prompts(text, batch, new)
    out = [
        {"prompt": _words(text, row[there.bool()]), "text": _words(text, then)}
        for row, there, then in zip(ids, mask, true, strict=True)
    ]
    for name, model in models.items():
        began = time.perf_counter()
        with evaluating(model):
            written, held = _greedy(text, model, ids, mask, new, is_pair(batch))
        took = time.perf_counter() - began
        sides[name]["tokens_per_second"] = sum(map(len, written)) / took
        sides[name] |= {} if held is None else {"cache_bytes": held}
        said = [_words(text, row) for row in written]
        for k, each in enumerate(said):
            out[k][name] = each
        near = mean_rouge_l([each["text"] for each in out], said)
        sides[name]["rouge_l"], sides[name]["rouge_l_se"] = near
    return out


def _prompts(text: Text, batch: Batch, new: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Prompts (B, P) of a batch, their mask, and of each row what follows, `new` tokens at most."""
    if is_pair(batch):
        true = [row[row != IGNORED][:new] for row in batch.y]
        return batch.x["source_ids"], batch.x["source_mask"], true
    ids, mask = prompts_of(batch, new, text.context, text.pad, min(16, text.context // 4))
    rows = zip(batch.x["ids"], batch.x["mask"], mask.sum(1), strict=True)
    return ids, mask, [row[there.bool()][n : n + new] for row, there, n in rows]


def _greedy(
    text: Text, model: nn.Module, ids: Tensor, mask: Tensor, new: int, pair: bool
) -> tuple[list[Tensor], int | None]:
    """What a model writes to prompts, the likeliest token each time, and its cache in bytes.

    Of encoder-decoders, which transformers has write, the latter is not known.
    """
    if pair:
        found = beams(
            model, ids, mask, new=new, beams=1, eos=text.eos, pad=text.pad, vocab=text.vocab
        )
        rows = zip(found.ids[:, 0], found.mask[:, 0].bool(), strict=True)
        return [row[there] for row, there in rows], None
    written = generate(
        (model,), ids, mask, new=new, draws=None, eos=text.eos, pad=text.pad,
        temperature=0.0, vocab=text.vocab,
    )  # fmt: skip
    return [row[row != IGNORED] for row in written.y], written.cache


def _words(text: Text, ids: Tensor) -> str:
    if text.tokenizer is None:
        return " ".join(map(str, ids.tolist()))
    return str(text.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
