"""Draw the pictures of the page on worlds: python docs/assets/worlds.py writes world-*.png here."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from limbeck.bench import worlds

_ZOOM, _MOST, _EDGE = 4, 12, 2  # pixels a pixel, pictures a row, pixels between two


def row(x: Tensor, least: int = 48) -> Tensor:
    """Some pictures (N, C, H, W) side by side, each from black to white: (H', W', 3) uint8."""
    x = x[:_MOST].float()
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    x = ((x - low) / (high - low).clamp_min(1e-6)).expand(-1, 3, -1, -1)
    times = max(_ZOOM, least // x.shape[2])
    x = x.repeat_interleave(times, 2).repeat_interleave(times, 3)
    x = torch.nn.functional.pad(x, [_EDGE] * 4, value=0.5)
    return (x * 255).round().byte().permute(2, 0, 3, 1).flatten(1, 2)


def waves(x: Tensor) -> Tensor:
    """Curves (N, L) as pictures (N, 1, 24, L)."""
    x = x[:_MOST]
    high = ((x - x.min()) / (x.max() - x.min()) * 23).round().long()
    drawn = torch.zeros(len(x), 1, 24, x.shape[1])
    drawn.scatter_(2, 23 - high[:, None, None, :], 1.0)
    return drawn


def png(path: Path, rows: list[Tensor]) -> None:
    """Write rows of pictures, one under another, as a PNG."""
    wide = max(r.shape[1] for r in rows)
    full = [torch.nn.functional.pad(r, (0, 0, 0, wide - r.shape[1]), value=127) for r in rows]
    image = torch.cat(full).contiguous().numpy()
    lines = b"".join(b"\0" + line.tobytes() for line in image)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines, 9)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def main() -> None:
    """Draw them all."""
    here = Path(__file__).parent

    def train(world: str) -> Tensor:
        x: Tensor = worlds.make(world, tiny=True).train[0]
        return x

    png(here / "world-digits.png", [row(train("digits(teacher='none')"))])
    png(here / "world-fashion.png", [row(train("fashion(teacher='none')"))])
    png(here / "world-shapes.png", [row(train("shapes(teacher='none')"))])
    png(here / "world-multilabel.png", [row(train("multilabel(teacher='none')"))])
    biased = worlds.make("biased(teacher='none')", tiny=True)
    shifts = [row(biased.data["shifts"][name][0]) for name in ("random", "reversed", "noise")]
    png(here / "world-biased.png", [row(biased.train[0]), *shifts])
    pairs = worlds.make("pairs(teacher='none')", tiny=True).train["x"]
    seen, heard = pairs["a"][:6], waves(pairs["b"][:6])
    png(here / "world-pairs.png", [row(seen, 160), row(heard)])
    affect = worlds.make("affect", tiny=True).train["x"]
    png(here / "world-affect.png", [row(affect["face"][0]), row(affect["sound"][0])])


if __name__ == "__main__":
    main()
