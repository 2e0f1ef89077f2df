"""Where the runs of a bench happen: processes of one thread each, here or on a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from limbeck.errors import Missing, UsageError

__all__ = ["Here", "OnRay"]

_PATIENCE = 10  # seconds for a cluster to answer

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Here:
    """Processes of this machine.

    Args:
        jobs: how many at once.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        before = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, "1"))  # read when a process imports torch
        self._before = before
        self._pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))

    def each(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Iterator[tuple[Any, Any]]:
        """Each item with the function's value, or the error that it raised, as they end."""
        left = list(items)[::-1]
        going: dict[Future[Any], Any] = {}
        while left or going:
            while left and len(going) < self.jobs:
                item = left.pop()
                going[self._pool.submit(function, item)] = item
            for done in wait(going, return_when=FIRST_COMPLETED).done:
                item, error = going.pop(done), done.exception()
                if isinstance(error, BrokenProcessPool):
                    raise UsageError(
                        "a process of the bench was killed, perhaps for lack of memory; what was "
                        "measured is kept: start it again, with a smaller --jobs"
                    ) from None
                yield item, error if error is not None else done.result()

    def close(self) -> None:
        """End the processes; runs that have not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class OnRay:
    """The processes of a Ray cluster, of one CPU each; limbeck must be installed there.

    Args:
        address: of the cluster ("auto", "ray://HOST:10001"), or "local" for one of this machine.

    Raises:
        Missing: Ray is not installed.
        UsageError: no cluster answers there.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise Missing("--ray needs ray; install it with: pip install 'limbeck[ray]'") from None
        self._ray: Any = ray
        try:
            _knock(address)
            ray.init(
                address=None if address == "local" else address,
                runtime_env={"env_vars": dict.fromkeys(_THREADS, "1")},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:
            raise UsageError(f"no Ray cluster answers at {address!r}: {error}") from None

    def each(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Iterator[tuple[Any, Any]]:
        """Each item with the function's value, or the error that it raised, as they end."""
        remote = self._ray.remote(num_cpus=1, max_retries=2)(function)
        going = {remote.remote(item): item for item in items}
        while going:
            (done,), _ = self._ray.wait(list(going))
            item = going.pop(done)
            try:
                yield item, self._ray.get(done)
            except self._ray.exceptions.RayTaskError as error:
                yield item, error.cause
            except self._ray.exceptions.RayError as error:
                yield item, error

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


def _knock(address: str) -> None:
    """See whether anybody answers at HOST:PORT, which Ray would wait for, for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _PATIENCE).close()
