"""What the demo says of its runs when they are done."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck.registry import find

if TYPE_CHECKING:
    from torch import Tensor, nn

    from limbeck.cli._demo import Job
    from limbeck.core.task import Task

__all__ = ["latencies", "spread", "summary"]


def summary(
    jobs: Sequence[Job],
    facts: Mapping[Job, Mapping[str, Any]],
    models: Mapping[str, nn.Module],
    task: Task,
) -> dict[str, Any]:
    """What the demo's result.json says, in the order of the jobs.

    Args:
        jobs: all runs; each method has the same seeds, scratch among them.
        facts: what each run's result.json says.
        models: the teacher and a student of each method.
        task: of the first seed.
    """
    import torch

    from limbeck.core.data import Table

    plan = jobs[0].plan
    speed = latencies(models, Table(task.set("test"), "test").rows(torch.arange(1)).x)
    arms: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(job.name for job in jobs):
        runs = [job for job in jobs if job.name == name]
        arms[name] = {"name": plan.student, **_arm([facts[job] for job in runs], speed[name])}
        arms[name]["runs"] = [job.place for job in runs]
        if name != "scratch":
            card = find(runs[0].key).card
            arms[name] |= {"title": card.title, "year": card.year, "arxiv": card.arxiv}
            arms[name]["fields"] = facts[runs[0]]["fields"]
    alone = arms.pop("scratch")
    for arm in arms.values():
        pairs = zip(arm["accuracy"]["each"], alone["accuracy"]["each"], strict=True)
        arm["gain"] = spread([mine - theirs for mine, theirs in pairs])
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    return {
        "teacher": {
            "name": plan.teacher,
            "accuracy": spread([facts[job]["teacher"] for job in jobs if job.name == "scratch"]),
            "parameters": sum(p.numel() for p in models["teacher"].parameters()),
            "latency_ms": speed["teacher"],
        },
        "scratch": alone,
        "students": arms,
        "world": plan.world,
        "seeds": seeds,
        "budget": plan.budget(),
        "tuning": plan.tuning,
        "data": _data(task),
        "machine": _machine(),
    }


def _arm(facts: Sequence[Mapping[str, Any]], latency: float) -> dict[str, Any]:
    return {
        "accuracy": spread([each["score"] for each in facts]),
        "parameters": facts[0]["parameters"],
        "latency_ms": latency,
        "steps": sum(stage["steps"] for stage in facts[0]["stages"]),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and the values themselves."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": sd, "each": list(values)}


def latencies(models: Mapping[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Milliseconds for one sample x (1, ...), by model: the median of many, measured in turn."""
    import torch

    taken: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for turn in range(40):
            for name, model in models.items():
                model.eval()
                for repeat in range(15):
                    begun = time.perf_counter()
                    model(x)
                    if turn and repeat > 4:  # the first ones warm caches up
                        taken[name].append(1e3 * (time.perf_counter() - begun))
    return {name: round(statistics.median(times), 4) for name, times in taken.items()}


def _data(task: Task) -> dict[str, Any]:
    """Sizes of the sets, the classes, and a training picture of each: hex digits, row by row."""
    import torch

    from limbeck.core.data import Table

    sets = {name: Table(task.set(name), name) for name in ("train", "valid", "test")}
    train = sets["train"].rows(torch.arange(len(sets["train"])))
    firsts = [int((train.y == label).nonzero()[0]) for label in train.y.unique()]
    ink = train.x[firsts].flatten(1, -2)
    ink = (15 * (ink - ink.min()) / (ink.max() - ink.min())).round().int()
    return {
        "what": "handwritten digits (scikit-learn), 8 x 8 pixels",
        **{name: len(table) for name, table in sets.items()},
        "classes": list(task.data["names"]),
        "pictures": [" ".join("".join(f"{v:x}" for v in row) for row in p) for p in ink.tolist()],
    }


def _machine() -> dict[str, Any]:
    import platform

    import torch

    from limbeck import __version__

    return {
        "limbeck": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
