"""Sentinels: a dozen short trainings whose last bits say whether the engine still does the same.

A stored number depends on the engine too, but not each change of it makes another number. While the
sentinels end with the same weights, bit for bit, results stay valid; otherwise a new core epoch
begins, and tables say from which one a number is. Bits depend on the platform as well, so each has
its own digests.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.bench import sources
from limbeck.bench.runner import Pool
from limbeck.core.files import write_json
from limbeck.errors import UsageError

__all__ = ["SENTINELS", "Kept", "bits", "epoch_now", "look", "platform_now"]

SENTINELS = (
    ("labels", "blobs"),
    ("kd", "digits"),
    ("fitnets", "digits"),
    ("crd", "digits"),
    ("dot", "digits"),
    ("rkd", "digits"),
    ("sla", "digits"),
    ("takd", "digits"),
    ("unic", "digits(teacher='cnn-medium+mlp')"),
    ("kd", "digits(student='vit')"),
    ("rs_kd", "charlm"),
    ("gkd", "charlm"),
)
"""Method and world, each cut down to its tiny form."""


@dataclass(frozen=True)
class Kept:
    """What is stored of the sentinels, and where."""

    path: Path

    def read(self) -> dict[str, Any]:
        """{"epoch": n, "platforms": {platform: {sentinel: [source, bits]}}}."""
        if not self.path.is_file():
            return {"epoch": 1, "platforms": {}}
        try:
            told = json.loads(self.path.read_bytes())
            if not isinstance(told["epoch"], int) or not isinstance(told["platforms"], dict):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{self.path} is damaged; restore it, or remove it to begin anew"
            ) from None
        return dict(told)


def platform_now() -> str:
    """What bits depend on beside the code: torch and the instructions that it may use."""
    import torch

    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def bits(sentinel: tuple[str, str]) -> str:
    """The digest of the weights with which a sentinel ends."""
    import torch

    from limbeck import registry
    from limbeck.bench import worlds
    from limbeck.core.files import digest_tensors
    from limbeck.core.objectives import Labels
    from limbeck.runs.door import run

    torch.set_num_threads(1)
    name, world = sentinel
    task = worlds.make(world, tiny=True)
    tiny = {} if name == "labels" else registry.find(name).card.tiny
    method = Labels() if name == "labels" else registry.make(name, **tiny)
    result = run(method, task, seed=0)
    assert result.model is not None
    state = {k: v.contiguous() for k, v in result.model.state_dict().items()}
    return digest_tensors(state)


def look(kept: Kept, found: dict[tuple[str, str], str]) -> tuple[int, list[str]]:
    """Compare with what is stored, and store what is new.

    Args:
        kept: where the digests lie.
        found: the bits of each sentinel now.

    Returns:
        The core's epoch, and the sentinels that the engine has changed. One whose own method or
        world was changed says nothing of the engine; its new bits are stored.
    """
    told, here = kept.read(), platform_now()
    before = told["platforms"].get(here, {})
    now, changed = {}, []
    for sentinel in SENTINELS:
        digest = found[sentinel]
        name, source = f"{sentinel[0]} on {sentinel[1]}", sources.of_arm(*sentinel)
        now[name] = [source, digest]
        if name in before and before[name][0] == source and before[name][1] != digest:
            changed.append(name)
    if changed:
        told["epoch"] += 1
        told["platforms"] = {}  # those of other platforms are of the epoch before
    if told["platforms"].get(here) != now:
        told["platforms"][here] = now
        write_json(kept.path, told)
    return told["epoch"], changed


def epoch_now(pool: Pool, results: Path) -> int:
    """Run the sentinels, compare with what a folder of results holds, and give the core's epoch."""
    found = {}
    for sentinel, value in pool.each(bits, SENTINELS):
        if isinstance(value, BaseException):
            raise value
        found[sentinel] = value
    epoch, changed = look(Kept(results / "sentinels.json"), found)
    if changed:
        print(
            f"the engine gives other bits for {', '.join(changed)}: core epoch {epoch} begins",
            file=sys.stderr,
        )
    return epoch
