"""What a diagnosis is made of, and how a command is written again with a change."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

State = Literal["bad", "watch", "follows", "unknown", "good"]
ORDER: tuple[State, ...] = ("bad", "watch", "follows", "unknown", "good")
"""The states, the worst first."""


@dataclass(frozen=True)
class Finding:
    """One question and its answer.

    Attributes:
        name: of the question: run, teacher, classes, inputs, outputs, calibration, soft targets,
            temperature, agreement, features, taps, balance, rate, student, data, fit.
        state: the answer in a word; "unknown" where it could not be measured, "follows" where it
            would be a fault but comes from another that is named.
        says: a sentence with the numbers.
        advice: what to do; empty where there is nothing to do.
        command: that, as a command, where one does it.
    """

    name: str
    state: State
    says: str
    advice: str = ""
    command: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the worst first; healthy if none is bad and none is to be watched."""

    findings: tuple[Finding, ...]
    healthy: bool
    verdict: str

    def __getitem__(self, name: str) -> Finding:
        return {f.name: f for f in self.findings}[name]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def concluded(
    findings: Sequence[Finding], key: str, after: bool, *, first: str = "", ended: bool = True
) -> Diagnosis:
    """The findings in order, with their verdict.

    Args:
        findings: in any order; among equals the order stays.
        key: the method.
        after: whether a run was looked at, and not a task before one.
        first: what the verdict begins with, whatever is found.
        ended: whether the run came to its end; one that did not is not called healthy.
    """
    ordered = tuple(sorted(findings, key=lambda f: ORDER.index(f.state)))
    failed = any(f.name == "run" and f.state == "bad" for f in ordered)
    bad = [f.name for f in ordered if f.state == "bad" and f.name != "run"]
    watch = [f.name for f in ordered if f.state == "watch"]
    good = sum(f.state == "good" for f in ordered)
    if failed:
        beside = [name for name in watch if name != "run"]
        why = ", ".join(bad) if bad else "none of the other questions says why"
        verdict = f"the run failed: {why}"
        verdict += f"; {len(beside)} to watch ({', '.join(beside)})" if beside else ""
    elif bad:
        verdict = f"{_count(len(bad), 'fault')} ({', '.join(bad)})"
        verdict += f", {len(watch)} to watch ({', '.join(watch)})" if watch else ""
    elif watch:
        verdict = f"nothing is broken; {len(watch)} to watch ({', '.join(watch)})"
    elif good and good < len(ordered) / 2:
        verdict = f"nothing is wrong in the {good} of {len(ordered)} questions that have an answer"
    elif good:
        what = f"the run of {key}" if after else f"{key} on this task"
        verdict = f"healthy: {good} of {len(ordered)} questions have good answers for {what}"
    else:
        verdict = "nothing could be measured"
    if not ended:
        verdict = verdict.replace("healthy: ", "")
    verdict = f"{first}; {verdict}" if first else verdict
    return Diagnosis(ordered, ended and not (failed or bad or watch) and good > 0, verdict)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("s" if n > 1 else "")


def again(command: Sequence[str], changes: Mapping[str, Any], without: Sequence[str] = ()) -> str:
    """A command with some options changed or added, and without the folder of the last run.

    Args:
        command: its words: limbeck run KEY ...
        changes: option -> value, as {"--tau": 4.0}; None for a flag that takes none.
        without: further options to leave out, with their values.
    """
    drop = {*changes, "--out", *without}
    kept: list[str] = []
    words = iter(command)
    for word in words:
        option, eq, _ = word.partition("=")
        if option not in drop:
            kept.append(word)
        elif not eq and changes.get(option, "") is not None:
            next(words, None)
    for option, value in changes.items():
        kept.append(option)
        if value is not None:
            kept.append(f"{value:g}" if isinstance(value, float) else str(value))
    return shlex.join(kept)


def grouped(findings: Sequence[Finding]) -> list[Finding]:
    """What is not known for one and the same reason, as one finding."""
    out: list[Finding] = []
    for says in dict.fromkeys((f.state, f.says) for f in findings):
        same = [f for f in findings if (f.state, f.says) == says]
        first = same[0]
        if first.state == "unknown" and len(same) > 1:
            others = ", ".join(f.name for f in same[1:])
            first = replace(first, says=f"{first.says} (nor are: {others})")
        out += [first] if first.state == "unknown" else same
    return out
