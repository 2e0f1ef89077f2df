"""Questions about a run as a whole: did its student learn, and how did the method's loss go."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence

from limbeck.doctor import limits, on_rate
from limbeck.doctor.numbers import error_of
from limbeck.doctor.probe import losses
from limbeck.doctor.proposals import Command, longer
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import Finding, State, again


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
    says = f"the student has {s:.3f} on {f'{n} ' if n else ''}{seen.held_out}; "
    says += ", ".join(f"{who} {v:.3f}" for who, v in told.items() if v is not None)
    state = _state(s, best, alone, share, n)
    if state == "good":
        advice, command_ = _next(seen, s, alone, n, command)
        shown = alone is None or s - alone > _margin(s, alone, n)
        return Finding("run", "good" if shown else "unknown", says, advice, command_)
    proposed, note = longer(seen, command)
    advice = "it has not learned the task" if state == "bad" else "it has learned little of it"
    if alone is not None and s < alone:
        advice = "it does worse than without its teacher"
    return Finding("run", state, says, f"{advice}: train longer, or take another method{note}",
                   proposed)  # fmt: skip


def _state(s: float, best: float, alone: float | None, share: float, n: int) -> State:
    """How a student's accuracy stands to those of the others, given chance and samples."""

    def below(other: float) -> bool:
        return s < other - _margin(s, other, n)

    harmed = alone is not None and below(alone)
    if not below(best):
        return "watch" if harmed else "good"
    come = (s - share) / (best - share) if best > share else 1.0
    if come < limits.FAILED or (harmed and best - s > limits.FAR):
        return "bad"
    return "watch" if come < limits.POOR or harmed else "good"


def _margin(a: float, b: float, n: int) -> float:
    """By how much two accuracies on the same samples must differ to count as different."""
    return limits.NOISE * ((error_of(a, n) ** 2 + error_of(b, n) ** 2) ** 0.5 if n else 0.01)


def headline(seen: Seen, findings: Sequence[Finding]) -> str:
    """What the verdict of a run begins with: that it is not finished, or has shown no gain."""
    if seen.records is None:
        return ""
    if not seen.records.result:
        return f"not finished: {seen.records.resume}"
    s, alone = (seen.score(side, "held") for side in ("student", "alone"))
    if s is None or alone is None or any(f.name == "run" and f.state == "bad" for f in findings):
        return ""
    margin = _margin(s, alone, seen.count("held"))
    if s < alone - margin:
        return f"the student is worse than alone ({s - alone:+.3f})"
    if s - alone <= margin:
        return f"no gain shown over the student alone ({s - alone:+.3f}, margin {margin:.3f})"
    return ""


def _next(
    seen: Seen, s: float, alone: float | None, n: int, command: Command
) -> tuple[str, str | None]:
    """What would teach more of a run that went well: advice, and a command where there is one."""
    records = seen.records
    assert records is not None
    folder = shlex.quote(str(records.folder))
    seeds = {"--seeds": 3, "--baseline": None}
    if alone is not None and s - alone > _margin(s, alone, n):
        return "the gain is clear: the student can be used", f"limbeck export {folder} --to onnx"
    if records.whole != records.folder:
        whole = shlex.quote(str(records.whole))
        if records.open:
            return "the other seeds are not finished", records.resume
        if alone is not None:
            return "a gain is shown by all seeds together, or by none", f"limbeck report {whole}"
        seeds = {"--seeds": max(3, len(records.seeds)), "--baseline": None}
    proposed = again(command, seeds) if records.command else None
    if alone is None:
        told = "whether the teacher helps is not known: train the student alone as well"
        return f"{told} (--seeds {seeds['--seeds']} --baseline)", proposed
    told = "one seed on these samples cannot tell: see over several whether there is a gain"
    return f"{told} (--seeds 3 --baseline)", proposed


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
    says = f"the method's loss went: {told}{when}"
    if went := on_rate.astray(seen):
        advice = "try a lower rate" if went == "diverged" else "try a higher rate"
        return Finding("fit", "bad", f"{says}: it {went}", advice)
    return Finding("fit", "good", says)


def _unfinished(seen: Seen, told: str) -> Finding:
    """Where a run stopped, and how it goes on."""
    assert seen.records is not None
    rows = [row for row in seen.records.rows if "step" in row]
    at = f"step {rows[-1]['step']} of '{rows[-1]['stage']}'" if rows else "before its first step"
    says = f"the run is not finished: {at}"
    if told:
        says += f"; loss {told}" + (f" in {seen.steps} steps" if seen.tried else "")
    resume = seen.records.resume
    advice = f"go on with: {resume}; what is said here is of its first part"
    return Finding("fit", "unknown", says, advice, resume)
