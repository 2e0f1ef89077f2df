"""Goes through methods in however many processes there are, and writes what each run ends with.

torchrun --nproc-per-node 2 launch.py FOLDER KEY ...
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from limbeck.check.several import ends


def main(folder: str, *methods: str) -> None:
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    found = {}
    for method in methods:
        try:
            found[method] = ends(method, accumulate=2 // world)
        except Exception:  # told in its place, so that the others are still seen
            found[method] = {"raised": traceback.format_exc(limit=-3)}
    rank, there = 0, 1
    if dist.is_initialized():
        rank, there = dist.get_rank(), dist.get_world_size()
    told = {"pid": os.getpid(), "processes": there, "ends": found}
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
