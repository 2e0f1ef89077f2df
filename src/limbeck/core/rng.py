"""Randomness as a function of place: the same place draws the same numbers, nothing is stored."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def seed_of(*place: Any) -> int:
    """A 63-bit seed from a place: any tuple of ints and strings."""
    return int.from_bytes(blake2b(repr(place).encode(), digest_size=8).digest(), "little") >> 1


def generator(*place: Any) -> torch.Generator:
    """A fresh CPU generator, seeded by place."""
    return torch.Generator().manual_seed(seed_of(*place))


def _mix(v: Tensor) -> Tensor:
    """SplitMix64's finaliser on wrapping int64: every input bit moves every output bit."""
    v = (v ^ ((v >> 30) & 0x3FFFFFFFF)) * _MIX1
    v = (v ^ ((v >> 27) & 0x1FFFFFFFFF)) * _MIX2
    return v ^ ((v >> 31) & 0x1FFFFFFFF)


class Draws:
    """Draws for each sample.

    They depend on the sample's number and the place, not on how a batch is split. Each method gives
    a tensor (B, *shape). Asking twice gives the same numbers; for independent ones ask the clock
    under another name.
    """

    def __init__(self, index: Tensor, *place: Any) -> None:
        self.device = index.device
        self._keys = _mix(_mix(index.to(torch.int64) * _GOLDEN + seed_of(*place)))

    def _bits(self, shape: tuple[int, ...], stream: int = 0) -> Tensor:
        n = math.prod(shape)
        counter = torch.arange(1, n + 1, dtype=torch.int64, device=self.device) * _GOLDEN
        keys = _mix(self._keys + stream) if stream else self._keys
        return _mix(keys[:, None] + counter).view(len(keys), *shape)

    def rand(self, *shape: int, stream: int = 0) -> Tensor:
        """Uniform in [0, 1), float32, 24 bits."""
        return ((self._bits(shape, stream) >> 40) & 0xFFFFFF).float() * 2.0**-24

    def randn(self, *shape: int) -> Tensor:
        """Standard normal, float32, by Box and Muller."""
        radius = (-2 * (1 - self.rand(*shape)).log()).sqrt()
        return radius * (2 * math.pi * self.rand(*shape, stream=1)).cos()

    def randint(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in [0, high), int64; `high` up to 2^31 (bias below high / 2^32)."""
        return ((self._bits(shape) >> 32) & 0xFFFFFFFF) * high >> 32


@contextmanager
def globals_kept() -> Iterator[None]:
    """Put torch's, numpy's and Python's global generators back as they were."""
    torch_state = torch.get_rng_state()
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def seed_layers(device: torch.device, *place: Any) -> None:
    """Seed what layers (dropout) draw from on a device.

    `torch.manual_seed` would visit every kind of device, at each step.
    """
    torch.default_generator.manual_seed(seed_of(*place))
    if device.type != "cpu":
        torch.manual_seed(seed_of(*place))


def seed_globals(*place: Any) -> None:
    """Seed the generators that layers (dropout), initialisers and user code draw from."""
    seed = seed_of(*place)
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
