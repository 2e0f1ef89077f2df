"""How models and data are named in a few words; no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limbeck.core.sources.addresses import KEY, OPENAI_KEY, check_address, check_query
from limbeck.errors import Missing, UsageError, nearest

__all__ = [
    "KEY",
    "OPENAI_KEY",
    "ROOMS",
    "Data",
    "Model",
    "check_address",
    "data_of",
    "model_of",
    "placed",
    "room_of",
]

ROOMS = ("vision", "language", "plain")
"""The rooms that make tasks; `plain` is for modules on tensors and tables."""

LIBRARIES = ("timm", "torchvision", "hf")
MAKERS = ("truncate", "width", "config")  # of a student from its teacher, a language model
TABLES = (".csv", ".tsv", ".npz", ".safetensors", ".parquet")
TEXTS = (".jsonl", ".json", ".txt")

_HOST = re.compile(r"[\w.-]+:\d+(/\S*)?")
_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_][\w.]*)")
_MODEL = (
    "timm:NAME, torchvision:NAME, hf:ID, FILE.py:NAME, a run's folder or one of save_pretrained"
)


@dataclass(frozen=True)
class Model:
    """A model in words.

    `kind` says where it comes from ("made": of its teacher), `name` which it is there ("resnet18";
    of a file's model its path and name), `weights` is a safetensors file for it. Of one behind an
    OpenAI-compatible server `name` is the address, `model` what it is called there (or empty) and
    `tokenizer` the words for its tokenizer, if any.
    """

    text: str
    kind: Literal[
        "none", "timm", "torchvision", "hf", "file", "gguf", "run", "url", "openai", "made"
    ]
    name: str
    weights: str | None = None
    model: str = ""
    tokenizer: str = ""

    @property
    def short(self) -> str:
        """Its name in a sentence or in a folder's name."""
        if self.kind == "file":
            return self.name.rpartition(":")[2]
        if self.kind in ("url", "openai"):
            return "served"
        if self.kind == "made":
            return self.text.replace(":", "").replace("=", "")
        return self.name.rstrip("/").rpartition("/")[2] or self.name


@dataclass(frozen=True)
class Data:
    """Data in words; `kind` as for models, with `pictures` a folder and `table`, `text` files."""

    text: str
    kind: Literal["hf", "sklearn", "file", "pictures", "table", "text"]
    name: str

    @property
    def short(self) -> str:
        """Its name in a sentence or in a folder's name."""
        if self.kind == "file":
            return self.name.rpartition(":")[2]
        return Path(self.name).stem if self.kind != "hf" else self.name.rpartition("/")[2]


def model_of(text: str, side: str) -> Model:
    """Read the words for a model.

    Args:
        text: such as "timm:resnet18", "timm:resnet18@weights.safetensors", "hf:microsoft/resnet-18"
            "nets.py:Student", "runs/first", "https://host/predict", "openai:http://host/v1#model",
            or "none".
        side: "teacher" or "student", for the sentence.

    Raises:
        UsageError: it reads as nothing that a model can be.
        Missing: the file or folder is not there.
    """
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"the {side} is {text!r}; give {_MODEL}")
    special = _of_one_side(text, side)
    if special is not None:
        return special
    name, _, weights = text.partition("@")
    _check_weights(weights, side, "@" in text)
    head, colon, rest = name.partition(":")
    if found := _FILE.fullmatch(name):
        _exists(found["file"], side)
        return Model(text, "file", name, weights or None)
    if colon and head in LIBRARIES:
        if not rest:
            raise UsageError(f"the {side} is '{text}'; name a model after '{head}:'")
        return Model(text, head, rest, weights or None)  # type: ignore[arg-type]
    if name.endswith(".gguf"):
        _exists(name, side)
        return Model(text, "gguf", name)
    return _of_place(text, name, side)


def _of_one_side(text: str, side: str) -> Model | None:
    """What only a teacher can be (a server, nobody), or only a student (made of its teacher)."""
    if text.startswith("openai:"):
        return _of_server(text, side)
    if text.lower().startswith(("http://", "https://")):
        if side == "student":
            raise UsageError(f"a student is trained here, so it cannot be served from {text}")
        check_address(text)
        check_query(text)
        return Model(text, "url", text)
    if text == "none":
        if side == "student":
            raise UsageError(f"the student is 'none'; give {_MODEL}")
        return Model(text, "none", "none")
    head, colon, rest = text.partition(":")
    if not colon or head not in MAKERS:
        return None
    if side == "teacher":
        raise UsageError(f"the teacher is '{text}', which makes a student of its teacher")
    if not rest:
        raise UsageError(f"the student is '{text}'; write {head}:N, such as truncate:10")
    return Model(text, "made", text)


def _of_server(text: str, side: str) -> Model:
    """openai:URL#MODEL@TOKENIZER, of which MODEL and @TOKENIZER may be left out."""
    if side == "student":
        raise UsageError("a student is trained here, so it cannot be one behind a server")
    url, _, rest = text.removeprefix("openai:").partition("#")
    model, _, tokenizer = rest.partition("@")
    check_address(url, OPENAI_KEY)
    check_query(url, OPENAI_KEY)
    if "@" in url:
        raise UsageError(
            f"the teacher is '{text}'; name its tokenizer after a #, as "
            f"openai:{url.partition('@')[0]}#MODEL@{url.partition('@')[2]}"
        )
    return Model(text, "openai", url.rstrip("/"), None, model, tokenizer)


