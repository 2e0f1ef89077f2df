"""Optional packages, and whether their weights and data can be had from here."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from limbeck.errors import Missing

__all__ = ["hub", "library", "reason"]

_EXTRAS = {"timm": "vision", "torchvision": "vision", "PIL": "vision"}  # of all else: language


def library(name: str) -> Any:
    """An optional package, imported now.

    Raises:
        Missing: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        extra = _EXTRAS.get(package, "language")
        raise Missing(
            f"this needs {package}; install it with: pip install 'limbeck[{extra}]'"
        ) from error


@contextmanager
def hub(name: str = "") -> Iterator[None]:
    """Use the Hugging Face hub's cache only, while the hub cannot be reached.

    Its clients would try again for half a minute with each file.

    Args:
        name: of what is asked for; nothing is tried where that is a path.
    """
    constants = library("huggingface_hub").constants
    switches: list[tuple[Any, bool]] = []
    here = bool(name) and Path(name).exists()
    if not (here or constants.HF_HUB_OFFLINE or _reachable(constants.ENDPOINT)):
        modules = [constants, sys.modules.get("datasets.config")]
        switches = [(m, m.HF_HUB_OFFLINE) for m in modules if m is not None]
    try:
        for module, _ in switches:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, before in switches:
            module.HF_HUB_OFFLINE = before


def _reachable(address: str) -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # a proxy resolves names that this machine does not know
    url = urlparse(address)
    try:
        socket.create_connection((url.hostname, url.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


_APART = (
    "ConnectionError",
    "ConnectError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "URLError",
)


def reason(error: BaseException) -> str:
    """Why something failed: that there is no connection, or what the error says first."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in _APART:
            return "there is no connection, and no copy here"
        cause = cause.__cause__ or cause.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". :")
