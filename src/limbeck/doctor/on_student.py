"""Questions about the student and its training: the rate, its size, the data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.doctor import limits, on_terms
from limbeck.doctor.probe import Rates, losses
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import Finding, State, again

Command = Sequence[str]


def rate(seen: Seen, command: Command) -> Finding:
    """Is the learning rate neither too high nor too low?"""
    from_log = _of_log(seen, command)
    if from_log is not None and from_log.state == "bad":
        return from_log
    if seen.alone is None:
        why = seen.faults.get("alone") or seen.faults.get("task") or "no fit on labels was tried"
        return from_log or Finding("rate", "unknown", f"not known: {why}")
    found = _of_probe(seen.alone.rates, seen.steps, command)
    if found.state != "good":
        return found
    return from_log or _of_method(seen, command) or found


def _of_method(seen: Seen, command: Command) -> Finding | None:
    """Whether the method itself does better at a tenth of the rate, where its terms are balanced.

    (A weight that is far too large acts as a rate that is, and has a finding of its own.)
    """
    if seen.slower is None or seen.alone is None or on_terms.balance(seen, command).state == "bad":
        return None
    lower, end = (_last(rows) for rows in (seen.slower.rows, seen.rows))
    if lower is None or end is None or not lower < limits.TOO_HIGH_WATCH * end:
        return None
    own = seen.alone.rates.own
    says = f"after {seen.steps} steps the method's loss is {end:.3g} at {own:.3g}"
    says += f", and {lower:.3g} at {own / 10:.3g}"
    state: State = "bad" if lower < limits.TOO_HIGH * end else "watch"
    advice = f"{own:.3g} is too high for this method: a lower rate does better"
    return Finding("rate", state, says, advice, again(command, {"--lr": float(f"{own / 10:.2g}")}))


def _last(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The median of the last quarter of the last fit's loss."""
    found = losses([row for row in rows if row["stage"] == rows[-1]["stage"]])
    return statistics.median(found[-max(1, len(found) // 4) :]) if found else None


def _of_probe(r: Rates, steps: int, command: Command) -> Finding:
    """What short fits on the labels at several rates say."""
    end, best = r.end[r.own], r.best
    told = ", ".join(f"{_loss(v)} at {lr:.3g}" for lr, v in sorted(r.end.items()))
    says = f"after {steps} steps on the labels the loss is {told} (it began at {r.start:.3g})"
    change = again(command, {"--lr": float(f"{best:.2g}")})
    if best < r.own and (not math.isfinite(end) or r.end[best] < limits.TOO_HIGH_WATCH * end):
        bad = not math.isfinite(end) or r.end[best] < limits.TOO_HIGH * end
        advice = f"{r.own:.3g} is too high: a lower rate does better"
        return Finding("rate", "bad" if bad else "watch", says, advice, change)
    reached = min((v for lr, v in r.end.items() if r.own <= lr <= r.whole), default=end)
    fell, falls = r.start - r.end[best], max(r.start - reached, 0.0)
    if best > r.whole and fell > max(limits.TOO_LOW * falls, limits.WORTH * r.start):
        advice = f"{r.own:.3g} is too low: the whole run will not get where {best:.3g} is now"
        return Finding("rate", "bad", says, advice, change)
    return Finding("rate", "good", says)


def _loss(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "infinite"


def still_falling(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the loss's fall that lies in the second half of the rate-weighted steps.

    Where the loss is a straight line in them it is one half: it would go on falling. None where
    the loss did not fall, or the rows are too few.
    """
    kept = [row for row in rows if "terms" in row]
    if len(kept) < 20:
        return None
    values, way = losses(kept), [0.0]
    for row in kept[1:]:
        way.append(way[-1] + float(row["lr"]))
    tenth = max(1, len(values) // 10)
    half = next(i for i, w in enumerate(way) if w >= way[-1] / 2)
    around = slice(max(0, half - tenth // 2), half + tenth // 2 + 1)
    start, middle, end = (
        statistics.median(values[cut]) for cut in (slice(0, 3), around, slice(-tenth, None))
    )
    return None if start - end <= 0 else (middle - end) / (start - end)


def _of_log(seen: Seen, command: Command) -> Finding | None:
    """What the log of a run says of its last fit; None before a run."""
    if seen.records is None or not seen.rows:
        return None
    stage = seen.rows[-1]["stage"]
    rows = [row for row in seen.rows if row["stage"] == stage and "terms" in row]
    values = losses(rows)
    if len(values) < 20:
        return None
    tenth = len(values) // 10
    start, end = statistics.median(values[:3]), statistics.median(values[-tenth:])
    top = max(float(row["lr"]) for row in rows)
    says = f"the loss of '{stage}' went from {start:.3g} to {end:.3g} at rates up to {top:.3g}"
    probe = _of_probe(seen.alone.rates, seen.steps, command) if seen.alone else None
    lower = again(command, {"--lr": float(f"{top / 10:.2g}")})
    higher = again(command, {"--lr": float(f"{top * 10:.2g}")})
    if not math.isfinite(end) or end > limits.DIVERGED * start:
        return Finding("rate", "bad", says, "it diverged: the rate is too high", lower)
    if end > limits.UNMOVED * start:
        if probe and probe.state != "good":
            return probe
        return Finding("rate", "bad", says, "it hardly moved: try a higher rate", higher)
    late = still_falling(rows)
    if late is not None and late > limits.STILL and seen.records.result:
        says += f", {late:.0%} of it in the second half of the way"
        advice = "it was still falling: a higher rate, or more steps"
        bad = end > start / 2
        return Finding("rate", "bad" if bad else "watch", says, advice, higher)
    return Finding("rate", "good", says)


def size(seen: Seen) -> Finding:
    """Can the student hold what it is to learn?"""
    s, t = seen.score("student", "train"), seen.score("teacher", "train")
    after = seen.records is not None
    says = ""
    if after and s is not None:
        says = f"on the training set the student has {s:.3f}"
        says += f", the teacher {t:.3f}" if t is not None else ""
        if s >= (t if t is not None else 1.0) - limits.BEHIND:
            return Finding("student", "good", says)
    if seen.heart is None:
        if says and t is not None and seen.alone is None:
            advice = "it is too small, or was not trained enough: take a wider one, or more epochs"
            return Finding("student", "watch", says, advice)
        why = seen.faults.get("student") or seen.faults.get("task") or "it was not tried"
        return Finding("student", "unknown", f"not known: {why}")
    m, by_heart = seen.heart
    says = f"{says}; " if says else ""
    says += f"asked to learn {m} training samples by heart, the student gets {by_heart:.3f} of them"
    if by_heart >= limits.FITS:
        return Finding("student", "good", says)
    advice = "it is too small for these data: take a wider or deeper one"
    return Finding("student", "bad" if by_heart < limits.FITS_NOT else "watch", says, advice)


def data(seen: Seen) -> Finding:
    """Are there samples enough?"""
    after = seen.records is not None
    sides = ("student", "alone") if after else ("alone",)
    pairs = [(seen.score(side, "train"), seen.score(side, "held")) for side in sides]
    found = next(((a, b) for a, b in pairs if a is not None and b is not None), None)
    n = seen.samples.get("train")
    count = f"{n} training samples" if n else "the training set"
    if n and seen.classes:
        count += f" ({n / seen.classes:.3g} a class)"
    if found is None:
        why = seen.faults.get("alone") or seen.faults.get("task") or "no accuracy on both sets"
        return Finding("data", "unknown", f"{count}; not known: {why}")
    train, held = found
    when = "" if after else f" alone, after {seen.steps} steps,"
    says = f"{count}: the student{when} has {train:.3f} on them and {held:.3f} on held-out samples"
    if train - held < limits.GAP_WATCH:
        return Finding("data", "good", says)
    advice = (
        "more samples: the teacher can label any that look like these (or augment them: "
        "--augment crop,flip)"
    )
    bad = train - held >= limits.GAP_BAD
    return Finding("data", "bad" if bad else "watch", says, advice)
