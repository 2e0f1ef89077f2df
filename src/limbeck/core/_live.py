"""The live view of a run on a terminal.

What has ended is printed once and stays: a line for each fit, indented as the stages nest. Below it
a few lines that are drawn again show the fit that goes on. Between two fits nothing is drawn, so
whatever else is printed then, or after a crash, finds the terminal as it was.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from limbeck.core.progress import Groups, Tick, Watched
from limbeck.core.times import seconds_said

EVERY = 0.1
"""Seconds between two drawings, at least."""

SHARE = 50
"""A drawing comes so many times its own cost after the last one: 2 % of the time at most."""

_MOST = 8  # terms that are shown
_SIGNS = {True: ("✓", "✗", "━", "─", "▁▂▃▄▅▆▇█"), False: ("ok", "x", "=", "-", "")}
_WHEEL = {True: "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", False: "|/-\\"}


def terminal() -> Console | None:
    """A console on stderr; None where that is no terminal, or one that cannot be drawn on."""
    console = Console(stderr=True, highlight=False)
    drawable = console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter
    return console if drawable else None


class View:
    """Draws the fits of a run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.plain = not console.encoding.lower().startswith("utf")
        self.fits: list[Watched] = []  # that go on; more than one where a fit is inside another
        self.groups = Groups()
        self.above: list[str] = []  # the stages whose names stand above
        self.live: Live | None = None
        self.column = 14  # the width of names, which may grow

    def begin(self, fit: Watched) -> Tick:
        """Say where the fit is, and draw it."""
        if (said := self.groups.enter(fit.name)) is not None:
            self._ended(said)
        if not self.groups.many:
            self._stand_under(fit.name.split("/")[:-1])
        self.fits.append(fit)
        if self.live is None:
            self.live = Live(
                get_renderable=self._region,
                console=self.console,
                auto_refresh=False,
                transient=True,
                # What goes elsewhere must not come here.
                redirect_stdout=sys.stdout.isatty(),
            )
            self.live.start()
            self.console.show_cursor(True)  # a kill could not bring it back
        clock, due = time.monotonic, 0.0

        def tick(done: int, row: Mapping[str, float] | None) -> None:
            nonlocal due
            fit.done = done
            if row is not None:
                fit.rows.append(row)
            now = clock()
            if now >= due:
                self._draw()
                due = now + max(EVERY, SHARE * (clock() - now))

        return tick

    def end(self, fit: Watched, whole: bool) -> None:
        """Take the drawing away, and print the line that stays."""
        self.fits.remove(fit)
        if not self.fits and self.live is not None:
            self.live.stop()
            self.live = None
        now = time.monotonic()
        line = self._last(fit, now, whole)  # placed as where it began
        if self.groups.leave(fit, now) or not whole:
            self._line(line)

    def score(self, fit: Watched) -> None:
        """It is drawn with the next step."""

    def say(self, sentence: str) -> None:
        """Print a sentence, above what is drawn."""
        self.console.print(Text(sentence))

    def close(self) -> None:
        """Say what the last group came to."""
        if (said := self.groups.enter("")) is not None:
            self._ended(said)

    # -- lines that stay --------------------------------------------------------------------------

    def _stand_under(self, parents: list[str]) -> None:
        """Print the names of stages that a fit lies in, where they do not stand already."""
        same = 0
        while same < min(len(parents), len(self.above)) and parents[same] == self.above[same]:
            same += 1
        for depth, name in enumerate(parents[same:], same):
            self._line(self._text(f"{'  ' * depth}  {name}", "bold"))
        self.above = parents

    def _ended(self, said: str) -> None:
        name, _, rest = said.partition(": ")
        self._line(self._named(_SIGNS[not self.plain][0], "green", "", name).append(rest, "dim"))

    def _last(self, fit: Watched, now: float, whole: bool) -> Text:
        """What stays of a fit."""
        tick, cross, *_ = _SIGNS[not self.plain]
        sign, colour = (tick, "green") if whole else (cross, "red")
        line = self._named(sign, colour, *self._place(fit))
        line.append(fit.steps_said() if whole else f"stopped at {fit.done:,} of {fit.steps:,}")
        if not fit.before:
            line.append(f"  {seconds_said(now - fit.began)}{fit.from_said()}", "dim")
        for word in fit.terms_said() if whole else ():
            name, _, value = word.rpartition(" ")
            line.append(f"  {name} ", "dim").append(value)
        for word in fit.best_said():
            line.append(f"  {word.removesuffix(' on valid')}", "green")
        return line

    def _place(self, fit: Watched) -> tuple[str, str]:
        """How far in a fit stands, and its name there."""
        parts = fit.name.split("/")
        return ("", fit.name) if self.groups.many else ("  " * (len(parts) - 1), parts[-1])

    def _named(self, sign: str, colour: str, indent: str, name: str) -> Text:
        """The beginning of a fit's line: in a column on a wide terminal, short on a narrow one."""
        most = max(8, self.console.width // 3)
        if len(name) > most:
            name = f"{name[: most - 1]}{'~' if self.plain else '…'}"
        self.column = max(self.column, min(28, len(indent) + len(name)))
        pad = self.column - len(indent) - len(name) if self.console.width >= 60 else 0
        line = self._text(indent)
        return line.append(f"{sign} ", colour).append(name, "bold").append(f"{' ' * pad}  ")

    def _text(self, text: str, style: str = "") -> Text:
        """A text for one line, which is cut where the terminal ends."""
        return Text(text, style, no_wrap=True, overflow="crop" if self.plain else "ellipsis")

    def _line(self, line: Text) -> None:
        self.console.print(line, no_wrap=True, overflow=line.overflow)

    # -- lines that are drawn again ---------------------------------------------------------------

    def _draw(self) -> None:
        if self.live is not None:
            self.live.refresh()

    def _region(self) -> Group:
        now = time.monotonic()
        lines = [self._text(f"  {self.groups.said()}", "dim")] if self.groups.many else []
        for fit in self.fits:
            lines += self._running(fit, now)
        return Group(*lines)

    def _running(self, fit: Watched, now: float) -> Iterator[Text]:
        """The lines of a fit that goes on: how far it is, its terms, and its score on valid."""
        width = self.console.width
        wheel = _WHEEL[not self.plain]
        indent, name = self._place(fit)
        line = self._named(wheel[int(now / EVERY) % len(wheel)], "cyan", indent, name)
        rate = fit.rate(now)
        total = f"{fit.steps:,}"
        after = Text(f"  {fit.done:,}".rjust(len(total) + 2) + f"/{total}")
        if rate and width >= 60:
            after.append(f"  {_rate(rate)}", "dim")
        if (left := fit.left(rate)) is not None:
            after.append(f"  {seconds_said(left)}" + " left" * (width >= 60), "cyan")
        room = min(30, width - line.cell_len - after.cell_len - 1)
        line.append_text(self._bar(fit.done / fit.steps, room)).append_text(after)
        yield line
        yield from self._terms(fit, f"{indent}    ", width)
        if fit.valid is not None:
            score, value, best = fit.valid
            told = self._text(f"{indent}    ").append(f"{score} on valid ", "dim")
            yield told.append(f"{value:.4g}").append(f"  best {best:.4g}", "green")

    def _bar(self, share: float, room: int) -> Text:
        _, _, full, rest, _ = _SIGNS[not self.plain]
        if room < 6:
            return Text(f"{share:4.0%}")
        filled = int(share * room)
        return Text(full * filled, "cyan").append(rest * (room - filled), "dim")

    def _terms(self, fit: Watched, indent: str, width: int) -> Iterator[Text]:
        """A line for each term: its value, and its way so far."""
        terms = fit.rows[-1] if fit.rows else {}
        column = min(24, width // 3, max(map(len, terms), default=0))
        for name in list(terms)[:_MOST]:
            line = self._text(indent).append(f"{name[:column]:<{column}}  ", "dim")
            line.append(f"{terms[name]:<11.4g}")
            room = min(30, width - line.cell_len - 1)
            way = [row[name] for row in fit.rows if name in row]
            yield line.append(spark(way, room, _SIGNS[not self.plain][4]), "cyan")
        if len(terms) > _MOST:
            yield Text(f"{indent}and {len(terms) - _MOST} more", "dim")


def spark(values: list[float], room: int, levels: str) -> str:
    """A line of small columns, at most so many: each the mean of a stretch of values.

    Their heights are by logarithm where all values are positive, as losses fall by factors.
    """
    if not levels or room < 6 or len(values) < 2:
        return ""
    count = min(room, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    if min(means) > 0:
        means = [math.log(v) for v in means]
    low, high = min(means), max(means)
    top = len(levels) - 1
    return "".join(
        levels[round(top * (v - low) / (high - low)) if high > low else 0] for v in means
    )


def _rate(rate: float) -> str:
    if rate < 1:
        return f"{seconds_said(1 / rate)} a step"
    return f"{rate:,.0f} steps/s" if rate > 99.5 else f"{rate:.1f} steps/s"
