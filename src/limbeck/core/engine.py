"""The one loop: all gradient training is `fit`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core import checkpoints, processes
from limbeck.core.data import Batches, reader_of
from limbeck.core.devices import is_sharded
from limbeck.core.keeping import Keeping
from limbeck.core.method import Facts, Objective
from limbeck.core.rng import globals_kept, seed_globals
from limbeck.core.run import Run, current
from limbeck.core.step import Step, marked, moving
from limbeck.core.task import Budget, Task
from limbeck.core.teacher import Setting, Teacher
from limbeck.core.updates import Moves, Phase, check_phases
from limbeck.core.views import Look
from limbeck.errors import UsageError


@dataclass
class Fitted:
    """A trained student, its parts, a log (a row for each logged step), and the fit's teacher.

    `teacher.module` of an `Ema` is the average, for methods that ship it.
    """

    student: nn.Module
    parts: Any
    log: list[dict[str, Any]]
    teacher: Any = None


def fit(
    objective: Objective,
    student: nn.Module,
    teacher: Teacher,
    batches: Batches,
    update: tuple[Phase, ...] | None = None,
    *,
    name: str,
    task: Task | None = None,
    budget: Budget | None = None,
) -> Fitted:
    """Train a student, in place, by an objective's terms.

    Args:
        objective: gives the terms.
        student: the module to train.
        teacher: what the other side is.
        batches: what each step trains on.
        update: the phases of a step; the objective's own when None.
        name: unique in a run (or in a round of a `loop`); a finished fit is remembered under it.
        task: taps, readers, valid, score and budget; the run's task when None.
        budget: instead of the task's.
    """
    run = current()
    task = task or run.task or Task(None, student, None)
    budget = budget or task.budget
    with (
        run.at(task),
        run.scope(name) as stage,
        globals_kept(),
        contextlib.ExitStack() as stack,
    ):
        fitter = _Fitter(
            run, stage, objective, student, teacher, batches, update, task, budget, stack
        )
        run.on_fit(fitter)
        return fitter.run()


class _Fitter(Keeping):
    """The state of one fit."""

    def __init__(
        self,
        run: Run,
        stage: str,
        objective: Objective,
        student: nn.Module,
        teacher: Teacher,
        batches: Batches,
        update: tuple[Phase, ...] | None,
        task: Task,
        budget: Budget,
        stack: contextlib.ExitStack,
    ) -> None:
        self.r, self.stage, self.objective, self.student = run, stage, objective, student
        self.batches, self.task, self.budget = batches, task, budget
        self.world, self.rank = processes.world(), processes.rank()
        self.of = budget.accumulate * self.world
        self.batch = self._batch_size()
        phases = update or objective.update()
        check_phases(phases)
        self.looks = not all(p.train for p in phases)
        self.shares = not all(p.fresh for p in phases)
        self.draws = int(self.shares) + sum(p.repeat for p in phases if p.fresh)
        self.per_epoch = max(1, batches.per_epoch(self.batch) // self.draws)
        self.steps = budget.total(self.per_epoch)
        stack.callback(_put_back, [(m, m.training) for m in student.modules()])
        student.to(run.device).train()
        self.cast = run.devices.autocast(budget.precision)
        if run.devices.scaler and any(p.join.per_term for p in phases):
            raise UsageError(
                "gradients of single terms are not defined with fp16's loss scaling; use 'bf16'"
            )
        self._open_sides(teacher, stack)
        self.parts = self._build()
        self.step = Step(objective, student, self.parts, self.look)
        self.teacher.begin(self.step)
        named = dict(self.step.named_parameters())
        self.phases = [(p, Moves(p, named, budget.optimiser)) for p in phases]
        self.wrapped = run.devices.wrap(self.step)
        stack.callback(run.devices.release)
        self._check_sharded()
        self.trainable = sum(p.requires_grad for p in named.values())
        self.moving = moving(self.step) if self.of > 1 else []
        self.plain = set()
        self.start = 0
        self.log = []
        self.every = run.checkpoint or max(1, min(self.per_epoch, self.steps // 10))
        self.log_every = max(1, self.steps // 200)
        apart = max(self.steps // 10, run.norms)
        self.norm_every = self.log_every * -(-apart // self.log_every)
        self.norms = {}
        run.stages.append(
            {
                "stage": stage,
                "steps": self.steps,
                "batch": self.batch,
                "parameters": sum(p.numel() for p in student.parameters()),
                "parts": sum(p.numel() for p in self.parts.parameters()),
            }
        )

    def _check_sharded(self) -> None:
        """Sharded parameters (FSDP2) are reduced by their wrapper, down the sum of all terms."""
        params, self.sharded = list(self.step.parameters()), is_sharded(self.step)
        if not self.sharded:
            return
        if self.world > 1 and self.r.folder is not None:
            raise UsageError(
                "the parameters are sharded (FSDP2) over several processes, and a run's folder "
                "holds whole ones; leave the folder (out) away, or use DDP"
            )
        for phase, moves in self.phases:
            if phase.join.per_term or len(moves.params) < sum(p.requires_grad for p in params):
                raise UsageError(
                    "the parameters are sharded (FSDP2), where a step goes down the sum of all "
                    f"terms on all parameters; the phase '{phase.name}' does not: use DDP"
                )

    def _open_sides(self, teacher: Teacher, stack: contextlib.ExitStack) -> None:
        """The student's look and the live teacher, which are closed when the fit ends."""
        taps, readers = self.task.taps, self.task.readers
        self.look = Look(
            self.student,
            "student",
            {n: p[1] for n, p in taps.items()},
            reader_of(readers, "student"),
            autocast=self.cast,
        )
        stack.callback(self.look.close)
        setting = Setting(
            {n: p[0] for n, p in taps.items()},
            reader_of(readers, "teacher"),
            self.r.device,
            self.cast,
            "teacher_graph" in self.objective.asks(),
        )
        self.teacher = teacher.attach(setting)
        stack.callback(self.teacher.close)
        if self.batches.table is not None:
            self.teacher.check(self.batches.table)
        self.teacher.begin(Step(self.objective, self.student, nn.Module(), self.look))

    def _batch_size(self) -> int:
        size = min(self.budget.batch, self.batches.samples // self.of * self.of)
        if size == 0 or size % self.of:
            raise UsageError(
                f"a batch of {size or self.batches.samples} samples does not divide into "
                f"{self.budget.accumulate} micro-batches in {self.world} process(es); change batch "
                "or accumulate"
            )
        if size < self.budget.batch and not self.r.stages:  # said once, of a run's first fit
            self.r.progress.say(
                f"a batch of {self.budget.batch:,} samples was asked for, and there are "
                f"{self.batches.samples:,}: a step takes {size:,}"
            )
        return size

    def _build(self) -> nn.Module:
        """Parts, from a first look at a few samples, in eval mode without gradient."""
        seed_globals(self.r.seed, self.stage, "build")
        batch = self.batches.first().to(self.r.device)
        clock = self.whole(0, "build")
        y = self.batches.labels()
        facts = Facts(self.batches.samples, self._classes(y), self.steps, self.per_epoch, y)
        self.student.eval()
        with torch.no_grad():
            for_student, for_teacher = self.objective.prepare(batch, clock.rng)
            parts = self.objective.build(
                self.look.side_of(for_student),
                self.teacher.side(marked(batch, for_teacher), clock),
                batch,
                facts,
            )
        self.student.train()
        self.look.settle()
        if not isinstance(parts, nn.Module):
            raise UsageError(
                f"build gave a {type(parts).__name__}; it must give a module (nn.Module() for none)"
            )
        return parts.to(self.r.device).train()

    def _classes(self, y: Tensor | None) -> int | None:
        if self.task.classes is not None or y is None or y.is_floating_point() or y.dim() != 1:
            return self.task.classes
        return int(y.max()) + 1

    def run(self) -> Fitted:
        """All steps that are not done yet; a finished fit is read from its checkpoint."""
        if self.r.finished(self.stage):
            with self.r.progress(self.stage, self.steps, self.steps):
                self._restore(*checkpoints.load(self.r.path(self.stage, "done")))
        else:
            if self.r.begun(self.stage):
                self._restore(*checkpoints.load(self.r.path(self.stage)))
            self.r.rewind(self.stage, self.start)
            self._train()
        self.parts.eval()
        return Fitted(self.student, self.parts, self.log, self.teacher)

    def _train(self) -> None:
        with self.r.progress(self.stage, self.steps, self.start) as tick:
            for step in range(self.start, self.steps):
                for _, moves in self.phases:
                    moves.rate(partial(self._factor, step))
                row = self._one(step)
                done = step + 1
                logged = step % self.log_every == 0 or done == self.steps
                if logged:
                    self._log(step, row)
                tick(done, self.log[-1]["terms"] if logged else None)
                stop = self._watch(done) if self.budget.watches else False
                if done == self.steps or stop:
                    break
                if done % self.every == 0 or self.r.due():
                    self._save(done)
                self.r.after_step(self.stage, done)
        if self.best is not None and self.budget.keep == "best":
            self._take(self.best[1])
        self._save(done, finished=True)

    def _factor(self, step: int, schedule: str | None) -> float:
        return rate(schedule or self.budget.schedule, step, self.steps, self.budget.warmup)


def _put_back(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def rate(schedule: str, step: int, steps: int, warmup: float) -> float:
    """The factor on the learning rate at a step.

    Linear warm-up over a fraction of the run, then constant, cosine or linear to zero, or a tenth
    at 1/2 and again at 3/4 of what is left.
    """
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda f: 1.0,
        "cosine": lambda f: (1 + math.cos(math.pi * f)) / 2,
        "linear": lambda f: 1 - f,
        "step": lambda f: 0.1 ** ((f >= 0.5) + (f >= 0.75)),
    }
    return shapes[schedule](done)
