"""What limbeck raises when something it was given cannot work.

Each error is one sentence: what was asked, what is there, what to do. The command line prints it
and exits with code 2; a traceback is left for limbeck's own mistakes.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Missing", "NonFinite", "UsageError", "nearest"]

_SHOWN = 12


class UsageError(ValueError):
    """Something given cannot work; the message says what, what is there and what to do."""


class Missing(UsageError, LookupError):
    """Something asked for by name is not there: a view entry, a field, a key, a tap, a file."""


class NonFinite(UsageError, ArithmeticError):
    """A number turned infinite or not-a-number."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Give the tail of a sentence about an unknown name: the likely ones, or all there are.

    Args:
        name: what was asked for.
        names: what there is.

    Example:
        >>> "no method is called 'dk'" + nearest("dk", ["kd", "crd"])
        "no method is called 'dk'; did you mean 'kd'?"
        >>> "no method is called 'x'" + nearest("x", ["kd", "crd"])
        "no method is called 'x'; the choices are: kd, crd"
    """
    from difflib import SequenceMatcher

    known = list(dict.fromkeys(str(n) for n in names))
    if not known:
        return "; there are none"

    def likeness(other: str) -> float:
        a, b = str(name).lower(), other.lower()
        if sorted(a) == sorted(b):  # swapped letters, the commonest slip in short keys
            return 0.9
        return SequenceMatcher(None, a, b).ratio()

    scored = sorted(((likeness(n), n) for n in known), key=lambda pair: -pair[0])
    near = [repr(n) for score, n in scored if score >= max(0.6, scored[0][0] - 0.15)][:3]
    if near:
        *first, last = near
        return f"; did you mean {', '.join(first)}{' or ' if first else ''}{last}?"
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f"; the choices are: {', '.join(known[:_SHOWN])}{more}"
