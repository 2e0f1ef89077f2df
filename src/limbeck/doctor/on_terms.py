"""Questions about what a method minimises: temperature, soft targets, balance, taps, the fit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from limbeck.core.vocabulary import ENTRIES
from limbeck.doctor import limits
from limbeck.doctor.numbers import entropy
from limbeck.doctor.proposals import (
    Command,
    for_texts,
    modules,
    named_in,
    reading_features,
    weighed,
)
from limbeck.doctor.seen import Seen, Tapped, first_line
from limbeck.doctor.words import Finding, State, again
from limbeck.errors import NonFinite, UsageError


def temperature(seen: Seen, command: Command) -> Finding:
    """Are softened answers neither uniform nor one-hot?"""
    tau = getattr(seen.method, "tau", None)
    if not isinstance(tau, int | float) or "logits" not in seen.needs():
        return Finding("temperature", "good", f"{seen.key} softens no answers of the teacher")
    t = seen.answers.get(("teacher", "train"))
    if t is not None and t.hard:
        says = "no verdict: the teacher gives labels only, which no temperature softens"
        return Finding("temperature", "unknown", says)
    if t is None:
        why = seen.faults.get("teacher") or seen.faults.get("task") or "the teacher was not asked"
        return Finding("temperature", "unknown", f"not known: {why}")
    h = entropy(t.logits, tau)
    says = (
        f"at tau {tau:g} the teacher's softened answers have {h:.4f} of the entropy of uniform ones"
    )
    best = min(limits.TAUS, key=lambda c: abs(entropy(t.logits, c) - limits.SOFT_GOAL))
    there = entropy(t.logits, best)
    flat = h > limits.FLAT_WATCH
    sharp = h < limits.SHARP_WATCH
    helps = abs(there - limits.SOFT_GOAL) < abs(h - limits.SOFT_GOAL) and best != tau
    if not (flat or sharp) or not helps:
        return Finding("temperature", "good", says)
    changes = seen.tried is not None and seen.tried.changes
    if sharp and (changes or there < limits.SHARP_WATCH):  # other inputs; nothing softens them
        return Finding("temperature", "good", says)
    what = "they are nearly the same for every sample" if flat else "they are labels again"
    bad = h > limits.FLAT_BAD if flat else h < limits.SHARP_BAD
    advice = f"{what}; at tau {best:g} it would be {there:.2f}"
    return Finding(
        "temperature", "bad" if bad else "watch", says, advice, again(command, {"--tau": best})
    )


def soft_targets(seen: Seen, command: Command) -> Finding:
    """Is there more in the teacher's answers than in labels?"""
    name = "soft targets"
    if seen.method is not None and "logits" not in seen.needs():
        return Finding(name, "good", f"{seen.key} does not learn from the teacher's answers")
    t = seen.answers.get(("teacher", "train"))
    if t is None:
        why = seen.faults.get("teacher") or seen.faults.get("task") or "the teacher was not asked"
        return Finding(name, "unknown", f"not known: {why}")
    if t.hard:
        says = "the teacher gives labels only, so that soft targets are labels"
        advice = "let it give probabilities if it can: how sure it is, and of what else"
        return Finding(name, "watch", says, advice)
    sure = float(t.logits.double().softmax(-1).amax(-1).mean())
    h = entropy(t.logits, limits.SOFT_TAU)
    says = (
        f"on the training set the teacher is {t.accuracy:.3f} right and {sure:.4f} sure; at tau "
        f"{limits.SOFT_TAU:g} its answers have {h:.4f} of the entropy of uniform ones"
    )
    if h >= limits.SHARP_WATCH:
        return Finding(name, "good", says)
    advice = (
        "its answers are the labels: teach on samples it was not trained on, or take a method that "
        "reads features (limbeck list --kind feature)"
    )
    return Finding(name, "watch", says, advice, reading_features(seen, command))


@dataclass(frozen=True)
class Norms:
    """The gradient norms in the student of one stage's terms.

    Attributes:
        stage: the fit.
        median: term -> over the steps.
        best: term -> its largest share, at any step, of the largest term's norm: what holds its
            own at some time is in balance, though a term that is satisfied vanishes later.
    """

    stage: str
    median: Mapping[str, float]
    best: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """How many times smaller the smallest term is at its best."""
        return 1 / min(self.best.values())


def norms_of(rows: Sequence[Mapping[str, Any]]) -> list[Norms]:
    """The norms of each stage that has some; without terms that never reach the student."""
    found = []
    for stage in dict.fromkeys(str(row["stage"]) for row in rows if "norms" in row):
        steps = [row["norms"] for row in rows if row["stage"] == stage and "norms" in row]
        largest = [max((v for v in n.values() if math.isfinite(v)), default=0.0) for n in steps]
        terms = dict.fromkeys(t for n in steps for t in n)
        best = {
            t: max((n[t] / m for n, m in zip(steps, largest, strict=True) if t in n and m > 0),
                   default=0.0)
            for t in terms
        }  # fmt: skip
        best = {t: share for t, share in best.items() if share > 0}
        median = {t: statistics.median(n[t] for n in steps if t in n) for t in best}
        if best:
            found.append(Norms(stage, median, best))
    return found


