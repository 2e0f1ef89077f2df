"""UNIC - one encoder from several teachers, by a ladder of projectors that is thrown away."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.card import Card
from limbeck.core.data import Batch
from limbeck.core.engine import fit
from limbeck.core.method import Clock, Facts, Objective, Result, number
from limbeck.core.run import current, rng
from limbeck.core.task import Optimiser, Task
from limbeck.core.updates import Phase
from limbeck.core.views import Side
from limbeck.errors import UsageError
from limbeck.vision.unic.ladder import Grid, Ladder, moments, on_grid, tokens
from limbeck.vision.unic.probe import fit_head, head_of

CARD = Card(
    key="unic",
    title="UNIC: Universal Classification Models via Multi-teacher Distillation",
    year=2024,
    arxiv="2408.05088",
    code="https://github.com/naver/unic",
    kinds=("multi_teacher", "feature", "label_free", "routing"),
    needs=("student:blocks", "teacher:embedding", "teacher:feature", "members", "index"),
    gives="model",
    world="digits(teacher='cnn+resnet')",
    stages=("fit", "probe"),
    tiny={"hidden": 16, "last_hidden": 32},
    departs="Beyond class and patch tokens, any network will do: without a class token the pooled "
    "map stands for it, and maps of another size than the student's last block are averaged down "
    "or interpolated up to its grid (the paper's networks share one). The code adds 1e-6 to the "
    "deviations twice, here once; over a single token no deviation is taken. The evaluation's "
    "logistic regression has a fixed C and standardised inputs, where the paper searches C. The "
    "paper's AdamW is that of the ladders; the student has the task's optimiser.",
)
EXEMPT = {
    "accumulate": "losses are divided by the number kept in a micro-batch, as on each of the "
    "paper's GPUs: which are kept depends on the losses, so no count is known beforehand"
}
KINDS = ("cls", "patch")


def distances(p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cos(p, y), and smooth L1 (beta 1) averaged over channels; both averaged over tokens.

    Shapes: p, y (B, M, D) -> (B,) twice.
    """
    cosine = 1 - F.cosine_similarity(p, y, dim=-1)
    smooth = F.smooth_l1_loss(p, y, reduction="none").mean(-1)
    return cosine.mean(1), smooth.mean(1)


def kept(losses: Tensor, draws: Tensor, drop: float) -> Tensor:
    """1 for each image's worst teacher, and for any other one unless it is dropped; else 0.

    Shapes: losses, draws (B, N) -> (B, N); uniform draws in [0, 1) drop with probability `drop`.
    """
    worst = losses.argmax(1, keepdim=True)
    return (draws >= drop).to(losses.dtype).scatter(1, worst, 1.0)


