"""Questions about a run as a whole: did its student learn, and how did the method's loss go."""

from __future__ import annotations

import statistics
from typing import Any

from limbeck.doctor import limits
from limbeck.doctor.numbers import error_of
from limbeck.doctor.probe import losses
from limbeck.doctor.proposals import Command, anew
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import Finding, State


def outcome(seen: Seen, command: Command) -> Finding | None:
    """Has the student learned what its teacher knows? None before the end of a run."""
    s, t, alone = (seen.score(side, "held") for side in ("student", "teacher", "alone"))
    if seen.records is None or not seen.records.result or s is None or (t or alone) is None:
        return None
    n = seen.count("held")
    share = seen.share("held") or 0.0
    best = t if t is not None else alone
    assert best is not None
    told = {"the teacher": t, "the same student without a teacher": alone, "chance": share or None}
    says = f"the student has {s:.3f} on held-out samples; "
    says += ", ".join(f"{who} {v:.3f}" for who, v in told.items() if v is not None)
    state = _state(s, best, alone, share, n)
    if state == "good":
        return Finding("run", "good", says)
    proposed, note = _longer(seen, command)
    advice = "it has not learned the task" if state == "bad" else "it has learned little of it"
    if alone is not None and s < alone:
        advice = "it does worse than without its teacher"
    return Finding("run", state, says, f"{advice}: train longer, or take another method{note}",
                   proposed)  # fmt: skip


def _state(s: float, best: float, alone: float | None, share: float, n: int) -> State:
    """How a student's accuracy stands to those of the others, given chance and samples."""

    def below(other: float) -> bool:
        noise = (error_of(s, n) ** 2 + error_of(other, n) ** 2) ** 0.5 if n else 0.01
        return s < other - limits.NOISE * noise

    if not below(best):
        return "good"
    harmed = alone is not None and below(alone)
    come = (s - share) / (best - share) if best > share else 1.0
    if come < limits.FAILED or (harmed and best - s > limits.FAR):
        return "bad"
    return "watch" if come < limits.POOR or harmed else "good"


def _longer(seen: Seen, command: Command) -> tuple[str | None, str]:
    """The command with twice the steps of its longest stage, if the records have them."""
    assert seen.records is not None
    stages: list[dict[str, Any]] = seen.records.result.get("stages") or []
    steps = [int(s["steps"]) for s in stages if s.get("stage") not in ("teacher", "baseline")
             and isinstance(s.get("steps"), int)]  # fmt: skip
    return anew(seen, command, {"--steps": 2 * max(steps)}) if steps else (None, "")


def progress(seen: Seen) -> Finding | None:
    """How the method's loss went; None where it did not get so far."""
    stages = {str(row["stage"]): losses([r for r in seen.rows if r["stage"] == row["stage"]])
              for row in seen.rows}  # fmt: skip
    told = ", ".join(
        f"{s} {v[0]:.3g} to {statistics.fmean(v[-max(1, len(v) // 10) :]):.3g}"
        for s, v in stages.items()
        if v
    )
    if seen.records is not None and not seen.records.result:
        return _unfinished(seen, told)
    if not told or (seen.tried is not None and seen.tried.error is not None):
        return None
    when = f" in {seen.steps} steps" if seen.tried else ""
    return Finding("fit", "good", f"the method's loss went: {told}{when}")


def _unfinished(seen: Seen, told: str) -> Finding:
    """Where a run stopped, and how it goes on."""
    assert seen.records is not None
    rows = [row for row in seen.records.rows if "step" in row]
    at = f"step {rows[-1]['step']} of '{rows[-1]['stage']}'" if rows else "before its first step"
    says = f"the run is not finished: {at}"
    if told:
        says += f"; loss {told}" + (f" in {seen.steps} steps" if seen.tried else "")
    resume = f"limbeck resume {seen.records.folder}"
    advice = f"go on with: {resume}; what is said here is of its first part"
    return Finding("fit", "unknown", says, advice, resume)
