"""What the two sides answer on some of a task's samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.data import Batch, Table, reader_of
from limbeck.core.evaluate import evaluating
from limbeck.core.looking import asking
from limbeck.core.task import Task
from limbeck.core.teacher import Setting
from limbeck.core.views import Look, Side
from limbeck.doctor import limits
from limbeck.errors import UsageError

SideOf = Callable[[Batch], Side]
_CHUNK = 64


@dataclass(frozen=True)
class Answers:
    """Logits (N, C) and labels (N,) on the CPU.

    `hard` where the side gives labels only, be it as probabilities of 0 and 1.
    """

    logits: Tensor
    y: Tensor
    hard: bool = False

    @property
    def accuracy(self) -> float:
        """The share of samples whose first class is right."""
        return float((self.logits.argmax(-1) == self.y).double().mean())

    @property
    def one_hot(self) -> bool:
        """Whether a class is certain for each sample, and all others alike: a label as 1 and 0."""
        z = self.logits
        if z.shape[1] < 2 or not len(z):
            return False
        top = z.max(-1)
        rest = z.masked_fill(F.one_hot(top.indices, z.shape[1]).bool(), -torch.inf).amax(-1)
        low = z.min()
        return bool((top.values == z.max()).all() and (rest == low).all() and z.max() - low > 20)

    @property
    def softmaxed(self) -> bool:
        """Whether what is read as logits has been through a softmax already."""
        z = self.logits
        if self.hard or z.shape[1] < 2 or not bool(((z >= 0) & (z <= 1)).all()):
            return False
        return bool(((z.sum(-1) - 1).abs() < 1e-2).all())  # half precision, rounded answers

    def logged(self) -> Answers:
        """Answers that are probabilities, as logits."""
        return Answers(self.logits.clamp_min(1e-12).log(), self.y, self.hard)

    def at(self, rows: Tensor | slice) -> Answers:
        """Some of them."""
        return Answers(self.logits[rows], self.y[rows], self.hard)

    def __len__(self) -> int:
        return len(self.y)


def chunks(table: Table, most: int, device: torch.device) -> Iterator[Batch]:
    """At most so many samples of a table, from all over it, in batches."""
    for rows in torch.split(table.some(most), _CHUNK):
        yield table.rows(rows, "in order").to(device)


def few_of(table: Table, most: int) -> Table:
    """At most so many samples, read once and kept in memory."""
    columns = table.rows(table.some(most), "in order").columns
    return Table({k: v for k, v in columns.items() if k != "index"}, table.name)


@contextmanager
def taught_by(
    task: Task,
    table: Table,
    device: torch.device,
    paths: dict[str, Any] | None = None,
    change: Callable[[Any], Any] | None = None,
) -> Iterator[SideOf]:
    """The task's teacher, to be asked on batches of this table.

    Args:
        task: of which the teacher is.
        table: a cache of another table is refused.
        device: where it runs.
        paths: entry -> where in the teacher.
        change: what is done to its inputs after its reader.
    """
    reader = reader_of(task.readers, "teacher")

    def read(x: Any) -> Any:
        x = reader(x) if reader else x
        return change(x) if change else x

    setting = Setting(paths or {}, read if change else reader, device)
    with asking(task.the_teacher(), setting, table) as side_of, torch.no_grad():
        yield side_of


@contextmanager
def looked_at(
    model: nn.Module, task: Task, device: torch.device, paths: dict[str, Any] | None = None
) -> Iterator[SideOf]:
    """A student, to be asked on batches."""
    look = Look(model.to(device), "student", paths or {}, reader_of(task.readers, "student"))
    try:
        with evaluating(model):
            yield look.side_of
    finally:
        look.close()


def answers(
    side_of: SideOf, table: Table, most: int, device: torch.device, classes: int
) -> Answers:
    """What a side answers on samples of a table, (N, C) whatever it gives.

    A slow side is asked on fewer: as many as there is time for, by its first batch.

    Raises:
        UsageError: it gives no answer over classes, or the samples have no class labels.
    """
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    hard = False
    begun = time.perf_counter()
    for batch in chunks(table, most, device):
        done = sum(len(part) for part in labels)
        each = (time.perf_counter() - begun) / done if done else 0.0
        if done >= limits.FEWEST and each * (done + len(batch)) > limits.PATIENCE:
            break
        y = batch.columns.get("y")
        if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point():
            raise UsageError(f"the samples of '{table.name}' have no class labels")
        z, hard = _answer(side_of(batch), classes)
        logits.append(z.detach().float().cpu())
        labels.append(y.cpu().long())
    found = Answers(torch.cat(logits), torch.cat(labels), hard)
    return replace(found, hard=hard or found.one_hot)


def _answer(side: Side, classes: int) -> tuple[Tensor, bool]:
    """Logits (B, C) of a side, and whether they stand for labels only."""
    tried: UsageError | None = None
    for name in ("logits", "probabilities", "labels"):
        try:
            value = getattr(side, name)
        except UsageError as error:
            tried = tried or error
            continue
        if name == "labels":
            return F.one_hot(value.long(), classes).float() * 100, True
        if value.dim() != 2:
            raise UsageError(f"the answers have the shape {tuple(value.shape)}, not (B, C)")
        return (value, False) if name == "logits" else (value.clamp_min(1e-12).log(), False)
    assert tried is not None
    raise tried


def features(
    side_of: SideOf, names: list[str], table: Table, most: int, device: torch.device
) -> dict[str, list[Tensor]]:
    """The taps' tensors (N, ...), by name; a tap that reads several modules has several."""
    kept: dict[str, list[list[Tensor]]] = {name: [] for name in names}
    for batch in chunks(table, most, device):
        side = side_of(batch)
        for name in names:
            value = getattr(side, name)
            each = value if isinstance(value, list) else [value]
            kept[name].append([v.detach().float().cpu() for v in each])
    return {n: [torch.cat(part) for part in zip(*rows, strict=True)] for n, rows in kept.items()}
