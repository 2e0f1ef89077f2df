"""`limbeck show --modules`: what a model is made of, and what each module gives."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.core.sources import specs
from limbeck.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["show_modules"]

_LIBRARIES = "limbeck.vision._kit.libraries"  # named in text: a room is never imported from here

Shape = tuple[int, ...]
Built = tuple["nn.Module", Shape | None, str]


def show_modules(args: argparse.Namespace) -> int:
    """Print path, kind, output shape and parameters of each module of a model.

    Args:
        args: with `modules` (a model in words), `input` (the shape of one sample, or None),
            `classes` (or None), `json`, and `method`, which must be None.

    Raises:
        UsageError: the words name no model, or it does not take such an input.
    """
    if args.method is not None:
        raise UsageError(f"both '{args.method}' and --modules are given; show one at a time")
    if args.classes is not None and args.classes < 1:
        raise UsageError(f"--classes is {args.classes}; it must be above 0")
    asked = None if args.input is None else _shape(args.input)
    words = specs.model_of(args.modules, "student")
    model, shape, why = _build(words, args.classes, asked)
    from limbeck.core.layout import modules

    rows = modules(model, None if shape is None else _sample(model, shape))
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return 0
    if shape is not None:
        print(f"{words.short}, shown a sample of {' x '.join(map(str, shape))}{why}\n")
    head = ("PATH", "KIND", "GIVES", "PARAMETERS")
    table = [head, *((r.path or "(all)", r.kind, r.shape, f"{r.parameters:,}") for r in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for path, kind, gives, count in table:
        cells = (path.ljust(widths[0]), kind.ljust(widths[1]), gives.ljust(widths[2]))
        print("  ".join((*cells, count.rjust(widths[3]))))
    if shape is None:
        print(f"\nsay --input SHAPE (of one sample, as 3,224,224) to see what {words.short} gives")
    return 0


def _shape(text: str) -> Shape:
    try:
        shape = tuple(int(size) for size in text.lower().replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"--input is '{text}'; give the shape of one sample, as 3,224,224 or 64")
    return shape


def _build(words: specs.Model, classes: int | None, shape: Shape | None) -> Built:
    """The model, the shape of one sample, where it is asked for or known, and where from."""
    from limbeck.core.files import read_json
    from limbeck.core.sources import models

    if words.kind == "run":
        about = read_json(Path(words.name) / "run.json").get("about") or {}
        known = _shape_in(about.get("inputs") or {})
    else:
        known = _shape_in(models.inputs_of(words.weights)) if words.weights else None
    why = ", as in its run" if known and not shape else ""
    shape = shape or known
    if words.kind == "file":
        return models.from_file(words, classes).make(), shape, why
    if words.kind == "run":
        usual: list[tuple[Shape | None, str]] = []

        def build(text: str, number: int | None) -> nn.Module:
            model, size, said = _build(specs.model_of(text, "student"), number, shape)
            usual.append((size, said))
            return model

        module = models.from_run(words, build).make()
        return module, usual[-1][0], why or usual[-1][1]
    if words.kind not in specs.LIBRARIES:
        raise UsageError(f"{words.text} is no model whose modules can be shown")
    whole = importlib.import_module(_LIBRARIES).LIBRARIES[words.kind](words.name, classes or 1000)
    side = whole.wants.size or 224
    if shape is None:
        shape = (whole.wants.channels or 3, side, side)
        why = ", its own size; a student is shown smaller pictures as they are: --input 3,64,64"
    model = whole.at(shape[-1])
    if words.weights:
        models.load_weights(model, words.weights)
    return model, shape, why


def _shape_in(inputs: Mapping[str, Any]) -> Shape | None:
    """The shape of one sample, from the facts that a run keeps of a model's inputs."""
    if inputs.get("kind") == "table":
        return (len(inputs["columns"]),)
    told = inputs.get("size" if inputs.get("kind") == "pictures" else "shape")
    return tuple(told) if told else None


def _sample(model: nn.Module, shape: Shape) -> Any:
    """Two samples: of numbers, or of tokens for a model that begins with an embedding."""
    import torch

    leaves = (m for m in model.modules() if not list(m.children()))
    tokens = isinstance(next(leaves), torch.nn.Embedding)
    return torch.zeros(2, *shape, dtype=torch.int64 if tokens else torch.float32)
