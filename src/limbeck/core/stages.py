"""Which of the modules that ran are a model's stages, and which its blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from limbeck.core.tracing import Seen

__all__ = ["blocks", "inner_stages", "key", "outermost", "rank", "size", "stages"]


def key(tensor: Tensor | None) -> Any:
    """What is the same for two names of one tensor."""
    return None if tensor is None else (tensor.data_ptr(), tensor.shape)


def outermost(found: list[Seen]) -> list[Seen]:
    """Each tensor once, by the outermost of the modules that give it."""
    kept: dict[Any, Seen] = {}
    for seen in found:
        there = kept.setdefault(key(seen.out), seen)
        if _depth(seen) < _depth(there):
            kept[key(seen.out)] = seen
    return list(kept.values())


def _depth(seen: Seen) -> int:
    return seen.path.count(".")


def rank(seen: Seen) -> int:
    """3 of tokens (B, T, D), 4 of maps (B, C, H, W), 0 of maps that are (B, H, W, C)."""
    assert seen.out is not None
    sizes = seen.out.shape
    return 0 if len(sizes) == 4 and sizes[1] == sizes[2] != sizes[3] else len(sizes)


def size(seen: Seen) -> tuple[int, ...] | None:
    """Height and width of a map."""
    return tuple(seen.out.shape[2:]) if seen.out is not None and rank(seen) == 4 else None


def stages(maps: list[Seen]) -> list[Seen]:
    """For each size of a map, in their order, the last of the outermost modules that give it."""
    found: dict[Any, Seen] = {}
    for seen in maps:
        there = found.setdefault(size(seen), seen)
        if _depth(seen) <= _depth(there):
            found[size(seen)] = seen
    return list(found.values())


def blocks(found: list[Seen]) -> list[Seen]:
    """The longest row of modules of one kind within one module; of several the outer, the last."""
    rows: dict[tuple[str, str], list[Seen]] = {}
    for seen in found:
        rows.setdefault((_parent(seen), seen.kind), []).append(seen)
    return max(reversed(rows.values()), key=lambda row: (len(row), -_depth(row[0])), default=[])


def inner_stages(maps: list[Seen]) -> list[Seen]:
    """For each size of a map the last of the modules within one that give it.

    Those within the module that has most sizes inside; of several the outer.
    """
    rows: dict[str, dict[Any, Seen]] = {}
    for seen in maps:
        rows.setdefault(_parent(seen), {})[size(seen)] = seen
    kept = [list(sizes.values()) for sizes in rows.values()]
    return max(kept, key=lambda row: (len(row), -_depth(row[0])), default=[])


def _parent(seen: Seen) -> str:
    return seen.path.rpartition(".")[0]
