"""The command `new`: what it writes is complete but for one formula, and what it refuses."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck._source import read_card
from limbeck.check.hyper import RESERVED
from limbeck.cli import main
from limbeck.cli.making import TAKEN
from limbeck.core.method import Objective

pytestmark = pytest.mark.xdist_group("new")

ROOT = Path(__file__).parents[2]
RAISE = "raise NotImplementedError("
FORMULA = "return tau**2 * ((s / tau).softmax(1) - (t / tau).softmax(1)).square().sum(1).mean()"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clone(here: Path) -> Path:
    """What a clone is known by, a method that is there, and a test of something else."""
    for room in ("vision", "graph"):
        (here / "src" / "limbeck" / room).mkdir(parents=True)
        (here / "src" / "limbeck" / room / "__init__.py").write_text("")
    (here / "src" / "limbeck" / "registry.py").write_text("")
    (here / "tests" / "core").mkdir(parents=True)
    (here / "tests" / "core" / "test_views.py").write_text("")
    shutil.copy(ROOT / "src/limbeck/vision/kd.py", here / "src/limbeck/vision/old.py")
    return here


def filled(path: Path, formula: str = FORMULA) -> Path:
    """The file with its one line replaced."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    (place,) = (i for i, line in enumerate(lines) if RAISE in line)
    lines[place] = f"    {formula}\n"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def pytest_on(test: Path, *paths: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(ROOT / "src")])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=test.parent)


