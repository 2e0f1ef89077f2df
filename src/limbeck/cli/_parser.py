"""An argument parser whose mistakes are sentences with the nearest names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from limbeck.errors import Missing, UsageError, nearest

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """The parser of one command.

    Args:
        command: the command's name.
        about: what it does, for `--help`.
        examples: lines of example, for the end of `--help`.
        more: what `--help` says after the options, before the examples.
    """

    def __init__(self, command: str, about: str, examples: Sequence[str], more: str = "") -> None:
        shown = "examples:\n" + "\n".join(f"  {line}" for line in examples)
        super().__init__(
            prog=f"limbeck {command}",
            description=about,
            epilog=f"{more}\n\n{shown}" if more else shown,
            formatter_class=argparse.RawDescriptionHelpFormatter,
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
                known = [name for name in self._option_string_actions if name.startswith("--")]
                raise Missing(f"'{self.prog}' has no option {option!r}{nearest(option, known)}")
        result, extra = self.parse_known_args(words, namespace)
        if extra:
            self.error(f"it does not take {' '.join(extra)!r}")
        return result

    def error(self, message: str) -> NoReturn:
        """Raise the parser's complaint as a sentence, instead of ending the program."""
        raise UsageError(f"'{self.prog}': {message}; see '{self.prog} --help'")
