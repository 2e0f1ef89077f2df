"""sample.json beside an exported student: one of its samples, for the lines of README.txt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.core.evaluate import evaluating
from limbeck.runs._export_student import Student

__all__ = ["answer_of", "sample_of", "scaled"]


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


def scaled(line: str, each: dict[str, Any], inputs: dict[str, Any], onnx: bool) -> list[str]:
    """The lines for pictures and tables: what a raw sample is, and how it is brought to scale."""
    name, kind = each["name"], inputs.get("kind")
    if kind == "pictures":
        told = " x ".join(map(str, each["shape"][-2:]))
        how = "bicubic" if inputs.get("interpolation") == "bicubic" else "bilinear"
        lines = [
            "# your pictures (here that of sample.json), values from 0 to 1: the shorter side",
            f"# resized ({how}) and the middle cut out, {told}",
            line,
        ]
        end = "reshape(-1, 1, 1)"
    elif kind == "table":
        told = ", ".join(map(repr, inputs.get("columns") or ()))  # a name may hold a line break
        told = told if len(told) <= 70 else 'as in facts["inputs"]["columns"]'
        lines, end = [f"# your rows (here that of sample.json); columns: {told}", line], ""
    else:
        return ["# what the student itself takes, after any scaling; sample.json has one", line]
    if not (inputs.get("mean") and inputs.get("std")):
        return lines
    array = "numpy.float32({0})" if onnx else "torch.tensor({0})"
    for which in ("mean", "std"):
        value = array.format(f'facts["inputs"]["{which}"]')
        lines.append(f"{which} = {value}{'.' if end else ''}{end}")
    return [*lines, f"{name} = ({name} - mean) / std"]
