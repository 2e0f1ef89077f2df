"""What a stored number depends on: the code of the method, of its kit and losses, of its world.

The engine is not among it: changes of `core` are guarded by the sentinels.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from limbeck import registry
from limbeck.bench.trial import bare
from limbeck.core.card import call

__all__ = ["of_arm"]

_PACKAGE = registry.PACKAGE


def of_arm(setting: str, world: str) -> str:
    """A digest of the code that an arm's numbers depend on.

    Args:
        setting: such as "rkd(distance=25)"; its method's imports are followed through its room and
            `core/losses`. "labels" has none of its own.
        world: with its options; its imports are followed through the worlds.
    """
    name, values = call(setting)
    begin = [_PACKAGE / "bench" / "worlds" / f"{call(world)[0]}.py"]
    for method in (name, *(v for v in (values.get("of"),) if isinstance(v, str))):
        if method != "labels":
            begin.append(registry.find(call(method)[0]).path)
    files: dict[Path, None] = {}
    while begin:
        path = begin.pop(0)
        if path not in files:
            files[path] = None
            begin += _imported(path)
    text = "".join(f"{p.relative_to(_PACKAGE)}:{_digest(p)}" for p in sorted(files))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@cache
def _digest(path: Path) -> str:
    return hashlib.blake2b(bare(path.read_text("utf-8")).encode(), digest_size=8).hexdigest()


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    """The files that a file imports, of those that count."""
    package = path.parent.relative_to(_PACKAGE.parent).parts
    found: dict[Path, None] = {}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        for name in _names(node, package):
            for file in _file(name):
                if _counts(file):
                    found[file] = None
    return tuple(found)


def _names(node: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) + 1 - node.level] if node.level else ()
        whole = ".".join((*base, *filter(None, [node.module])))
        yield whole
        yield from (f"{whole}.{alias.name}" for alias in node.names)


def _file(name: str) -> Iterator[Path]:
    parts = name.split(".")
    if parts[0] == "limbeck" and len(parts) > 1:
        place = _PACKAGE.joinpath(*parts[1:])
        yield from (p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file())


def _counts(path: Path) -> bool:
    first, *rest = path.relative_to(_PACKAGE).parts
    return (
        first in registry.ROOMS
        or (first, *rest[:1]) == ("core", "losses")
        or (first, *rest[:1]) == ("bench", "worlds")
    )
