"""Sharded parameters: torch's fully_shard on one process, and what is refused with it."""

import os
import socket
import subprocess
import sys

SCRIPT = """
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import limbeck
from limbeck import Budget, Optimiser, Task, fit, make
from limbeck.core.run import Run

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (1,))
x = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
y = x[:, :3].argmax(1)

def trained(spec, shard):
    torch.manual_seed(1)
    teacher, student = nn.Linear(5, 3), nn.Linear(5, 3)
    if shard:
        fully_shard(student, mesh=mesh)
        assert type(student.weight).__name__ == "DTensor"
    budget = Budget(steps=3, batch=8, optimiser=Optimiser("sgd", lr=0.1))
    task = Task(teacher, student, (x, y), budget=budget)
    with Run(task, device="cpu"):
        fit(make(spec), student, task.the_teacher(), task.batches(), name="fit")
    weight = student.weight.full_tensor() if shard else student.weight
    return weight.detach()

assert torch.equal(trained("kd", True), trained("kd", False))
try:
    trained("dot", True)
except limbeck.UsageError as error:
    assert "sharded (FSDP2)" in str(error), error
else:
    raise AssertionError("momenta for each term were not refused")
print("done")
dist.destroy_process_group()
"""


def test_a_sharded_student_trains_alike_and_other_joins_are_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **place, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done" in done.stdout
