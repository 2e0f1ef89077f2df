"""Several processes: what a run ends with, to be compared with one process that accumulates.

torchrun --nproc-per-node 2 ...     each process asks `ends(key, 1)`
python ...                          asks `ends(key, 2)`; both are equal to the bit
"""

from __future__ import annotations

import dataclasses
import os

from limbeck.check.case import SEED, Case
from limbeck.check.look import digest_of, leaves, one_thread
from limbeck.core.files import digest_tensors
from limbeck.core.passes import Passes
from limbeck.core.rng import globals_kept
from limbeck.core.run import Run

__all__ = ["ends"]


def ends(key_or_file: str | os.PathLike[str], accumulate: int) -> dict[str, str]:
    """Run a method on its tiny world and give digests of what it ends with.

    Args:
        key_or_file: a method's key, or the path of a FILE.py with a card.
        accumulate: micro-batches of a step in each process.

    Returns:
        A digest of student and parts of each fit, by its name, and one of the result.
    """
    case = Case(key_or_file)
    task = case.task()
    task = dataclasses.replace(task, budget=dataclasses.replace(task.budget, accumulate=accumulate))
    fits: list[Passes] = []
    with one_thread(), globals_kept(), Run(task, SEED, device="cpu", on_fit=fits.append):
        result = case.method.run(task)
    found = {fit.stage: digest_tensors(dict(leaves(fit.step))) for fit in fits}
    return {**found, "the result": digest_of(result)}
