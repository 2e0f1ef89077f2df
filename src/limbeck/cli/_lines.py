"""What may come next on an unfinished line, read off the commands' own parsers; no torch."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from limbeck.cli._offers import WORDS, Choice, names_in
from limbeck.cli._parser import Parser
from limbeck.errors import UsageError

__all__ = ["complete"]

_IN_FILE = re.compile(r"(?P<file>.+\.py):\w*")
_FILES = ("DIR", "FILE", "FOLDER", "FILE.py:FUNCTION")
_GLOBAL = {"--help": "say what there is", "--version": "say which version this is"}


def complete(given: Sequence[str]) -> Choice:
    """What may come next.

    Args:
        given: the words after `limbeck`; the last one is unfinished, perhaps empty.
    """
    from limbeck.cli import COMMANDS

    *before, now = given or [""]
    if before[:1] == ["help"]:
        before = before[1:]
    if not before:
        known = {name: about for name, (_, about) in COMMANDS.items()}
        return _starting(now, Choice({**known, **(_GLOBAL if now.startswith("-") else {})}))
    command, *before = before
    parser = _parser_of(command, ["--help"])
    if parser is None:
        return Choice({})
    return _Line(command, parser, before).next(now)


class _Line:
    """The words of a command that are there: which of its options they give, and what is due."""

    def __init__(self, command: str, parser: Parser, before: Sequence[str]) -> None:
        self.command = command
        self._read(parser, before)
        if self.method:  # its fields are options as well
            asked = ["--method", self.method] if "--method" in self.options else [self.method]
            if command in ("run", "doctor") and (fuller := _parser_of(command, asked)) is not None:
                self._read(fuller, before)

    def _read(self, parser: Parser, before: Sequence[str]) -> None:
        self.options = {o: a for a in parser._actions for o in a.option_strings}
        self.places = [a for a in parser._actions if not a.option_strings]
        self.given: set[str] = set()
        self.method = ""
        self.due: argparse.Action | None = None  # the option whose value comes next
        for word in before:
            name, _, value = word.partition("=")
            if name in self.options and word.startswith("-"):
                self.given.add(name)
                takes = self.options[name].nargs != 0 and "=" not in word
                self.due = self.options[name] if takes else None
                self._note(self.options[name], value)
            elif self.due is not None:
                self._note(self.due, word)
                self.due = self.due if self.due.nargs == "+" else None
            elif self.places:
                self._note(self.places[0], word)
                if self.places[0].nargs not in ("*", "+"):
                    del self.places[0]

    def _note(self, action: argparse.Action, value: str) -> None:
        if action.dest == "method" and value:
            self.method = value

    def next(self, now: str) -> Choice:
        """What may stand where an unfinished word is."""
        name, equals, value = now.partition("=")
        if equals and name in self.options and self.options[name].nargs != 0:
            found = _starting(value, self._values(self.options[name], value))
            told = {f"{name}={word}": about for word, about in found.words.items()}
            return Choice(told, found.files)
        if self.due is not None and not (self.due.nargs == "+" and now.startswith("-")):
            return _starting(now, self._values(self.due, now))
        if now.startswith("-") or not self.places:
            free = {o: a for o, a in self.options.items() if o.startswith("--")}
            told = {o: _about(a) for o, a in free.items() if o not in self.given}
            return _starting(now, Choice(told))
        return _starting(now, self._values(self.places[0], now))

    def _values(self, action: argparse.Action, now: str) -> Choice:
        """What an option or a place takes."""
        if action.choices is not None:
            return Choice({str(choice): "" for choice in action.choices})
        if (found := _IN_FILE.fullmatch(now)) is not None and action.dest != "out":
            names = names_in(Path(found["file"]).expanduser(), action.dest == "task")
            return Choice({f"{found['file']}:{name}": "" for name in names})
        if action.dest in WORDS:
            return WORDS[action.dest](self.command, now)
        if action.dest.startswith("field_"):
            return Choice(dict.fromkeys(self._of_field(action.dest[6:]), ""))
        return Choice({}, files=action.metavar in _FILES)

    def _of_field(self, name: str) -> Iterable[str]:
        from limbeck._source import outline
        from limbeck.registry import find

        kind = next(f.type for f in outline(find(self.method).path).fields if f.name == name)
        if kind == "bool":
            return ("true", "false")
        literal = re.fullmatch(r"(?:\w+\.)?Literal\[(.*)\]", kind, re.DOTALL)
        return map(str, ast.literal_eval(f"({literal.group(1)},)")) if literal else ()


def _starting(now: str, choice: Choice) -> Choice:
    words = {word: about for word, about in choice.words.items() if word.startswith(now)}
    return Choice(words, choice.files)


def _about(action: argparse.Action) -> str:
    return " ".join((action.help or "").replace("%%", "%").split())[:80]


class _Built(Exception):
    """Carries a command's parser out of the command."""

    def __init__(self, parser: Parser) -> None:
        super().__init__()
        self.parser = parser


def _parser_of(command: str, argv: list[str]) -> Parser | None:
    """The parser that a command makes for these words; None where it makes none.

    Every command makes its parser first and then asks it to parse: there it is stopped.
    """
    from limbeck.cli import COMMANDS

    def stop(self: Parser, args: object = None, namespace: object = None) -> NoReturn:
        raise _Built(self)

    if command not in COMMANDS:
        return None
    module, _, function = COMMANDS[command][0].partition(":")
    usual = Parser.parse_args
    Parser.parse_args = stop  # type: ignore[method-assign]
    try:
        getattr(importlib.import_module(module), function)(argv)
    except _Built as built:
        return built.parser
    except (UsageError, ImportError):
        return None
    finally:
        Parser.parse_args = usual  # type: ignore[method-assign]
    return None