@dataclass(frozen=True)
class UNIC(Objective):
    """An encoder is taught several teachers' tokens, predicted from all its blocks, without labels.

    l[i, t] = mean over kinds (class token, patches) of the mean over tokens of
        cosine * (1 - cos(p, y)) + smooth * smoothL1(p, y),
        p = sum over blocks of W2 GELU(W1 x), y = (teacher - mean) / (sd + 1e-6) by channel;
    loss = sum c l / sum c over the images i and teachers t of a micro-batch, where c is 1 for an
        image's worst teacher, and for any other one 0 with probability `drop`, else 1.

    Trained: the student up to its last block, and the ladders (`hidden` units at a block,
    `last_hidden` at the last; `blocks` numbers those that are used, () for all). Frozen: the
    teachers. Stopped: the choice c. After the step: mean and sd, from 0 and 1 on, go towards those
    of the step by m, a cosine from `momentum` to `momentum_end` over the run.
    The ladders have an AdamW of their own, of rate `ladder_lr` (0: the task's optimiser): the
    cosine's gradient is as 1 / |p|, and p starts near 0, which SGD at usual rates does not survive.
    Delivered: the student. Its head has learnt nothing, so where the training set has labels it is
    fitted at the end, on frozen embeddings: a logistic regression with C = `probe` (0: none, and
    the score of that head means nothing). Nothing is measured on the way.

    Raises:
        UsageError: the head cannot take the probe; `blocks` names one that is not there; a row of
            patches would have to be laid on another grid.

    Source: Sariyildiz, Weinzaepfel, Lucas, Larlus and Kalantidis, ECCV 2024, arXiv 2408.05088;
        momenta, AdamW's settings (rate at the paper's batch of 512) and the projectors' start
        (truncated normal, 0.02) from the authors' code.
    Relatives: `fitnets` regresses one hint of one teacher; `kd` over a Crowd mixes its answers.

    Example:
        >>> import torch
        >>> losses = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
        >>> kept(losses, torch.tensor([[0.2, 0.2], [0.2, 0.7]]), drop=0.5)
        tensor([[0., 1.],
                [1., 1.]])
    """

    cosine: float = number(0.5, least=0)
    smooth: float = number(0.5, least=0)
    drop: float = number(0.5, least=0, most=1)
    hidden: int = number(768, least=1)
    last_hidden: int = number(3072, least=1)
    blocks: tuple[int, ...] = ()
    momentum: float = number(1.0, least=0, most=1)
    momentum_end: float = number(0.001, least=0, most=1)
    ladder_lr: float = number(6e-4, least=0)
    probe: float = number(1.0, least=0)
    card = CARD

    def _used(self, count: int) -> list[int]:
        """The numbers of the blocks that feed the ladders, in order."""
        if not all(-count <= i < count for i in self.blocks):
            raise UsageError(
                f"unic.blocks is {self.blocks}, but the student shows {count} blocks; "
                f"give numbers from {-count} to {count - 1}"
            )
        return sorted({i % count for i in self.blocks}) or list(range(count))

    def _student(self, s: Side) -> tuple[dict[str, list[Tensor]], Grid]:
        """The used blocks' tokens by kind, and the grid of the last one."""
        pairs = [tokens(s.blocks[i]) for i in self._used(len(s.blocks))]
        grid = (pairs[-1][1].shape[2], pairs[-1][1].shape[3])
        return {"cls": [c for c, _ in pairs], "patch": [on_grid(p, grid) for _, p in pairs]}, grid

    def _teachers(self, t: Side, grid: Grid) -> list[dict[str, Tensor]]:
        """Each teacher's tokens by kind, on the student's grid."""
        return [
            {"cls": m.embedding[:, None], "patch": on_grid(tokens(m.feature)[1], grid)}
            for m in t.members
        ]

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        """For each teacher a ladder of class tokens and one of patches."""
        xs, grid = self._student(s)
        count, draws = len(s.blocks), rng("ladders")
        hidden = [self.hidden if i < count - 1 else self.last_hidden for i in self._used(count)]

        def ladder(kind: str, y: Tensor) -> Ladder:
            return Ladder([x.shape[-1] for x in xs[kind]], hidden, y.shape[-1], draws)

        return nn.ModuleList(
            nn.ModuleDict({kind: ladder(kind, y[kind]) for kind in KINDS})
            for y in self._teachers(t, grid)
        )

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """The weighted `cosine` and `smooth` over the teachers that are kept."""
        xs, grid = self._student(s)
        found: list[tuple[Tensor, Tensor]] = []  # for each kind of each teacher
        for ladders, y in zip(parts, self._teachers(t, grid), strict=True):
            for kind in KINDS:
                p = ladders[kind](xs[kind]).float()
                found.append(distances(p, ladders[kind].target(y[kind])))
        cosine, smooth = (
            torch.stack(d, 1).reshape(-1, len(parts), len(KINDS)).mean(2)
            for d in zip(*found, strict=True)
        )  # (B, N)
        losses = self.cosine * cosine + self.smooth * smooth
        c = kept(losses, clock.rng("drop", batch.index).rand(losses.shape[1]), self.drop)
        named = (("cosine", self.cosine, cosine), ("smooth", self.smooth, smooth))
        return {name: weight * (c * d).sum() / c.sum() for name, weight, d in named if weight}

    def observe(self, parts: Any, s: Side, t: Side, batch: Batch) -> dict[str, Tensor]:
        """The moments of each teacher's tokens as they are."""
        ys = self._teachers(t, self._student(s)[1])
        return {f"{i}.{kind}": moments(y[kind]) for i, y in enumerate(ys) for kind in KINDS}

    def after_step(self, parts: Any, seen: Mapping[str, Tensor], clock: Clock) -> None:
        """Move the statistics."""
        fall = (1 + math.cos(math.pi * clock.step / clock.steps)) / 2
        m = self.momentum_end + (self.momentum - self.momentum_end) * fall
        for name, rows in seen.items():
            i, kind = name.split(".")
            parts[int(i)][kind].move(rows, m)

    def run(self, task: Task) -> Result:
        """One fit without labels; then the probe."""
        student, teacher = current().student(task), task.the_teacher()
        head = head_of(task, student) if self.probe else ""
        adamw = Optimiser("adamw", self.ladder_lr or 1.0, weight_decay=0.03, betas=(0.9, 0.99))
        update = (Phase(optimisers={"parts": adamw}),) if self.ladder_lr else None
        budget = task.budget.unwatched()
        fitted = fit(self, student, teacher, task.batches(), update, name="fit", budget=budget)
        if head:
            fit_head(fitted.student, head, task, self.probe)
        return Result(model=self.deliver(fitted.student, fitted.parts), log=fitted.log)
