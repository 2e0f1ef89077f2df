"""Arrays of numpy in place of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import UsageError

__all__ = ["as_tensors"]


def as_tensors(source: Any, name: str) -> Any:
    """A set with tensors for the numpy arrays of (x, y), or of a dict: floats as float32.

    Numpy's own kind of float is float64, which nobody chose; a tensor that is float64 stays so.
    Whole numbers become int64, but bytes stay bytes.

    Raises:
        UsageError: they are no numbers.
    """

    def tensor(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype.kind == "f":
            return torch.from_numpy(np.array(value, np.float32))
        if value.dtype.kind in "iu" and value.dtype != np.uint8:
            return torch.from_numpy(np.array(value, np.int64))
        if value.dtype.kind in "biu":
            return torch.from_numpy(np.array(value))
        raise UsageError(
            f"'{name}' holds an array of {value.dtype}; give numbers, and classes numbered from 0"
        )

    if isinstance(source, Mapping) and any(isinstance(v, np.ndarray) for v in source.values()):
        return {k: tensor(v) for k, v in source.items()}
    if isinstance(source, tuple) and source and isinstance(source[0], np.ndarray | Tensor):
        return tuple(map(tensor, source))
    return source
