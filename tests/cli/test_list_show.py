"""The commands `list` and `show`, and what the command line does with mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import limbeck
from limbeck import cli, registry
from limbeck.cli._parser import Parser
from limbeck.errors import UsageError

FILE = '''"""A method file."""

from dataclasses import dataclass

import no_such_package
from limbeck import Card, Objective
from limbeck.core.method import number

CARD = Card(
    key="{key}",
    title="A [red] Paper",
    year=2015,
    arxiv="1503.02531",
    code="https://example.org/code",
    kinds=("response",),
    needs=("logits|hidden+head", "y"),
    gives="model",
    world="digits(teacher='cnn')",
    stages=("distil",),
    tiny={{}},
    departs="the ramp is ours",
    lacks={lacks},
)


class Helper:
    """Not this one."""


@dataclass(frozen=True)
class Toy(Objective):
    """Teaches by matching.

    Fields:
        label: the weight of
            true labels.
    """

    label: float = number(0.1, least=0)
    tau: float = number(4.0, above=0, most=100)  # temperature
    mode: Literal["mean", "sum"] = "mean"
    """How to join."""
    layers_used: tuple[int, ...] = (1, 2)
    size: int
    card = CARD
'''


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A package of two methods that cannot be imported, only read."""
    for room, key, lacks in (("vision", "kd", ()), ("language", "gkd", ("the second half",))):
        (tmp_path / room).mkdir()
        (tmp_path / room / f"{key}.py").write_text(FILE.format(key=key, lacks=lacks))
    monkeypatch.setattr(registry, "PACKAGE", tmp_path)
    return tmp_path


