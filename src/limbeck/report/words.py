"""Numbers as words: percent, spreads, differences, ratios, sizes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Measure", "bytes_of", "number", "percent", "points", "ratio", "spread", "wins"]


def percent(value: float) -> str:
    """A fraction in percent: 0.9231 is "92.3 %"."""
    return f"{100 * value:.1f} %"


def spread(value: Mapping[str, float]) -> str:
    """Mean and standard deviation in percent: "92.3 ± 0.4 %"; only the mean of what is fixed."""
    if not value["sd"]:
        return percent(value["mean"])
    return f"{100 * value['mean']:.1f} ± {100 * value['sd']:.1f} %"


def points(gain: Mapping[str, float]) -> str:
    """A difference of fractions in percentage points: "+2.1 ± 0.5"; "+2.1" of one seed."""
    mean = f"{100 * gain['mean']:+.1f}"
    return f"{mean} ± {100 * gain['sd']:.1f}" if gain["sd"] else mean


def wins(gains: Sequence[float], name: str = "") -> str:
    """How often a difference is above 0, and how often there is none.

    Args:
        gains: the differences, one for each seed.
        name: of what they are counted by; "3 of 8, 1 the same" without, with "seeds" the end of a
            sentence, "3 of 8 seeds, the same in 1".
    """
    better, same = sum(g > 0 for g in gains), sum(g == 0 for g in gains)
    told = f"{better} of {len(gains)}{f' {name}' if name else ''}"
    if not same:
        return told
    return f"{told}, the same in {same}" if name else f"{told}, {same} the same"


def number(values: Sequence[float], form: str = ".3g") -> str:
    """The mean of seeds with its standard deviation: "0.147 ± 0.01"; "" of none."""
    if not values:
        return ""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    mean = f"{statistics.fmean(values):{form}}"
    return f"{mean} ± {sd:.2g}" if sd else mean


def ratio(large: float, small: float) -> str:
    """How many times one goes into the other: "116 times"."""
    value = large / small
    return f"{value:,.0f} times" if value >= 100 else f"{value:.2g} times"


def bytes_of(size: float) -> str:
    """A size in memory: 3,240 is "3.2 kB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


@dataclass(frozen=True)
class Measure:
    """The score of a task: its name, whether more is better."""

    name: str
    higher: bool = True

    @property
    def percent(self) -> bool:
        """Whether it is a fraction that is shown in percent."""
        return self.name == "accuracy" or self.name.startswith("top")

    def told(self, values: Sequence[float]) -> str:
        """A value, or the mean over seeds with its standard deviation."""
        if not self.percent:
            return number(values, ".4g")
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        return spread({"mean": statistics.fmean(values), "sd": sd}) if values else ""

    def gain(self, values: Sequence[float], other: Sequence[float]) -> list[float]:
        """By how much each value is better than its partner; above 0 is better."""
        sign = 1 if self.higher else -1
        return [sign * (a - b) for a, b in zip(values, other, strict=True)]

    def size(self, difference: float) -> str:
        """The size of a difference: "1.5 points"."""
        if not self.percent:
            return f"{abs(difference):.3g}"
        shown = f"{100 * abs(difference):.1f}"
        return f"{shown} point{'' if shown == '1.0' else 's'}"
