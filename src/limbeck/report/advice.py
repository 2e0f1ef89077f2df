"""Which methods are worth trying on a task, by the leaderboard and the trials; no torch.

Of a task with classes the leaderboard ranks what may run, by its mean difference to KD. Of other
tasks, and where the grid has not run, trials on a world of the same kind say which claims hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.core.card import call

__all__ = ["KINDS_OF_WORLDS", "Advice", "measured", "of_grid", "of_trials"]

KINDS_OF_WORLDS = {
    "bags": "labels of bags of instances",
    "charlm": "next tokens",
    "digits": "classes",
    "fashion": "classes",
    "glosscls": "next tokens",
    "markov": "next tokens",
    "masklm": "hidden tokens",
    "multilabel": "several labels of a sample",
    "transduce": "texts for texts",
}
"""What is learned in worlds whose trials say something of tasks of the same kind."""

Told = Mapping[str, Any]


@dataclass(frozen=True)
class Advice:
    """A method and why.

    Attributes:
        key: the method.
        setting: as it did best, such as "rkd(distance=5, angle=10)".
        why: the evidence, as sentences.
    """

    key: str
    setting: str
    why: str


def of_grid(standings: Told, trials: Mapping[str, Sequence[Told]], across: bool) -> list[Advice]:
    """The methods of the leaderboard, the best first.

    Args:
        standings: of the grid.
        trials: the measured definitions of each method.
        across: whether teacher and student are of different architectures.
    """
    cells = [cell["name"] for cell in standings["cells"]]
    like = [name for name in cells if name.endswith(", across") == across]
    found = []
    for row in sorted(standings["methods"], key=lambda row: -row["mean"][0]):
        mean, low, high = (100 * value for value in row["mean"])
        there = [f"{100 * row['cells'][n]['difference'][0]:+.1f} on {n}" for n in like
                 if n in row["cells"]]  # fmt: skip
        if not there:
            continue
        runs = sum(len(cell["values"]) for cell in row["cells"].values())
        over = "it is what the others are compared with" if row["key"] == "kd" else (
            f"{mean:+.1f} points over KD ({low:+.1f} to {high:+.1f}, {runs} pairs of runs)"
        )  # fmt: skip
        pairs = "a pair like this" if len(there) == 1 else "pairs like this"
        why = f"{over}; of {pairs}: {', '.join(there)}; a step costs {row['time']:.2g} times KD's"
        best = max((row["cells"][n] for n in like if n in row["cells"]),
                   key=lambda cell: cell["difference"][0])  # fmt: skip
        said = trials.get(row["key"])
        claim = f". Its paper's claim was {said[-1]['verdict']} in a trial" if said else ""
        found.append(Advice(row["key"], best["setting"], f"{why}{claim}."))
    return found


def of_trials(kind: str, trials: Mapping[str, Sequence[Told]]) -> list[Advice]:
    """Methods whose claim was shown on a world of this kind, the largest effects first."""
    found: list[tuple[float, Advice]] = []
    for key, definitions in trials.items():
        now = definitions[-1]
        if KINDS_OF_WORLDS.get(call(now["world"])[0]) != kind or now["verdict"] != "shown":
            continue
        arms = {arm: now["arms"][arm]["difference"] for arm in now["against"]}
        arm, least = min(arms.items(), key=lambda pair: float(pair[1]["mean"]))
        width = least["high"] - least["low"]
        why = (
            f"shown in a trial: {now['claim']} {least['mean']:+.3g} of {now['measure']} against "
            f"{now['arms'][arm]['setting']}, {least['low']:+.3g} to {least['high']:+.3g}."
        )
        effect = least["mean"] / width if width else 0.0
        found.append((effect, Advice(key, now["arms"][key]["setting"], why)))
    return [advice for _, advice in sorted(found, key=lambda pair: -pair[0])]


def measured(rows: Iterable[Told], cells: Sequence[str]) -> dict[str, Any]:
    """How good the advice is: each cell in turn is held out, and advised on from the others.

    The loss is how far, on average, the advised method stays behind the best of the held-out cell,
    in accuracy. Methods that run in all cells take part.

    Returns:
        {"suggested": by the mean of the other cells, "alike": by those of a like pair alone,
        "kd": picking KD, "random": the mean over all methods, "cells": how many}.
    """
    there = [row for row in rows if all(name in row["cells"] for name in cells)]
    lost: dict[str, list[float]] = {"suggested": [], "alike": [], "kd": [], "random": []}
    for held in cells:
        here = {row["key"]: row["cells"][held]["difference"][0] for row in there}
        best = max(here.values())
        others = [name for name in cells if name != held]
        pair = held.rpartition(", ")[2]
        alike = [name for name in others if name.endswith(f", {pair}")]
        for word, used in (("suggested", others), ("alike", alike)):
            first = max(there, key=lambda row: sum(row["cells"][n]["difference"][0] for n in used))
            lost[word].append(best - here[first["key"]])
        lost["kd"].append(best - here["kd"])
        lost["random"].append(best - sum(here.values()) / len(here))
    return {
        **{word: round(sum(some) / len(some), 6) for word, some in lost.items()},
        "cells": len(cells),
    }
