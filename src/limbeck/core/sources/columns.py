"""Tables of named columns, as text, and the numbers that they become."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import Missing, UsageError, nearest

__all__ = ["Sheet", "complete", "features", "read"]

MISSING = frozenset({"", "?", "n/a", "na", "nan", "null"})
TARGETS = frozenset({"class", "label", "labels", "target", "y"})
_LARGEST = float(np.finfo(np.float32).max)  # inputs are float32
VALUES = 20
"""A text column with more different values than this is not made into one-hot columns."""


@dataclass(frozen=True)
class Sheet:
    """A table of text: each column's cells, and the number of each row in its file."""

    file: Path
    cells: Mapping[str, list[str]]
    rows: list[int]
    word: str = "line"

    def place(self, row: int) -> str:
        """Where a row stands, for a sentence."""
        return f"{self.word} {self.rows[row]}"

    def target(self, asked: str | None) -> str:
        """The column of the labels: as asked, else one that is called so, else the last.

        Raises:
            Missing: there is no such column.
        """
        if asked is None:
            called = [name for name in self.cells if name.strip().lower() in TARGETS]
            return called[0] if len(called) == 1 else list(self.cells)[-1]
        if asked not in self.cells:
            near = nearest(asked, [list(self.cells)[-1], *self.cells])  # mostly it is the last
            raise Missing(f"{self.file} has no column '{asked}' for the target{near}")
        return asked


def read(file: Path) -> Sheet:
    """Read a .csv, .tsv or .parquet file.

    Raises:
        UsageError: it is no table with a header, or is cut off somewhere.
        Missing: it is .parquet, and pyarrow is not installed.
    """
    return _parquet(file) if file.suffix.lower() == ".parquet" else _text(file)


def _text(file: Path) -> Sheet:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            first = opened.readline()
            opened.seek(0)
            # by what it holds: much of Europe writes semicolons into .csv files
            reader = csv.reader(opened, delimiter=max(",;\t", key=first.count))
            lines = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file} cannot be read as a table of text in UTF-8 ({error})") from None
    if len(lines) < 2:
        raise UsageError(f"{file} holds no rows under a header row")
    header = [name.strip() for name in lines[0][1]]
    if all(_number(name) is not None for name in header):
        raise UsageError(
            f"the first row of {file} holds numbers only; a table needs a header row with the "
            "names of its columns"
        )
    if twice := [name for name in header if header.count(name) > 1]:
        raise UsageError(f"{file} has two columns '{twice[0]}'; each needs a name of its own")
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise UsageError(
                f"{file}, line {line} has {len(row)} cells, but the header names {len(header)} "
                "columns"
            )
    columns = zip(*(row for _, row in lines[1:]), strict=True)
    cells = {n: [cell.strip() for cell in c] for n, c in zip(header, columns, strict=True)}
    return Sheet(file, cells, [line for line, _ in lines[1:]])


def _parquet(file: Path) -> Sheet:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise Missing(
            f"{file} needs pyarrow; install it with: pip install pyarrow, or give a .csv file"
        ) from None
    try:
        table = parquet.read_table(file)
    except (ArrowException, OSError) as error:
        raise UsageError(f"{file} cannot be read as parquet ({error})") from None
    if table.num_rows == 0 or table.num_columns == 0:
        raise UsageError(f"{file} is empty; it needs at least one row and one column")
    cells = {
        name: ["" if cell is None else str(cell) for cell in table.column(i).to_pylist()]
        for i, name in enumerate(table.column_names)
    }
    return Sheet(file, cells, list(range(1, table.num_rows + 1)), "row")


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def features(
    sheet: Sheet, target: str, coded: Mapping[str, list[str]], wanted: list[str] | None = None
) -> tuple[NDArray[np.float32], list[str], dict[str, list[str]]]:
    """The inputs of a table: numbers as they are, a text column as one column for each value.

    Args:
        sheet: the table.
        target: the column that is left out.
        coded: text columns with the order of their values, of the data that came before.
        wanted: names of the resulting columns, of the data that came before; None for the first.

    Returns:
        Inputs (N, F), the names of the F columns, and the text columns with their values.

    Raises:
        UsageError: a value is missing, is no number among numbers, or there are too many texts.
    """
    parts: list[NDArray[np.float32]] = []
    names: list[str] = []
    found: dict[str, list[str]] = {}
    for name, cells in sheet.cells.items():
        if name == target:
            continue
        complete(sheet, name)
        numbers = None if name in coded else _numbers(sheet, name)
        if numbers is not None:
            parts.append(numbers[:, None])
            names.append(name)
            continue
        values = found[name] = coded[name] if name in coded else _values(sheet, name)
        order = {value: i for i, value in enumerate(values)}
        for row, cell in enumerate(cells):
            if cell not in order:
                raise UsageError(
                    f"{sheet.file}, {sheet.place(row)}: column '{name}' holds '{cell}', which the "
                    f"training data lack{nearest(cell, values)}"
                )
        hot = np.array([order[cell] for cell in cells])
        parts.append(np.eye(len(values), dtype=np.float32)[hot])
        names += [f"{name}={value}" for value in values]
    if not parts:
        raise UsageError(f"{sheet.file} has no column beside the target '{target}'")
    return _in_order(sheet, np.concatenate(parts, 1), names, wanted), wanted or names, found


def _in_order(
    sheet: Sheet, x: NDArray[np.float32], names: list[str], wanted: list[str] | None
) -> NDArray[np.float32]:
    if wanted is None or names == wanted:
        return x
    if lacking := [name for name in wanted if name not in names]:
        raise UsageError(
            f"{sheet.file} has no column '{lacking[0]}', which the training data "
            f"have{nearest(lacking[0], names)}"
        )
    return x[:, [names.index(name) for name in wanted]]


def complete(sheet: Sheet, name: str) -> None:
    """Refuse a column with a missing value, named with its row."""
    for row, cell in enumerate(sheet.cells[name]):
        if cell.lower() in MISSING:
            raise UsageError(
                f"{sheet.file}, {sheet.place(row)}: column '{name}' has no value ('{cell}'); fill "
                "it in, or leave that row or column out"
            )


def _numbers(sheet: Sheet, name: str) -> NDArray[np.float32] | None:
    """A column of numbers, or None where most cells are text."""
    cells = sheet.cells[name]
    try:
        whole = np.array(cells, dtype=np.float64)
    except ValueError:
        whole = np.array([np.nan])
    if np.isfinite(whole).all():
        if (large := np.abs(whole) > _LARGEST).any():
            row = int(large.argmax())
            raise UsageError(
                f"{sheet.file}, {sheet.place(row)}: column '{name}' holds '{cells[row]}', more "
                "than a float32 can; scale the column, or leave that row or column out"
            )
        return whole.astype(np.float32)
    odd = [row for row, cell in enumerate(cells) if _number(cell) is None]
    if len(odd) > len(cells) // 2:
        return None
    raise UsageError(
        f"{sheet.file}, {sheet.place(odd[0])}: column '{name}' holds '{cells[odd[0]]}' among "
        "numbers; put a number there, or leave that row or column out"
    )


def _values(sheet: Sheet, name: str) -> list[str]:
    values = sorted(set(sheet.cells[name]))
    if len(values) > VALUES:
        raise UsageError(
            f"{sheet.file}, {sheet.place(0)}: column '{name}' is text "
            f"('{sheet.cells[name][0]}') with {len(values)} different values, more than the "
            f"{VALUES} that are made into columns; leave it out, or make numbers of it"
        )
    return values
