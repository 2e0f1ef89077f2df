"""sample.json beside an exported student: one of its samples, for the lines of README.txt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.core.evaluate import evaluating
from limbeck.runs._export_student import Student

__all__ = ["answer_of", "sample_of"]


def sample_of(student: Student, inputs: dict[str, Any]) -> dict[str, Any]:
    """The first sample, as a batch of one, by the names of the student's inputs.

    Args:
        student: with its samples.
        inputs: what `Task.about` says of them. Pictures and rows of a table are given as they are
            before they are brought to scale.
    """
    first = student.batch(1)
    mean, std = (torch.tensor(inputs.get(name) or []) for name in ("mean", "std"))
    scaled = inputs.get("kind") in ("pictures", "table") and len(first) == 1
    if scaled and len(mean) and len(std):
        form = (-1, 1, 1) if inputs["kind"] == "pictures" else (-1,)
        first = {k: v * std.view(form) + mean.view(form) for k, v in first.items()}
    return {name: _plain(value) for name, value in first.items()}


def _plain(value: Tensor) -> Any:
    """Nested lists, of floats with six digits, which is what float32 has."""

    def rounded(part: Any) -> Any:
        return [rounded(p) for p in part] if isinstance(part, list) else float(f"{part:.6g}")

    values = value.tolist()
    return rounded(values) if value.is_floating_point() else values


def answer_of(student: Student, names: Sequence[str]) -> str:
    """What the student calls the first sample, as a remark behind a line; "" of a long name."""
    with evaluating(student.model):
        best = student.ask(student.model)(student.batch(1)).argmax(-1)
    told = repr([str(names[int(i)]) for i in best])
    return f"  # {told}" if len(told) <= 40 else ""
