"""The command `completion`: what real shells offer, and that asking is quick and runs nothing."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limbeck.bench import worlds
from limbeck.cli import COMMANDS, main
from limbeck.core.sources import specs
from limbeck.registry import ROOMS, cards

pytestmark = pytest.mark.xdist_group("completion")

METHOD = '''"""A method."""

from limbeck import Card

CARD = Card(
    key="odd", title="Odd", year=2020, arxiv="", code="", kinds=("response",), needs=("logits",),
    gives="model", world="digits", stages=("fit",), tiny={}, departs="none known",
)


class Odd:
    mode: Literal["mean", "a b"] = "mean"
    deep_down: bool = False
    card = CARD
'''


def shell(name: str) -> str:
    if (path := shutil.which(name)) is None:
        pytest.skip(f"needs {name}")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with `limbeck` on the path and a file for each shell's script."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    command = bin_ / "limbeck"
    source = Path(__file__).parents[2] / "src"
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH="{source}" exec "{sys.executable}" -m limbeck "$@"\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("bash", "zsh", "fish"):
        script = subprocess.run(
            [command, "completion", name], check=True, capture_output=True, text=True
        )
        (tmp_path / name).write_text(script.stdout)
    return tmp_path


def in_bash(home: Path, line: str, *words: str) -> list[str]:
    """What bash's function offers at the end of a line that bash takes apart into these words."""
    code = f"""
        source {home}/bash
        COMP_LINE=$1; COMP_POINT=${{#1}}; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _limbeck limbeck
        for word in "${{COMPREPLY[@]}}"; do printf '%s\\n' "$word"; done
    """
    got = subprocess.run(
        [shell("bash"), "--norc", "-c", code, "bash", line, *(words or line.split(" "))],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert not got.stderr
    return got.stdout.splitlines()


# -- bash ------------------------------------------------------------------------------------------


def test_bash_offers_commands_methods_rooms_and_worlds(home: Path) -> None:
    assert in_bash(home, "limbeck ") == [*COMMANDS]
    assert in_bash(home, "limbeck help re") == ["resume", "report"]
    keys = {entry.card.key for entry in cards()}
    assert set(in_bash(home, "limbeck run ")) == keys
    assert in_bash(home, "limbeck check kd fi") == ["fitnets"]
    assert in_bash(home, "limbeck list --room ") == [*ROOMS]
    assert in_bash(home, "limbeck run kd --room ") == [*specs.ROOMS]
    assert in_bash(home, "limbeck run kd --world ") == [*worlds.names()]
    assert in_bash(home, "limbeck export --to o") == ["onnx"]
    assert in_bash(home, "limbeck demo --methods kd,fitn") == ["kd,fitnets"]


def test_bash_offers_flags_and_the_methods_fields(home: Path) -> None:
    assert "--tau" not in in_bash(home, "limbeck run --t")
    assert "--tau" in in_bash(home, "limbeck run kd --t")
    assert "--tau" in in_bash(home, "limbeck run --seed 3 kd --t")
    assert "--tau" in in_bash(home, "limbeck doctor --method kd --t")
    assert in_bash(home, "limbeck run kd --seed 3 --see") == ["--seeds"]  # --seed is given
    assert in_bash(home, "limbeck run kd --seed ") == []  # a number
    Path("odd.py").write_text(METHOD)
    assert in_bash(home, "limbeck run odd.py --mode ") == ["mean", r"a\ b"]
    assert in_bash(home, "limbeck run odd.py --deep") == ["--deep-down"]
    assert in_bash(home, "limbeck run odd.py --deep-down ") == ["true", "false"]


def test_bash_replaces_only_what_follows_its_breaks(home: Path) -> None:
    line = "limbeck run kd --world=di"
    assert in_bash(home, line, "limbeck", "run", "kd", "--world", "=", "di") == ["digits"]
    assert in_bash(home, line, *line.split()) == ["--world=digits"]  # where "=" is no break
    line = "limbeck run kd --world="
    assert in_bash(home, line, "limbeck", "run", "kd", "--world", "=") == [*worlds.names()]
    Path("nets.py").write_text("import torch\nclass Small: ...\ndef big(): ...\n_no = 1\nYes = 2\n")
    start = ["limbeck", "run", "kd"]
    line = "limbeck run kd --teacher nets.py:"
    assert in_bash(home, line, *start, "--teacher", "nets.py", ":") == ["big", "Small", "Yes"]
    line = "limbeck run kd --task nets.py:"
    assert in_bash(home, line, *start, "--task", "nets.py", ":") == ["big"]


def test_bash_offers_files_whose_names_hold_odd_signs(home: Path) -> None:
    for name in ("a b.py", "a$(touch bad).csv", "a'q\".npz", "näher.py", ".hidden"):
        Path(name).write_text("x = 1")
    Path("a dir").mkdir()
    start = "limbeck run kd --data "
    odd = [r"a\$\(touch\ bad\).csv", r"a\ b.py", r"a\ dir/", r"a\'q\".npz"]
    assert sorted(in_bash(home, f"{start}a")) == sorted(odd)
    assert set(in_bash(home, start)) == {"hf:", "sklearn:", *odd, "näher.py"}
    assert in_bash(home, f"{start}.h") == [".hidden"]
    assert in_bash(home, rf"{start}a\ b", *start.split(), r"a\ b") == [r"a\ b.py"]
    assert in_bash(home, f"{start}'a b", *start.split(), "'a b") == ["a b.py"]  # in its quote
    assert in_bash(home, f"{start}~/zs", *start.split(), "~/zs") == ["~/zsh"]
    assert not Path("bad").exists()


@pytest.mark.parametrize("typed", ["$(touch bad)", "`touch bad`", "';touch bad;'", "a\\", "*"])
def test_what_is_typed_is_never_run(home: Path, typed: str) -> None:
    in_bash(home, f"limbeck run {typed}", "limbeck", "run", typed)
    in_bash(home, f"limbeck {typed} --t", "limbeck", typed, "--t")
    assert not Path("bad").exists()


def test_nonsense_offers_nothing(home: Path) -> None:
    assert in_bash(home, "limbeck rnu ") == []
    assert in_bash(home, "limbeck run no_such_method --tau") == []
    Path("broken.py").write_text("CARD = Card(\n    key=f(),\n)\n")
    assert in_bash(home, "limbeck run broken.py --world") == ["--world"]


def typed(argv: list[str], keys: list[bytes], end: bytes) -> str:
    """What a shell on a terminal says to keys, each sent when the screen has been still a while."""
    pid, fd = pty.fork()
    if not pid:
        os.environ |= {"TERM": "dumb", "PS1": "> ", "INPUTRC": os.devnull}
        os.execv(argv[0], argv)
    said, until, due = b"", time.monotonic() + 20, time.monotonic() + 1
    while time.monotonic() < until and end not in said:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                said += os.read(fd, 65536)
            except OSError:
                break
            due = time.monotonic() + 0.6
        elif keys and time.monotonic() > due:
            os.write(fd, keys.pop(0))
            due = time.monotonic() + 0.6
    os.close(fd)
    os.waitpid(pid, 0)
    return said.decode()


@pytest.mark.slow
def test_bash_completes_a_line_that_is_typed(home: Path) -> None:
    Path("a b.csv").write_text("x")
    keys = [
        f"source {home}/bash; limbeck() {{ [ $1 = completion ] || printf '<%s>' \"$@\"; "
        f'[ $1 = run ] || {home}/bin/limbeck "$@"; }}\n'.encode(),
        b"limbeck ru\t", b"fitn\t", b"--world=di\t", b"--data a\t", b"; echo en''d\n",
    ]  # fmt: skip
    said = typed([shell("bash"), "--norc", "--noprofile", "-i"], keys, b"end\r\n")
    assert "<run><fitnets><--world=digits><--data><a b.csv>" in said, said


# -- zsh and fish ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_zsh_completes_a_line_that_is_typed(home: Path) -> None:
    keys = [
        b"autoload -Uz compinit; compinit -u; source " + str(home / "zsh").encode() + b"\n",
        b"limbeck ru\t", b"fitn\t", b"--world\t", b"di\t", b"--da\t", b"sk\t", b"; echo en''d\n",
    ]  # fmt: skip
    command = home / "bin" / "limbeck"
    text = command.read_text().replace("exec", '[ "$1" != run ] || exec printf "<%s>" "$@"\nexec')
    command.write_text(text.replace("\nPYTHON", "\nexport PYTHON").replace(" [", "\n["))
    said = typed([shell("zsh"), "-f", "-i"], keys, b"end\r\n")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]", "", said)
    assert "<run><fitnets><--world><digits><--data><sklearn:>" in plain, plain


