"""What a fit writes down: rows of its log, measurements on `valid`, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.core import checkpoints, processes
from limbeck.core.data import Table, reader_of
from limbeck.core.evaluate import measure
from limbeck.core.passes import Passes
from limbeck.core.task import Task
from limbeck.errors import Missing, NonFinite


class Keeping(Passes):
    """The record of a fit, and going on from it."""

    task: Task
    log: list[dict[str, Any]]
    best: tuple[float, dict[str, Tensor]] | None = None  # score on valid, and the state then
    since: int = 0  # evaluations without gain

    def _log(self, step: int, values: Mapping[str, Tensor]) -> None:
        """A row with the value of each term, over all processes."""
        told = {n: processes.summed(v.float().clone()) for n, v in values.items()}
        row: dict[str, Any] = {
            "stage": self.stage,
            "step": step,
            "lr": self.phases[-1][1].groups[0][2].param_groups[0]["lr"],
            "terms": {n: float(v) for n, v in told.items()},
        }
        if self.norms:
            # each is of a share of the step, so their sum is the mean over its micro-batches
            each = {n: processes.summed(v.float().clone()) for n, v in self.norms.items()}
            row["norms"] = {n: float(v) for n, v in each.items()}
            self.norms = {}
        self.log.append(row)
        self.r.log(row)

    def _watch(self, done: int) -> bool:
        """Measure on `valid` where it is time; whether to stop."""
        if done % (self.budget.evaluate or self.per_epoch) and done != self.steps:
            return False
        if self.task.valid is None:
            raise Missing(
                "the budget asks for evaluation on the way (patience, keep='best' or evaluate), "
                "but the task has no valid set; give one"
            )
        model = self.objective.deliver(self.student, self.parts)
        table = Table(self.task.valid, "valid")
        reader = reader_of(self.task.readers, "student")
        value = measure(model, table, self.task.score, reader, self.r.device)
        row = {"stage": self.stage, "step": done - 1, "valid": {self.task.score.name: value}}
        self.log.append(row)
        self.r.log(row)
        if self.task.score.better(value, None if self.best is None else self.best[0]):
            self.best, self.since = (value, {k: v.clone() for k, v in self._state().items()}), 0
        else:
            self.since += 1
        best = value if self.best is None else self.best[0]
        self.r.progress.score(self.stage, self.task.score.name, value, best)
        return self.budget.patience is not None and self.since >= self.budget.patience

    def _state(self) -> dict[str, Tensor]:
        """What a fit gives: student, parts, and a teacher that moved along."""
        teacher = {f"teacher/{k}": v for k, v in self.teacher.state().items()}
        return checkpoints.of_module(self.step, "step/") | teacher

    def _take(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `_state` gave."""
        checkpoints.into(self.step, state, "step/")
        if teacher := _under("teacher/", state):
            self.teacher.load(teacher)

    def _save(self, done: int, finished: bool = False) -> None:
        """Store all that is no function of place; of a finished fit only what it gives."""
        if self.r.folder is None and not finished:
            return
        self._check_weights(done)
        if self.r.folder is None:
            return
        tensors = self._state()
        kept: dict[str, Any] = {}
        if not finished:
            for i, (_, moves) in enumerate(self.phases):
                tensors |= {f"optimiser/{k}": v for k, v in moves.state(str(i)).items()}
            tensors |= {f"best/{k}": v for k, v in (self.best[1] if self.best else {}).items()}
            kept = checkpoints.pack(self.batches.state(), tensors, "batches")
        scaler = self.r.devices.scaler
        meta = {
            "step": done,
            "best": self.best[0] if self.best else None,
            "since": self.since,
            "log": self.log,
            "batches": kept,
            "scaler": scaler.state_dict() if scaler else None,
        }
        self.r.write(self.stage, tensors, meta, finished)

    def _check_weights(self, done: int) -> None:
        """A checkpoint is good: a gradient can be infinite where the loss was not."""
        for name, p in self.step.named_parameters():
            if not bool(torch.isfinite(p).all()):
                raise NonFinite(
                    f"'{name}' is not finite after step {done - 1} of '{self.stage}', though all "
                    "terms were: a gradient was not; look for a root or a norm of zero, or clip; "
                    f"{self.r.last_good(self.stage)}"
                )

    def _restore(self, tensors: Mapping[str, Tensor], meta: Any) -> None:
        """Take back what `_save` stored."""
        self._take(tensors)
        self.start, self.since, self.log = meta["step"], meta["since"], meta["log"]
        for i, (_, moves) in enumerate(self.phases):
            moves.load(str(i), _under("optimiser/", tensors))
        if meta["best"] is not None:
            self.best = (meta["best"], _under("best/", tensors))
        if meta["batches"]:
            self.batches.load(checkpoints.unpack(meta["batches"], tensors))
        if meta["scaler"]:
            self.r.devices.scaler.load_state_dict(meta["scaler"])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
