"""Batches of a few groups of samples: of classes, or of clusters of what a teacher sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.core.data import Epochs
from limbeck.core.looking import look_over
from limbeck.core.method import Clock
from limbeck.core.rng import generator
from limbeck.core.run import rng
from limbeck.core.task import Task
from limbeck.errors import UsageError

__all__ = ["Grouped", "clusters", "groups_of"]

ROUNDS = 100  # of k-means, at most


class Grouped(Epochs):
    """A set whose batches hold `each` samples of each of a few groups.

    Groups come by permutations of all, so that they are alike often whatever their size; samples
    of a group by permutations of it, and once more where it is smaller than `each`. Micro-batches
    are cuts of a batch that lies in order of its groups. An epoch has as many batches as any.

    Args:
        source: the data set.
        groups: (N,), each sample's group.
        each: samples of a group in a batch; the last of a batch may have fewer.
        name: of the set.
        workers: as in `Epochs`.
    """

    def __init__(
        self, source: Any, groups: Tensor, each: int, name: str = "train", workers: int = 0
    ) -> None:
        super().__init__(source, name, workers)
        order = groups.argsort(stable=True)
        counts = [n for n in torch.bincount(groups).tolist() if n]
        self.members, self.each = torch.split(order, counts), each

    def numbers(self, clock: Clock, draw: int, n: int) -> tuple[int, Tensor]:
        epoch, draws = draw // self.per_epoch(clock.batch), generator(clock.seed, draw, "groups")
        chosen: list[Tensor] = []
        while (room := clock.batch - sum(map(len, chosen))) > 0:
            for g in torch.randperm(len(self.members), generator=draws)[: -(-room // self.each)]:
                own = self.members[g]
                once = [
                    own[torch.randperm(len(own), generator=draws)]
                    for _ in range(-(-self.each // len(own)))
                ]
                chosen.append(torch.cat(once)[: self.each])
        size = clock.batch // clock.of
        return epoch, torch.cat(chosen)[n * size : (n + 1) * size]


def clusters(e: Tensor, k: int, draws: torch.Generator) -> Tensor:
    """Each row's cluster by k-means, begun at k rows that are drawn.

    Shapes: e (N, D) -> (N,), fewer than k clusters where some lose all their rows.
    """
    centre = e[torch.randperm(len(e), generator=draws)[:k]]
    nearest = torch.zeros(0, dtype=torch.long)
    for _ in range(ROUNDS):
        found = torch.cdist(e, centre).argmin(1)
        if torch.equal(found, nearest):
            break
        nearest = found
        count = torch.bincount(nearest, minlength=len(centre))[:, None]
        total = torch.zeros_like(centre).index_add_(0, nearest, e)
        centre = torch.where(count > 0, total / count.clamp_min(1), centre)
    return nearest


def groups_of(task: Task, superclasses: int | None) -> Tensor:
    """Each training sample's class, or its cluster among so many of the teacher's embeddings.

    Raises:
        UsageError: classes are asked for and not known.
    """
    if superclasses is not None:
        seen = [view.embedding.flatten(1).float().cpu() for _, view in look_over(task)]
        return clusters(torch.cat(seen), superclasses, rng("superclasses"))
    y = task.batches().labels()
    if y is None or y.dim() != 1 or y.is_floating_point():
        told = "not known beforehand" if y is None else f"{tuple(y.shape)} {y.dtype}"
        raise UsageError(
            f"cc's class sampler needs one class number for each sample, but labels are {told}; "
            "give them as a tensor, or sampler='superclass'"
        )
    return y.cpu()
