"""What is shown of a run: sentences, JSON lines, and the live view as a terminal shows it."""

import io
import json
import math
import re
import time
from collections.abc import Callable

import pytest
import torch
from rich.console import Console

from limbeck.core import _live, processes
from limbeck.core import progress as progress_module
from limbeck.core.engine import fit
from limbeck.core.objectives import Labels
from limbeck.core.progress import TOLD, Progress, Watched
from limbeck.core.run import Run
from limbeck.core.task import Budget, Task
from limbeck.core.teachers import Nobody
from limbeck.core.times import seconds_said
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("progress")


@pytest.fixture(autouse=True)
def _no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


Terminal = Callable[..., tuple[Progress, io.StringIO]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Gives progress on a terminal of some width, and what is written to it."""

    def make(width: int = 80, encoding: str = "utf-8") -> tuple[Progress, io.StringIO]:
        file = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True, errors="replace")
        console = Console(file=file, force_terminal=True, width=width, height=30, highlight=False)
        monkeypatch.setattr(_live, "terminal", lambda: console)
        return Progress("bar"), file.buffer  # type: ignore[return-value]

    return make


def screen(raw: io.StringIO, width: int = 80) -> list[str]:
    """What stands on a terminal after this was written: a small one, which knows what is used."""
    lines, row, column = [""], 0, 0
    text = raw.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]
    for sign in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.|\n", text, re.DOTALL):
        if sign == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif sign == "\r":
            column = 0
        elif sign.endswith("A") and len(sign) > 1:
            row -= int(sign[2:-1] or 1)
            assert row >= 0
        elif sign == "\x1b[2K":
            lines[row] = ""
        elif not sign.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + sign + lines[row][column + 1 :]
            column += 1
            assert column <= width, f"wider than the terminal: {lines[row]!r}"
    return "\n".join(line.rstrip() for line in lines).rstrip().splitlines()


def fits(show: Progress, clock: Clock, name: str, steps: int = 4, **more: float) -> None:
    with show(name, steps, 0) as tick:
        for done in range(1, steps + 1):
            clock.now += 0.5
            tick(done, {"label": 1 / done, "kd": 2.0 / done})
        for score, value in more.items():
            show.score(name, score, value, value)


# -- text ------------------------------------------------------------------------------------------


def test_text_says_one_line_for_a_fit(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    show = Progress("text")
    show.say("a sentence")
    fits(show, clock, "teacher", accuracy=0.91234)
    with show("baseline", 40, 40):
        pass
    with show("fit", 1000, 0) as tick:  # patience ends it
        clock.now += 205
        tick(900, None)
    out = capsys.readouterr()
    assert not out.out
    assert out.err.splitlines() == [
        "a sentence",
        "teacher: 4 steps in 2.0 s; label 0.25, kd 0.5; best accuracy 0.9123 on valid",
        "baseline: done before",
        "fit: 900 of 1,000 steps in 3:25 min",
    ]


def test_text_is_quiet_where_ci_is_set(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    show = Progress("text")
    show.say("a sentence")
    fits(show, clock, "fit")
    assert capsys.readouterr().err == "a sentence\n"
    monkeypatch.setenv("CI", "false")
    fits(Progress("text"), clock, "fit")
    assert capsys.readouterr().err.startswith("fit: 4 steps")


def test_text_of_a_fit_that_fails_leaves_the_word_to_the_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show = Progress("text")
    failing = show("fit", 4, 0)
    failing.__enter__()(1, {"label": 1.0})
    assert not failing.__exit__(KeyError, KeyError(), None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["text", "bar"])
def test_many_fits_of_a_group_are_told_once(
    kind: str, clock: Clock, capsys: pytest.CaptureFixture[str], terminal: Terminal
) -> None:
    show, raw = terminal() if kind == "bar" else (Progress("text"), None)
    for i in range(TOLD + 5):
        fits(show, clock, f"rounds/{i}/client")
    fits(show, clock, "fit")
    for i in range(3):
        fits(show, clock, f"late/{i}")
    show.close()
    lines = screen(raw) if raw is not None else capsys.readouterr().err.splitlines()
    told = [line for line in lines if "steps" in line]
    assert len(told) == TOLD + 1 + 3
    counted = [line for line in lines if f"{TOLD + 5} fits" in line]
    assert len(counted) == 1
    assert "rounds" in counted[0]
    assert counted[0].endswith("25 fits in 50 s")
    assert lines.index(counted[0]) < lines.index(next(line for line in told if "fit" in line[:6]))


# -- json ------------------------------------------------------------------------------------------


def test_json_is_one_object_a_logged_step(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    show = Progress("json")
    show.say('a "sentence"')
    with show("rounds/3/client", 100, 20) as tick:
        clock.now += 2
        tick(30, {"label": 0.5, "kd": math.inf})
        tick(31, None)
        show.score("rounds/3/client", "accuracy", 0.5, 0.75)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    where = {"stage": "rounds/3/client", "steps": 100}
    assert lines == [
        {"note": 'a "sentence"'},
        {**where, "step": 30, "terms": {"label": 0.5, "kd": None}, "rate": 5.0, "seconds_left": 14},
        {**where, "step": 31, "valid": {"accuracy": 0.5}, "best": 0.75},
    ]


def test_a_fit_tells_what_its_log_says(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = torch.randn(24, 6), torch.arange(24) % 3
    student = torch.nn.Linear(6, 3)
    budget = Budget(steps=6, batch=24, evaluate=3)
    task = Task(None, student, (x, y), valid=(x, y), budget=budget)
    with Run(task, progress=Progress("json")):
        log = fit(Labels(), student, Nobody(), task.batches(), name="fit").log
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    terms = [row["terms"] for row in log if "terms" in row]
    valid = [row["valid"] for row in log if "valid" in row]
    assert len(terms) == 6
    assert len(valid) == 2
    assert [line["terms"] for line in lines if "terms" in line] == terms
    assert [line["valid"] for line in lines if "valid" in line] == valid
    assert [line["step"] for line in lines if "valid" in line] == [3, 6]
    assert lines[-1]["best"] == max(v["accuracy"] for v in valid)


# -- the live view ---------------------------------------------------------------------------------


def test_stages_stand_as_a_tree(terminal: Terminal, clock: Clock) -> None:
    show, raw = terminal(100)
    fits(show, clock, "teacher", accuracy=0.91)
    for i in range(2):
        fits(show, clock, f"rounds/{i}/client")
        fits(show, clock, f"rounds/{i}/server")
    with show("baseline", 4, 4):
        pass
    show.close()
    steps = "4 steps  2.0 s  label 0.25  kd 0.5"
    assert screen(raw, 100) == [
        f"✓ teacher         {steps}  best accuracy 0.91",
        "  rounds",
        "    0",
        f"    ✓ client      {steps}",
        f"    ✓ server      {steps}",
        "    1",
        f"    ✓ client      {steps}",
        f"    ✓ server      {steps}",
        "✓ baseline        done before",
    ]


def test_a_running_fit_shows_how_far_it_is(terminal: Terminal, clock: Clock) -> None:
    show, raw = terminal()
    with show("fit", 1000, 0) as tick:
        for done in (100, 200, 300, 400, 500):
            clock.now += 10
            show.score("fit", "accuracy", 0.5, 0.75)
            tick(done, {"label": 100.0 / done, "kd": 3.0})
        shown = screen(raw)
    bar, label, kd, valid = shown
    assert re.fullmatch(r"\S fit {13}━+─+    500/1,000  10\.0 steps/s  50 s left", bar), bar
    assert abs(bar.count("━") - bar.count("─")) <= 1  # half way
    assert label.split() == ["label", "0.2", "█▅▃▂▁"]
    assert kd.split() == ["kd", "3", "▁▁▁▁▁"]
    assert valid.split() == ["accuracy", "on", "valid", "0.5", "best", "0.75"]
    (stays,) = screen(raw)
    assert (
        stays == "✓ fit             500 of 1,000 steps  50 s  label 0.2  kd 3  best accuracy 0.75"
    )


@pytest.mark.parametrize("width", [40, 24])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_narrow_and_plain_terminals(
    terminal: Terminal, clock: Clock, width: int, encoding: str
) -> None:
    show, raw = terminal(width, encoding)
    name = "rounds/12/a_client_with_a_long_name"
    with show(name, 100000, 0) as tick:
        for done in range(0, 100000, 5000):
            clock.now += 1
            tick(done, {"a_term_with_a_very_long_name": 1.0 + done, "kd": -1e-9})
            show.score(name, "balanced accuracy", 0.5, 0.5)
            lines = screen(raw, width)  # asserts that nothing is wider
    assert len(lines) == 2 + 4
    screen(raw, width)
    if encoding == "ascii":
        assert raw.getvalue().isascii()  # type: ignore[attr-defined]
    assert re.match(r"    (ok|✓) a_(client|clie)", screen(raw, width)[-1])


def test_it_is_drawn_ten_times_a_second_at_most(terminal: Terminal, clock: Clock) -> None:
    show, raw = terminal()
    with show("fit", 100000, 0) as tick:
        for done in range(10000):
            clock.now += 0.001
            tick(done, None)
        drawn = raw.getvalue().count(b"/100,000")  # type: ignore[arg-type]
    assert 50 <= drawn <= 101
    assert drawn <= 10 / _live.EVERY + 2


def test_a_drawing_that_is_slow_is_seldom(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, raw = terminal()
    draw = _live.View._region

    def slow(self: _live.View) -> object:
        clock.now += 0.1
        return draw(self)

    monkeypatch.setattr(_live.View, "_region", slow)
    began = clock.now
    with show("fit", 100000, 0) as tick:
        for done in range(10000):
            clock.now += 0.001
            tick(done, None)
        drawn = raw.getvalue().count(b"/100,000")  # type: ignore[arg-type]
    assert drawn * 0.1 < 0.06 * (clock.now - began) + 0.2


def test_a_step_costs_next_to_nothing(terminal: Terminal) -> None:
    show, _ = terminal()
    with show("fit", 10**6, 0) as tick:
        tick(0, None)
        began = time.process_time()
        for done in range(100_000):
            tick(done, None)
        seconds = time.process_time() - began
    assert seconds / 100_000 < 5e-6


def test_sentences_and_prints_stand_above(terminal: Terminal, clock: Clock) -> None:
    show, raw = terminal()
    with show("fit", 10, 0) as tick:
        for done in range(1, 11):
            clock.now += 1
            tick(done, {"label": 1.0})
            if done % 4 == 0:
                show.say(f"sentence {done} [bold]")
    assert [line[:24].rstrip() for line in screen(raw)] == [
        "sentence 4 [bold]", "sentence 8 [bold]", "✓ fit             10 ste",
    ]  # fmt: skip


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_crash_leaves_the_terminal_clean(
    terminal: Terminal, clock: Clock, error: type[BaseException]
) -> None:
    show, raw = terminal()
    failing = show("fit", 10, 0)
    tick = failing.__enter__()
    clock.now += 1
    tick(3, {"label": 1.0})
    assert not failing.__exit__(error, error(), None)
    assert screen(raw) == ["✗ fit             stopped at 3 of 10  1.0 s"]
    written = raw.getvalue().decode()  # type: ignore[attr-defined]
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")  # the cursor is there
    fits(show, clock, "again")
    assert screen(raw)[1].startswith("✓ again")


def test_a_fit_inside_a_fit(terminal: Terminal, clock: Clock) -> None:
    show, raw = terminal()
    with show("outer", 10, 0) as tick:
        clock.now += 1
        tick(1, None)
        fits(show, clock, "inner")
        clock.now += 1
        tick(2, None)
    assert [line[:8].rstrip() for line in screen(raw)] == ["✓ inner", "✓ outer"]


def test_colour_is_left_out_where_it_is_not_wanted(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, raw = terminal()
    fits(show, clock, "fit")
    assert b"\x1b[32m" in raw.getvalue()  # type: ignore[operator]
    monkeypatch.setenv("NO_COLOR", "1")
    show, raw = terminal()
    fits(show, clock, "fit")
    codes = re.findall(rb"\x1b\[([0-9;]*)m", raw.getvalue())  # type: ignore[arg-type]
    assert codes
    assert not {c for code in codes for c in code.split(b";")} & {b"31", b"32", b"36"}


def test_a_bar_without_a_terminal_is_text(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fits(Progress("bar"), clock, "fit")
    assert capsys.readouterr().err == "fit: 4 steps in 2.0 s; label 0.25, kd 0.5\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert _live.terminal() is not None
    monkeypatch.setenv("TERM", "dumb")
    assert _live.terminal() is None


# -- all kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", progress_module.KINDS)
def test_only_the_first_process_shows(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(processes, "rank", lambda: 1)
    show = Progress(kind)
    show.say("a sentence")
    fits(show, clock, "fit", accuracy=0.5)
    show.close()
    assert capsys.readouterr() == ("", "")


def test_an_unknown_kind() -> None:
    with pytest.raises(UsageError, match="no progress 'bra'; did you mean 'bar'"):
        Progress("bra")


def test_the_rate_is_that_of_late(clock: Clock) -> None:
    fit = Watched("fit", 10_000, 0)
    for i in range(200):
        clock.now += 1.0
        fit.done += 1 if i < 100 else 20
        rate = fit.rate(clock.now)
    assert rate == 20  # 1000 steps in the last 50 seconds
    assert fit.left(rate) == (10_000 - 2100) / 20
    assert fit.left(0.0) is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1:00 min"),
        (205, "3:25 min"), (3599.7, "1:00:00 h"), (3723, "1:02:03 h"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds: float, said: str) -> None:
    assert seconds_said(seconds) == said


def test_a_spark_has_the_means_of_stretches() -> None:
    levels = "01234567"
    assert _live.spark([math.exp(v) for v in range(8)], 8, levels) == levels
    assert _live.spark([-3.0, *range(-2, 5)], 8, levels) == levels  # not all positive: as they are
    assert _live.spark([0.0, 2.0] * 4 + [-7.0, -5.0] * 4, 8, levels) == "77770000"
    assert _live.spark([1.0] * 9, 8, levels) == "0" * 8
    assert _live.spark([1.0], 8, levels) == ""
    assert _live.spark([1.0, 2.0], 3, levels) == ""


def test_a_fit_that_goes_on_says_from_where(capsys: pytest.CaptureFixture[str]) -> None:
    """Its seconds are of the rest alone."""
    for start, told in ((0, "10 steps in 0.0 s; "), (4, "10 steps in 0.0 s from step 4 on; ")):
        with Progress("text")("fit", 10, start) as tick:
            tick(10, {"kd": 1.0})
        assert f"fit: {told}kd 1" in capsys.readouterr().err
