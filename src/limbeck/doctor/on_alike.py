"""Questions about how alike the two sides have become: their answers, and their features."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.doctor import limits
from limbeck.doctor.numbers import error_of
from limbeck.doctor.proposals import Command, weighed
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import Finding, State
from limbeck.runs import measures


def _of_records(seen: Seen) -> tuple[float, float | None, float | None] | None:
    told = seen.records.appraisal.get("agreement", {}) if seen.records else {}
    mine = told.get("student", {})
    if mine.get("top1") is None:
        return None
    return mine["top1"], mine.get("kl"), told.get("baseline", {}).get("top1")


def agreement(seen: Seen, command: Command) -> Finding:
    """Do student and teacher answer alike?"""
    if seen.misread or "classes" in seen.faults:
        return Finding("agreement", "unknown", "not known: the teacher is fed or read wrongly")
    s, t = seen.answers.get(("student", "held")), seen.answers.get(("teacher", "held"))
    alone: float | None = None
    found = _of_records(seen)
    if s is not None and t is not None and s.logits.shape[1] == t.logits.shape[1]:
        n = min(len(s), len(t))  # of the same samples; a slow side was asked on fewer
        s, t = s.at(slice(n)), t.at(slice(n))
        top1, kl = _alike(s.logits, t.logits, t.hard)
        chance = _chance(s.logits, t.logits)
        alone = found[2] if found else None
    elif found is not None:
        top1, kl, alone = found
        told = seen.records.appraisal.get("classes") if seen.records else None
        chance = 1 / len(told) if told else 0.0
    else:
        return seen.unknown("agreement", "the two sides were not asked on the same samples")
    says = f"student and teacher give the same first class to {top1:.3f} of {seen.held_out}"
    says += f" (the student alone does to {alone:.3f})" if alone is not None else ""
    says += f", with a mean KL of {kl:.3f} nats" if kl is not None else ""
    n = seen.count("held")
    if places := seen.records.appraisal.get("tokens") if seen.records else None:
        n, says = int(places), says.replace("held-out samples", "held-out tokens")
    noise = limits.NOISE * error_of(top1, n) if n else 0.0
    if top1 <= chance + noise:
        return _by_chance(seen, says, chance, noise)
    if alone is not None and top1 < alone - max(limits.LESS, noise):
        advice = "the teaching did not reach the student: give the teacher's terms more weight"
        return Finding("agreement", "watch", says, advice, weighed(seen, command, 2.0))
    a, b = seen.score("student", "held"), seen.score("teacher", "held")
    if a is not None and b is not None and seen.classes > 1:
        by_chance = a * b + (1 - a) * (1 - b) / (seen.classes - 1)
        if top1 < by_chance - max(limits.APART, noise):
            advice = f"two independent judges this good agree on {by_chance:.3f}; look at the data"
            return Finding("agreement", "watch", says, advice)
    return Finding("agreement", "good", says)


def _chance(s: Tensor, t: Tensor) -> float:
    """How often two judges who give each class this often agree, if they look at nothing."""
    each = [torch.bincount(z.argmax(-1), minlength=z.shape[1]) / len(z) for z in (s, t)]
    return float((each[0] * each[1]).sum())


def _by_chance(seen: Seen, says: str, chance: float, noise: float) -> Finding:
    """Two sides that agree no more than if neither looked at the samples."""
    says += f"; by chance they would to {chance:.3f}"
    if seen.records is None or not seen.records.result:
        what = f"after {seen.steps} steps" if seen.records is None else "so far"
        return Finding("agreement", "unknown", f"{says}: no verdict {what}")
    state: State = "watch" if noise <= limits.TELLS else "unknown"
    advice = "the student has not learned what its teacher says" if state == "watch" else ""
    return Finding("agreement", state, says, advice)


def _alike(s: Tensor, t: Tensor, hard: bool) -> tuple[float, float | None]:
    told = measures.agreements({"student": s, "teacher": t.argmax(-1) if hard else t})["student"]
    return told["top1"], told.get("kl")


def features(seen: Seen, command: Command) -> Finding:
    """How alike are the two sides' features?"""
    found = {t.name: t.cka for t in seen.taps if t.cka is not None}
    if not found:
        return Finding("features", "unknown", "not known: nothing is tapped on both sides")
    told = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    says = f"linear CKA of the sides' features: {told}"
    needed = seen.needs() & set(found)
    low = [name for name in needed if found[name] < limits.ALIKE]
    if low and seen.records is not None and not seen.misread:
        advice = f"the student does not look at {', '.join(low)}; give the term more weight"
        return Finding("features", "watch", says, advice)
    return Finding("features", "good", says)
