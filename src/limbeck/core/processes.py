"""Several processes: who this is, and joining what each of them holds, in the order of n."""

from __future__ import annotations

import atexit
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from limbeck.errors import UsageError

T = TypeVar("T")


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@functools.cache
def leave_at_exit() -> None:
    """Leave the other processes before Python ends.

    A thread of gloo that lets go of its last message after that aborts the process.
    """

    def leave() -> None:
        if dist.is_initialized():
            time.sleep(0.1)  # gives such a thread Python's lock, which it waits for
            dist.destroy_process_group()

    atexit.register(leave)


def by_the_first(f: Callable[[], object]) -> None:
    """Have the first process do something, such as writing a file, while the others wait.

    Raises:
        UsageError: in all processes, what it raised in the first.
    """
    said: list[str | None] = [None]
    if rank() == 0:
        try:
            f()
        except UsageError as error:
            if world() == 1:
                raise
            said = [str(error)]
    if world() > 1:
        dist.broadcast_object_list(said)
        if said[0] is not None:
            raise UsageError(said[0])


def as_the_first(value: T) -> T:
    """What the first process holds, such as what it saw of a file that others may see later."""
    told = [value]
    if world() > 1:
        dist.broadcast_object_list(told)
    return told[0]


def summed(value: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if world() > 1:
        dist.all_reduce(value)
    return value


def _gathered(value: Tensor) -> list[Tensor]:
    """A tensor from each process, all of one shape."""
    if world() == 1:
        return [value]
    sent = value.to(torch.uint8) if value.dtype == torch.bool else value  # gloo sends no bool
    out = [torch.empty_like(sent) for _ in range(world())]
    dist.all_gather(out, sent)
    return [t.to(value.dtype) for t in out]


def _rows(value: Tensor) -> list[Tensor]:
    """A tensor from each process; first dimensions may differ."""
    if world() == 1:
        return [value]
    sizes = [int(n) for n in _gathered(torch.tensor([len(value)], device=value.device))]
    padded = value.new_zeros((max(sizes), *value.shape[1:]))
    padded[: len(value)] = value
    return [t[:n] for t, n in zip(_gathered(padded), sizes, strict=True)]


def joined(seen: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What each micro-batch of each process observed, joined along the first dimension.

    The order is that of n; scalars become a row each.
    """
    out: dict[str, Tensor] = {}
    for name in seen[0] if seen else ():
        rows: list[list[Tensor]] = []
        for each in seen:
            value = each[name]
            rows.append(_rows((value[None] if value.dim() == 0 else value).contiguous()))
        parts = [part for micro in rows for part in micro]
        out[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return out


def reduced(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients summed over processes, in one message.

    One that is missing in some processes counts as zero there. `like` are the parameters.
    """
    if world() == 1:
        return list(grads)
    mine = torch.tensor([g is not None for g in grads], dtype=torch.int32, device=like[0].device)
    live = summed(mine).nonzero().flatten().tolist()
    out: list[Tensor | None] = [None] * len(grads)
    if not live:
        return out
    each = [torch.zeros_like(like[i]) if (g := grads[i]) is None else g for i in live]
    flat = summed(torch.cat([g.flatten() for g in each]))
    for i in live:
        size = like[i].numel()
        out[i], flat = flat[:size].view_as(like[i]).to(like[i].dtype, copy=True), flat[size:]
    return out


def averaged(buffers: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """For each buffer its mean over micro-batches (outer) and processes, in the order of n.

    Of integers the maximum.
    """
    out = list(buffers[0]) if buffers else []
    for kind in dict.fromkeys(b.dtype for b in out):
        at = [i for i, b in enumerate(out) if b.dtype == kind]
        flat = [torch.cat([micro[i].flatten() for i in at]) for micro in buffers]
        parts = [part for each in flat for part in _gathered(each)]
        if kind.is_floating_point:
            first, *others = parts  # from the first on, so that what nobody moved keeps its bits
            moved = torch.zeros_like(first)
            for part in others:
                moved += part - first
            mean = first + moved / len(parts)
        else:
            mean = torch.stack(parts).amax(0)
        for i in at:
            size = buffers[0][i].numel()
            out[i], mean = mean[:size].view_as(buffers[0][i]), mean[size:]
    return out
