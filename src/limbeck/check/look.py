"""Small tools of the suite: tensors inside things, equality, digests, the state of a process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.files import digest_tensors
from limbeck.core.method import Given, Mean, Result, Term
from limbeck.core.rng import seed_globals
from limbeck.core.teacher import Teacher

__all__ = [
    "Kept",
    "close",
    "digest_of",
    "generators",
    "leaves",
    "modules_of",
    "number",
    "one_thread",
    "process_state",
    "same",
    "scrambled",
    "value",
    "weights_of",
]


OTHERS = ("TORCH", "PYTEST_")
"""Beginnings of variables that are set by torch, when it is first used, and by whoever tests."""


def leaves(thing: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, sequences, batches and modules, by name."""
    if isinstance(thing, Tensor):
        yield name, thing
    elif isinstance(thing, nn.Module):
        for key, tensor in [*thing.named_parameters(), *thing.named_buffers()]:
            yield f"{name}.{key}".strip("."), tensor
    elif isinstance(thing, Batch):
        yield from leaves(thing.columns, name)
    elif isinstance(thing, Mapping):
        for key, inner in thing.items():
            yield from leaves(inner, f"{name}.{key}".strip("."))
    elif isinstance(thing, list | tuple):
        for number, inner in enumerate(thing):
            yield from leaves(inner, f"{name}.{number}".strip("."))


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit (two that are not numbers may be)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (x.detach().contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return bool(torch.equal(a, b))


def close(a: Any, b: Any, rel: float = 1e-4) -> bool:
    """Whether two numbers or tensors agree but for rounding, relative to the larger norm."""
    a, b = (torch.as_tensor(x).detach().double().flatten() for x in (a, b))
    if a.shape != b.shape:
        return False
    scale = max(float(a.norm()), float(b.norm()), 1e-4)
    return float((a - b).norm()) <= rel * scale


class Kept:
    """Clones of tensors, to see later which of them changed."""

    def __init__(self, **things: Any) -> None:
        self.things = things
        self.then = {n: t.detach().clone() for n, t in leaves(things)}

    def changed(self) -> list[str]:
        """Names of what is no longer the same to the bit, or is new, or gone."""
        now = dict(leaves(self.things))
        names = dict.fromkeys([*self.then, *now])
        return [
            n for n in names if n not in now or n not in self.then or not same(now[n], self.then[n])
        ]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Clones of a module's parameters and buffers."""
    return {n: t.detach().clone() for n, t in leaves(module)}


def value(term: Term) -> Tensor:
    """What a term stands for, where the micro-batch is the whole step."""
    if isinstance(term, Mean):
        return term.sum / term.count
    if isinstance(term, Given):
        return torch.zeros(()) if term.value is None else term.value
    return term


def number(term: Term) -> float:
    """What a term stands for, as a number."""
    return float(value(term).detach())


def modules_of(teacher: Teacher) -> list[nn.Module]:
    """The modules that a teacher, or a crowd of them, holds."""
    found: list[nn.Module] = []
    for held in vars(teacher).values():
        if isinstance(held, nn.Module):
            found.append(held)
        elif isinstance(held, list | tuple):
            for each in held:
                found += modules_of(each) if isinstance(each, Teacher) else []
    return found


def digest_of(result: Result) -> str:
    """A digest of what a result gives."""
    told: dict[str, Any] = {}
    for name in ("model", "data", "sampler", "policy", "scores", "report"):
        given = getattr(result, name)
        if given is None:
            continue
        tensors = dict(leaves(given))
        told[name] = digest_tensors(tensors) if tensors else _text(given)
    return hashlib.blake2b(repr(sorted(told.items())).encode(), digest_size=16).hexdigest()


def _text(given: Any) -> str:
    return json.dumps(given, sort_keys=True, default=lambda x: type(x).__name__)


def generators() -> tuple[Any, ...]:
    """The state of torch's, numpy's and Python's global generators."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    torch_state = hashlib.blake2b(torch.get_rng_state().numpy().tobytes()).hexdigest()
    numpy_state = hashlib.blake2b(np.asarray(keys).tobytes()).hexdigest()
    return torch_state, (kind, numpy_state, *rest), random.getstate()


def scrambled(number: int) -> None:
    """Put the global generators into some state: two runs that draw from them differ."""
    seed_globals("whatever the caller did", number)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread, for which equality to the bit is promised."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def process_state() -> dict[str, Any]:
    """What else of a process a run must leave as it was."""
    return {
        "working directory": os.getcwd(),
        "files in the working directory": sorted(os.listdir()),
        **{f"the environment's {n}": v for n, v in os.environ.items() if not n.startswith(OTHERS)},
        "torch's number of threads": torch.get_num_threads(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }
