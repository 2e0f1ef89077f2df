"""Where texts come from: folders, files, the hub, a user's file or values of Python, as tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.core.hub import hub, library, reason
from limbeck.core.sources import columns as sheets
from limbeck.core.sources import own
from limbeck.core.sources.specs import Data, data_of
from limbeck.core.text.rows import Raw, joined, of_values
from limbeck.errors import Missing, UsageError

__all__ = ["tables_of"]

_PART = re.compile(r"(train|valid|validation|val|dev|test)(?:[-_.]?\d[\w-]*)?", re.IGNORECASE)
_SUFFIXES = (".txt", ".jsonl", ".json", ".parquet", ".csv", ".tsv")
_GIVE = (
    "a folder, a .txt, .jsonl or .parquet file, hf:ID, FILE.py:NAME, a list of texts or of dicts, "
    "or a dict of these with 'train'"
)

Found = tuple[dict[str, Raw], str, list[str]]  # tables by part, a name, sentences


def tables_of(given: Any, flag: str) -> Found:
    """The tables of what was given, of which one is 'train'; its name; and sentences on them.

    Args:
        given: words or values, as for `texts.read`.
        flag: "--data" or "--test", for sentences.

    Raises:
        Missing: a file, part or package is not there.
        UsageError: it cannot be read as texts.
    """
    if not isinstance(given, str | Path | Data):
        return _of_value(given, "the data" if flag == "--data" else "the test set")
    data = given if isinstance(given, Data) else data_of(str(given), flag)
    if data.kind == "file":
        value = own.value_of(data.name)
        if callable(value):
            with own.running(data.name.rpartition(":")[0]):
                value = value()
        tables, _, notes = _of_value(value, data.text)
        return tables, data.short, notes
    place = Path(data.name)
    if data.kind == "hf" or _is_saved(place):
        return _of_hub(data)
    if place.is_dir():
        tables, notes = _of_folder(place)
        return tables, place.resolve().name, notes
    if data.kind == "sklearn" or place.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"{flag} is '{data.text}', which holds no texts; give {_GIVE}")
    table, notes = _of_files([place], str(place))
    return {"train": table}, data.short, notes


def _of_value(value: Any, what: str) -> Found:
    if isinstance(value, Mapping):
        tables, notes = _parts({n: v for n, v in value.items() if v is not None}, what)
        return {n: _table(v, f"{what} ({n})") for n, v in tables.items()}, "texts", notes
    return {"train": _table(value, what)}, "texts", []


def _table(value: Any, what: str) -> Raw:
    if hasattr(value, "column_names") and hasattr(value, "features") and hasattr(value, "__len__"):
        return _of_dataset(value, what)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UsageError(f"{what} is a {type(value).__name__}; give {_GIVE}")
    return of_values(value, what)


def _of_dataset(value: Any, what: str) -> Raw:
    plain = value.with_format(None)
    each = {name: getattr(f, "feature", f) for name, f in (value.features or {}).items()}
    features = {name: getattr(f, "names", None) for name, f in each.items()}
    classes = {name: tuple(names) for name, names in features.items() if names}
    return Raw(what, tuple(value.column_names), len(value), lambda n: list(plain[n]), classes)


def _part_of(name: str) -> str | None:
    """Which set a part, file or folder of such a name is of."""
    found = _PART.fullmatch(name)
    if found is None:
        return None
    word = found[1].lower()
    return word if word in ("train", "test") else "valid"


def _parts(named: Mapping[str, Any], what: str) -> tuple[dict[str, Any], list[str]]:
    """What of some parts is train, valid and test; the only one is train whatever its name."""
    found: dict[str, str] = {}
    for name in named:
        part = _part_of(str(name))
        if part is not None:
            found.setdefault(part, name)
    if "train" not in found and len(named) == 1:
        found = {"train": next(iter(named))}
    if "train" not in found:
        there = ", ".join(map(str, named)) or "none"
        raise Missing(f"{what} has no part 'train' (its parts: {there}); give a dict with 'train'")
    unused = [str(name) for name in named if name not in found.values()]
    note = f"the parts {', '.join(unused)} of {what} are not used"
    order = sorted(found, key=("train", "valid", "test").index)
    return {part: named[found[part]] for part in order}, [note] if unused else []


def _is_saved(place: Path) -> bool:
    return (place / "dataset_dict.json").exists() or (place / "state.json").exists()


def _of_hub(data: Data) -> Found:
    datasets, name, configuration = library("datasets"), data.name, ""
    if not Path(name).exists():
        name, _, configuration = name.partition(":")
    try:
        if _is_saved(Path(name)):
            whole = datasets.load_from_disk(name)
        else:
            with hub(name):
                whole = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # of datasets and of whatever reads its files
        raise Missing(
            f"{data.text} cannot be had ({reason(error)}); give a folder, the name of a data set "
            "on the hub (hf:ID, hf:ID:CONFIGURATION), or try again with a connection"
        ) from error
    tables, _, notes = _of_value(whole, data.text)
    return tables, data.short.replace(":", "-"), notes


# --- files ---------------------------------------------------------------------------------------


def _of_folder(folder: Path) -> tuple[dict[str, Raw], list[str]]:
    """Files or folders train, valid, test; else all files as one set."""
    entries = [p for p in sorted(folder.iterdir()) if p.name[0] != "."]
    named: dict[str, list[Path]] = {}
    for entry in entries:
        files = _files(entry)
        part = _part_of(entry.name if entry.is_dir() else entry.stem)
        if part and files:
            named.setdefault(part, []).extend(files)
    if not named:
        files = _files(folder)
        if not files:
            shown = ", ".join(p.name for p in entries[:8]) or "nothing"
            raise UsageError(
                f"{folder} holds no texts but {shown}; give {', '.join(_SUFFIXES)} files"
            )
        table, notes = _of_files(files, str(folder))
        return {"train": table}, notes
    if "train" not in named:
        raise Missing(
            f"{folder} has a set '{', '.join(named)}' and no files or folder called train; add "
            "train.txt, train.jsonl or the like"
        )
    tables, notes = {}, []
    for part in sorted(named, key=("train", "valid", "test").index):
        files = named[part]
        what = str(files[0]) if len(files) == 1 else f"{folder} ({part})"
        tables[part], more = _of_files(files, what)
        notes += more
    return tables, notes


def _files(place: Path) -> list[Path]:
    """The files of texts at a place, in the order of their paths."""
    inner: Iterable[Path] = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [p for p in inner if p.suffix.lower() in _SUFFIXES and p.name[0] != "." and p.is_file()]


def _of_files(files: Sequence[Path], what: str) -> tuple[Raw, list[str]]:
    """Some files as one table; a .txt file alone is cut into texts, of several each is one."""
    if [file.suffix.lower() for file in files] == [".txt"]:
        return _cut(files[0])
    whole = joined([_sheet(file) for file in files], what)
    texts = sum(file.suffix.lower() == ".txt" for file in files)
    return whole, [f"each of the {texts:,} .txt files in {what} is a text"] if texts else []


def _cut(file: Path) -> tuple[Raw, list[str]]:
    """The paragraphs of a file, or its lines where no line is blank."""
    text = _decoded(file).strip("\n")
    blocks, how = re.split(r"\n(?:[^\S\n]*\n)+", text), "paragraphs (between blank lines)"
    if len(blocks) == 1:
        blocks, how = text.split("\n"), "lines"
    texts = [block for block in blocks if block.strip()]
    return of_values(texts, str(file)), [f"each of the {len(texts):,} {how} of {file} is a text"]


def _sheet(file: Path) -> Raw:
    kind = file.suffix.lower()
    if kind == ".txt":
        return of_values([_decoded(file)], str(file))
    if kind == ".parquet":
        return _parquet(file)
    if kind in (".csv", ".tsv"):
        cells = sheets.read(file).cells
        size = len(next(iter(cells.values())))
        return Raw(str(file), tuple(cells), size, lambda name: list(cells[name]))
    rows = _json(file) if kind == ".json" else _json_lines(file)
    if not all(isinstance(row, Mapping | str) for row in rows):
        raise UsageError(f"{file} holds something else than rows of names and values, {{...}}")
    return of_values(rows, str(file))


def _decoded(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as text in UTF-8 ({error})") from None


def _json_lines(file: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(_decoded(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UsageError(f"{file}, line {number} is no JSON ({error})") from None
    return rows


def _json(file: Path) -> list[Any]:
    try:
        rows = json.loads(_decoded(file))
    except ValueError as error:
        raise UsageError(
            f"{file} is no JSON ({error}); call it .jsonl if a row is a line"
        ) from None
    if not isinstance(rows, list):
        raise UsageError(
            f"{file} holds a {type(rows).__name__}; give a list of rows, [{{...}}, ...]"
        )
    return rows


def _parquet(file: Path) -> Raw:
    arrow, parquet = library("pyarrow"), library("pyarrow.parquet")
    try:
        table = parquet.read_table(file)
    except (arrow.ArrowException, OSError) as error:
        raise UsageError(f"{file} cannot be read as parquet ({error})") from None
    column = lambda name: table.column(name).to_pylist()  # noqa: E731
    return Raw(str(file), tuple(table.column_names), table.num_rows, column)
