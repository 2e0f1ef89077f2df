"""What the commands write and read of a run's folder, and how they speak of it; no torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import statistics
from pathlib import Path
from typing import Any

from limbeck.core.times import took
from limbeck.errors import Missing, UsageError

_SECRET = ("key", "token", "secret", "password")
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t, of which 2.5 % lie above, for 1, 2, ... degrees of freedom."""


def read(path: Path) -> dict[str, Any]:
    """The object of a JSON file in a run's folder.

    Raises:
        Missing: there is none.
        UsageError: it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Missing(f"there is no run in {path.parent} (no {path.name})") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not limbeck's: it holds no object")
    return value


def write(path: Path, value: dict[str, Any]) -> None:
    """JSON into a run's folder, whole or not at all."""
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(value, indent=2), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}); name another --out"
        ) from None


def there(path: Path) -> bool:
    """Whether a file is there.

    Raises:
        UsageError: no file could be, such as one with too long a name.
    """
    try:
        return path.exists()
    except OSError as error:
        told = f"the folder {str(path.parent)[:60]}... cannot be made ({error.strerror})"
        raise UsageError(f"{told}; name another with --out") from None


def make_folder(folder: Path) -> None:
    """A new run's folder.

    Raises:
        UsageError: something else lies there, or it cannot be made.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            seeds = len(list(folder.glob("seed-*/run.json")))
            there = f"holds the runs of {seeds} seeds" if seeds else "is not empty and holds no run"
            raise UsageError(f"{folder} {there}; name another folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = f"the folder {folder} cannot be made ({error.strerror}); name another with --out"
        raise UsageError(told) from None


def masked(words: list[str]) -> str:
    """A command line, without the values of options that name a secret."""
    out: list[str] = []
    hide = False
    for word in words:
        option, eq, _ = word.partition("=")
        secret = option.startswith("--") and any(s in option for s in _SECRET)
        out.append("***" if hide else f"{option}=***" if secret and eq else word)
        hide = secret and not eq
    return shlex.join(out)


def digest_of(file: str) -> str:
    """A digest of a file that will be executed.

    Raises:
        Missing: there is no such file.
    """
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        raise Missing(f"there is no file {file}") from None


_ASKED = (
    *("method", "given", "baseline", "cache", "seed", "own", "task_file", "world", "hashes"),
    *("budget", "taps", "device", "command"),
)
"""What the request of a run must hold for it to go on, or to be opened again."""


def request_of(folder: Path, instead: str) -> dict[str, Any]:
    """What was asked for when a run began; the files that it will execute have not changed since.

    Args:
        folder: the run's.
        instead: what can be done with a run that was begun from Python.

    Raises:
        UsageError: there is no request, it is damaged, or a file has changed or is gone.
    """
    request = read(folder / "run.json").get("request")
    if not isinstance(request, dict):
        raise UsageError(f"the run in {folder} was begun from Python; {instead}")
    missing = [name for name in _ASKED if name not in request]
    if missing:
        raise UsageError(f"{folder / 'run.json'} is damaged: its request lacks '{missing[0]}'")
    _check_unchanged(folder, request)
    return request


def _check_unchanged(folder: Path, request: dict[str, Any]) -> None:
    for file, then in request["hashes"].items():
        try:
            same = digest_of(file) == then
        except Missing:
            same = False
        if not same:
            what = f"{file} has changed since the run in {folder} began, so it is not executed"
            raise UsageError(f"{what}; put it back, or run anew")


def seed_of(folder: Path) -> int:
    """The seed of one of several runs, by its folder's name."""
    number = folder.name.partition("-")[2]
    return int(number) if number.isdecimal() else 0


def is_first() -> bool:
    """Whether this is the first of several processes: the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def free_folder(name: str) -> Path:
    """runs/NAME, or the next one like it that is not there yet."""
    folder = Path("runs") / name
    more = (folder.with_name(f"{folder.name}-{i}") for i in range(2, 10_000))
    return next(f for f in (folder, *more) if not f.exists())


def sentence(facts: dict[str, Any], folder: Path) -> str:
    """What came out of a run."""
    head = f"{facts.get('method')}, seed {facts.get('seed')}"
    if "score" in facts:
        told = f"{facts['score_name']} {facts['score']:.4f} on {facts['score_of']}"
        others = [("teacher", "teacher"), ("baseline", "student alone")]
        beside = [f"{word} {facts[k]:.4f}" for k, word in others if facts.get(k) is not None]
        told += f" ({', '.join(beside)})" if beside else ""
    elif "scores" in facts:
        scores = facts["scores"]
        best = max(scores, key=scores.get)
        told = f"the best of {len(scores)} is {best} ({scores[best]:.4g})"
    else:
        told = "done"
    asked = facts.get("requests")
    many = f"{asked} request{'s' * (asked != 1)} to the teacher in this call"
    told += "" if asked is None else f"; {many}"
    if there(folder / "time.json") and (time := took(read(folder / "time.json"))):
        told += f"; it took {time}"
    return f"{head}: {told}; in {folder}"


def summary(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """The results of several seeds as one."""
    same = ("method", "fields", "world", "score_of", "score_name", "parameters")
    out: dict[str, Any] = {k: facts[0][k] for k in same if k in facts[0]}
    out["seeds"] = [f["seed"] for f in facts]
    for name in ("score", "teacher", "baseline"):
        values = [f[name] for f in facts if f.get(name) is not None]
        if values:
            sd = statistics.stdev(values) if len(values) > 1 else 0.0
            out[name] = {"mean": statistics.fmean(values), "sd": sd, "each": values}
    return out


def of_seeds(told: dict[str, Any]) -> str:
    """What came out of several seeds, from their `summary`: means, and what the teacher gave."""
    score, n = told["score"], len(told["seeds"])
    line = f"{n} seeds: {told['score_name']} {_mean(score)} on {told['score_of']}"
    others = [("teacher", "teacher"), ("baseline", "student alone")]
    beside = [f"{word} {_mean(told[name])}" for name, word in others if name in told]
    line += f" ({', '.join(beside)})" if beside else ""
    alone = told.get("baseline", {}).get("each", ())
    if len(alone) != len(score["each"]):
        return line
    apart = [a - b for a, b in zip(score["each"], alone, strict=True)]
    mean = statistics.fmean(apart)
    if len(apart) < 3:
        few = f"{told['method']} over the student alone: {mean:+.4f} (an impression, of {n} seeds)"
        return f"{line}\n{few}"
    half = _half(apart)
    between = f"{mean - half:+.4f} to {mean + half:+.4f}"
    return (
        f"{line}\n{told['method']} over the student alone: {mean:+.4f} "
        f"(95 % interval {between}, from pairs of one seed)"
    )


def _mean(value: dict[str, Any]) -> str:
    """The mean over seeds, with its deviation where they differ."""
    return f"{value['mean']:.4f}" + (f" (sd {value['sd']:.4f})" if value["sd"] else "")


def _half(values: list[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's t."""
    free = len(values) - 1
    t = _T[free - 1] if free <= len(_T) else 1.96 + 2.5 / free  # to three digits
    return t * statistics.stdev(values) / math.sqrt(len(values))
