"""Pictures in folders and in Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from limbeck.core.hub import hub, library, reason
from limbeck.core.sources.specs import Data
from limbeck.errors import Missing, UsageError, nearest
from limbeck.vision._kit.pictures import Found

__all__ = ["Loaded", "of_folder", "of_hub", "parts"]

_PARTS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing"),
}
_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm"),
)


@dataclass(frozen=True)
class Loaded:
    """Labelled pictures in one set or several.

    Args:
        sets: by "train", "valid", "test"; at least "train".
        names: of the classes, in the order of the labels; empty where they have none.
        text: what was given, in words.
        short: the same for the name of a folder.
    """

    sets: dict[str, Found]
    names: tuple[str, ...]
    text: str
    short: str

    def renamed(self, names: tuple[str, ...]) -> Loaded:
        """The same with the labels that other names in another order give.

        Raises:
            UsageError: there is a class that is none of these.
        """
        if not self.names or self.names == names:
            return self
        for name in self.names:
            if name not in names:
                raise UsageError(
                    f"{self.text} has a class '{name}', which the training pictures have not"
                    f"{nearest(name, names)}"
                )
        place = torch.tensor([names.index(name) for name in self.names])
        sets = {n: replace(found, y=place[found.y]) for n, found in self.sets.items()}
        return replace(self, sets=sets, names=names)

    @property
    def judged(self) -> Found:
        """What of further data is the test set: the part of that name, or the only one."""
        return self.sets.get("test", self.sets["train"])


def parts(names: Mapping[str, Any]) -> dict[str, str]:
    """Which of some names is the part train, valid and test."""
    lower = {name.lower(): name for name in names}
    found = {p: next((lower[w] for w in ws if w in lower), None) for p, ws in _PARTS.items()}
    return {part: name for part, name in found.items() if name is not None}


# --- a folder ------------------------------------------------------------------------------------


def of_folder(root: Path) -> tuple[dict[str, Found], tuple[str, ...]]:
    """Class folders, or folders train, valid, test of such."""
    inner = {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and p.name[0] != "."}
    named = parts(inner)
    if "train" in named and any(p.is_dir() for p in inner[named["train"]].iterdir()):
        names = _classes(inner[named["train"]])
        return {part: _files(inner[name], names, root) for part, name in named.items()}, names
    names = _classes(root)
    return {"train": _files(root, names, root)}, names


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if names:
        return tuple(names)
    some = any(p.suffix.lower() in _ENDINGS for p in folder.iterdir())
    raise UsageError(
        f"{folder} holds {'pictures' if some else 'no pictures'} and no folders; put the pictures "
        f"of each class into a folder of its name, as {folder}/CLASS/1.png"
    )


def _files(folder: Path, names: tuple[str, ...], root: Path) -> Found:
    paths: list[Path] = []
    labels: list[int] = []
    for name in _classes(folder):
        if name not in names:
            raise UsageError(
                f"{folder} has a class '{name}', which the training pictures have not"
                f"{nearest(name, names)}"
            )
        inner = sorted(
            p
            for p in (folder / name).rglob("*")
            if p.suffix.lower() in _ENDINGS and p.name[0] != "."
        )
        if not inner:
            raise UsageError(f"the folder {folder / name} holds no pictures; fill or remove it")
        paths += inner
        labels += [names.index(name)] * len(inner)

    def opened(i: int) -> Any:
        from PIL import Image

        return Image.open(BytesIO(paths[i].read_bytes()))  # no file stays open

    inside = [path.relative_to(root).as_posix() for path in paths]
    return Found(torch.tensor(labels), opened, lambda i: str(paths[i]), names=inside)


# --- a Hugging Face data set ---------------------------------------------------------------------


def of_hub(data: Data, target: str | None) -> Loaded:
    datasets = library("datasets")
    place = Path(data.name)
    try:
        with hub():
            if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
                whole = datasets.load_from_disk(data.name)
            else:
                whole = datasets.load_dataset(data.name)
    except Exception as error:
        raise Missing(
            f"{data.text} cannot be had ({reason(error)}); give a folder, the name of a "
            "data set on the hub, or try again with a connection"
        ) from error
    splits = dict(whole) if isinstance(whole, Mapping) else {"train": whole}
    named = parts(splits)
    if "train" not in named and len(splits) == 1:
        named = {"train": next(iter(splits))}
    if "train" not in named:
        raise UsageError(f"{data.text} has no part 'train', but {', '.join(splits)}")
    first = splits[named["train"]]
    picture, label = _columns(first.features, data.text, target, datasets)
    words = {part: list(splits[n].select_columns([label])[:][label]) for part, n in named.items()}
    feature = first.features[label]
    if isinstance(feature, datasets.ClassLabel):
        names = tuple(feature.names)
    else:
        values = sorted({v for each in words.values() for v in each})
        names = tuple(str(v) for v in values)
        words = {part: [values.index(v) for v in each] for part, each in words.items()}
    sets = {p: _rows(splits[n], words[p], picture, f"{data.text} ({n})") for p, n in named.items()}
    return Loaded(sets, names, data.text, place.name)


def _columns(features: Any, text: str, target: str | None, datasets: Any) -> tuple[str, str]:
    """The columns of pictures and of labels."""
    pictures = [n for n, f in features.items() if isinstance(f, datasets.Image)]
    if not pictures:
        raise UsageError(f"{text} has no column of pictures, but {', '.join(features)}")
    if target is not None:
        if target not in features:
            raise Missing(f"{text} has no column '{target}'{nearest(target, features)}")
        return pictures[0], target
    labels = [n for n, f in features.items() if isinstance(f, datasets.ClassLabel)]
    labels = labels or [n for n in features if n in ("label", "labels", "y", "class", "target")]
    if "label" in labels:
        labels = ["label"]
    if len(labels) != 1:
        told = f"several columns of labels ({', '.join(labels)})" if labels else "none of labels"
        raise UsageError(f"{text} has {told} among {', '.join(features)}; name one with target")
    return pictures[0], labels[0]


def _rows(split: Any, labels: list[int], picture: str, said: str) -> Found:
    y = torch.tensor(labels)
    if len(y) and int(y.min()) < 0:
        raise UsageError(
            f"{said} has samples without a label (-1); give pictures with labels, as test= others"
        )
    return Found(
        y, lambda i: split[i][picture], lambda i: f"picture {i} of {said}, column '{picture}',"
    )
