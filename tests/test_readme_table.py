"""README's table of methods is what cards and trials say."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from limbeck import registry
from limbeck.registry import cards

pytestmark = pytest.mark.xdist_group("docs")

ROOT = Path(__file__).resolve().parents[1]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_readme", ROOT / "docs" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readmes_table_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert text == script().renewed(text), (
        "README's table of methods is out of date; renew it by: python docs/readme.py"
    )


def test_the_table_counts_what_there_is() -> None:
    text = script().renewed((ROOT / "README.md").read_text("utf-8"))
    digest = json.loads((registry.PACKAGE / "results.json").read_text())
    head, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.partition(script().BEGIN)[2].partition(script().END)[0].splitlines()
        if line.startswith("|") and "---" not in line
    ]
    named = [key for row in rows for key in re.findall(r"`(\w+)`", row[-1])]
    assert named == [entry.card.key for entry in cards()]
    for i, word in enumerate(head):
        if word in ("shown", "not shown", "contradicted"):
            expected = sum(row["verdict"] == word for row in digest.values())
            assert sum(int(row[i] or 0) for row in rows) == expected


def test_a_table_that_is_out_of_date_would_be_noticed() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    old = text.replace("| vision |", "| vision | 1 |", 1)
    assert old != text
    assert script().renewed(old) == text
    with pytest.raises(SystemExit, match="lacks the lines"):
        script().renewed("# Another\n")
