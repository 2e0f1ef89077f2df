"""Questions about the student: its size, the data that it learns from."""

from __future__ import annotations

from limbeck.doctor import limits
from limbeck.doctor.numbers import error_of
from limbeck.doctor.proposals import Command, augmented, longer
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import Finding


def size(seen: Seen, command: Command) -> Finding:
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
            proposed, note = longer(seen, command)
            advice = "it is too small, or was not trained enough: take a wider one, or more epochs"
            return Finding("student", "watch", says, advice + note, proposed)
        why = seen.faults.get("student") or seen.faults.get("task") or "it was not tried"
        return Finding("student", "unknown", f"not known: {why}")
    m, by_heart = seen.heart
    says = f"{says}; " if says else ""
    says += f"asked to learn {m} training samples by heart, the student gets {by_heart:.3f} of them"
    if by_heart >= limits.FITS:
        return Finding("student", "good", says)
    advice = "it is too small for these data: take a wider or deeper one"
    return Finding("student", "bad" if by_heart < limits.FITS_NOT else "watch", says, advice)


def data(seen: Seen, command: Command) -> Finding:
    """Are there samples enough?"""
    after = seen.records is not None
    sides = ("student", "alone") if after else ("alone",)
    pairs = [(seen.score(side, "train"), seen.score(side, "held")) for side in sides]
    found = next(((a, b) for a, b in pairs if a is not None and b is not None), None)
    n = seen.samples.get("train")
    count = f"{n} training samples" if n else "the training set"
    if n and seen.classes:
        each = n / seen.classes
        count += f" (about {each:.0f} a class)" if n % seen.classes else f" ({each:.0f} a class)"
    if found is None:
        why = seen.faults.get("alone") or seen.faults.get("task") or "no accuracy on both sets"
        return Finding("data", "unknown", f"{count}; not known: {why}")
    train, held = found
    when = "" if after else f" alone, after {seen.steps} steps,"
    says = f"{count}: the student{when} has {train:.3f} on them and {held:.3f} on {seen.held_out}"
    noise = limits.NOISE * error_of(held, seen.count("held") or 1)
    if train - held < max(limits.GAP_WATCH, noise if seen.count("held") else 0.0):
        return Finding("data", "good", says)
    able = "" if seen.at_chance else ": the teacher can label any that look like these"
    proposed, note = augmented(seen, command)
    advice = f"more samples{able}" + ("; or draw these anew in each epoch" if proposed else "")
    bad = train - held >= limits.GAP_BAD
    return Finding("data", "bad" if bad else "watch", says, advice + note, proposed)