def _of_place(text: str, name: str, side: str) -> Model:
    place = Path(name)
    if not place.exists():
        if side == "teacher" and _HOST.fullmatch(text):
            raise UsageError(
                f"the teacher '{text}' is no file or folder; if a server is meant, write "
                f"http://{text}"
            )
        head = name.partition(":")[0]
        near = nearest(head, LIBRARIES) if ":" in name else f"; give {_MODEL}"
        raise Missing(f"the {side} '{text}' is no file, folder or library that is known{near}")
    if (place / "run.json").exists():
        return Model(text, "run", name)
    if (place / "config.json").exists():  # of save_pretrained
        return Model(text, "hf", name)
    if (place / "cache.json").exists():
        raise UsageError(
            f"{name} holds a teacher's outputs; name the teacher itself, and add --cache {name}"
        )
    if name.endswith(".py"):
        raise UsageError(f"the {side} is '{text}'; name the model in it, as {name}:NAME")
    raise UsageError(f"the {side} '{text}' is not a run's folder; give {_MODEL}")


def _check_weights(weights: str, side: str, given: bool) -> None:
    if not given:
        return
    if not weights.endswith(".safetensors"):
        raise UsageError(
            f"the {side}'s weights are '{weights}'; give a .safetensors file (nothing is unpickled)"
        )
    _exists(weights, side)


def _exists(file: str, side: str) -> None:
    if not Path(file).is_file():
        raise Missing(f"there is no file {file} for the {side}")


def data_of(text: str, flag: str = "--data") -> Data:
    """Read the words for data.

    Args:
        text: a folder of pictures, a file, "hf:ID", "sklearn:digits" or "FILE.py:NAME".
        flag: which it was given with, for the sentence.

    Raises:
        UsageError: it reads as nothing that data can be.
        Missing: the file or folder is not there.
    """
    usual = (
        "a folder of pictures or texts, a .csv, .npz, .jsonl or .txt file, hf:ID, sklearn:NAME or "
        "FILE.py:NAME"
    )
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{flag} is {text!r}; give {usual}")
    head, colon, rest = text.partition(":")
    if colon and head in ("hf", "sklearn"):
        if not rest:
            raise UsageError(f"{flag} is '{text}'; name a data set after '{head}:'")
        return Data(text, head, rest)  # type: ignore[arg-type]
    if found := _FILE.fullmatch(text):
        if not Path(found["file"]).is_file():
            raise Missing(f"there is no file {found['file']} for {flag}")
        return Data(text, "file", text)
    place = Path(text)
    if place.is_dir():
        return Data(text, "text" if _holds_texts(place) else "pictures", text)
    if not place.exists():
        raise Missing(f"{flag} names '{text}', which is not there; give {usual}")
    for kinds, kind in ((TABLES, "table"), (TEXTS, "text")):
        if place.suffix.lower() in kinds:
            return Data(text, kind, text)  # type: ignore[arg-type]
    raise UsageError(f"{flag} is '{text}', a kind of file that is not read; give {usual}")


def _holds_texts(place: Path) -> bool:
    """Whether a folder, or its parts, hold files of texts; pictures lie in folders of classes."""
    parts = [place / part for part in ("train", "training", "valid", "validation", "dev", "test")]
    endings = (*TEXTS, ".parquet")
    here = (file for folder in (place, *parts) if folder.is_dir() for file in folder.iterdir())
    return any(file.suffix.lower() in endings for file in here)


def placed(source: Model | Data) -> str:
    """The same words with absolute paths."""
    words = source.text
    if source.kind == "file":
        file, _, name = source.name.rpartition(":")
        words = f"{Path(file).resolve()}:{name}"
    elif source.kind in ("gguf", "run", "pictures", "table", "text"):
        words = str(Path(source.name).resolve())
    elif source.kind == "hf" and Path(source.name).is_dir():
        words = f"hf:{Path(source.name).resolve()}"
    elif isinstance(source, Model) and source.weights:
        words = words.partition("@")[0]
    elif isinstance(source, Model) and source.tokenizer:
        place = Path(source.tokenizer.removeprefix("hf:"))
        named = str(place.resolve()) if place.is_dir() else source.tokenizer
        words = f"openai:{source.name}#{source.model}@{named}"
    if isinstance(source, Model) and source.weights:
        words += f"@{Path(source.weights).resolve()}"
    return words


def room_of(teacher: Model, student: Model, data: Data, given: str | None = None) -> str:
    """Choose the room that makes the task, by the kinds of models and data.

    Raises:
        UsageError: no such room, or it is not clear which.
    """
    if given is not None:
        if given not in ROOMS:
            raise UsageError(f"no room called '{given}' makes tasks{nearest(given, ROOMS)}")
        return given
    kinds = {teacher.kind, student.kind}
    if kinds & {"gguf", "made", "openai"} or data.kind == "text":
        return "language"
    if kinds & {"timm", "torchvision"} or data.kind == "pictures":
        return "vision"
    if "hf" in kinds or data.kind == "hf":
        raise UsageError(
            "it is not clear whether these models and data are of pictures or of text; "
            "say --room vision or --room language"
        )
    return "plain"
