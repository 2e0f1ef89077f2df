"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.cli import _records as records
from limbeck.cli._parser import Parser
from limbeck.core.seeds import resume
from limbeck.errors import Missing, UsageError

if TYPE_CHECKING:
    from limbeck.core.task import Task

__all__ = ["export"]

_ABOUT = """\
Write the student of a finished run for those who have no limbeck, and check it against the
original. Beside it lie student.json (inputs, classes, scores), a sample, and README.txt (how to use
it)."""
_FORMATS = """\
formats:
  safetensors  the weights; of timm's and transformers' models in the form that
               their library loads
  onnx         a graph for onnxruntime and the like
  pt2          torch's own archive, torch.export.load("model.pt2").module()"""
_SAMPLES = 8


def export(argv: list[str]) -> int:
    """Take a run's student home."""
    parser = Parser(
        "export",
        _ABOUT,
        (
            "limbeck export runs/kd-digits-s0 --to onnx",
            "limbeck export runs/kd-digits-s0 --to safetensors --out home",
        ),
        more=_FORMATS,
        usage="DIR --to FORMAT [options]",
    )
    parser.add_argument("folder", metavar="DIR", help="the run's folder")
    kinds = ("safetensors", "onnx", "pt2")
    told = f"the format: {', '.join(kinds)}"
    parser.add_argument("--to", required=True, choices=kinds, metavar="FORMAT", help=told)
    parser.add_argument("--out", metavar="FOLDER", help="where to (DIR/export/FORMAT)")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    facts = _finished(folder)

    from limbeck.cli._tasks import reopen
    from limbeck.runs.export import export as write

    opened = reopen(folder)
    if opened.result.model is None:
        raise UsageError(_no_model(folder))
    about = {**opened.task.about, **_about(facts)}
    if names := opened.task.about.get("names") or opened.task.data.get("names"):
        about["names"] = list(names)
    out = Path(args.out) if args.out else folder / "export" / args.to
    tokenizer = getattr(opened.task.data.get("text"), "tokenizer", None)
    samples = _samples(opened.task)
    done = write(
        opened.result.model, samples, to=args.to, out=out, about=about, tokenizer=tokenizer
    )
    if done.note:
        print(done.note)
    size = done.file.stat().st_size
    print(f"{done.file} ({_size(size)}); README.txt beside it says how to use it")
    check = done.check
    print(
        f"checked against the original on {check.samples} samples, in batches of "
        f"{', '.join(map(str, check.batches))}: outputs differ by at most "
        f"{check.difference:.2g} ({check.tolerance:.2g} allowed)"
    )
    return 0


def _finished(folder: Path) -> dict[str, Any]:
    """What result.json says of a run that can be exported.

    Raises:
        UsageError: it is several runs, begun from Python, not finished, or gave no model.
    """
    several = sorted(p.parent for p in folder.glob("seed-*/run.json"))
    if several and not (folder / "run.json").exists():
        raise Missing(f"{folder} holds {len(several)} runs; name one of them, as {several[0]}")
    told = records.read(folder / "run.json")
    if not isinstance(told.get("request"), dict):
        raise UsageError(
            f"the run in {folder} was begun from Python; export its student there, with "
            "limbeck.export(result.model, samples, to=..., out=...)"
        )
    if not (folder / "result.json").exists():
        raise UsageError(f"the run in {folder} is not finished; go on with: {resume(folder, told)}")
    facts = records.read(folder / "result.json")
    if not (folder / "student.safetensors").exists():
        raise UsageError(_no_model(folder))
    return facts


def _no_model(folder: Path) -> str:
    return f"the run in {folder} gave no model, so there is no student to export"


def _about(facts: dict[str, Any]) -> dict[str, Any]:
    """Scores, and how the student was made."""
    scores: dict[str, Any] = {}
    if "score" in facts:
        scores = {facts["score_name"]: facts["score"], "on": facts["score_of"]}
        scores |= {k: facts[k] for k in ("teacher", "baseline") if facts.get(k) is not None}
    made = {k: facts.get(k) for k in ("method", "fields", "seed", "world")}
    return {"scores": scores or None, **{k: v for k, v in made.items() if v is not None}}


def _samples(task: Task) -> Any:
    """The first samples that the student is judged on, as it takes them."""
    import torch

    from limbeck.core.data import Table, reader_of

    name = task.judged if task.set_or_none(task.judged) is not None else "train"
    table = Table(task.set(name), name)
    x = table.rows(torch.arange(min(_SAMPLES, len(table))), "in order").columns["x"]
    reader = reader_of(task.readers, "student")
    return reader(x) if reader else x


def _size(size: int) -> str:
    unit, factor = next(
        (u, f) for u, f in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1)) if size >= f
    )
    return f"{size / factor:.3g} {unit}"
