"""The candidates of a search, what was measured of them, and the teacher they are compared with."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.data import Table, reader_of
from limbeck.core.run import current, rng, stage
from limbeck.core.task import Task, build_model
from limbeck.core.views import Look
from limbeck.errors import NonFinite, UsageError

from .distances import (
    awake_,
    channel_distance,
    class_distance,
    classifier_gradient,
    gaussian_,
    relation_distance,
    scaled,
)


class Pool:
    """The candidates, what is known of them, and the teacher they are compared with."""

    def __init__(self, method: Any, task: Task, space: Mapping[str, Any]) -> None:
        self.method, self.task, self.space = method, task, space
        self.device = current().device
        self.rows: dict[str, dict[str, float]] = {}
        self.log: list[dict[str, Any]] = []
        self._allowed: dict[str, bool] = {}
        teacher = getattr(task.the_teacher(), "module", None)
        if not isinstance(teacher, nn.Module):
            raise UsageError(
                "diswot compares with the teacher's architecture, and this teacher is "
                f"{type(task.the_teacher()).__name__}; give a module as teacher"
            )
        table = Table(task.set("train"))
        order = torch.randperm(len(table), generator=rng("images"))
        size = min(method.images, len(order))
        self.batches = [
            table.rows(order.roll(-i * size)[:size], "score", i).to(self.device)
            for i in range(method.inits)
        ]
        fresh = copy.deepcopy(teacher)
        self.teacher = self._shows(fresh, "teacher", "the teacher", rng("teacher"))

    def _shows(
        self, model: nn.Module, side: str, told: str, generator: torch.Generator
    ) -> list[tuple[Tensor, Tensor]]:
        """The classifier's gradient and the last feature map at each draw of weights."""
        end = int(side == "student")
        paths = {n: self.task.taps[n][end] for n in ("feature", "embedding") if n in self.task.taps}
        look = Look(model, side, paths, reader_of(self.task.readers, side), grad=False)
        out = []
        try:
            for batch in self.batches:
                awake_(gaussian_(model.cpu(), generator)).to(self.device)
                view = look.side_of(batch)
                f, h = view.feature.float(), view.embedding.flatten(1).float()
                gradient = classifier_gradient(view.logits.float(), batch.y.long(), scaled(h))
                out.append((gradient, scaled(f)))
        finally:
            look.close()
        if not all(bool(torch.isfinite(x).all()) for pair in out for x in pair):
            raise NonFinite(
                f"with random weights {told} shows numbers that are not finite; "
                "use networks with normalisation layers"
            )
        return out

    def allowed(self, name: str) -> bool:
        """Whether a candidate is within the budget of parameters and operations."""
        if name not in self._allowed:
            self._allowed[name] = self._fits(name)
        return self._allowed[name]

    def _fits(self, name: str) -> bool:
        most, flops = self.method.parameters, self.method.flops
        if not (most or flops):
            return True
        model = build_model(self.space[name], current().seed, name).eval()
        if most and sum(p.numel() for p in model.parameters()) > most:
            return False
        return not flops or self._operations(model.to(self.device)) <= flops

    def _operations(self, model: nn.Module) -> int:
        from torch.utils.flop_counter import FlopCounterMode

        look = Look(model, "student", {}, reader_of(self.task.readers, "student"), grad=False)
        with FlopCounterMode(display=False) as counter:
            look.side_of(self.batches[0].select(slice(0, 1))).logits  # noqa: B018
        return int(counter.get_total_flops())

    def score(self, name: str) -> float:
        """-(semantic * D_sem + relation * D_rel); measured once, remembered."""
        if name not in self.rows:
            number, generator = len(self.rows), rng(f"candidate {name}")
            row: dict[str, float] = stage(
                f"score/{number}", lambda: self._measured(name, number, generator)
            )
            self.rows[name] = row
            self.log.append({"stage": "score", "step": number, "candidate": name, "terms": row})
        alike = all("channels" in row for row in self.rows.values())
        row = self.rows[name]
        semantic = row["channels" if alike else "classes"]
        weights = float(self.method.semantic), float(self.method.relation)
        return -(weights[0] * semantic + weights[1] * row["relation"])

    def _measured(self, name: str, number: int, generator: torch.Generator) -> dict[str, float]:
        """The distances of a candidate, the means over draws."""
        model = build_model(self.space[name], current().seed, name)
        shown = self._shows(model, "student", f"the candidate '{name}'", generator)
        (g_t, _), (g_s, _) = self.teacher[0], shown[0]
        if len(g_t) != len(g_s):
            raise UsageError(
                f"the candidate '{name}' has {len(g_s)} classes, the teacher {len(g_t)}; "
                "both need the same"
            )
        distances = {"classes": class_distance, "channels": channel_distance}
        if g_t.shape != g_s.shape:
            del distances["channels"]
        pairs = list(zip(shown, self.teacher, strict=True))
        row = {n: _mean([d(s[0], t[0]) for s, t in pairs]) for n, d in distances.items()}
        row["relation"] = _mean([relation_distance(s[1], t[1]) for s, t in pairs])
        current().rewind("score", number)
        current().log({"stage": "score", "step": number, "candidate": name, "terms": row})
        return row


def _mean(values: list[Tensor]) -> float:
    return math.fsum(float(v) for v in values) / len(values)
