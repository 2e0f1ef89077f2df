"""The command `limbeck check`."""

import json
from pathlib import Path

import pytest

from limbeck.check.suite import CHECKS
from limbeck.cli import main

HERE = Path(__file__).parent
WRONG = str(HERE / "wrong" / "docs.py")


def test_one_check_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "kd", "--only", "ranges"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "kd  ranges       ok"
    assert last.startswith("1 method: 1 ok; ")


def test_a_failed_check_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", WRONG, "--only", "docs"]) == 1
    out = capsys.readouterr().out
    assert "docs  docs         failed" in out
    assert "no section 'Source:'" in out


def test_findings_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "kd", WRONG, "--only", "docs", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(f["key"], f["check"], f["verdict"]) for f in found] == [
        ("kd", "docs", "ok"),
        ("docs", "docs", "failed"),
    ]
    assert {*found[0]} == {"key", "check", "verdict", "said", "seconds"}


def test_the_list_of_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--list"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == list(CHECKS)
    assert all(len(line.split()) > 3 for line in told)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fitnet"], "no method is called 'fitnet'; did you mean 'fitnets'?"),
        (["kd", "crdd"], "no method is called 'crdd'"),
        ([], "either methods or --all"),
        (["kd", "--all"], "either methods or --all"),
        (["kd", "--only", "pur"], "there is no check 'pur'; did you mean 'pure'?"),
        (["nowhere.py"], "there is no file 'nowhere.py'"),
    ],
)
def test_mistakes_are_sentences(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *words]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert not told.out
