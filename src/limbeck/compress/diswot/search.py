"""Which candidates DisWOT looks at: all of a small space, an aging evolution in a large one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch


def neighbours(name: str, names: set[str], values: Sequence[Sequence[str]]) -> list[str]:
    """The candidates that differ from one in a single choice: "1-3-5" and "1-7-5"."""
    parts = name.split("-")
    out = []
    for place, part in enumerate(parts):
        for value in values[place]:
            other = "-".join([*parts[:place], value, *parts[place + 1 :]])
            if value != part and other in names:
                out.append(other)
    return out


def choices(names: Sequence[str]) -> list[list[str]]:
    """The values that occur at each place of the names' choices."""
    parts = [name.split("-") for name in names]
    return [sorted({p[i] for p in parts if len(p) > i}) for i in range(max(len(p) for p in parts))]


def shuffled(names: Sequence[str], generator: torch.Generator) -> Iterator[str]:
    """All of the names, in a drawn order."""
    for i in torch.randperm(len(names), generator=generator).tolist():
        yield names[i]


def evolve(
    names: Sequence[str],
    score: Callable[[str], float],
    allowed: Callable[[str], bool],
    population: int,
    cycles: int,
    tournament: int,
    rng: Callable[[str], torch.Generator],
) -> None:
    """Aging evolution: the best of a tournament has a child, the oldest dies.

    Real et al., AAAI 2019, arXiv 1802.01548, algorithm 1.

    Args:
        names: all candidates; a child differs from its parent in one of the choices that "-" parts.
            Where there is no such candidate, it is any.
        score: asked again, it answers anew or from memory; higher is better.
        allowed: candidates that it refuses are not scored.
        population: how many live at a time.
        cycles: children.
        tournament: drawn from the living, with replacement, for each child.
        rng: generators by name.
    """
    known, values = set(names), choices(names)
    start = (n for n in shuffled(names, rng("population")) if allowed(n))
    living = deque(name for name, _ in zip(start, range(population), strict=False))
    for name in living:
        score(name)
    for cycle in range(cycles if living else 0):
        draw = rng(f"cycle {cycle}")
        drawn = torch.randint(len(living), (tournament,), generator=draw).tolist()
        parent = max(sorted({living[i] for i in drawn}), key=score)
        near = (n for n in shuffled(neighbours(parent, known, values), draw) if allowed(n))
        child = next(near, None) or next(n for n in shuffled(names, draw) if allowed(n))
        score(child)
        living.append(child)
        living.popleft()
