"""Taking the student home: `limbeck.export` and what a folder with an exported student holds."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.core.files import refusal, write_json
from limbeck.core.rng import globals_kept
from limbeck.core.text.lora import merged
from limbeck.errors import UsageError, nearest
from limbeck.runs._export_graph import write_onnx, write_pt2
from limbeck.runs._export_notes import facts_of
from limbeck.runs._export_readme import readme
from limbeck.runs._export_sample import sample_of
from limbeck.runs._export_student import Check, Student, quiet
from limbeck.runs._export_weights import write_weights

__all__ = ["FORMATS", "Exported", "export"]

_WRITERS = {"safetensors": write_weights, "onnx": write_onnx, "pt2": write_pt2}
FORMATS = tuple(_WRITERS)


@dataclass(frozen=True)
class Exported:
    """An exported student.

    Args:
        folder: where it lies.
        file: its main file.
        check: how far it is from the original.
        note: a sentence on what could not be done, or "".
    """

    folder: Path
    file: Path
    check: Check
    note: str


def export(
    model: nn.Module,
    samples: Any,
    *,
    to: str,
    out: str | Path,
    about: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
) -> Exported:
    """Write a student, alone and in eval mode, for those who have no limbeck.

    What is written is read again and set against the student on the samples, in batches of
    several sizes; outputs may differ by 1e-4 of the largest one (half precision: 2e-2), or by 1e-4
    where that is below 1. Beside it lie student.json, sample.json with the first of the samples,
    and README.txt, with lines that use the file on that sample.

    Formats:
        safetensors: the weights, tied tensors once. A model of timm or transformers gets its
            config too, so that its library loads the folder; any other is loaded into its class by
            `safetensors.torch.load_model`.
        onnx: a graph for onnxruntime and the like, with a free batch dimension.
        pt2: torch's own archive, `torch.export.load(...).module()`, with a free batch dimension.
            None of our Python is executed by reading one, but torch may unpickle parts of it: read
            only archives of those whom you trust.

    Of a model that gives several outputs, a graph gives the logits alone.

    Args:
        model: the student; it is copied, and left as it is.
        samples: what it takes: a tensor (N, ...), or a tuple or dict of such.
        to: "safetensors", "onnx" or "pt2".
        out: the folder; an earlier export of the same student to the same format is replaced.
        about: JSON for student.json: "inputs" and "names" as in `Task.about`, "scores", and
            whatever else.
        tokenizer: of a language model; it is saved beside weights that transformers reads.

    Returns:
        Where it lies and how far it is from the student.

    Raises:
        UsageError: the model cannot be exported so, or what was written is not the student.
        Missing: a package that is needed is not installed.

    Example:
        >>> import tempfile, torch
        >>> net, x = torch.nn.Linear(3, 2), torch.randn(6, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(net, x, to="safetensors", out=folder)
        ...     done.file.name, done.check.difference
        ('model.safetensors', 0.0)
    """
    if to not in FORMATS:
        raise UsageError(f"the format '{to}' is not known{nearest(to, FORMATS)}")
    told = _plain(about)
    if hasattr(model, "peft_config"):  # low-rank adapters become part of the weights
        model = merged(copy.deepcopy(model))
    with globals_kept():
        student = Student(model, samples)
        folder = Path(out)
        try:
            _check_place(folder, student.digest(), to)
            begun = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            with _staged(folder, begun) as stage:
                with quiet():
                    form = _WRITERS[to](student, stage, told)
                    check = student.compare(form.load())
                if not check.holds:
                    raise UsageError(
                        f"the student exported to {to} is not the original: outputs differ by "
                        f"{check.difference:.2g}, and {check.tolerance:.2g} is allowed; nothing "
                        "was written"
                    )
                write_json(stage / "sample.json", sample_of(student, told.get("inputs") or {}))
                facts = facts_of(student, to, form, check, stage, told)
                if tokenizer is not None and form.how == "transformers":
                    tokenizer.save_pretrained(stage)
                    facts["tokenizer"] = True
                text = readme(student, form, facts)
                (stage / "README.txt").write_text(text, encoding="utf-8")
                write_json(stage / "student.json", facts)
                _move(stage, folder)
        except OSError as error:
            raise UsageError(f"{refusal(folder, error)}; name another folder") from error
    return Exported(folder, folder / form.main, check, form.note)


def _plain(about: Mapping[str, Any] | None) -> dict[str, Any]:
    """The facts as JSON has them."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(about or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"`about` holds what is not JSON ({error}); give plain values") from None
    return plain


def _check_place(folder: Path, weights: str, to: str) -> None:
    """Refuse a folder that holds anything but an earlier export of this student to this format."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        there = json.loads((folder / "student.json").read_bytes())
        same = there["weights"] == weights, there["format"] == to
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{folder} is not empty and holds no exported student; name another folder"
        ) from None
    if not all(same):
        what = "this student, exported to" if same[0] else "another student, exported to"
        raise UsageError(f"{folder} holds {what} {there['format']}; name another folder")


@contextlib.contextmanager
def _staged(folder: Path, begun: bool) -> Iterator[Path]:
    """A folder within, where files are made; afterwards it is gone, and a begun folder with it."""
    stage = Path(tempfile.mkdtemp(prefix=".limbeck-", dir=folder))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if begun:
            with contextlib.suppress(OSError):  # it holds the student now
                folder.rmdir()


def _move(stage: Path, folder: Path) -> None:
    """Put finished files in their place, student.json last, with the usual permissions."""
    usual = os.stat(stage / "README.txt").st_mode
    for path in sorted(stage.iterdir(), key=lambda p: p.name == "student.json"):
        os.chmod(path, usual)
        os.replace(path, folder / path.name)
