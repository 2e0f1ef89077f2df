"""Labelled data as tensors: from a table, from arrays, or from a user's own file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from limbeck.core.sources import columns as sheets
from limbeck.core.sources import labels, own
from limbeck.core.sources.specs import Data
from limbeck.core.tables import Table
from limbeck.errors import Missing, UsageError, nearest

__all__ = ["Loaded", "load", "of_value"]

PARTS = ("train", "valid", "test")
SKLEARN = ("breast_cancer", "digits", "iris", "wine")


@dataclass(frozen=True)
class Loaded:
    """Labelled samples.

    Args:
        x: inputs, (N, F) of a table or (N, ...): float32, or int64 where a tensor was so (tokens).
        y: labels (N,), int64.
        columns: names of the F columns; empty where the inputs have none.
        names: of the classes.
        rows: row numbers of the parts train, valid and test, where the data come in parts.
        coded: text columns with their values, in the order of their one-hot columns.
        notes: sentences on what was guessed.
    """

    x: Tensor
    y: Tensor
    columns: list[str]
    names: list[str]
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    coded: Mapping[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load(data: Data, target: str | None = None, like: Loaded | None = None) -> Loaded:
    """Load what words name.

    Args:
        data: of kind "table" (.csv, .tsv, .parquet, .npz, .safetensors), "sklearn" or "file".
        target: the column of the labels; without it one that is called so, else the last.
        like: the training data, whose columns and classes these must have.

    Raises:
        UsageError: the data cannot be read, lack values, or their labels are no classes.
        Missing: no such column, array or data set.
    """
    suffix = Path(data.name).suffix.lower()
    if data.kind == "table" and suffix in (".csv", ".tsv", ".parquet"):
        return _sheet(Path(data.name), target, like)
    if target is not None:
        raise UsageError(f"a target column '{target}' was named, but {data.text} has no columns")
    if data.kind == "table":
        return _of_pair(*_arrays(Path(data.name)), data.text, like)
    if data.kind == "sklearn":
        return _sklearn(data, like)
    if data.kind == "file":
        value = own.value_of(data.name)
        if callable(value) and not isinstance(value, Tensor | Dataset):
            with own.running(data.name.rpartition(":")[0]):
                value = value()
        return of_value(value, data.text, like)
    raise UsageError(
        f"{data.text} is no table; the room 'plain' reads .csv, .tsv, .parquet, .npz and "
        ".safetensors files, sklearn:NAME and FILE.py:NAME"
    )


def of_value(value: Any, what: str, like: Loaded | None = None) -> Loaded:
    """Labelled samples from a value: (x, y), {"x": x, "y": y}, a data set, or parts of these.

    Parts are a dict of train, valid and test. A Dataset is read once, so what it draws at random
    is drawn once.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(value, Mapping) and not {"x", "y"} <= set(value):
        return _of_parts(value, what, like)
    return _of_pair(*_pair(value, what), what, like)


def _of_parts(value: Mapping[str, Any], what: str, like: Loaded | None) -> Loaded:
    for name in value:
        if name not in PARTS:
            raise Missing(f"{what} has a part '{name}'{nearest(str(name), PARTS)}")
    if "train" not in value:
        raise UsageError(f"{what} has no part 'train'; give {{'train': (x, y), 'test': (x, y)}}")
    pairs = {n: _pair(part, f"{what} ({n})") for n, part in value.items() if part is not None}
    inputs = {n: _inputs(x, f"{what} ({n})") for n, (x, _) in pairs.items()}
    for name, x in inputs.items():
        if x.shape[1:] != inputs["train"].shape[1:]:
            raise UsageError(
                f"the samples of {what} are of shape {tuple(inputs['train'].shape[1:])} in 'train' "
                f"and {tuple(x.shape[1:])} in '{name}'"
            )
    y = np.concatenate([_array(y) for _, y in pairs.values()])
    whole = _of_pair(torch.cat(list(inputs.values())), y, what, like)
    rows, start = {}, 0
    for name, x in inputs.items():
        rows[name] = torch.arange(start, start := start + len(x))
    return replace(whole, rows=rows)


