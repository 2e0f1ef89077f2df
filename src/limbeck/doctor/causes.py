"""Which findings follow from others, so that one cause is not counted as several faults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from limbeck.doctor import limits
from limbeck.doctor.rates import Alone
from limbeck.doctor.seen import Seen
from limbeck.doctor.words import Finding

_ANSWERS = ("temperature", "soft targets", "calibration", "agreement")
"""What is said of a teacher's answers."""


def sorted_out(seen: Seen, findings: Sequence[Finding]) -> list[Finding]:
    """The findings, where those that a named fault explains say so and count no more.

    A failed run is not explained away: it is what the faults are looked for.
    """
    cause_of = _causes(seen, {f.name for f in findings if f.state == "bad"})
    out = []
    for f in findings:
        cause = cause_of.get(f.name)
        if cause is not None and f.state in ("bad", "watch"):
            f = replace(f, state="follows", says=f"{f.says} (it follows from '{cause}')",
                        advice="", command=None)  # fmt: skip
        out.append(f)
    faults = [f.name for f in out if f.state == "bad" and f.name != "run"]
    return [_sent_on(f, faults) if f.name == "run" else f for f in out]


def _causes(seen: Seen, bad: set[str]) -> dict[str, str]:
    """By the name of a finding, the fault that it follows from."""
    found: dict[str, str] = {}

    def explains(cause: str, *names: str) -> None:
        for name in names if cause in bad else ():
            found.setdefault(name, cause)

    if seen.raised:  # at the same rate
        explains("rate", "inputs", "teacher", *_ANSWERS)
    if seen.inputs is None:  # it knows nothing of these data
        explains("inputs", "teacher", *_ANSWERS)
    for cause in ("outputs", "inputs", "classes") if seen.misread else ():
        explains(cause, "agreement", "features")
    learned = seen.score("teacher", "train")
    if learned is not None and learned < limits.LEARNED:
        explains("teacher", *_ANSWERS)
    if {"rate", "balance"} <= bad and seen.alone is not None:
        explains(*(("balance", "rate") if _fine_alone(seen.alone) else ("rate", "balance")))
    explains("temperature", "soft targets")
    explains("rate", "fit")
    for cause in ("rate", "balance", "temperature", "student", "run"):
        explains(cause, "agreement", "features")
    return found


def _fine_alone(alone: Alone) -> bool:
    """Whether the labels alone are learnt at the task's rate, so that what fails is the method."""
    r = alone.rates
    return math.isfinite(r.end[r.own]) and r.end[r.own] < r.start


def _sent_on(run: Finding, faults: Sequence[str]) -> Finding:
    """A failed run where faults are named that explain it, which have the advice."""
    if run.state not in ("bad", "watch") or not faults:
        return run
    return replace(run, advice=f"first mend: {', '.join(faults)}", command=None)
