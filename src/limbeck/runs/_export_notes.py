"""student.json beside an exported student: what it takes and gives, and how good it is."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck import __version__
from limbeck.runs._export_student import Check, Form, Student


def takes(student: Student) -> list[dict[str, Any]]:
    """The student's inputs, in their order."""
    return [
        {"name": name, "shape": ["batch", *value.shape[1:]], "dtype": _dtype(value)}
        for name, value in student.samples.items()
    ]


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def facts_of(
    student: Student, to: str, form: Form, check: Check, folder: Path, about: dict[str, Any]
) -> dict[str, Any]:
    """What student.json says."""
    kept = ("inputs", "names", "scores")
    files = {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {
        "limbeck": __version__,
        "format": to,
        "read_with": form.how,
        "takes": takes(student),
        "inputs": about.get("inputs"),
        "gives": {
            "name": student.gives,
            "shape": ["batch", *student.shape],
            "dtype": str(student.dtype).removeprefix("torch."),
        },
        "names": about.get("names"),
        "scores": about.get("scores"),
        "about": {k: v for k, v in about.items() if k not in kept},
        "parameters": sum(p.numel() for p in student.model.parameters()),
        "weights": student.digest(),
        "check": {
            "samples": check.samples,
            "batches": list(check.batches),
            "difference": check.difference,
            "tolerance": check.tolerance,
        },
        "files": files,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
