"""Where the runs of several seeds lie, and how one that was stopped goes on. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["asked_for", "name_of", "resume", "whole"]


def name_of(seed: int) -> str:
    """The name of a seed's folder, where several were asked for together."""
    return f"seed-{seed}"


def asked_for(told: Mapping[str, Any]) -> list[int]:
    """The seeds that were asked for together, by the run.json of one of them."""
    request = told.get("request")
    return list(request.get("seeds") or ()) if isinstance(request, Mapping) else []


def whole(folder: Path, told: Mapping[str, Any]) -> Path:
    """What `limbeck resume` takes: the folder of all seeds, where a run is one of several.

    Args:
        folder: the run's.
        told: its run.json.
    """
    seeds, name = asked_for(told), folder.resolve().name
    if len(seeds) < 2 or name not in map(name_of, seeds):
        return folder
    return folder.parent if folder.name == name else folder.resolve().parent


def resume(folder: Path, told: Mapping[str, Any]) -> str:
    """The command that goes on with a run; takes what `whole` takes."""
    return f"limbeck resume {shlex.quote(str(whole(folder, told)))}"
