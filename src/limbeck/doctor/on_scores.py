"""Questions that a task's own score answers, where that is no accuracy: of language models."""

from __future__ import annotations

import math

from limbeck.doctor import limits
from limbeck.doctor.proposals import Command, longer, teacher_longer
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import Finding, again

_WHO = {"alone": "the student alone", "student": "the student", "teacher": "the teacher"}


def better(seen: Seen, command: Command) -> Finding | None:
    """Is the teacher better than the student? None where the score tells nothing of both."""
    found = seen.scored
    side = "alone" if "alone" in found else "student"
    if "teacher" not in found or side not in found:
        return None
    t, s = found["teacher"], found[side]
    when = "" if seen.records is not None else f" after {seen.steps} steps"
    says = f"the teacher has {_told(seen, t)} on {seen.held_out}, {_WHO[side]} {s:.4g}{when}"
    if not _beats(seen, side, "teacher"):
        return Finding("teacher", "good", says)
    proposed, note = teacher_longer(seen, command)
    advice = f"take a better teacher, or train this one longer: it has little to teach{note}"
    return Finding("teacher", "watch", says, advice, proposed)


def outcome(seen: Seen, command: Command) -> Finding | None:
    """Is the student of a finished run better than without its teacher?"""
    found = seen.scored
    if seen.records is None or not seen.records.result or "student" not in found:
        return None
    says = f"the student has {_told(seen, found['student'])} on {seen.held_out}"
    for side in ("teacher", "alone"):
        says += f", {_WHO[side]} {found[side]:.4g}" if side in found else ""
    more = {"--seeds": 3, "--baseline": None}
    proposed = again(command, more) if seen.records.command else None
    if "alone" not in found:
        advice = "whether the teacher helps is not known: train the student alone as well"
        return Finding("run", "good", says, f"{advice} (--seeds 3 --baseline)", proposed)
    if _beats(seen, "alone", "student"):
        proposed, note = longer(seen, command)
        advice = (
            f"it does worse than without its teacher: train longer, or take another method{note}"
        )
        return Finding("run", "watch", says, advice, proposed)
    if _beats(seen, "student", "alone"):
        return Finding("run", "good", says)
    advice = "these samples cannot tell whether there is a gain: see over several seeds"
    return Finding("run", "unknown", says, f"{advice} (--seeds 3 --baseline)", proposed)


def _told(seen: Seen, value: float) -> str:
    return f"{seen.score_name} {value:.4g}"


def _beats(seen: Seen, one: str, other: str) -> bool:
    """Whether a side is better than another by more than the noise that is known of."""
    gain = seen.scored[one] - seen.scored[other]
    noise = math.hypot(*(seen.errors.get(side, 0.0) for side in (one, other)))
    return (gain if seen.score_higher else -gain) > limits.NOISE * noise
