"""Durations in words. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["seconds_said", "took"]


def seconds_said(seconds: float) -> str:
    """A duration: "0.4 s", "12 s", "3:25 min", "1:02:03 h"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def took(told: Mapping[str, Any]) -> str:
    """What a run's time.json says: "12 s", "3:25 min in 2 sittings"; "" of none."""
    seconds, sittings = told.get("seconds"), told.get("sittings", 1)
    if not isinstance(seconds, int | float):
        return ""
    return seconds_said(seconds) + (f" in {sittings} sittings" if sittings != 1 else "")
