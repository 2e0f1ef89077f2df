"""An argument parser whose mistakes are sentences with the nearest names."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from limbeck.errors import Missing, UsageError, nearest

__all__ = ["Parser"]


_WIDTH = 80


class _Format(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(_WIDTH, shutil.get_terminal_size().columns) - 2)


def _filled(text: str) -> str:
    """Each paragraph in lines of 80 columns; one with indented lines stays as it is."""
    parts = text.split("\n\n")
    return "\n\n".join(p if "\n  " in f"\n{p}" else textwrap.fill(p, _WIDTH) for p in parts)


def _example(command: str) -> str:
    """A command as a shell takes it, over several lines where one is too short for it."""
    whole = re.sub(r"(--\S+) (?=[^- ])", "\\1\0", command)  # an option and its value stay together
    lines = textwrap.wrap(whole, _WIDTH - 2, initial_indent="  ", subsequent_indent="      ",
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return " \\\n".join(lines).replace("\0", " ")


class Parser(argparse.ArgumentParser):
    """The parser of one command; its `--help` keeps to 80 columns.

    Args:
        command: the command's name.
        about: what it does, for `--help`.
        examples: lines of example, for the end of `--help`.
        more: what `--help` says after the options, before the examples.
        usage: the words after the command that its usage shows; all its options where empty.
    """

    def __init__(
        self, command: str, about: str, examples: Sequence[str], more: str = "", usage: str = ""
    ) -> None:
        shown = "\n".join(["examples:", *map(_example, examples)])
        super().__init__(
            prog=f"limbeck {command}",
            usage=f"limbeck {command} {usage}" if usage else None,
            description=_filled(about),
            epilog=f"{_filled(more)}\n\n{shown}" if more else shown,
            formatter_class=_Format,
            allow_abbrev=False,
        )

    def parse_args(  # type: ignore[override]  # the overloads of argparse say no more than this
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Read the words of a command.

        Raises:
            Missing: for an unknown option.
            UsageError: for anything else that does not fit.
        """
        words = list(sys.argv[1:] if args is None else args)
        # First of all, since argparse would rather complain of what is then missing.
        for word in words[: words.index("--") if "--" in words else None]:
            option = word.partition("=")[0]
            if word.startswith("--") and option not in self._option_string_actions:
                raise Missing(f"'{self.prog}' has no option {option!r}{self._instead_of(option)}")
        result, extra = self.parse_known_args(words, namespace)
        if extra:
            self.error(f"it does not take {' '.join(extra)!r}")
        return result

    def _instead_of(self, option: str) -> str:
        """The tail of a sentence on an unknown option: those like it, or the method's fields."""
        known = {name[2:]: a for name, a in self._option_string_actions.items() if name[2:]}
        told = nearest(option[2:], known)  # without the dashes, which make all options alike
        if told.startswith("; did you mean"):
            return told.replace(" '", " '--")
        own = [f"--{name}" for name, a in known.items() if a.dest.startswith("field_")]
        if own:
            return (
                f"; the method's own are: {', '.join(own)}; for the rest see '{self.prog} --help'"
            )
        return f"; see '{self.prog} --help'"

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """The value of a flag's word; argparse says `invalid int value` of one that is none."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            what = _KINDS.get(action.type, "another value")
            raise UsageError(f"{_name(action)} is '{arg_string}'; it must be {what}") from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            there = ", ".join(map(str, action.choices))
            raise UsageError(f"{_name(action)} is '{value}'; give one of: {there}")

    def error(self, message: str) -> NoReturn:
        """Raise the parser's complaint as a sentence, instead of ending the program."""
        see = f"see '{self.prog} --help'"
        names, _, fault = message.removeprefix("argument ").partition(": ")
        name = names.rpartition("/")[2]  # of -h/--help the longer one
        if fault.startswith("expected"):  # `one argument`, `at least one argument`
            told = self._option_string_actions[name].metavar
            raise UsageError(f"{name} has no value; write {name} {told}, or {see}")
        if fault.startswith("ignored explicit argument"):
            raise UsageError(f"{name} takes no value; leave out the one given, {fault[26:]}")
        if name.endswith("are required"):
            raise UsageError(f"{fault.replace(', ', ' and ')} must be given; {see}")
        raise UsageError(f"'{self.prog}': {message}; {see}")


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number"}


def _name(action: argparse.Action) -> str:
    """What a user calls an option, or a place."""
    return action.option_strings[-1] if action.option_strings else str(action.metavar)
