"""The page of known disagreements lists what tests/peers shows, and nothing else."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("by torch")


def test_the_page_and_the_tests_name_each_other() -> None:
    shown = {
        f"tests/peers/{path.name}::{node.name}"
        for path in Path(__file__).parent.glob("test_by_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_apart_")
    }
    page = (ROOT / "docs/disagreements.md").read_text("utf-8")
    named = re.findall(r"`(test_by_\w+\.py)`, `(test_apart_\w+)`", page)
    assert len(shown) >= 10
    assert {f"tests/peers/{file}::{name}" for file, name in named} == shown
    assert len(named) == len(shown)
