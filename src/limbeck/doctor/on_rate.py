"""The question about the learning rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from limbeck.doctor import limits, on_terms
from limbeck.doctor.probe import losses
from limbeck.doctor.proposals import Command, anew, longer
from limbeck.doctor.rates import Rates
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import Finding, State


def rate(seen: Seen, command: Command) -> Finding:
    """Is the learning rate neither too high nor too low?

    A rate that was not tried is proposed in a small step only, and none beyond what is usual.
    """
    found, lr = _judged(seen)
    if found.state not in ("bad", "watch"):
        return found
    if lr is not None:
        proposed, note = anew(seen, command, {"--lr": float(f"{lr:.2g}")})
    elif "more steps" in found.advice:
        told = longer(seen, command)
        return replace(found, command=told[0], advice=found.advice + told[1])
    else:
        return found
    return replace(found, command=proposed, advice=found.advice + note)


Judged = tuple[Finding, float | None]  # what is found, and the rate to take


def _judged(seen: Seen) -> Judged:
    from_log = _of_log(seen)
    if from_log is not None and from_log[0].state == "bad":
        return from_log
    if seen.alone is None:
        why = seen.faults.get("alone") or seen.faults.get("task") or "no fit on labels was tried"
        return from_log or (Finding("rate", "unknown", f"not known: {why}"), None)
    found = _of_probe(seen.alone.rates, seen.steps)
    if found[0].state != "good":
        return found
    return from_log or _of_method(seen) or found


def _of_method(seen: Seen) -> Judged | None:
    """Whether the method itself does better at a tenth of the rate, where its terms are balanced.

    (A weight that is far too large acts as a rate that is, and has a finding of its own.)
    """
    if seen.slower is None or seen.alone is None or on_terms.balance(seen, ()).state == "bad":
        return None
    lower, end = (_last(rows) for rows in (seen.slower.rows, seen.rows))
    if lower is None or end is None or not lower < limits.TOO_HIGH_WATCH * end:
        return None
    own = seen.alone.rates.own
    says = f"after {seen.steps} steps the method's loss is {end:.3g} at {own:.3g}"
    says += f", and {lower:.3g} at {own / 10:.3g}"
    state: State = "bad" if lower < limits.TOO_HIGH * end else "watch"
    advice = f"{own:.3g} is too high for this method: a lower rate does better"
    return Finding("rate", state, says, advice), own / 10


def _last(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The median of the last quarter of the last fit's loss."""
    found = losses([row for row in rows if row["stage"] == rows[-1]["stage"]])
    return statistics.median(found[-max(1, len(found) // 4) :]) if found else None


def _of_probe(r: Rates, steps: int) -> Judged:
    """What short fits on the labels at several rates say."""
    end, best = r.end[r.own], r.best
    told = ", ".join(f"{_loss(v)} at {lr:.3g}" for lr, v in sorted(r.end.items()))
    says = f"after {steps} steps on the labels the loss is {told} (it began at {r.start:.3g})"
    if best < r.own and (not math.isfinite(end) or r.end[best] < limits.TOO_HIGH_WATCH * end):
        bad = not math.isfinite(end) or r.end[best] < limits.TOO_HIGH * end
        advice = f"{r.own:.3g} is too high: a lower rate does better"
        return Finding("rate", "bad" if bad else "watch", says, advice), best
    reached = min((v for lr, v in r.end.items() if r.own <= lr <= r.whole), default=end)
    fell, falls = r.start - r.end[best], max(r.start - reached, 0.0)
    way = r.drift * r.whole / r.own  # of the weights in the whole run, at most
    worth = limits.WORTH_STUCK if way < limits.HARDLY else limits.WORTH
    if best > r.whole and fell > max(limits.TOO_LOW * falls, worth * r.start):
        advice = f"{r.own:.3g} is too low: the whole run will not get where {best:.3g} is now"
        return Finding("rate", "bad", says, advice), best
    if way < limits.STUCK and r.own < r.usual and falls < limits.LEARNT * r.start:
        says += f"; in the whole run the weights go {way:.1g} of their own size"
        advice = f"{r.own:.3g} is too low: the student will end where it began"
        return Finding("rate", "bad", says, advice), max(best, r.usual)
    return Finding("rate", "good", says), None


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


def _of_last(seen: Seen) -> list[Mapping[str, Any]]:
    """The rows of a run's last fit that have losses; none where they say nothing."""
    if seen.records is None or not seen.rows:
        return []
    stage = seen.rows[-1]["stage"]
    rows = [row for row in seen.rows if row["stage"] == stage and "terms" in row]
    return rows if len(rows) >= 20 else []


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The medians at a fit's start and over its last tenth."""
    return statistics.median(values[:3]), statistics.median(values[-(len(values) // 10) :])


def astray(seen: Seen) -> str:
    """How the loss of a run's last fit went wrong, after "it"; empty where it went down."""
    values = losses(_of_last(seen))
    if not values:
        return ""
    start, end = _ends(values)
    blown = end > limits.BLOWN * values[0] > 0
    if not math.isfinite(end) or end > limits.DIVERGED * start or blown:
        return "diverged"
    return "hardly moved" if end > limits.UNMOVED * start else ""


def _of_log(seen: Seen) -> Judged | None:
    """What the log of a run says of its last fit; None before a run."""
    rows = _of_last(seen)
    if not rows:
        return None
    start, end = _ends(losses(rows))
    top = max(float(row["lr"]) for row in rows)
    says = f"the loss of '{rows[0]['stage']}' went from {start:.3g} to {end:.3g}"
    says += f" at rates up to {top:.3g}"
    probe = _of_probe(seen.alone.rates, seen.steps) if seen.alone else None
    went = astray(seen)
    if went == "diverged":
        return Finding("rate", "bad", says, "it diverged: the rate is too high"), top / 10
    tried = probe is not None and probe[0].state == "bad"
    if went:
        if tried:
            return probe
        advice = "it hardly moved: try a higher rate"
        return _upwards(seen, Finding("rate", "bad", says, advice), top)
    late = still_falling(rows)
    if late is not None and late > limits.STILL and seen.records and seen.records.result:
        if tried:
            return probe
        says += f", {late:.0%} of it in the second half of the way"
        state: State = "bad" if end > start / 2 else "watch"
        advice = "it was still falling: a higher rate, or more steps"
        return _upwards(seen, Finding("rate", state, says, advice), top)
    return Finding("rate", "good", says), None


def _upwards(seen: Seen, found: Finding, top: float) -> Judged:
    """A higher rate, if there is one within what is usual."""
    if seen.alone is not None:
        most = seen.alone.rates.highest
    else:  # the records do not name the optimiser; those that scale their steps have low rates
        most = next((m for m in (1e-2, *limits.HIGHEST.values()) if top <= m), top)
    lr = min(limits.SEVERAL * top, most)
    if lr > 1.2 * top:
        return found, lr
    advice = found.advice.replace("try a higher rate", "its rate is high already; look at the data")
    return replace(found, advice=advice.replace("a higher rate, or ", "")), None