def test_fish_offers_the_same_words(home: Path) -> None:
    def in_fish(line: str) -> list[str]:
        code = f"source {home}/fish; complete -C {line!r}"
        got = subprocess.run([shell("fish"), "-c", code], capture_output=True, text=True)
        return [word.partition("\t")[0] for word in got.stdout.splitlines()]

    assert set(in_fish("limbeck ")) == {*COMMANDS}
    assert in_fish("limbeck run fitn") == ["fitnets"]
    assert in_fish("limbeck run kd --world=di") == ["--world=digits"]
    assert "--tau" in in_fish("limbeck run kd --t")
    Path("my task.py").write_text("def make(): ...")
    assert "my task.py" in in_fish("limbeck run kd --task my")


# -- the command -----------------------------------------------------------------------------------


def test_every_commands_own_flags_are_offered(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main(["completion", "--words", "list", command, "--"]) == 0
        kind, *lines = capsys.readouterr().out.splitlines()
        offered = [line.partition("\t")[0] for line in lines]
        assert main([command, "--help"]) == 0
        assert kind == "words"
        assert offered == re.findall(
            r"^  (?:-h, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE
        ), command


def test_asking_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys, time; from limbeck.cli import main; "
        "main(['completion', '--words', 'bash', 'limbeck run kd --t', '--t']); "
        'sys.exit(f\'{time.process_time()} {"torch" in sys.modules or "rich" in sys.modules}\')'
    )
    tries = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        for _ in range(3)
    ]
    assert all("--tau" in one.stdout.split() for one in tries)
    seconds = [float(one.stderr.split()[0]) for one in tries]
    assert {one.stderr.split()[1] for one in tries} == {"False"}
    assert min(seconds) < 0.3  # 0.06 on an ordinary machine


def test_a_shell_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: SHELL is 'tcsh'; give one of: ")
    assert "bash" in said
    assert said.count("\n") == 1
