"""Samples as they are shown on a page: small pictures, or a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.data import Table
from limbeck.core.task import Task

__all__ = ["shown"]

SIDE = 96
"""Pixels of a picture's longer side, at most."""
NUMBERS = 12


def shown(task: Task, table: Table, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Each sample's raw `x` as {"kind": "picture", "pixels"} or {"kind": "numbers", "values"}.

    Pixels are H rows of W greys or [red, green, blue], 0 .. 255. Whatever is outside [0, 1] and
    no uint8 is stretched, the same for all pictures. Numbers have `names` where columns have.
    """
    raw = [_first(table.rows(torch.tensor([i]), "in order").columns["x"]) for i in numbers]
    found = [_picture(x) for x in raw]
    pictures = [p for p in found if p is not None]
    if pictures and len(pictures) == len(raw):
        return [{"kind": "picture", "pixels": p} for p in _pixels(pictures)]
    columns = task.about.get("inputs", {}).get("columns", [])
    return [_numbers(x, columns) for x in raw]


def _first(x: Any) -> Any:
    if isinstance(x, Mapping):
        return _first(next(iter(x.values())))
    return x[0]


def _picture(x: Any) -> Tensor | None:
    """(H, W) or (H, W, 3), in its own units; None of what is no picture."""
    tensor = _tensor(x)
    if tensor is None or tensor.is_complex():
        return None
    if tensor.dim() == 3 and tensor.shape[0] in (1, 3, 4):
        tensor = tensor.movedim(0, -1)
    if min(tensor.shape[:2], default=0) < 4:
        return None
    if tensor.dim() == 3 and tensor.shape[-1] in (1, 3, 4):
        return tensor[..., :3] if tensor.shape[-1] > 1 else tensor[..., 0]
    return tensor if tensor.dim() == 2 else None


def _tensor(x: Any) -> Tensor | None:
    if hasattr(x, "convert") and hasattr(x, "mode"):  # a PIL image, without importing PIL
        x = x.convert("L" if x.mode in ("1", "L", "LA", "I", "I;16", "F") else "RGB")
    if not isinstance(x, Tensor):
        if not hasattr(x, "__array_interface__"):
            return None
        import numpy as np

        x = torch.tensor(np.array(x))
    tensor: Tensor = x.detach().cpu()
    return tensor


def _pixels(pictures: Sequence[Tensor]) -> list[Any]:
    low, high = 0.0, 255.0
    if any(p.dtype != torch.uint8 for p in pictures):
        pictures = [p.float().nan_to_num(0.0, 0.0, 0.0) for p in pictures]
        low = min(0.0, *(float(p.min()) for p in pictures))
        high = max(1.0, *(float(p.max()) for p in pictures))
    scaled = [255 * (p.float() - low) / (high - low) for p in pictures]
    return [_small(p).round().clamp(0, 255).int().tolist() for p in scaled]


def _small(picture: Tensor) -> Tensor:
    """At most 96 pixels a side, each the mean of those it stands for."""
    high, wide = picture.shape[:2]
    factor = SIDE / max(high, wide)
    if factor >= 1:
        return picture
    size = max(1, round(high * factor)), max(1, round(wide * factor))
    first = picture.reshape(high, wide, -1).movedim(-1, 0)
    small = F.adaptive_avg_pool2d(first, size).movedim(0, -1)
    return small[..., 0] if picture.dim() == 2 else small


def _numbers(x: Any, columns: Sequence[Any]) -> dict[str, Any]:
    try:
        flat = torch.as_tensor(x).flatten()
    except (TypeError, ValueError, RuntimeError):  # a text, or anything else
        return {"kind": "numbers", "values": []}
    values = [float(f"{v:.6g}") if isinstance(v, float) else v for v in flat[:NUMBERS].tolist()]
    told: dict[str, Any] = {"kind": "numbers", "values": values}
    if len(columns) == len(flat):
        told["names"] = [str(name) for name in columns[:NUMBERS]]
    return told
