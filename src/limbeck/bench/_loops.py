"""A step of plain distillation, three ways: a loop by hand, `fit`, and torchdistill."""

from __future__ import annotations

import time
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.engine import fit
from limbeck.core.method import Objective
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.registry import make

TAU, ALPHA, LR, CLIP = 4.0, 0.1, 0.01, 1.0


def small(width: int) -> nn.Module:
    """A small CNN with three blocks for 1x16x16 inputs."""
    layers: list[nn.Module] = []
    for a, b in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def bare_loop(
    student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, batch: int, steps: int
) -> float:
    """Seconds a step of the loop that people write: shuffling, schedule, clipping, logging."""
    optimiser = torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    teacher.eval()
    student.train()
    log = []
    start = time.perf_counter()
    per_epoch = len(x) // batch
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(x))
        rows = order[(step % per_epoch) * batch :][:batch]
        xb, yb = x[rows], y[rows]
        with torch.no_grad():
            t = teacher(xb)
        s = student(xb)
        label = F.cross_entropy(s, yb)
        soft = F.kl_div((s / TAU).log_softmax(-1), (t / TAU).softmax(-1), reduction="batchmean")
        loss = ALPHA * label + (1 - ALPHA) * TAU**2 * soft
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimiser.step()
        schedule.step()
        log.append(loss.item())
    return (time.perf_counter() - start) / steps


def limbeck_loop(
    student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, batch: int, steps: int
) -> float:
    """Seconds a step of `fit`, from its first step on."""
    budget = Budget(
        steps=steps, batch=batch, optimiser=Optimiser("sgd", lr=LR, momentum=0.9), clip=CLIP
    )
    task = Task(teacher, student, (x, y), budget=budget)
    began: list[float] = []
    with Run(task, device="cpu", on_fit=lambda _: began.append(time.perf_counter())):
        fit(cast(Objective, make("kd")), student, task.the_teacher(), task.batches(), name="speed")
    return (time.perf_counter() - began[0]) / steps


def torchdistill_loop(
    student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, batch: int, steps: int
) -> float:
    """Seconds a step of torchdistill's distillation box at the same settings."""
    from torch.utils.data import RandomSampler, TensorDataset
    from torchdistill.core.distillation import get_distillation_box

    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "requires_supp": True,
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": batch, "num_workers": 0, "drop_last": True},
        },
        "teacher": {
            "forward_proc": "forward_batch_only",
            "requires_grad": False,
        },
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": 0.9}, "max_grad_norm": CLIP},
        "scheduler": {"key": "CosineAnnealingLR", "kwargs": {"T_max": steps}, "scheduling_step": 1},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {
                            "key": "KDLoss",
                            "kwargs": {
                                "student_module_path": ".",
                                "student_module_io": "output",
                                "teacher_module_path": ".",
                                "teacher_module_io": "output",
                                "temperature": TAU,
                                "alpha": ALPHA,
                                "reduction": "batchmean",
                            },
                        },
                        "weight": 1.0,
                    }
                }
            },
        },
    }
    box = get_distillation_box(
        teacher,
        student,
        {"train": TensorDataset(x, y)},
        config,
        torch.device("cpu"),
        None,
        False,
        1,
    )
    done, log = 0, []
    start = time.perf_counter()
    while done < steps:
        box.pre_epoch_process(epoch=0)
        for sample, target, supp in box.train_data_loader:
            loss = box.forward_process(sample, target, supp)
            box.post_forward_process(loss)
            log.append(loss.item())
            done += 1
            if done == steps:
                break
    return (time.perf_counter() - start) / steps