def in_process(root, words, **more):
    """Run the command in a process of its own; prints at the end whether torch came along."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(limbeck.__file__).parents[1])!r})\n"
        "import pathlib\nfrom limbeck import cli, registry\n"
        f"registry.PACKAGE = pathlib.Path({str(root)!r})\n"
        f"code = cli.main({words!r})\n"
        "print('torch' in sys.modules, file=sys.stderr)\nsys.exit(code)"
    )
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, **more)


def test_list_in_a_pipe(root, capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "KEY  ROOM      YEAR  KINDS     GIVES  STATUS   TITLE",
        "kd   vision    2015  response  model  exact    A [red] Paper",
        "gkd  language  2015  response  model  partial  A [red] Paper",
    ]


def test_list_filters(root, capsys):
    assert cli.main(["list", "--room", "vision", "--needs", "hidden", "--status", "exact"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["KEY", "kd"]
    assert cli.main(["list", "--status=not-shown"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "no method matches\n")
    assert cli.main(["list", "--status=not-shown", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_list_json(root, capsys):
    assert cli.main(["list", "--json", "--room", "language"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "key": "gkd",
        "room": "language",
        "title": "A [red] Paper",
        "year": 2015,
        "arxiv": "1503.02531",
        "code": "https://example.org/code",
        "kinds": ["response"],
        "needs": ["logits|hidden+head", "y"],
        "gives": "model",
        "world": "digits(teacher='cnn')",
        "stages": ["distil"],
        "departs": "the ramp is ours",
        "lacks": ["the second half"],
        "status": "partial",
    }


def test_many_methods_are_listed_and_shown_without_torch(root):
    for number in range(300):
        room = root / registry.ROOMS[number % 16]
        room.mkdir(exist_ok=True)
        text = FILE.format(key=f"method_{number}", lacks=())
        (room / f"method_{number}.py").write_text(text)
    made = in_process(root, ["list"], stdout=subprocess.PIPE)
    assert (made.returncode, made.stderr) == (0, "False\n")
    assert len(made.stdout.splitlines()) == 303
    made = in_process(root, ["show", "method_7"], stdout=subprocess.PIPE)
    assert (made.returncode, made.stderr) == (0, "False\n")


def test_a_terminal_gets_a_table(root):
    ours, theirs = os.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    for words, wanted in ((["list"], "A [red] Paper"), (["show", "kd"], "Teaches by matching.")):
        made = in_process(root, words, stdout=theirs, env=env)
        assert (made.returncode, made.stderr) == (0, "False\n")
        shown = os.read(ours, 100_000).decode()
        assert wanted in shown
        assert "\x1b[" in shown
    os.close(ours)
    os.close(theirs)


def test_a_reader_who_leaves_is_no_error(root):
    read, write = os.pipe()
    os.close(read)
    made = in_process(root, ["list"], stdout=write)
    os.close(write)
    assert (made.returncode, made.stderr) == (141, "False\n")


def test_show(root, capsys):
    assert cli.main(["show", "gkd"]) == 0
    text = capsys.readouterr().out
    for wanted in (
        "gkd  (language)\nA [red] Paper, 2015\nhttps://arxiv.org/abs/1503.02531\n",
        "needs    logits or hidden and head, y\n",
        "status   partial: ",
        "departs  the ramp is ours\n",
        "lacks    the second half\n",
        "\nTeaches by matching.\n\nFields:\n    label: the weight of\n        true labels.\n",
        "  --label        float            0.1         the weight of true labels.; at least 0\n",
        "  --tau          float            4.0         temperature; above 0, at most 100\n",
        "  --mode         mean|sum         mean        How to join.\n",
        "  --layers-used  tuple[int, ...]  (1, 2)\n",
        "  --size         int              (required)\n",
        "  limbeck run gkd --world \"digits(teacher='cnn')\"\n",
    ):
        assert wanted in text


def test_show_json(root, capsys):
    assert cli.main(["show", "kd", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["key"], shown["class"]) == ("kd", "Toy")
    assert shown["doc"].startswith("Teaches by matching.")
    assert shown["fields"][1] == {
        "flag": "tau",
        "name": "tau",
        "type": "float",
        "default": "4.0",
        "range": "above 0, at most 100",
        "help": "temperature",
    }


def test_show_a_file_of_one_s_own(root, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(key="my_kd", lacks=()))
    assert cli.main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "my_kd  (own)" in shown
    assert f"limbeck run {path} --world" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lits"], "there is no command 'lits'; did you mean 'list'?"),
        (["--list"], "there is no command '--list'; did you mean 'list'?"),
        (["list", "--rom", "vision"], "has no option '--rom'; did you mean '--room'?"),
        (["list", "--room", "visoin"], "did you mean 'vision'?"),
        (
            ["list", "--room"],
            "--room has no value; write --room WORD, or see 'limbeck list --help'",
        ),
        (["list", "extra"], "it does not take 'extra'"),
        (["show"], "KEY"),
        (["show", "kdd"], "no method is called 'kdd'; did you mean 'kd' or 'gkd'?"),
        (["show", "none.py"], "there is no file 'none.py'"),
    ],
)
def test_mistakes_are_one_sentence(root, capsys, words, told):
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) == 1
    assert told in shown.err


def test_a_broken_card_is_named(root, capsys):
    path = root / "vision" / "kd.py"
    path.write_text(path.read_text().replace("2015", "year()"))
    assert cli.main(["list"]) == 2
    assert "kd.py, line 9: year is year(), which is not a literal" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"]])
def test_help(capsys, words):
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("words", [["list", "--help"], ["help", "list"], ["show", "-h"]])
def test_help_of_a_command(capsys, words):
    assert cli.main(words) == 0
    assert "examples:\n  limbeck " in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"limbeck {limbeck.__version__}\n"


def test_interrupt(monkeypatch, capsys):
    def stop(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.cli.listing.list_methods", stop)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_parser_takes_what_looks_like_options_after_two_dashes():
    parser = Parser("x", "About.", ["limbeck x"])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--rate", type=float)
    assert parser.parse_args(["--rate=-1", "--", "--odd"]).words == ["--odd"]
    with pytest.raises(UsageError, match="--rate is 'x'; it must be a number"):
        parser.parse_args(["--rate", "x"])
