"""Requests to a server: patient, counted, within a budget, and with a token that stays hidden."""

from __future__ import annotations

import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from limbeck.core.sources.addresses import check_address
from limbeck.errors import UsageError

__all__ = ["Post", "Refused"]

_log = logging.getLogger(__name__)

_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # answers after which a server may be asked again
_BROKEN = (OSError, ValueError, http.client.HTTPException)
_READ = 4000  # bytes of what is no answer that are looked at
_LONGEST = 60.0  # seconds between two attempts, whatever the server says


class Refused(UsageError):
    """A server answered that it will not; `code` is its HTTP status."""

    code = 0


class Post:
    """The way to one server.

    Args:
        url: of all requests, or what the paths of some begin with.
        variable: the environment variable whose value is sent as a bearer token.
        timeout: seconds for one request.
        retries: further attempts after a failure that may pass, with growing pauses.
        requests: requests at most, attempts that fail with them; None for no limit.

    Attributes:
        asked: requests so far.
        shown: the address for sentences, without what may be secret in it.

    Raises:
        UsageError: the address is none, or has a password in it.
    """

    def __init__(
        self, url: str, variable: str, timeout: float, retries: int, requests: int | None
    ) -> None:
        check_address(url, variable)
        self.url, self.variable = url, variable
        self.timeout, self.retries, self.left = timeout, retries, requests
        self.asked = 0
        self.shown = urlsplit(url)._replace(query="", fragment="").geturl()

    def send(self, body: bytes | None, path: str = "") -> bytes:
        """One request, repeated where a failure may pass.

        Args:
            body: JSON; None for a GET, which costs nothing and is not counted.
            path: behind that of the address.

        Raises:
            Refused: the server will not.
            UsageError: it cannot be reached, or the budget is spent.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        opener = urllib.request.build_opener(_Stay)
        for attempt in range(self.retries + 1):
            if body is not None:
                self._count()
            wait = min(2.0**attempt / 2, _LONGEST)
            try:
                request = urllib.request.Request(self._place(path), body, headers)
                with opener.open(request, timeout=self.timeout) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                why = f"it answered {error.code} {self.start(error.reason)}: "
                why += self.start(_body(error)) or "nothing"
                if error.code not in _AGAIN:
                    refused = Refused(f"the teacher at {self.shown} refused: {why}")
                    refused.code = error.code
                    raise refused from None
                wait = _asked_to_wait(error.headers.get("Retry-After"), wait)
            except _BROKEN as error:  # no connection, a time-out, a broken answer
                why = self.start(_broken(error, self.timeout))
            if attempt < self.retries:
                of = f"attempt {attempt + 2} of {self.retries + 1} in {wait:.3g} s"
                _log.warning("no answer from %s (%s): %s", self.shown, why, of)
                time.sleep(wait)
        raise UsageError(
            f"the teacher at {self.shown} could not be asked, {self.retries + 1} times in a row "
            f"({why}); see that it runs and that the address is right, then give the command "
            "again: all answers so far are kept"
        )

    def _count(self) -> None:
        if self.left is not None and self.asked >= self.left:
            raise UsageError(
                f"the budget of {self.left} requests to {self.shown} is spent; all answers are "
                "kept, so run it again to go on with as many, or with a larger one"
            )
        self.asked += 1

    def _place(self, path: str) -> str:
        """The address with a path behind its own."""
        parts = urlsplit(self.url)
        return parts._replace(path=parts.path + path, fragment="").geturl() if path else self.url

    def start(self, told: str | bytes) -> str:
        """The beginning of what a server said, in one line, without the token.

        What no terminal should be sent is escaped; of a web page it is its words.
        """
        text = told[:_READ].decode("utf-8", "backslashreplace") if isinstance(told, bytes) else told
        if key := self._key():
            text = text.replace(key, "***")
        if re.match(r"\s*<(!doctype|html|head|body)\b", text, re.IGNORECASE):
            words = re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)|<[^>]*>?", " ", text)
            text = f"a web page: {words}" if words.strip() else "a web page"
        text = " ".join(text.split())
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        return text if len(text) <= 160 else f"{text[:160]}..."

    def _key(self) -> str:
        """The token that is sent; "" for none."""
        key = os.environ.get(self.variable, "")
        if not re.fullmatch("[!-~]*", key):
            raise UsageError(
                f"the variable {self.variable} holds a blank, a line's end or a letter beyond "
                "ASCII, which no token has; set it anew"
            )
        return key


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would carry the token to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _body(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read(_READ)
    except _BROKEN:
        return b"nothing that can be read"


def _broken(error: Exception, timeout: float) -> str:
    """Why there was no answer, in words."""
    why = getattr(error, "reason", error)  # urllib wraps what went wrong
    if isinstance(why, TimeoutError):
        return f"nothing came within {timeout:g} s"
    if isinstance(why, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    if isinstance(why, http.client.BadStatusLine):
        return f"what it said is no HTTP: {why}"
    if isinstance(why, http.client.IncompleteRead):
        return "its answer broke off"
    return getattr(why, "strerror", None) or str(why) or type(why).__name__


def _asked_to_wait(header: str | None, usual: float) -> float:
    try:
        return min(max(float(header or usual), 0.0), _LONGEST)
    except ValueError:  # a date
        return usual
