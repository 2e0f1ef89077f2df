"""What a model costs: parameters, bytes, multiply-adds, milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.core.data import Table
from limbeck.core.evaluate import evaluating
from limbeck.core.views import call_model

__all__ = ["costs", "latencies"]

Reader = Callable[[Any], Any] | None
SECONDS = {1: 0.1, 32: 0.2}
"""By size of the batch how long all models together are timed."""
_MOST = 30  # runs of each


def costs(model: nn.Module, reader: Reader, table: Table, device: torch.device) -> dict[str, Any]:
    """Parameters and bytes (what is tied once), and the multiply-adds of one sample.

    Multiply-adds are of matrix products and convolutions, which torch counts; None where it cannot.
    """
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in held),
        "macs": _macs(model, reader, table, device),
    }


def _macs(model: nn.Module, reader: Reader, table: Table, device: torch.device) -> int | None:
    try:
        x = _inputs(reader, table, 1, device)
        with evaluating(model), FlopCounterMode(display=False) as counter:
            call_model(model, x)
    except Exception:  # a model may do anything that the counter cannot follow
        return None
    return counter.get_total_flops() // 2 or None


def latencies(
    models: Mapping[str, tuple[nn.Module, Reader]], table: Table, device: torch.device
) -> dict[str, dict[str, float] | None]:
    """Milliseconds of a forward pass in eval mode on inputs that are ready, by model and batch.

    The median of a few runs after a first one, the models in turn, within about 0.3 s in all
    (or one run each, where that takes longer); None where a model takes no batch of that size.
    """
    told: dict[str, dict[str, float] | None] = {name: {} for name in models}
    for size, seconds in SECONDS.items():
        for name, times in _timed(models, table, device, size, seconds).items():
            known = told[name]
            if not times:
                told[name] = None
            elif known is not None:
                known[str(size)] = round(1e3 * statistics.median(times[1:] or times), 4)
    return told


def _timed(
    models: Mapping[str, tuple[nn.Module, Reader]],
    table: Table,
    device: torch.device,
    size: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Seconds of each run of each model; none of one that fails."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    ready: dict[str, Any] = {}
    for name, (_, reader) in models.items():
        try:
            ready[name] = _inputs(reader, table, size, device)
        except Exception:  # a reader of one's own may fail as it likes
            continue
    begun = time.perf_counter()
    for turn in range(_MOST):
        if turn and time.perf_counter() - begun > seconds:
            break
        for name in list(ready):
            try:
                taken[name].append(_once(models[name][0], ready[name], device))
            except Exception:  # out of memory, a batch that it cannot take
                taken[name] = []
                del ready[name]
    return taken


def _once(model: nn.Module, x: Any, device: torch.device) -> float:
    with evaluating(model):
        _wait(device)
        begun = time.perf_counter()
        call_model(model, x)
        _wait(device)
        return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _inputs(reader: Reader, table: Table, size: int, device: torch.device) -> Any:
    """What the model takes, of the first samples (of a short set again and again)."""
    x = table.rows(torch.arange(size) % len(table), "in order").to(device).columns["x"]
    return reader(x) if reader else x
