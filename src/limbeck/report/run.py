"""The page of a run, or of a run with several seeds, made from what its folder holds."""

from __future__ import annotations

import os
from pathlib import Path

from limbeck.errors import UsageError
from limbeck.report import effort, judged, writing
from limbeck.report.apart import apart
from limbeck.report.page import Html, lead, note, page
from limbeck.report.reading import read_run
from limbeck.report.story import caution, story, title

__all__ = ["page_of", "write"]


def page_of(folder: Path) -> Html:
    """Make the page of a finished run.

    Args:
        folder: of a run (`run.json`, `result.json`, and where there are `appraisal.json` and
            `metrics.jsonl`), or of several seeds, each in a `seed-*/`.

    Raises:
        Missing: there is no run.
        UsageError: it is not finished, not limbeck's, or damaged.
    """
    told = read_run(folder)
    head = [lead(*story(told))]
    if careful := caution(told):
        head.append(note(*careful))
    body = [
        judged.scores(told),
        judged.gave(told),
        writing.prediction(told) or judged.agreement(told),
        effort.costs(told),
        judged.calibration(told),
        judged.classes(told),
        apart(told),
        writing.written(told),
        effort.learning(told),
        effort.settings(told),
        effort.again(told),
    ]
    return page("limbeck run", title(told), head, [part for part in body if part])


def write(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a finished run, whole or not at all.

    Args:
        folder: of the run or of several seeds.
        out: the file; `report.html` in the folder when None.

    Returns:
        The file.

    Raises:
        Missing: there is no run.
        UsageError: it is not finished, not limbeck's, or damaged; or the page cannot be written.
    """
    path = out or folder / "report.html"
    written = page_of(folder)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(written, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}); name another file"
        ) from None
    return path
