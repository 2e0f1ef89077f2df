"""One fit in one process, or in several under torchrun: the same bits. See two_processes.sh.

Run it by `python examples/two_processes.py`.
"""

import os
import sys
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import limbeck
from limbeck.bench import worlds

torch.set_num_threads(1)  # sums over more threads round in another order

task = worlds.make("digits(n=200, student='mlp-small')")

# A step is 64 samples in two micro-batches: one process takes both in turn, two take one each.
processes = int(os.environ.get("WORLD_SIZE", "1"))
task = replace(task, budget=replace(task.budget, batch=64, accumulate=2 // processes))

with TemporaryDirectory() as folder:
    # All processes share a folder; the first one alone writes to it.
    out = Path(sys.argv[1] if len(sys.argv) > 1 else folder)
    result = limbeck.run("kd", task, out=out)
    if os.environ.get("RANK", "0") == "0":
        digest = blake2b((out / "student.safetensors").read_bytes(), digest_size=8).hexdigest()
        print(f"{result.facts['score']:.1%} right; the student's file has the digest {digest}")