def test_with_its_formula_a_method_passes_the_suite_and_its_test(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "soft_match", "--title", "A “Title”"]) == 0
    said = capsys.readouterr().out
    line = next(
        i for i, text in enumerate(Path("soft_match.py").read_text().splitlines(), 1)
        if RAISE in text
    )  # fmt: skip
    assert f"line {line}," in said
    assert "limbeck check soft_match.py  and  pytest test_soft_match.py" in said
    shutil.copy("soft_match.py", "unfilled.py")  # a file is imported once
    assert main(["check", "unfilled.py", "--only", "runs"]) == 1
    assert "write the formula of soft_match" in capsys.readouterr().out
    filled(here / "soft_match.py")
    assert main(["check", "soft_match.py"]) == 0, capsys.readouterr().out
    done = pytest_on(here / "test_soft_match.py")
    assert "8 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("formula", "fails"),
    [
        ("return (s - t.detach()).square().sum(1).sum()", "mean_of_its_samples"),
        pytest.param(
            "return ((s - t).square() * s.detach()).sum(1).mean()",
            "the_slope",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_test_that_is_written_can_fail(here: Path, formula: str, fails: str) -> None:
    assert main(["new", "mine_kd"]) == 0
    filled(here / "mine_kd.py", formula)
    done = pytest_on(here / "test_mine_kd.py")
    assert done.returncode == 1
    assert fails in done.stdout


def test_in_a_clone_it_goes_into_its_room(
    clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone / "src" / "deep").mkdir()
    monkeypatch.chdir(clone / "src" / "deep")
    assert main(["new", "soft_match", "--room", "graph"]) == 0
    method = filled(clone / "src/limbeck/graph/soft_match.py")
    test = clone / "tests/graph/test_soft_match.py"
    assert "from limbeck.graph.soft_match import soft_match_loss as loss" in test.read_text()
    assert "limbeck check " in capsys.readouterr().out
    # The clone here has no library in it, so the test is run beside the method alone.
    moved = clone / "test_soft_match.py"
    moved.write_text(test.read_text().replace("limbeck.graph.", ""))
    assert "8 passed" in pytest_on(moved, str(method.parent)).stdout


@pytest.mark.parametrize("room", [None, "compress", "language"])
@pytest.mark.parametrize("key", ["k2", "a_key_of_twenty_4_signs"])
def test_what_it_writes_is_in_the_house_style(clone: Path, room: str | None, key: str) -> None:
    title = "On the \\ 'Long' \"Title\" of " + "a Paper " * 18
    if room is None:
        (clone / "src/limbeck/registry.py").unlink()
    assert main(["new", key, "--title", title, *(["--room", room] if room else [])]) == 0
    method = next(clone.rglob(f"{key}.py"))
    files = [str(method), str(next(clone.rglob(f"test_{key}.py")))]
    assert read_card(method).title == title.strip()  # type: ignore[union-attr]
    assert max(len(line) for f in files for line in Path(f).read_text().splitlines()) <= 100
    if (
        ruff := shutil.which("ruff") or shutil.which("ruff", path=Path(sys.executable).parent)
    ) is None:
        pytest.skip("needs ruff")
    config = str(ROOT / "pyproject.toml")
    known = 'lint.isort.known-first-party=["limbeck"]'  # as it is found to be in a clone
    checks = [["check", "--ignore", "D", "--config", known], ["format", "--check", "--diff"]]
    for words in checks if room else checks[1:]:  # elsewhere the order of imports is not ours
        command = [ruff, *words, "--config", config, "--no-cache", *files]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("title", ["'", '"', "'\"", "\\", "a\nb\tc", "}{$key %s", "é 日本", "  "])
def test_any_title_is_a_literal(here: Path, title: str) -> None:
    assert main(["new", "soft_match", "--title", title]) == 0
    card = read_card(here / "soft_match.py")
    assert card is not None
    assert card.title == (" ".join(title.split()) or "Soft match")
    ast.parse(Path("soft_match.py").read_text(encoding="utf-8"))


# -- refusals --------------------------------------------------------------------------------------


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")}
    assert main(["new", *argv]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")} == before
    return said.err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["BornAgain"], "write it in snake_case, as in 'born_again'"),
        (["9-kd"], "as in 'kd'"),
        (["ü"], "as in 'born_again'"),
        (["a__b"], "as in 'a_b'"),
        (["_kd"], "as in 'kd'"),
        (["../kd"], "as in 'kd'"),
        (["class"], "'class' is a word of Python's own"),
        (["teacher"], "'teacher' has another meaning"),
        (["random"], "'random' has another meaning"),
        (["vision"], "'vision' has another meaning"),
        (["x"], "from 2 to 24 letters"),
        (["a" * 25], "from 2 to 24 letters"),
        (["safetensors"], "would hide the package 'safetensors'"),
        (["kd"], "there is a method called 'kd' already, in "),
        (["mine", "--room", "visoin"], "no room 'visoin'; did you mean 'vision'?"),
        ([], "KEY must be given; see 'limbeck new --help'"),
    ],
)
def test_refusals_are_sentences(
    here: Path, argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(argv, capsys)


def test_refusals_in_a_clone(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "name the method's room with --room: vision, " in refused(["mine"], capsys)
    assert "called 'old' already, in src/limbeck/vision/old.py" in refused(
        ["old", "--room", "graph"], capsys
    )
    assert "the name of tests/core/test_views.py" in refused(["views", "--room", "graph"], capsys)


@pytest.mark.parametrize("there", ["mine.py", "test_mine.py"])
def test_a_file_that_is_there_stays(
    here: Path, there: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(there).write_text("precious")
    assert f"{there} is there already" in refused(["mine"], capsys)
    assert Path(there).read_text() == "precious"


def test_a_place_that_cannot_be_written(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def full(self: Path, *args: str, **more: str) -> object:
        if self.name == "test_mine.py":
            raise OSError(30, "Read-only file system")
        return real(self, *args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    said = refused(["mine"], capsys)
    assert "test_mine.py cannot be written (Read-only file system)" in said
    assert list(here.iterdir()) == []  # nothing is left half done


def test_words_that_mean_something_are_taken() -> None:
    hooks = {name for name in dir(Objective) if not name.startswith("_")}
    assert hooks | RESERVED - {"method"} <= TAKEN
