"""The command `completion`: a script for a shell, and the answers that the script asks for.

The script asks `limbeck completion --words`, which reads parsers and the text of methods; what is
typed is never run, and torch is never imported.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from contextlib import suppress

from limbeck.cli._lines import complete
from limbeck.cli._offers import Choice, paths
from limbeck.cli._parser import Parser
from limbeck.cli._shells import SCRIPTS
from limbeck.errors import UsageError

__all__ = ["completion"]

_ABOUT = """\
Print a script that completes limbeck's words in your shell: commands, methods and their fields,
rooms, worlds and files. The shell reads it when it starts:"""
_HOW = """\
  bash   echo 'eval "$(limbeck completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(limbeck completion zsh)"' >> ~/.zshrc    (after compinit)
  fish   limbeck completion fish > ~/.config/fish/completions/limbeck.fish"""


def completion(argv: list[str]) -> int:
    """Print a shell's script, or what may come next on a line."""
    if argv[:1] == ["--words"]:
        return _answer(argv[1:])
    about, shells = f"{_ABOUT}\n\n{_HOW}", tuple(SCRIPTS)
    parser = Parser("completion", about, ("limbeck completion bash",), usage="SHELL")
    parser.add_argument("shell", choices=shells, metavar="SHELL", help=", ".join(shells))
    print(SCRIPTS[parser.parse_args(argv).shell], end="")
    return 0


def _answer(asked: list[str]) -> int:
    """Print what may come next, one word a line.

    Args:
        asked: "bash", the text of a line up to the cursor, and the end of it that bash takes for
            the unfinished word; or "list" and the words after `limbeck`, the last one unfinished.
            The answer to "list" has what words mean behind a tab, and a first line that says
            whether files may come, which zsh and fish name themselves.
    """
    choice, now, end = Choice({}), "", ""
    with suppress(UsageError, OSError):  # a card that cannot be read: there is nothing to offer
        if asked[:1] == ["list"]:
            choice = complete(asked[1:])
        elif asked[:1] == ["bash"] and len(asked) == 3:
            (*before, now), _ = _split(asked[1])
            (*_, end), quote = _split(f"limbeck {asked[2]}")
            choice = complete([*before, now])
            files = dict.fromkeys(paths(now), "") if choice.files else {}
            words = _for_bash([*choice.words, *files], now, end, quote)
            print("\n".join(words), end="\n" if words else "")
            return 0
    print("files" if choice.files else "words")
    for word, about in choice.words.items():
        print(f"{word}\t{about}" if about else word)
    return 0


def _split(line: str) -> tuple[list[str], str]:
    """The words of a line after `limbeck`, quotes taken off, and the quote that is still open.

    The last word is unfinished, perhaps empty.
    """
    for quote in ("", "'", '"'):
        with suppress(ValueError):
            words = shlex.split(f"{line}\0{quote}")
            return [*words[1:-1], words[-1].removesuffix("\0")], quote
    return [""], ""


def _for_bash(words: Iterable[str], now: str, end: str, quote: str) -> list[str]:
    """The words as bash wants them: only what it replaces, and with odd signs escaped.

    Args:
        words: begin with `now`.
        now: the unfinished word.
        end: what bash takes for it: what follows the last of its breaks, such as ":" and "=", or
            such a break.
        quote: the quote in which it stands.
    """
    cut = 0 if not now.endswith(end) else len(now) - len(end)
    if end and not end.strip(":="):
        cut = len(now)
    kept = (word[cut:] for word in words)
    return [word if quote else re.sub(r"([^\w@%+=:,./~-])", r"\\\1", word) for word in kept]
