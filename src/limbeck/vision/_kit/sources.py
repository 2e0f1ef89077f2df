"""Where pictures come from, and their parts for training, validation and the score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from limbeck.core.rng import globals_kept
from limbeck.core.sources import own
from limbeck.core.sources.sets import LISTED
from limbeck.core.sources.specs import data_of
from limbeck.core.sources.split import hold_out, split
from limbeck.errors import UsageError
from limbeck.vision._kit.pictures import Found
from limbeck.vision._kit.places import Loaded, of_folder, of_hub, parts

__all__ = ["load", "with_parts"]


def load(given: Any, flag: str, target: str | None = None) -> Loaded:
    """Find the pictures that words or a value of Python name.

    Args:
        given: words as on the command line, tensors (x, y), a Dataset, or a dict of such.
        flag: what they were given as, for a sentence.
        target: the column of labels, of a Hugging Face data set.

    Raises:
        UsageError: they are no labelled pictures.
    """
    if not isinstance(given, str | Path):
        _no_target(target, flag, f"a {type(given).__name__}")
        return _of_value(given, flag, f"a {type(given).__name__}", "own")
    data = data_of(str(given), flag)
    if data.kind == "hf":
        return of_hub(data, target)
    _no_target(target, flag, data.text)
    if data.kind == "file":
        value = own.value_of(data.name)
        if callable(value) and not hasattr(value, "__getitem__"):
            with own.running(data.name.rpartition(":")[0]):
                value = value()
        return _of_value(value, flag, data.text, data.short)
    if data.kind == "pictures":
        sets, names = of_folder(Path(data.name))
        return Loaded(sets, names, data.text, Path(data.name).resolve().name)
    if data.kind == "sklearn" and data.name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = torch.tensor(x / 16 * 255).round().to(torch.uint8).view(-1, 1, 8, 8)
        found = _of_tensors(x, torch.tensor(y), flag)
        return Loaded({"train": found}, tuple("0123456789"), data.text, "digits")
    raise UsageError(
        f"{flag} names {data.text}, which holds no pictures; give a folder of pictures, hf:ID, "
        "sklearn:digits or FILE.py:NAME, or use the room 'plain'"
    )


def _no_target(target: str | None, flag: str, what: str) -> None:
    if target is not None:
        raise UsageError(
            f"target is '{target}', but {flag} is {what}, which has no columns; leave it out"
        )


def with_parts(
    loaded: Loaded, test: Any, target: str | None
) -> tuple[Loaded, tuple[str, ...], list[str]]:
    """The data with a valid and, where there can be, a test set.

    Returns:
        The data, the parts that its training set was cut into, and sentences on it.

    Raises:
        UsageError: there is one class only, or a label out of range.
    """
    sets = dict(loaded.sets)
    if test is not None:
        other = load(test, "test", target if str(test).startswith("hf:") else None)
        sets["test"] = (other.renamed(loaded.names) if loaded.names else other).judged
    names = loaded.names
    if not names:
        sets, names = _counted(sets)
    if len(names) < 2:
        raise UsageError(
            f"{loaded.text} has one class, '{names[0]}'; a classifier needs two or more"
        )
    _check(sets, names, loaded.text)
    notes, train = [], sets["train"]
    cut: tuple[str, ...] = ()
    if "test" not in sets and "valid" not in sets:
        rows, cut = split(train.y), ("train", "valid", "test")
        sets = {name: train.take(r) for name, r in zip(cut, rows, strict=True)}
        notes.append(
            f"no test set was given, so of {len(train.y)} pictures {len(rows[1])} are held out for "
            f"validation and {len(rows[2])} for the score; {len(rows[0])} are trained on; {LISTED}"
        )
    elif "valid" not in sets:
        (rest, held), cut = hold_out(train.y, 0.15), ("train", "valid")
        sets |= {"train": train.take(rest), "valid": train.take(held)}
        notes.append(
            f"no validation set was given, so {len(held)} of {len(train.y)} training pictures are "
            f"held out for it; {LISTED}"
        )
    elif "test" not in sets:
        notes.append("no test set was given, so the score is of the validation set")
    return replace(loaded, sets=sets, names=names), cut, notes


def _counted(sets: Mapping[str, Found]) -> tuple[dict[str, Found], tuple[str, ...]]:
    """Classes that have no names are called by their numbers, which may begin above 0."""
    low = max(0, min(int(found.y.min()) for found in sets.values() if len(found.y)))
    high = max(int(found.y.max()) for found in sets.values() if len(found.y))
    names = tuple(str(k) for k in range(low, high + 1))
    return {part: replace(found, y=found.y - low) for part, found in sets.items()}, names


def _check(sets: Mapping[str, Found], names: tuple[str, ...], text: str) -> None:
    for part, found in sets.items():
        if len(found.y) == 0:
            raise UsageError(f"the part '{part}' of {text} is empty; it needs pictures")
        low, high = int(found.y.min()), int(found.y.max())
        if low < 0 or high >= len(names):
            raise UsageError(
                f"the labels of '{part}' run from {low} to {high}; number the {len(names)} classes "
                f"from 0 to {len(names) - 1}"
            )


# --- values of Python ----------------------------------------------------------------------------


def _of_value(given: Any, flag: str, text: str, short: str) -> Loaded:
    """Tensors (x, y), a Dataset, or a dict of these by part."""
    if isinstance(given, Mapping):
        named = parts(given)
        if "train" not in named:
            raise UsageError(
                f"{flag} is a dict with {', '.join(map(str, given))}; give one with 'train'"
            )
        every = {part: given[name] for part, name in named.items()}
    else:
        every = {"train": given}
    sets = {part: _of_set(value, flag) for part, value in every.items()}
    told = getattr(every["train"], "classes", None)
    names = tuple(map(str, told)) if isinstance(told, list | tuple) else ()
    return Loaded(sets, names, text, short)


def _of_set(given: Any, flag: str) -> Found:
    if isinstance(given, tuple | list) and len(given) == 2 and not isinstance(given[0], tuple):
        x, y = (torch.as_tensor(v) if isinstance(v, np.ndarray) else v for v in given)
        if isinstance(x, Tensor):
            return _of_tensors(x, torch.as_tensor(y), flag)
    if isinstance(given, DataLoader):
        raise UsageError(f"{flag} is a DataLoader; give its data set (a run has its own order)")
    if not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise UsageError(
            f"{flag} is a {type(given).__name__}; give words, tensors (x, y), or a data set with a "
            "length whose samples are (picture, label)"
        )
    if len(given) == 0:
        raise UsageError(f"{flag} is empty; give labelled pictures")
    y = _labels(given, flag)
    return Found(y, lambda i: given[i][0], lambda i: f"sample {i} of {flag}", moves=True)


def _of_tensors(x: Tensor, y: Tensor, flag: str) -> Found:
    x = x[:, None] if x.dim() == 3 else x
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise UsageError(
            f"the pictures of {flag} are of shape {tuple(x.shape)}; give (N, C, H, W) with 1 or 3 "
            "channels, or (N, H, W)"
        )
    if len(x) != len(y) or y.dim() != 1 or y.is_floating_point():
        raise UsageError(
            f"{flag} has pictures {tuple(x.shape)} and labels {tuple(y.shape)} of {y.dtype}; give "
            "one whole number for each picture"
        )
    x = x.float() if x.is_floating_point() else x
    return Found(y.long(), x.__getitem__, lambda i: f"picture {i} of {flag}", x)


def _labels(given: Any, flag: str) -> Tensor:
    """All labels of a data set: its `targets`, or else each sample is asked once."""
    told = getattr(given, "targets", None)
    if told is not None and len(told) == len(given):
        return torch.as_tensor(told).long()
    with globals_kept():
        labels = []
        for i in range(len(given)):
            sample = given[i]
            if not isinstance(sample, tuple | list) or len(sample) != 2:
                raise UsageError(
                    f"sample {i} of {flag} is a {type(sample).__name__}; give (picture, label)"
                )
            labels.append(int(sample[1]))
    return torch.tensor(labels)
