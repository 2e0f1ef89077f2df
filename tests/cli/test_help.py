"""`--help` of every command: it fits a terminal, and its examples are commands that parse."""

import argparse
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.cli import COMMANDS, main
from limbeck.cli._lines import _parser_of
from limbeck.cli._parser import Parser
from limbeck.core.vocabulary import ENTRIES, GIVES, KINDS
from limbeck.errors import UsageError
from limbeck.registry import ROOMS, cards

pytestmark = pytest.mark.xdist_group("help")

ROOT = Path(__file__).resolve().parents[2]
KEYS = [entry.card.key for entry in cards()]
ASKED = [[], *([name] for name in COMMANDS), *(["run", key] for key in KEYS),
         *(["doctor", "--method", key] for key in KEYS)]  # fmt: skip

Said = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    def of(*words: str, columns: int = 200) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main([*words, "--help"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return of


def examples(text: str) -> list[list[str]]:
    """The words of each command under "examples:", without the remark behind it."""
    block = text.partition("\nexamples:\n")[2].partition("\n\n")[0]
    lines = block.replace("\\\n", " ").splitlines()
    commands = [re.split(r"   +", re.sub(r"(?<=\S) +(?=--)", " ", line.strip()))[0]
                for line in lines]  # fmt: skip
    return [shlex.split(command.partition(" > ")[0]) for command in commands]


@pytest.mark.parametrize("words", ASKED, ids=" ".join)
def test_help_fits_eighty_columns(words: list[str], said: Said) -> None:
    for columns in (200, 80):
        text = said(*words, columns=columns)
        long = [line for line in text.splitlines() if len(line) > 80]
        assert not long, long
        assert text.startswith("usage: limbeck")
        usage = text.partition("\n\n")[0]
        assert "\n" not in usage, "the usage takes one line"
        assert examples(text)


class Parsed(Exception):
    pass


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_examples_parse(
    words: list[str], said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").mkdir()
    for name in ("my_method.py", "examples/new_method.py"):
        shutil.copy(ROOT / "examples" / "new_method.py", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    found = examples(said(*words))
    parse = Parser.parse_args

    def only_parse(self: Parser, *args: Any) -> argparse.Namespace:
        parse(self, *args)
        raise Parsed

    monkeypatch.setattr(Parser, "parse_args", only_parse)
    for program, command, *rest in ([*each, ""][: max(2, len(each))] for each in found):
        assert program == "limbeck"
        assert command == words[0] if words else command in COMMANDS
        with pytest.raises(Parsed):
            called(command, rest)


def called(command: str, words: list[str]) -> None:
    from importlib import import_module

    module, _, function = COMMANDS[command][0].partition(":")
    getattr(import_module(module), function)(words)


def test_an_example_that_does_not_parse_would_be_noticed() -> None:
    text = "usage: x\n\nexamples:\n  limbeck run kd --student a.py:B \\\n      --beta 4\n"
    [[_, command, *words]] = examples(text)
    assert words == ["kd", "--student", "a.py:B", "--beta", "4"]
    with pytest.raises(UsageError, match="--beta"):
        called(command, words)


def test_the_demo_comes_first_and_is_what_it_says(said: Said) -> None:
    from limbeck.cli.demo import METHODS

    text = said()
    first, *others = examples(text)
    assert first == ["limbeck", "demo"]
    assert any("--data" in words for words in others)
    assert len(METHODS.split(",")) == 3
    assert "three methods" in text
    columns = [re.split("  +", line) for line in text.splitlines() if line.startswith("  ")]
    assert set(COMMANDS) <= {row[1] for row in columns}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_takes_a_value_tells_what_it_is_without(command: str) -> None:
    argv = ["kd"] if command == "run" else []
    parser = _parser_of(command, argv)
    assert parser is not None
    needed = {"teacher", "student", "data", "task", "steps", "modules", "input"}
    for action in parser._actions:
        if action.option_strings and action.nargs != 0 and not action.required:
            told = (action.help or "").endswith(")")
            assert told or action.dest in needed, action.option_strings
            assert len(str(action.metavar)) <= 16, "the metavar is long"
            assert action.metavar is not None or command == "report", action.option_strings


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_whose_value_does_not_fit_says_what_would(command: str) -> None:
    """Whole numbers, numbers and choices, of every command."""
    parser = _parser_of(command, ["kd"] if command == "run" else [])
    assert parser is not None
    for action in parser._actions:
        flag = action.option_strings[-1] if action.option_strings else None
        kind: Any = action.type
        told = {int: "must be a whole number", float: "must be a number"}.get(kind, "")
        if action.choices:
            told = f"give one of: {', '.join(action.choices)}"
        if told:
            with pytest.raises(UsageError) as error:
                parser.parse_args(["x1"] if flag is None else [f"{flag}=x1"])
            assert str(error.value) == f"{flag or action.metavar} is 'x1'; " + told.replace(
                "must", "it must"
            )
        elif flag is not None and action.nargs == 0:
            with pytest.raises(UsageError, match=f"{flag} takes no value; leave out .*'x1'$"):
                parser.parse_args([f"{flag}=x1"])
        if flag is not None and action.nargs != 0:
            with pytest.raises(UsageError, match=f"^{flag} has no value; write {flag} "):
                parser.parse_args([flag])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export"], "DIR and --to must be given; see 'limbeck export --help'"),
        (["run", "kd", "--epochs", "abc"], "--epochs is 'abc'; it must be a number"),
        (["run", "kd", "--seeds", "9" * 20], f"--seeds is {'9' * 20}; give at most 10,000"),
        (["run", "kd", "--seeds", "0"], "--seeds is 0; it must be above 0"),
    ],
)
def test_what_is_missing_or_does_not_fit_ends_the_command(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


@pytest.mark.parametrize("option", ["room", "kind", "needs", "gives", "status"])
def test_list_tells_the_words_of_an_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", f"--{option}", "help"]) == 0
    rows = [re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    told = {row[0]: row[-1] for row in rows}
    known = {"room": ROOMS, "kind": KINDS, "gives": GIVES, "needs": ENTRIES}.get(option, ["shown"])
    assert set(known) <= set(told)
    if option in ("kind", "gives"):
        assert told == dict(known)
    for word in told:
        assert main(["list", f"--{option}", word]) == 0
