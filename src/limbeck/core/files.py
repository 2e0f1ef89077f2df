"""Files that are whole or not there: atomic and durable writing, and digests of tensors.

Whatever limbeck must find again after it was killed is written here: into a temporary file in the
same folder, forced to the disk, renamed over the old one, and the folder forced to the disk too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import Missing, UsageError

__all__ = [
    "Lock",
    "as_bytes",
    "cache_folder",
    "digest_tensors",
    "map_tensor",
    "put_rows",
    "read_json",
    "refusal",
    "sweep",
    "sync",
    "write_atomic",
    "write_json",
]

_PARTIAL = ".limbeck-partial"  # how the name of an unfinished file ends


def cache_folder() -> Path:
    """Give the folder of all that limbeck keeps for later: LIMBECK_CACHE, or ~/.cache/limbeck."""
    given = os.environ.get("LIMBECK_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "limbeck"


def refusal(path: str | os.PathLike[str], error: BaseException, doing: str = "write") -> UsageError:
    """Give the one sentence for a file operation that failed (`doing`: "write", "read")."""
    why = getattr(error, "strerror", None) or str(error)
    tail = "; what was there before is untouched" if doing == "write" else ""
    return UsageError(f"could not {doing} {os.fspath(path)}: {why}{tail}")


def sync(path: str | os.PathLike[str]) -> None:
    """Force a file or folder to the disk.

    Raises:
        OSError: it could not be. That a file system does not know how to do this for a folder is
            no error.
    """
    folder = os.path.isdir(path)
    if folder and os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def write_atomic(
    path: str | os.PathLike[str],
    content: bytes | Callable[[Path], object],
    *,
    mode: int = 0o666,
) -> None:
    """Write a file so that at any moment either the old one or the new one is there, whole.

    Args:
        path: the file; its folder must exist.
        content: the bytes, or a function that writes them to the path it is given (so that
            `safetensors.torch.save_file` and the like fit: `lambda p: save_file(tensors, p)`).
        mode: permissions of the new file, before the umask; 0o600 for what only its owner may read.

    Raises:
        UsageError: the disk is full, the folder is missing or read-only; the old file is whole and
            nothing else is left behind.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:64]}.{os.urandom(6).hex()}{_PARTIAL}")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            allowed = os.fstat(handle).st_mode & 0o777  # what the umask left of it
            if isinstance(content, bytes):
                with os.fdopen(handle, "wb", closefd=False) as file:
                    file.write(content)
        finally:
            os.close(handle)
        if not isinstance(content, bytes):
            content(part)
            os.chmod(part, allowed)  # the writer may have put another file in its place
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        # safetensors reports a full disk by an error of its own, with the system's number in it
        if isinstance(error, OSError) or "(os error " in str(error):
            raise refusal(path, error) from error
        raise


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove the unfinished files that killed processes left in a folder.

    Only for a folder that nobody else writes to now (hold its `Lock`).
    """
    for part in Path(folder).glob(f".*{_PARTIAL}"):
        part.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write `value` as JSON that any reader takes, as `write_atomic` does.

    Raises:
        UsageError: as `write_atomic`; or a number is infinite or not a number, for which JSON has
            no word (give None).
        TypeError: `value` holds what is not JSON.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UsageError(f"{os.fspath(path)} was not written: {error}; give None instead") from None
    write_atomic(path, (text + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        Missing: there is no such file.
        UsageError: it cannot be read, or is damaged.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise Missing(f"there is no file {os.fspath(path)}") from None
    except OSError as error:
        raise refusal(path, error, "read") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{os.fspath(path)} is damaged or is not JSON ({error}); remove it or put a whole copy "
            "in its place"
        ) from None


def digest_tensors(named: Mapping[str, Tensor]) -> str:
    """Give a digest (32 hex digits) of names, dtypes, shapes and bytes of tensors of any shape.

    The order of the mapping, the device and the memory layout make no difference.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(named):
        value = named[name].detach().cpu().contiguous()
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def as_bytes(value: Tensor) -> NDArray[np.uint8]:
    """Show a tensor's bytes row by row, without a copy where it is contiguous: (B, bytes)."""
    value = value.detach().cpu().contiguous()
    flat = value.view(len(value), math.prod(value.shape[1:]))
    return cast(NDArray[np.uint8], flat.view(torch.uint8).numpy())


def map_tensor(path: str | os.PathLike[str], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Map a file of raw values into memory. The tensor is to be read only: writing to it crashes.

    Raises:
        UsageError: the file is not there, cannot be read, or is not as long as it must be.
    """
    size = math.prod(shape) * dtype.itemsize
    try:
        if (there := os.stat(path).st_size) != size:  # to read past a file's end kills a process
            raise UsageError(f"{os.fspath(path)} is damaged: {there} bytes where {size} belong")
        raw = np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise refusal(path, error, "read") from error
    with warnings.catch_warnings():
        # A copy-on-write mapping would give no such warning, but it counts as memory: the system
        # refuses one that is larger than the machine's.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(raw).view(dtype).view(*shape)


def put_rows(handle: int, values: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
    """Write rows (B, bytes) to their places in a file of such rows; `rows` (B,) is ascending.

    Writing is by system calls, not through a mapping: on a full disk a mapping kills the process.

    Raises:
        OSError: the disk is full.
    """
    starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist()]
    width = values.shape[1]
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        data, place = values[start:stop].reshape(-1).data, int(rows[start]) * width
        while data:
            put = os.pwrite(handle, data, place)
            data, place = data[put:], place + put


class Lock:
    """The right to write to a folder, held until `close` or until the process ends in any way.

    A process forked from the holder (a data loader's worker) does not inherit it, so that an
    orphan that outlives its killed parent keeps nobody out.

    Args:
        path: the lock file; made if need be, and left there afterwards.

    Raises:
        UsageError: another holder has it (named by its process number), or the place is read-only.
    """

    _held: set[int] = set()  # noqa: RUF012 - one for the process, not for the instance

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import fcntl  # not on Windows, where everything else here works

        self._handle = -1
        handle = -1
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            holder = b""
            if handle >= 0:
                holder = os.pread(handle, 20, 0).strip()
                os.close(handle)
            if handle < 0 or error.errno not in (errno.EAGAIN, errno.EACCES):
                raise refusal(path, error) from error
            raise UsageError(
                f"{Path(path).parent} is being written by another process "
                f"({holder.decode('ascii', 'replace')}); wait for it to end, or end it"
            ) from None
        self._handle = handle
        self._held.add(handle)

    def close(self) -> None:
        """Give it back; a second time does nothing."""
        if self._handle in self._held:
            self._held.remove(self._handle)
            os.close(self._handle)
        self._handle = -1


def _let_go() -> None:
    for handle in Lock._held:
        os.close(handle)
    Lock._held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
