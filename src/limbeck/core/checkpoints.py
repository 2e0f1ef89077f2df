"""Checkpoints: tensors and JSON in one safetensors file, whole or not there, checksummed.

Tied tensors are stored once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.core.files import digest_tensors, write_atomic
from limbeck.errors import Missing, UsageError


def _same(a: Tensor, b: Tensor) -> bool:
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.numel() > 0
    )


def save(path: Path, tensors: Mapping[str, Tensor], meta: Any = None) -> None:
    """Write tensors and JSON; a tensor that stands under several names is stored once."""
    once: dict[str, Tensor] = {}
    first: dict[int, list[str]] = {}
    alias: dict[str, str] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        twin = next((n for n in first.get(tensor.data_ptr(), ()) if _same(once[n], tensor)), None)
        if twin is not None:
            alias[name] = twin
        else:
            once[name] = tensor
            first.setdefault(tensor.data_ptr(), []).append(name)
    plain: dict[str, Tensor] = {}
    held: set[int] = set()
    for name, tensor in once.items():
        copy = tensor.cpu().contiguous()
        # safetensors refuses tensors that overlap in memory: slices are stored apart
        storage = copy.untyped_storage()
        part = copy.numel() * copy.element_size() != storage.nbytes()
        plain[name] = copy.clone() if part or storage.data_ptr() in held else copy
        held.add(storage.data_ptr())
    told = json.dumps({"alias": alias, "digest": digest_tensors(plain), "meta": meta})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda p: save_file(plain, p, metadata={"limbeck": told}))


def load(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and JSON of a checkpoint.

    Raises:
        Missing: there is no such file.
        UsageError: it is damaged, or not limbeck's.
    """
    if not path.exists():
        raise Missing(f"there is no checkpoint {path}")
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {})["limbeck"])
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UsageError(
            f"{path} is damaged or not limbeck's ({error}); remove it, and the run begins this "
            "stage again"
        ) from None
    if digest_tensors(tensors) != told["digest"]:
        raise UsageError(
            f"{path} is damaged (its checksum does not match); remove it, and the run begins this "
            "stage again"
        )
    for name, twin in told["alias"].items():
        tensors[name] = tensors[twin]
    return tensors, told["meta"]


def into(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load a module's state from those names that begin with the prefix, in place."""
    state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(
            f"the stored state does not fit {type(module).__name__}: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from None


def pack(value: Any, tensors: dict[str, Tensor], name: str = "v") -> Any:
    """JSON for a nested value of dicts, lists and tuples.

    Tensors go into `tensors` and are named in their place.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise UsageError(
                "a stage's result has a dict with keys that are not strings; use strings"
            )
        return {"dict": {k: pack(v, tensors, f"{name}.{k}") for k, v in value.items()}}
    if isinstance(value, tuple | list):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"json": value}
    raise UsageError(
        f"a stage's result holds a {type(value).__name__}; give tensors and plain values (of a "
        "module its state_dict)"
    )


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `pack` was given."""
    (kind, value), *_ = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: unpack(v, tensors) for k, v in value.items()}
    if kind in ("tuple", "list"):
        items = [unpack(v, tensors) for v in value]
        return tuple(items) if kind == "tuple" else items
    return value


def of_module(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A module's state under a prefix."""
    return {prefix + k: v for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
