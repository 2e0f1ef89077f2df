"""The common suite: every check over one method, exemptions, and what is said of them.

A check is a function of a `Case` that yields a sentence for each fault; it raises `NotApplicable`
where there is nothing to look at. A method's file may exempt it, `EXEMPT = {"check": "reason"}`,
for as long as the check has something to complain of.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from limbeck.check.case import Case, NotApplicable, world
from limbeck.check.gives import GIVEN
from limbeck.check.hyper import HYPER
from limbeck.check.look import one_thread
from limbeck.check.needs import NEEDS
from limbeck.check.objectives import OBJECTIVES
from limbeck.check.roads import ROADS
from limbeck.check.runs import RUNS
from limbeck.errors import nearest

__all__ = ["CHECKS", "SECONDS", "Finding", "Suite", "check_method"]

Check = Callable[[Case], Iterator[str]]
Verdict = Literal["ok", "failed", "exempt", "not applicable"]

SECONDS = 6.0
"""What all checks of a method may take together: seconds of one ordinary processor."""

PATIENCE = 2.0
"""How many times that long the check `time` waits, since machines differ and are shared."""

ELSEWHERE = ("processes",)
"""Checks that need more than one process; a method may be exempt from them too."""

NEVER = ("exemptions", "card", "runs", "time")


@dataclass(frozen=True)
class Finding:
    """What one check found of one method.

    Attributes:
        key: the method's key.
        check: the check's name.
        verdict: "ok", "failed", "exempt" or "not applicable".
        said: what is wrong, or why it is exempt or not applicable.
        seconds: processor time.
    """

    key: str
    check: str
    verdict: Verdict
    said: str = ""
    seconds: float = 0.0


def exemptions(case: Case) -> Iterator[str]:
    """EXEMPT is a literal that names checks, each with a reason."""
    for name, reason in case.exempt.items():
        if str(name).startswith("tree:"):
            continue
        if name not in (*CHECKS, *ELSEWHERE):
            yield f"EXEMPT names no check: {name!r}{nearest(str(name), [*CHECKS, *ELSEWHERE])}"
        elif name in NEVER:
            yield f"no method can be exempt from '{name}'"
        if not isinstance(reason, str) or not reason.strip():
            yield f"EXEMPT gives no reason for '{name}'"


def time_(case: Case) -> Iterator[str]:
    """All checks together are quick (see `SECONDS` and `PATIENCE`)."""
    if case.seconds > SECONDS * PATIENCE:
        yield f"its checks take {case.seconds:.1f} s; make its tiny fields or its world smaller"


time_.__name__ = "time"
CHECKS: dict[str, Check] = {
    f.__name__: f for f in (*HYPER, exemptions, *RUNS, *OBJECTIVES, *NEEDS, *ROADS, *GIVEN, time_)
}
"""Every check by name, in the order in which they are told."""


class Suite:
    """The findings of one method, each made when it is first asked for."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._found: dict[str, Finding] = {}

    def find(self, check: str) -> Finding:
        """What one check finds."""
        if check not in self._found:
            self._found[check] = self._find(check)
        return self._found[check]

    def all(self) -> list[Finding]:
        """What all checks find."""
        return [self.find(name) for name in CHECKS]

    def _find(self, check: str) -> Finding:
        if check == "time":
            self.case.seconds = sum(self.find(n).seconds for n in CHECKS if n != check)
        verdict: Verdict = "ok"
        world(self.case.card.world)  # its teacher may be trained now: no method's time
        began = time.process_time()
        try:
            with one_thread():
                faults = list(CHECKS[check](self.case))
            said = _joined(list(dict.fromkeys(faults)))
            verdict = "failed" if faults else "ok"
        except NotApplicable as why:
            verdict, said = "not applicable", str(why)
        except Exception as error:
            verdict, said = "failed", self.case.tell(error)
        reason = self.case.exempt.get(check)
        if reason is not None and check not in NEVER:
            if verdict == "failed":
                verdict, said = "exempt", str(reason)
            else:
                verdict, said = "failed", f"exemption not needed: {said or 'the check passes'}"
        return Finding(self.case.card.key, check, verdict, said, time.process_time() - began)


def _joined(faults: list[str], most: int = 4) -> str:
    more = f"; and {len(faults) - most} more" if len(faults) > most else ""
    return "; ".join(faults[:most]) + more


def check_method(key_or_file: str | os.PathLike[str]) -> list[Finding]:
    """Run every check on one method.

    Args:
        key_or_file: a method's key, or the path of a FILE.py with a card.

    Returns:
        A finding for each check.

    Raises:
        UsageError: there is no such method, or its card cannot be read.
    """
    return Suite(Case(key_or_file)).all()
