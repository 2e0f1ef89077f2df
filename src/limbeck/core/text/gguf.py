"""GGUF files as transformers reads them, their metadata once."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from limbeck.core.hub import library

__all__ = ["read_once"]


@contextmanager
def read_once() -> Iterator[None]:
    """Have transformers read the metadata of a GGUF file once, and draw no bar where it is quiet.

    It asks for them with the configuration, the tokenizer and the weights each, some seconds every
    time; a file is read again when its size or its time have changed.
    """
    gguf, theirs = library("gguf"), library("transformers.modeling_gguf_pytorch_utils")
    before = gguf.GGUFReader, theirs.tqdm
    known = functools.partial(_reader, before[0])
    gguf.GGUFReader, theirs.tqdm = known, library("transformers").utils.logging.tqdm
    try:
        yield
    finally:
        gguf.GGUFReader, theirs.tqdm = before


def _reader(make: Any, path: str | os.PathLike[str]) -> Any:
    told = os.stat(path)
    return _known(make, os.path.realpath(path), told.st_size, told.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _known(make: Any, path: str, size: int, changed: int) -> Any:
    return make(path)
