"""A set that a teacher writes once, kept piece by piece as it goes along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from limbeck.core import processes
from limbeck.core.run import current

__all__ = ["in_pieces"]

SHARDS = 50
"""So many pieces of a set are kept one by one; a killed run loses one at most."""


def in_pieces(
    name: str,
    samples: int,
    rows: int,
    write: Callable[[Tensor], Mapping[str, Tensor]],
    empty: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """What `write` gives of all samples, `rows` of them at a time; stages are name/0, name/1, ...

    Each process writes its share of a piece, and all have the whole in the end.

    Args:
        name: of the stage.
        samples: how many there are.
        rows: how many are written together.
        write: from sample numbers (B,) to columns on the CPU, of one width whatever the rows.
        empty: columns without rows, which give the names, types and shapes.
    """
    run, found = current(), list[Mapping[str, Tensor]]()
    chunks = torch.split(torch.arange(samples), rows)
    size = max(-(-len(chunks) // SHARDS), processes.world())
    shards = [chunks[i : i + size] for i in range(0, len(chunks), size)]

    def shard(of: list[Tensor]) -> dict[str, Tensor]:
        world, rank = processes.world(), processes.rank()
        mine = of[rank * len(of) // world : (rank + 1) * len(of) // world]
        made = [empty, *map(write, mine)]
        own = {n: torch.cat([each[n] for each in made]).to(run.device) for n in empty}
        return {n: t.cpu() for n, t in processes.joined([own]).items()}

    with run.scope(name) as full:
        before = sum(run.finished(f"{full}/{k}") for k in range(len(shards)))
        with run.progress(full, len(shards), before) as tick:
            for k, chunk in enumerate(shards):
                found.append(run.stage(str(k), partial(shard, list(chunk))))
                if k >= before:
                    tick(k + 1, {"texts": sum(len(next(iter(each.values()))) for each in found)})
    return {n: torch.cat([each[n] for each in found]) for n in empty}
