"""Addresses of servers, which a run's files show: no secret may lie in them. No torch."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from limbeck.errors import UsageError

__all__ = ["KEY", "OPENAI_KEY", "check_address", "check_query"]

KEY = "LIMBECK_API_KEY"
"""The environment variable whose value is sent to a served teacher as a bearer token."""
OPENAI_KEY = "OPENAI_API_KEY"
"""The same for a language model behind an OpenAI-compatible server."""

_SECRET = ("key", "token", "secret", "password", "auth")


def check_address(url: str, variable: str = KEY) -> None:
    """Refuse what is no address of a server, or one with a password in it.

    Args:
        url: the address.
        variable: the environment variable that a token belongs into.

    Raises:
        UsageError: it is so; the password is not repeated.
    """
    try:
        parts = urlsplit(url)
        told = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        told = False
    if not told or parts.scheme not in ("http", "https") or not re.fullmatch("[!-~]+", url):
        raise UsageError(
            f"'{url.rpartition('@')[2]}' is no address of a server; write it as "
            "https://host/predict, in ASCII and without blanks"
        )
    if parts.username or parts.password:
        raise UsageError(
            f"the address of the teacher on {parts.hostname} holds a name or password; leave it "
            f"out and put a token into the variable {variable}"
        )


def check_query(url: str, variable: str = KEY) -> None:
    """Refuse a secret among the fields of an address, which a run's files hold.

    Raises:
        UsageError: a field's name says that it is one.
    """
    parts = urlsplit(url)
    for field in re.split("[&;]", parts.query):
        name = field.partition("=")[0]
        if any(secret in name.lower() for secret in _SECRET):
            raise UsageError(
                f"the address of the teacher on {parts.hostname} has the field '{name}', and a "
                f"run's files show addresses; leave it out and put the secret into the variable "
                f"{variable}, which is sent as a bearer token"
            )
