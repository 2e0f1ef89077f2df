"""The objectives that torchdistill has too, on the same tensors and parts, to the same value."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from limbeck.bench._speed_objectives import Desk

Value = Callable[[], Tensor]
ENDS = (".", "output", ".", "output")


def out(x: Tensor) -> dict[str, dict[str, Tensor]]:
    """What torchdistill's losses read of a side."""
    return {".": {"output": x}}


def kd(desk: Desk, peer: Any) -> Value:
    """The divergence and the cross-entropy, whose weights add up to one."""
    m: Any = desk.objective
    loss = peer.KDLoss(*ENDS, temperature=m.tau, alpha=m.label, beta=m.kd)
    s, t = desk.sides
    return lambda: loss(out(s.logits), out(t.logits), desk.batch.y)


def rkd(desk: Desk, peer: Any) -> Value:
    """Distances and angles of embeddings at length 1, beside the labels."""
    m: Any = desk.objective
    loss = peer.RKDLoss(".", ".", m.distance, m.angle, "mean")
    s, t = desk.sides

    def value() -> Tensor:
        ends = (out(F.normalize(x.embedding)) for x in (s, t))
        total: Tensor = loss(*ends) + m.label * F.cross_entropy(s.logits, desk.batch.y)
        return total

    return value


def crd(desk: Desk, peer: Any) -> Value:
    """The same heads and banks; negatives are handed to it, as its own drawing fails.

    So it is spared drawing them; but it moves its banks in each pass.
    """
    m: Any = desk.objective
    parts, n, rows = desk.parts, len(desk.parts.labels), m._rows(desk.parts, desk.batch, desk.clock)
    k = rows.shape[1] - 1
    loss = peer.CRDLoss("n", "e", "n", m.dim, n, k, n, temperature=m.tau, momentum=m.momentum)
    loss.memory_v1.copy_(parts.student)
    loss.memory_v2.copy_(parts.teacher)
    loss.params[2:4] = parts.log_z.exp()
    s, t = desk.sides
    more = {"pos_idx": desk.batch.index, "contrast_idx": rows}

    def value() -> Tensor:
        one, two = parts.embed(s, t)
        contrast = loss({"n": {"output": one}, "e": {"input": more}}, {"n": {"output": two}})
        total: Tensor = m.crd * contrast.sum() + m.label * F.cross_entropy(s.logits, desk.batch.y)
        return total

    return value


def fitnets(desk: Desk, peer: Any) -> Value | None:
    """Its wrapper of torch's mean squared error, on what the same regressor gives."""
    stage: Any = desk.objective
    if stage.name != "hint":
        return None
    sides = {
        "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
        "target": {"is_from_teacher": True, "module_path": ".", "io": "output"},
    }
    loss = peer.SimpleLossWrapper(nn.MSELoss(), **sides)
    s, t = desk.sides
    weight = 0.5 * stage.m.hint
    return lambda: weight * loss(out(desk.parts.regressor(s.mid)), out(t.mid), None)


def peer_of(desk: Desk) -> Value | None:
    """Torchdistill's way to a desk's value, where it is installed and has the method."""
    known: dict[str, Callable[[Desk, Any], Value | None]] = {
        "kd": kd,
        "rkd": rkd,
        "crd": crd,
        "fitnets": fitnets,
    }
    if desk.key not in known:
        return None
    try:
        import logging

        logging.disable(logging.INFO)
        return known[desk.key](desk, import_module("torchdistill.losses.mid_level"))
    except ImportError:
        return None