def _pair(value: Any, what: str) -> tuple[Any, Any]:
    """The inputs and labels of (x, y), {"x": x, "y": y}, a Dataset or a DataLoader."""
    if isinstance(value, Dataset | DataLoader):
        table = Table(value, what)
        batch = table.rows(torch.arange(len(table)), "read")
        value = batch.columns
    if isinstance(value, Mapping) and {"x", "y"} <= set(value):
        return value["x"], value["y"]
    if isinstance(value, tuple | list) and len(value) == 2:
        return value[0], value[1]
    raise UsageError(
        f"{what} is a {type(value).__name__}; give (x, y), or a dict of train, valid and test with "
        "(x, y) each"
    )


def _array(y: Any) -> Any:
    return y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)


def _inputs(x: Any, what: str) -> Tensor:
    if isinstance(x, Tensor):
        cpu: Tensor = x.detach().cpu()
        return cpu if cpu.dtype == torch.int64 else cpu.float()
    try:
        return torch.from_numpy(np.array(x, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise UsageError(f"the inputs of {what} are not numbers of one shape ({error})") from None


def _of_pair(x: Any, y: Any, what: str, like: Loaded | None, columns: Any = ()) -> Loaded:
    x = _inputs(x, what)
    numbers, names = labels.numbered(y, what, like.names if like else None)
    if len(x) != len(numbers):
        raise UsageError(f"{what} has {len(x)} inputs and {len(numbers)} labels; give one for each")
    if like is not None and x.shape[1:] != like.x.shape[1:]:
        raise UsageError(
            f"the samples of {what} are of shape {tuple(x.shape[1:])}, those of the training data "
            f"{tuple(like.x.shape[1:])}"
        )
    return Loaded(x, numbers, list(columns), names, notes=() if like else _gaps(numbers, names))


def _gaps(y: Tensor, names: list[str]) -> tuple[str, ...]:
    """A sentence on classes without samples, which are there since labels from 0 on stand."""
    there = set(y.tolist())
    empty = [name for i, name in enumerate(names) if i not in there]
    if not empty:
        return ()
    which = f"class {empty[0]}" if len(empty) == 1 else f"classes {', '.join(empty)}"
    return (f"the labels go from 0 to {names[-1]}, and no sample is of {which}",)


def _sheet(file: Path, target: str | None, like: Loaded | None) -> Loaded:
    sheet = sheets.read(file)
    column = sheet.target(target)
    x, columns, coded = sheets.features(
        sheet, column, like.coded if like else {}, like.columns if like else None
    )
    sheets.complete(sheet, column)
    what = f"{file} (column '{column}')"
    known = like.names if like else None
    y, names = labels.numbered(sheet.cells[column], what, known, sheet.place)
    notes = [] if like else [*_gaps(y, names)]
    if target is None and like is None:
        notes.append(f"the labels are column '{column}' of {file}; --target names another")
    if coded and like is None:
        notes.append(f"a column for each value stands for the text in {', '.join(coded)}")
    return Loaded(torch.from_numpy(x), y, columns, names, coded=coded, notes=tuple(notes))


def _arrays(file: Path) -> tuple[Any, Any]:
    """The arrays x and y of a .npz or .safetensors file."""
    try:
        if file.suffix.lower() == ".npz":
            with np.load(file, allow_pickle=False) as opened:
                found: Mapping[str, Any] = {name: opened[name] for name in opened.files}
        else:
            found = load_file(file)
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{file} cannot be read ({error}); it needs arrays x and y of numbers or texts "
            "(nothing is unpickled)"
        ) from None
    for name in ("x", "y"):
        if name not in found:
            raise Missing(
                f"{file} has no array '{name}'; it holds {', '.join(found) or 'nothing'}, and "
                "needs x (the inputs) and y (the labels)"
            )
    return found["x"], found["y"]


def _sklearn(data: Data, like: Loaded | None) -> Loaded:
    if data.name not in SKLEARN:
        raise Missing(f"scikit-learn's '{data.name}' is not read{nearest(data.name, SKLEARN)}")
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{data.name}")()
    loaded = _of_pair(bunch.data, bunch.target, data.text, like, map(str, bunch.feature_names))
    return Loaded(loaded.x, loaded.y, loaded.columns, [str(n) for n in bunch.target_names])
