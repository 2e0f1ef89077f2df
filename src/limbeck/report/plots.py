"""What all plots share: numbers in few signs, round ticks, labels, and small pictures."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence

from limbeck.report.page import Html, text

__all__ = ["label", "pictures", "png", "short", "svg", "ticks", "width"]


def short(value: float) -> str:
    """A number in few signs: 1,500,000 is "1.5M"."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if sign == "k" else size
            return f"{value / scale:.4g}{sign}"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.4g}"
    return f"{value:.0e}".replace("e-0", "e-")


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within [low, high], at most so many, evenly spaced.

    Example:
        >>> ticks(0.83, 0.991)
        [0.85, 0.9, 0.95]
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [float(f"{(first + i) * step:.12g}") for i in range(count)]


def svg(title: str, desc: str, size: str, inner: Sequence[str]) -> Html:
    """Frame what is drawn, with words for who cannot see it."""
    body = "\n".join(inner)
    return Html(
        f'<svg role="img" aria-label="{text(title)}" {size}>\n<title>{text(title)}</title>\n'
        f"<desc>{text(desc)}</desc>\n{body}\n</svg>"
    )


def width(words: str) -> float:
    """About how many pixels words in a plot's letters take; rather too many than too few."""
    return 7.0 * len(words)


def label(x: str, y: float, words: str, kind: str, anchor: str) -> str:
    """Write words at a place; `kind` is a class of the page's style."""
    return f'<text class="{kind}" x="{x}" y="{y:g}" text-anchor="{anchor}">{text(words)}</text>'


def pictures(rows: Sequence[Sequence[Sequence[float]]], describe: str) -> Html:
    """Show grey pictures (H, W) of one size, values from 0 (paper) to 1 (ink), side by side."""
    high = len(rows[0])
    lines = []
    for y in range(high):
        levels = [v for picture in rows for v in (*picture[y], 0.0)][:-1]
        ink = (round(255 * min(max(v, 0.0), 1.0)) for v in levels)
        lines.append(b"".join(bytes((0, v)) for v in ink))  # black, more or less opaque
    return Html(f'<p class="strip"><img alt="{text(describe)}" src="{png(lines, 4)}"></p>')


_CHANNELS = {0: 1, 2: 3, 4: 2}


def png(lines: Sequence[bytes], kind: int) -> str:
    """A picture as an address that holds it.

    Args:
        lines: its rows, 8 bits a channel.
        kind: as PNG numbers them: 0 grey, 2 colour, 4 grey with opacity.
    """
    header = struct.pack(">IIBBBBB", len(lines[0]) // _CHANNELS[kind], len(lines), 8, kind, 0, 0, 0)
    body = b"".join(b"\0" + line for line in lines)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(body, 9)), (b"IEND", b""))
    written = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(written).decode('ascii')}"
