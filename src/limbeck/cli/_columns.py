"""Text in columns, cut or folded to the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

__all__ = ["columns", "cut", "fold"]


def cut(text: str, width: int) -> str:
    """A text of at most so many letters."""
    return text if len(text) <= width else text[: width - 1] + "…"


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Align rows in columns; the last column is as long as it likes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ((text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return ["  ".join(row).rstrip() for row in padded]


def fold(text: str, indent: int) -> str:
    """A text in lines as wide as the terminal, those after the first indented."""
    return textwrap.fill(text, _width(), subsequent_indent=" " * indent, break_long_words=False)


def _width() -> int:
    return min(100, shutil.get_terminal_size((100, 24)).columns)