def balance(seen: Seen, command: Command) -> Finding:
    """Does each term move the student?"""
    error = seen.tried.error if seen.tried else None
    rates = seen.alone.rates if seen.alone else None
    fine = rates is not None and rates.end[rates.own] < rates.start
    if isinstance(error, NonFinite) and fine:
        says = f"{error}; the labels alone do not break at this rate"
        advice = "lower the weights of the method's terms"
        return Finding("balance", "bad", says, advice, weighed(seen, command, 0.1))
    stages = norms_of(seen.rows)
    several = [n for n in stages if len(n.best) > 1]
    if not several:
        one = bool(stages)
        says = "each fit has one term only" if one else "not known: there are no gradient norms"
        return Finding("balance", "good" if one else "unknown", says)
    worst = max(several, key=lambda n: n.ratio)
    norms, small = worst.median, min(worst.best, key=lambda t: worst.best[t])
    told = ", ".join(f"{t} {v:.2g}" for t, v in sorted(norms.items(), key=lambda p: -p[1]))
    says = f"the terms' gradients have the norms {told} (medians)"
    says += f" in the stage '{worst.stage}'" if len(stages) > 1 else ""
    says += f"; '{small}' has at most 1/{worst.ratio:.3g} of the largest" if worst.ratio > 2 else ""
    if worst.ratio < limits.BALANCE_WATCH:
        return Finding("balance", "good", says)
    state: State = "bad" if worst.ratio >= limits.BALANCE_BAD else "watch"
    option = _reweighed(seen, norms)
    advice = f"'{small}' hardly moves the student; weigh the terms alike"
    return Finding("balance", state, says, advice, again(command, option) if option else None)


def _reweighed(seen: Seen, norms: Mapping[str, float]) -> dict[str, float] | None:
    """The weight to change: the one furthest from its default, else that of the largest term."""
    usual_of: dict[str, Any] = {}
    if is_dataclass(seen.method):
        usual_of = {f.name: f.default for f in fields(seen.method)}
    weights = {
        t: (float(getattr(seen.method, t)), float(usual_of[t]))
        for t in norms
        if isinstance(usual_of.get(t), int | float) and getattr(seen.method, t) > 0
    }
    if not weights:
        return None
    moved = {t: abs(math.log(now / usual)) for t, (now, usual) in weights.items() if usual > 0}
    furthest = max(moved, key=lambda t: moved[t], default=None)
    if furthest is not None and moved[furthest] > math.log(limits.BALANCE_WATCH) / 2:
        return {f"--{furthest}": weights[furthest][1]}
    large = max(norms, key=lambda t: norms[t])
    if large not in weights:
        return None
    rest = statistics.median(v for t, v in norms.items() if t != large)
    return {f"--{large}": float(f"{weights[large][0] * rest / norms[large]:.2g}")}


_PLAIN = {"logits", "probabilities", "labels", "text", "signal", "hidden", "head"}
"""Entries that a model shows by itself, or its reader."""


def taps(seen: Seen, command: Command) -> Finding:
    """Do the places inside fit each other, as far as the method reads them?"""
    there = set(seen.task.taps) if seen.task else set()
    needed = seen.needs() & (there | (set(ENTRIES) - _PLAIN))
    error = seen.tried.error if seen.tried else None
    if error is not None and not isinstance(error, NonFinite) and "classes" not in seen.faults:
        says = f"{seen.key} cannot run: {first_line(error)}"
        if other := named_in(seen, command, says):
            return Finding("fit", "bad", says, "take the method that is named", other)
        if not isinstance(error, UsageError) and (other := for_texts(seen, command)):
            return Finding("fit", "bad", says, "take a method that is for texts", other)
        if not needed:
            dry = again(command, {"--dry": None})
            return Finding("fit", "bad", says, "look at its shapes", dry)
        told = "; ".join(_shapes(t) for t in seen.taps if t.name in needed and not t.error)
        advice = "name other modules: --taps NAME=TEACHER,STUDENT"
        advice = f"{advice} ({told})" if told else advice
        return Finding("taps", "bad", says, advice, modules(command))
    broken = [t for t in seen.taps if t.error and t.name in needed]
    if broken:
        says = "; ".join(f"{t.name}: {t.error}" for t in broken)
        advice = "name other modules: --taps NAME=TEACHER,STUDENT"
        return Finding("taps", "bad", says, advice, modules(command))
    apart = [t for t in seen.taps if t.name in needed and len(t.teacher) != len(t.student)]
    if apart:
        says = "; ".join(_shapes(t) for t in apart) + ": not of one kind"
        advice = "tap maps on both sides, or vectors, or tokens"
        return Finding("taps", "watch", says, advice, modules(command))
    if not needed:
        if seen.records is not None and seen.task is None:
            return Finding("taps", "unknown", "not known: the task is not at hand")
        return Finding("taps", "good", f"{seen.key} reads no taps")
    read = "; ".join(_shapes(t) for t in seen.taps if t.name in needed)
    return Finding("taps", "good", read or f"{seen.key} reads {', '.join(sorted(needed))}")


def _shapes(t: Tapped) -> str:
    return f"{t.name} is {_by(t.teacher)} in the teacher and {_by(t.student)} in the student"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "unread"
