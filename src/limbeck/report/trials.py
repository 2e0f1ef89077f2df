"""What is known of a method's claim, from the packaged digest of the bench."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limbeck.errors import UsageError
from limbeck.registry import PACKAGE

__all__ = ["all_told", "differences", "lines", "strip", "told_of"]

_WIDE = 61


def all_told() -> dict[str, list[dict[str, Any]]]:
    """The definitions that were measured of each method's trial, the one in force last."""
    path = PACKAGE / "results.json"
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_bytes()).items()
        return {key: list(row.get("definitions", [])) for key, row in told}
    except (ValueError, AttributeError):
        raise UsageError(f"{path} is damaged; install limbeck again") from None


def told_of(key: str) -> list[dict[str, Any]]:
    """The same of one method; an empty list where nothing was measured."""
    return all_told().get(key, [])


def differences(told: Mapping[str, Any], key: str, arm: str) -> list[float]:
    """The paired differences to an arm, one for each seed, positive where the claim holds."""
    sign = 1 if told["better"] == "higher" else -1
    pairs = zip(told["arms"][key]["values"], told["arms"][arm]["values"], strict=True)
    return [sign * (a - b) for a, b in pairs]


def strip(values: Sequence[float], wide: int = _WIDE) -> str:
    """A line of dots, one for each value (more in one place are a digit), and `|` at zero."""
    low, high = min(0.0, *values), max(0.0, *values)
    scale = (wide - 1) / (high - low) if high > low else 0.0
    counts = [0] * wide
    for value in values:
        counts[round((value - low) * scale)] += 1
    zero = round(-low * scale)
    marks = [" " if n == 0 else "•" if n == 1 else str(min(n, 9)) for n in counts]
    if not counts[zero]:
        marks[zero] = "|"
    return "".join(marks).rstrip()


def lines(key: str, told: Mapping[str, Any]) -> Iterator[str]:
    """A definition and its verdict, in words and dots."""
    seeds = f"seeds {told['seeds'][0]} to {told['seeds'][0] + told['seeds'][1] - 1}"
    world = told["world"] + "".join(f", {v:g} {k}" for k, v in told["budget"].items())
    yield told["claim"]
    yield f"{told['verdict']}: {told['measure']} on {world}, {seeds}, {told['better']} is better"
    if told["why"]:
        yield told["why"]
    for arm, facts in told["arms"].items():
        line = f"  {facts['setting']:<34} {facts['mean']:.4f}"
        if arm == key:
            yield line
            continue
        d = facts["difference"]
        yield f"{line}  {d['mean']:+.4f}, 95 % {d['low']:+.4f} to {d['high']:+.4f}" + (
            "" if arm in told["against"] else "; beside"
        )
        yield f"    {strip(differences(told, key, arm))}"
    if told["stale"]:
        yield "The code has changed since; `limbeck bench --changed` measures it anew."
    yield f"A seed of it again: limbeck bench {key} --again {told['seeds'][0]}"
