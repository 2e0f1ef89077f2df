"""Accelerate's side of a run: device, processes, mixed precision, trackers.

In one process on the CPU its wrappers are skipped.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core import processes
from limbeck.core.updates import Gradients, Moves
from limbeck.errors import UsageError


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters are spread over processes (FSDP2), each of which holds a part."""
    return any(hasattr(p, "device_mesh") for p in module.parameters())


class Devices:
    """What runs where. `accelerator` is None for one plain process on the CPU."""

    def __init__(
        self, device: str | None, trackers: tuple[str, ...] = (), folder: Path | None = None
    ) -> None:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.accelerator: Any = None
        elsewhere = device != "cpu" and torch.accelerator.is_available()
        if several or trackers or elsewhere:
            from accelerate import Accelerator, DistributedDataParallelKwargs

            kwargs = DistributedDataParallelKwargs(
                broadcast_buffers=False, find_unused_parameters=True
            )
            self.accelerator = Accelerator(
                cpu=device == "cpu" or not torch.accelerator.is_available(),
                kwargs_handlers=[kwargs],
                log_with=list(trackers) or None,
                project_dir=str(folder or "."),
            )
            if several:
                processes.leave_at_exit()
            if trackers:
                self.accelerator.init_trackers("limbeck")
        try:
            self.device = (
                self.accelerator.device
                if self.accelerator and device is None
                else torch.device(device or "cpu")
            )
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"the device '{device}' cannot be used here ({str(error).splitlines()[0]}); use "
                "'cpu'"
            ) from None
        self.tracks = bool(trackers)
        self.scaler: Any = None

    def autocast(self, precision: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
        """The context of a forward pass at this precision.

        Without autocast's cache of cast weights: in torch before its pull request 165068 a weight
        that was first cast under `no_grad` (by a teacher that shares it, or a look without
        gradient) gets no gradient afterwards.
        """
        if precision == "fp32":
            return contextlib.nullcontext
        if precision == "fp16":
            if self.device.type == "cpu":
                raise UsageError("the precision 'fp16' needs a GPU; use 'bf16' on a CPU")
            self.scaler = self.scaler or torch.amp.GradScaler(self.device.type)
        kind = torch.bfloat16 if precision == "bf16" else torch.float16
        return lambda: torch.autocast(self.device.type, kind, cache_enabled=False)

    def wrap(self, step: nn.Module) -> nn.Module:
        """The step as Accelerate wraps it for several processes; a sharded one is wrapped."""
        if self.accelerator is None or self.accelerator.num_processes == 1 or is_sharded(step):
            return step
        # What torch offers instead of broadcast_buffers still sends them at the start.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped: nn.Module = self.accelerator.prepare_model(step)
        return wrapped

    def no_sync(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """A pass whose gradients are not reduced by the wrapper."""
        context: contextlib.AbstractContextManager[Any] = self.accelerator.no_sync(wrapped)
        return context

    def release(self) -> None:
        """Let go of the wrapped step, which Accelerate would keep as long as the run lasts."""
        if self.accelerator is not None:  # its free_memory() also collects garbage, for 0.1 s
            self.accelerator._models.clear()

    def backward(self, loss: Tensor, inputs: Sequence[Tensor] | None = None) -> None:
        """The backward pass, scaled in fp16."""
        loss = self.scaler.scale(loss) if self.scaler else loss
        loss.backward(inputs=inputs)

    def move(self, moves: Moves, clip: float | None, split: Mapping[str, Gradients] | None) -> None:
        """Clip the gradient of all that a phase trains, and take a step of its optimisers."""
        optimisers = [o for _, _, o in moves.groups]
        if self.scaler:
            for o in optimisers:
                self.scaler.unscale_(o)
        if clip is not None and split is None:
            torch.nn.utils.clip_grad_norm_(list(moves.params.values()), clip)
        elif clip is not None and split is not None:  # `.grad` may be one of these tensors
            there = [p.grad for p in moves.params.values() if p.grad is not None]
            scale = (clip / (torch.nn.utils.get_total_norm(there) + 1e-6)).clamp(max=1.0)
            split = {
                k: [None if g is None else g * scale for g in each] for k, each in split.items()
            }
        if self.scaler:
            for o in optimisers:
                self.scaler.step(o)
            self.scaler.update()
        else:
            moves.step(split)

    def track(self, row: Mapping[str, Any]) -> None:
        """A row of metrics to the trackers."""
        if self.tracks:
            flat = {
                f"{row.get('stage')}/{k}": v
                for group in ("terms", "valid")
                for k, v in row.get(group, {}).items()
            }
            self.accelerator.log(flat, step=row.get("step"))

    def close(self) -> None:
        """End the trackers."""
        if self.tracks:
            self.accelerator.end_training()
