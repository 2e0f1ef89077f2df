"""A teacher that is a moving average of the student."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.evaluate import evaluating
from limbeck.core.method import Clock
from limbeck.core.taps import module_at
from limbeck.core.teacher import Setting, Teacher
from limbeck.core.views import Look, Side
from limbeck.errors import Missing


@dataclass(eq=False)
class Ema(Teacher):
    """A moving average of the student.

    w <- d w + (1 - d) w_student for float tensors (a tied one once), a copy of all others.

    Args:
        decay: d, or (start, end) for a cosine from start to end over the fit.
        of: prefixes that are averaged: "student", "parts.head". The student's copy gives the
            views; `t.parts` holds the others' copies.
        when: move "after" the optimiser step (mean teacher, DINO) or "before" the views of a step
            are taken.
        share: prefixes inside the student that are not copied: teacher and student hold the same
            module, which the teacher runs in eval mode.
    """

    decay: float | tuple[float, float] = 0.999
    of: tuple[str, ...] = ("student",)
    when: Literal["after", "before"] = "after"
    share: tuple[str, ...] = ()

    def _open(self, setting: Setting) -> None:
        self._setting = setting
        self._copies = nn.ModuleDict()
        self._look: Look | None = None
        self._shared = nn.ModuleList()
        self._begun = False

    def begin(self, step: Any) -> None:
        for prefix in self.of:
            key = prefix.replace(".", "/")
            if key in self._copies or (prefix != "student" and not self._begun):
                continue
            source = module_at(step, prefix, "step of student and parts")
            if prefix == "student":
                shared = [module_at(source, name, "student") for name in self.share]
                self._shared.extend(shared)
                modes = [(m, m.training) for m in self._shared.modules()]
                self._copies[key] = copy.deepcopy(source, {id(m): m for m in shared}).eval()
                for module, training in modes:
                    module.training = training
                kept = {id(m) for m in self._shared.modules()}
                step.look.taps.leave(m for m in self._copies[key].modules() if id(m) not in kept)
            else:
                self._copies[key] = copy.deepcopy(source).eval()
        self._begun = True
        mine = {id(p) for p in step.parameters()}
        for p in self._copies.parameters():
            if id(p) not in mine:
                p.requires_grad_(False)
        if "student" in self.of and self._look is None:
            s = self._setting
            paths = {k: v for k, v in s.paths.items() if v is not None}
            self._look = Look(
                self._copies["student"], "teacher", paths, s.reader, False, True, self._context
            )
            self._asked = self._look.asked

    @property
    def module(self) -> nn.Module:
        """The average of the student."""
        return self._copies["student"]

    @contextlib.contextmanager
    def _context(self) -> Iterator[None]:
        """Around a pass of the copy: what it shares with the student is in train mode there."""
        with self._setting.autocast():
            if self.share:
                with evaluating(self._shared):
                    yield
            else:
                yield

    def side(self, batch: Batch, clock: Clock) -> Side:
        if self._look is None:
            raise Missing(
                f"this Ema averages {', '.join(self.of)}; give it of=('student', ...) to have a "
                "view"
            )
        side = self._look.side_of(batch)
        if len(self.of) > 1:
            side.parts = _Copies(self._copies)
        return side

    def _move(self, step: Any, clock: Clock) -> None:
        d = self.decay
        if isinstance(d, tuple):
            d = d[1] + (d[0] - d[1]) * (1 + math.cos(math.pi * clock.fraction)) / 2
        moved: set[int] = set()
        with torch.no_grad():
            for prefix in self.of:
                mine = self._copies[prefix.replace(".", "/")].state_dict(keep_vars=True)
                for name, theirs in step.get_submodule(prefix).state_dict(keep_vars=True).items():
                    if mine[name] is theirs or id(mine[name]) in moved:
                        continue
                    moved.add(id(mine[name]))
                    if theirs.is_floating_point():
                        mine[name].mul_(d).add_(theirs, alpha=1 - d)
                    else:
                        mine[name].copy_(theirs)

    def before_step(self, step: Any, clock: Clock) -> None:
        if self.when == "before" and clock.step:
            self._move(step, clock)

    def after_step(self, step: Any, clock: Clock) -> None:
        if self.when == "after":
            self._move(step, clock)
        if self._look:
            self._look.settle()

    def state(self) -> dict[str, Tensor]:
        return dict(self._copies.state_dict())

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._copies.load_state_dict(state)

    def close(self) -> None:
        if self._look:
            self._look.close()


class _Copies:
    """`t.parts.head` for a copy of "parts.head"."""

    def __init__(self, copies: nn.ModuleDict) -> None:
        self._copies = copies

    def __getattr__(self, name: str) -> Any:
        if f"parts/{name}" not in self._copies:
            raise Missing(
                f"the teacher holds no copy of the part '{name}'; name it in "
                f"Ema(of=('student', 'parts.{name}'))"
            )
        return self._copies[f"parts/{name}"]
