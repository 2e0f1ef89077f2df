"""One step: all phases, each with its micro-batches, its gradients and its optimiser step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core import processes
from limbeck.core.data import Batch, Batches, Epochs
from limbeck.core.evaluate import evaluating
from limbeck.core.method import Clock, Given, Objective, Term
from limbeck.core.rng import seed_layers
from limbeck.core.run import Run
from limbeck.core.step import Step, Unmoved, check_terms, marked, norms_of, value_of
from limbeck.core.task import Budget
from limbeck.core.teacher import Teacher
from limbeck.core.updates import Gradients, Moves, PerTerm, Phase, added, all_added
from limbeck.core.views import Look
from limbeck.errors import NonFinite

Values = dict[str, Tensor]


class Passes:
    """What a step needs of a fit, and the step itself."""

    r: Run
    stage: str
    objective: Objective
    student: nn.Module
    parts: nn.Module
    teacher: Teacher
    batches: Batches
    budget: Budget
    look: Look
    cast: Callable[[], contextlib.AbstractContextManager[Any]]
    step: Step
    wrapped: nn.Module
    phases: list[tuple[Phase, Moves]]
    moving: list[Tensor]  # buffers that torch's layers move, where a step has several micro-batches
    of: int
    batch: int
    world: int
    rank: int
    per_epoch: int
    steps: int
    start: int
    draws: int  # batches that a step takes
    shares: bool  # whether the first of them is for all phases that ask for no fresh one
    looks: bool  # whether a phase only looks
    trainable: int
    log_every: int
    norm_every: int  # a multiple of log_every
    norms: dict[str, Tensor]  # of the terms' gradients in the student
    plain: set[str]  # phases whose gradients the wrapper may reduce
    sharded: bool  # whether it does so at each micro-batch (FSDP2)

    def clock(
        self, step: int, phase: str = "", repeat: int = 0, micro: int = 0, draw: int = 0
    ) -> Clock:
        """The clock of a place in this fit, for this process."""
        return Clock(
            seed=self.r.seed,
            stage=self.stage,
            step=step,
            steps=self.steps,
            steps_per_epoch=self.per_epoch,
            phase=phase,
            repeat=repeat,
            n=micro * self.world + self.rank,
            of=self.of,
            stride=self.world,
            draw=draw,
            batch=self.batch,
        )

    def whole(self, step: int, phase: str = "", repeat: int = 0) -> Clock:
        """The clock of what is done once for a step: the same in all processes."""
        return replace(self.clock(step, phase, repeat), n=0)

    def _one(self, step: int) -> Values:
        """All phases of one step; the value of each term in it."""
        self.teacher.before_step(self.step, self.whole(step))
        draw = step * self.draws
        shared = self._micro(self.clock(step, draw=draw)) if self.shares else []
        draw += int(self.shares)
        views: dict[int, Any] = {}
        values: Values = {}
        seen: Values = {}
        for i, (phase, moves) in enumerate(self.phases):
            for repeat in range(phase.repeat):
                micro, sides = shared, views
                if phase.fresh:
                    micro, sides = self._micro(self.clock(step, phase.name, repeat, draw=draw)), {}
                    draw += 1
                if not phase.train:
                    self._see(step, phase, micro, sides)
                    continue
                last = i == len(self.phases) - 1 and repeat == phase.repeat - 1
                observe = last and not self.looks
                now, seen = self._pass(step, phase, moves, repeat, micro, sides, observe)
                values.update(now)
        clock = self.whole(step)
        with torch.no_grad():
            self.objective.after_step(self.parts, seen, clock)
            self.teacher.after_step(self.step, clock)
        self.look.settle()
        return values

    def _micro(self, clock: Clock) -> list[Batch]:
        """This process's micro-batches of one draw."""
        out = []
        given = type(self.batches) is Epochs  # which asks the student nothing
        with contextlib.nullcontext() if given else evaluating(self.student):
            for m in range(self.budget.accumulate):
                here = replace(clock, n=m * self.world + self.rank)
                if not given:
                    place = (self.r.seed, self.stage, "batch", here.draw, here.n)
                    seed_layers(self.r.device, *place)
                out.append(self.batches(self.student, self.teacher, here).to(self.r.device))
        return out

    def _sides(
        self, clock: Clock, m: int, batch: Batch, views: dict[int, Any]
    ) -> tuple[Batch, Any]:
        """What the student sees of a micro-batch, and the teacher's side.

        The latter is one for all phases of a step where nothing about it can differ.
        """
        place = (clock.seed, clock.stage, clock.step, clock.phase, clock.repeat, clock.n)
        seed_layers(self.r.device, *place)
        for_student, for_teacher = self.objective.prepare(batch, clock.rng)
        if m in views and for_teacher is batch:
            return for_student, views[m]
        side = self.teacher.side(marked(batch, for_teacher), clock)
        if for_teacher is batch and self.teacher.repeats:
            views[m] = side
        return for_student, side

    def _see(self, step: int, phase: Phase, micro: list[Batch], views: dict[int, Any]) -> None:
        """A phase that looks: what it observes reaches `after_step` before the next one begins."""
        seen = []
        guard = Unmoved(self.step) if step == self.start else None
        with evaluating(self.step):
            for m, batch in enumerate(micro):
                for_student, t = self._sides(self.clock(step, phase.name, 0, m), m, batch, views)
                with self.cast():
                    seen.append(self.step.sees(batch, for_student, t))
            if guard:
                guard.check()
            joined = processes.joined(seen)
        with torch.no_grad():
            self.objective.after_step(self.parts, joined, self.whole(step, phase.name))

    def _pass(
        self,
        step: int,
        phase: Phase,
        moves: Moves,
        repeat: int,
        micro: list[Batch],
        views: dict[int, Any],
        observe: bool,
    ) -> tuple[Values, Values]:
        """One optimiser step of one phase."""
        ddp = self.world > 1 and (self.sharded or phase.name in self.plain)
        totals = self._counts(micro) if self.of > 1 else {}
        before = [b.clone() for b in self.moving]
        after: list[list[Tensor]] = []
        values: Values = {}
        grads: dict[str, Gradients] = {}
        seen: list[Mapping[str, Tensor]] = []
        moves.zero()
        guard = Unmoved(self.step) if step == self.start else None
        for m, batch in enumerate(micro):
            for b, old in zip(self.moving, before, strict=True):
                b.copy_(old)
            clock = self.clock(step, phase.name, repeat, m)
            for_student, t = self._sides(clock, m, batch, views)
            alone = self.world > 1 and not (self.sharded or (ddp and m == len(micro) - 1))
            with self.r.devices.no_sync(self.wrapped) if alone else contextlib.nullcontext():
                with self.cast():
                    terms, looked = self.wrapped(batch, for_student, t, clock, observe)
                if guard:
                    check_terms(terms, self.step)
                    guard.check()
                seen.append(looked)
                shares = {n: value_of(n, v, self.of, totals) for n, v in terms.items()}
                if step % self.norm_every == 0:
                    for n, v in norms_of(terms, shares, self.student).items():
                        self.norms[n] = self.norms[n] + v if n in self.norms else v
                self._backward(terms, shares, moves, grads, ddp)
            for n, v in shares.items():
                values[n] = values[n] + v.detach() if n in values else v.detach()
            if self.moving:
                after.append([b.clone() for b in self.moving])
        for b, mean in zip(self.moving, processes.averaged(after) if after else (), strict=True):
            b.copy_(mean)
        self._check_finite(values, step, micro)
        self._move(moves, grads, self.whole(step, phase.name, repeat), ddp)
        if not (phase.join.per_term or grads) and len(moves.params) == self.trainable:
            self.plain.add(phase.name)  # all terms are losses, on all of it
        return values, processes.joined(seen) if observe else {}

    def _counts(self, micro: list[Batch]) -> dict[str, Tensor]:
        """The count of each `Mean` term over the whole step, known before the first backward."""
        each = [self.objective.counts(b) for b in micro]
        zero = torch.zeros((), device=self.r.device)
        return {
            n: processes.summed(sum((torch.as_tensor(e[n]).to(zero) for e in each), zero))
            for n in each[0]
        }

    def _backward(
        self,
        terms: Mapping[str, Term],
        shares: Mapping[str, Tensor],
        moves: Moves,
        grads: dict[str, Gradients],
        ddp: bool,
    ) -> None:
        """Add this micro-batch's gradients: to `.grad`, and, where they stay apart, to `grads`."""
        params = list(moves.params.values())
        given = {n: term for n, term in terms.items() if isinstance(term, Given)}
        live = {n: v for n, v in shares.items() if v.requires_grad and n not in given}
        for n in terms if moves.phase.join.per_term else given:
            new: Gradients = [None] * len(params)
            if n in given:
                found = [given[n].gradient.get(p) for p in moves.names]
                new = [None if g is None else g / self.of for g in found]
            elif n in live:
                keep = n != next(reversed(live))
                new = list(torch.autograd.grad(live[n], params, None, keep, allow_unused=True))
            grads[n] = all_added(grads.get(n), new)
        if moves.phase.join.per_term:
            return
        if ddp:  # the wrapper waits for every process's backward pass, and averages
            total = sum(live.values(), torch.zeros((), device=self.r.device))
            if not live:
                total = sum(((p * 0).sum() for p in params), total)
            self.r.devices.backward(total)
        elif live:
            total = sum(live.values(), torch.zeros((), device=self.r.device))
            whole = len(params) == self.trainable
            self.r.devices.backward(total, inputs=None if whole else params)

    def _move(self, moves: Moves, grads: dict[str, Gradients], clock: Clock, ddp: bool) -> None:
        """Reduce, join, clip, step."""
        params, join = list(moves.params.values()), moves.phase.join
        split = None
        if ddp:  # the wrapper gave means of the shares; scaled here: a loss times two need not
            there = [p.grad for p in params if p.grad is not None]  # give a gradient times two
            torch._foreach_mul_(there, self.world)
        grads = {n: processes.reduced(g, params) for n, g in grads.items()}
        if join.per_term:
            if isinstance(join, PerTerm):
                grads = split = join.grouped(grads)
            joined = join.join(grads, moves.names, clock)
        else:
            joined = [p.grad for p in params]
            if self.world > 1 and not ddp:
                joined = processes.reduced(joined, params)
            for given in grads.values():
                joined = [added(a, b) for a, b in zip(joined, given, strict=True)]
        for p, g in zip(params, joined, strict=True):
            p.grad = g
        self.r.devices.move(moves, self.budget.clip, split)

    def _check_finite(self, values: Values, step: int, micro: list[Batch]) -> None:
        """Stop at the first term that is not finite, before it reaches the weights.

        Off the CPU only where the terms are logged: reading them makes the device wait.
        """
        if self.r.device.type != "cpu" and step % self.log_every:
            return
        total = sum(values.values(), torch.zeros((), device=self.r.device))
        if self.world > 1:
            total = processes.summed(total.clone())
        if bool(torch.isfinite(total)):
            return
        bad = next((n for n, v in values.items() if not math.isfinite(float(v))), None)
        told = "a term of another process" if bad is None else f"the term '{bad}'"
        number = math.nan if bad is None else float(values[bad])
        x = micro[0].columns["x"]
        nan = isinstance(x, Tensor) and x.is_floating_point() and not bool(torch.isfinite(x).all())
        cause = (
            "the inputs of this batch are not finite: clean the data"
            if nan
            else "lower the rate, clip the gradient, or check the term"
        )
        raise NonFinite(
            f"{told} turned {number} at step {step} of '{self.stage}'; {cause}; "
            f"{self.r.last_good(self.stage)}"
        )
