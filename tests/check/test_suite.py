"""The suite on itself: right methods pass every check; each check has a method that it fails."""

import ast
from pathlib import Path

import pytest

from limbeck.check import suite
from limbeck.check.case import Case
from limbeck.check.suite import CHECKS, Suite, check_method
from limbeck.errors import Missing

HERE = Path(__file__).parent
RIGHT = sorted((HERE / "right").glob("*.py"))
WRONG = sorted((HERE / "wrong").glob("*.py"))


def literal(path: Path, name: str) -> object:
    """What a file says by `NAME = ...`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return None


@pytest.mark.parametrize("path", RIGHT, ids=lambda path: path.stem)
def test_a_right_method_passes(path: Path) -> None:
    found = check_method(path)
    assert [f.check for f in found] == list(CHECKS)
    assert not [f for f in found if f.verdict in ("failed", "exempt")]


def test_a_right_method_leaves_little_out() -> None:
    # What these two do not show (a teacher's module in a cache, a table of scores) others do.
    found = [f for path in RIGHT for f in check_method(path)]
    seen = {f.check for f in found if f.verdict == "ok"}
    assert set(CHECKS) - seen <= {"permuted", "cached"}


@pytest.mark.filterwarnings("ignore:something is odd")
@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_a_wrong_method_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = literal(path, "SECONDS")
    if seconds is not None:
        monkeypatch.setattr(suite, "SECONDS", seconds)
    fails = literal(path, "FAILS")
    assert isinstance(fails, tuple)
    found = {f.check: f.said for f in check_method(path) if f.verdict == "failed"}
    assert set(found) == set(fails), found
    assert path.stem in fails or path.stem == "needless"
    assert all(found.values())


def test_every_check_has_a_method_that_it_fails() -> None:
    assert {path.stem for path in WRONG} - {"needless"} == set(CHECKS)


GOOD = HERE / "wrong" / "order.py"


def test_an_exemption_is_needed_and_has_a_reason(tmp_path: Path) -> None:
    text = GOOD.read_text(encoding="utf-8")
    path = tmp_path / "order.py"

    def said(exempt: str) -> dict[str, str]:
        path.write_text(text.replace("FAILS =", f"EXEMPT = {exempt}\nFAILS ="), encoding="utf-8")
        suite_of = Suite(Case(path))
        names = ("exemptions", "order", "accumulate", "pure")
        return {n: suite_of.find(n).verdict for n in names}

    plain = said("{}")
    assert plain == {"exemptions": "ok", "order": "failed", "accumulate": "failed", "pure": "ok"}
    assert said('{"order": "its samples are a sequence"}')["order"] == "exempt"
    assert said('{"pure": "it is not"}')["pure"] == "failed"
    assert said('{"order": " "}')["exemptions"] == "failed"
    assert said('{"ordre": "a reason"}')["exemptions"] == "failed"
    assert said('{"runs": "a reason"}')["exemptions"] == "failed"
    assert said('{"tree:loop": "another suite\'s"}')["exemptions"] == "ok"
    assert said("dict()")["exemptions"] == "failed"


def test_an_unknown_method_is_a_sentence() -> None:
    with pytest.raises(Missing, match="no method is called"):
        check_method("kdd")
