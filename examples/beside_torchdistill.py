"""The same student taught by the same teacher, with torchdistill and with limbeck, side by side.

Both get the same weights to start from, data, optimiser, schedule and weights of the terms; the
order of the data and CRD's draws are each library's own. Needs torchdistill, and Linux for the
memory. Run it by `python examples/beside_torchdistill.py`; it takes some minutes.
"""

import argparse
import inspect
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import RandomSampler, TensorDataset

BATCH, LR, DECAY, NEGATIVES = 64, 0.2, 2e-3, 128
TRAIN, VALID = 500, 800  # pictures, and how many go to train and valid together


class Net(nn.Module):
    """Three convolutions, pooling, and a linear layer."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        shapes = zip((1, *widths), widths, strict=False)
        one, two, three = (
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in shapes
        )
        self.layer1, self.layer2, self.layer3 = one, two, three
        self.halve, self.pool = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.flat, self.head = nn.Flatten(), nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.halve(self.layer2(self.halve(self.layer1(x)))))
        return self.head(self.flat(self.pool(x)))


def digits() -> tuple[Tensor, Tensor]:
    """1797 digits of 8x8 pixels."""
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8)
    return (x - x.mean()) / x.std(), y.long()


# --- what a user of limbeck writes ---------------------------------------------------------------


def with_limbeck(
    method: str, teacher: nn.Module, student: nn.Module, epochs: int, seed: int
) -> int:
    """Teach the student; give the number of steps."""
    import limbeck
    from limbeck import Budget, Optimiser, Task

    fields: dict[str, Any] = {
        "kd": {"label": 0.1, "kd": 0.9, "tau": 4.0},
        "rkd": {"distance": 25.0, "angle": 50.0},
        "crd": {"crd": 0.8, "negatives": NEGATIVES},
        "at": {"at": 1000.0},
    }[method]
    x, y = digits()
    optimiser = Optimiser("sgd", lr=LR, momentum=0.9, weight_decay=DECAY)
    layers = ["layer1", "layer2", "layer3"]
    task = Task(
        teacher,
        lambda: student,
        (x[:TRAIN], y[:TRAIN]),
        taps={"embedding": ("flat", "flat"), "blocks": (layers, layers)},
        budget=Budget(epochs=epochs, batch=BATCH, optimiser=optimiser),
    )
    result = limbeck.run(method, task, seed=seed, progress="none", **fields)
    student.load_state_dict(result.model.state_dict())
    return sum(stage["steps"] for stage in result.facts["stages"])


# --- what a user of torchdistill writes ----------------------------------------------------------


def with_torchdistill(
    method: str, teacher: nn.Module, student: nn.Module, epochs: int, seed: int
) -> int:
    """Teach the student; give the number of steps."""
    from torchdistill.core.distillation import get_distillation_box

    def side(width: int) -> dict[str, Any]:
        hooked = {
            "kd": [],
            "rkd": ["flat"],
            "crd": ["normalizer", "model.flat", "model.head"],
            "at": ["layer1", "layer2", "layer3"],
        }[method]
        told: dict[str, Any] = {
            "forward_proc": "forward_batch_only",
            "forward_hook": {"input": ["empty"] if method == "crd" else [], "output": hooked},
        }
        if method == "crd":
            told["forward_proc"] = "forward_batch_supp_dict"
            told["auxiliary_model_wrapper"] = {
                "key": "Linear4CRD",
                "kwargs": {
                    "input_module_path": "model.flat",
                    "linear_kwargs": {"in_features": width, "out_features": 128},
                    "power": 2,
                },
            }
        return told

    alone: dict[str, Any] = {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {
                    "is_from_teacher": False,
                    "module_path": "model.head" if method == "crd" else ".",
                    "io": "output",
                },
                "target": {"uses_label": True},
            },
        },
        "weight": 1.0,
    }
    places = {"student_module_path": ".", "student_module_io": "output",
              "teacher_module_path": ".", "teacher_module_io": "output"}  # fmt: skip
    pairs = {
        f"pair{k}": {
            "teacher": {"io": "output", "path": f"layer{k}"},
            "student": {"io": "output", "path": f"layer{k}"},
            "weight": 1.0,
        }
        for k in (1, 2, 3)
    }
    term: dict[str, Any] = {
        "kd": {
            "criterion": {
                "key": "KDLoss",
                "kwargs": {**places, "temperature": 4.0, "alpha": 0.1, "reduction": "batchmean"},
            },
            "weight": 1.0,
        },
        "rkd": {
            "criterion": {
                "key": "RKDLoss",
                "kwargs": {
                    "teacher_output_path": "flat",
                    "student_output_path": "flat",
                    "dist_factor": 25.0,
                    "angle_factor": 50.0,
                    "reduction": "mean",
                },
            },
            "weight": 1.0,
        },
        "crd": {
            "criterion": {
                "key": "CRDLoss",
                "kwargs": {
                    "student_norm_module_path": "normalizer",
                    "student_empty_module_path": "empty",
                    "teacher_norm_module_path": "normalizer",
                    "input_size": 128,
                    "output_size": TRAIN,
                    "num_negative_samples": NEGATIVES,
                    "num_samples": TRAIN,
                },
            },
            "weight": 0.8,
        },
        "at": {
            "criterion": {"key": "ATLoss", "kwargs": {"at_pairs": pairs, "mode": "code"}},
            "weight": 1000.0,
        },
    }[method]
    x, y = digits()
    data = TensorDataset(x[:TRAIN], y[:TRAIN])
    loader: dict[str, Any] = {
        "dataset_id": "train",
        "requires_supp": True,
        "sampler": {"class_or_func": RandomSampler},
        "kwargs": {"batch_size": BATCH, "drop_last": True},
    }
    if method == "crd":
        data.classes, data.targets = list(range(10)), y[:TRAIN].tolist()
        loader["dataset_wrapper"] = {
            "key": "CRDDatasetWrapper",
            "kwargs": {"num_negative_samples": NEGATIVES, "mode": "exact", "ratio": 1.0},
        }
    steps = epochs * (TRAIN // BATCH)
    config = {
        "num_epochs": epochs,
        "train_data_loader": loader,
        "teacher": {**side(teacher.head.in_features), "requires_grad": False},
        "student": side(student.head.in_features),
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": LR, "momentum": 0.9, "weight_decay": DECAY, "nesterov": False},
        },
        "scheduler": {"key": "CosineAnnealingLR", "kwargs": {"T_max": steps}, "scheduling_step": 1},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {method: term, **({} if method == "kd" else {"ce": alone})}},
        },
    }
    torch.manual_seed(seed)
    box = get_distillation_box(
        teacher, student, {"train": data}, config, torch.device("cpu"), None, False, 1
    )
    for epoch in range(epochs):
        box.pre_epoch_process(epoch=epoch)
        for batch, target, supplement in box.train_data_loader:
            box.post_forward_process(box.forward_process(batch, target, supplement))
        box.post_epoch_process()
    box.clean_modules()
    return steps


# --- measuring -----------------------------------------------------------------------------------

WAYS: dict[str, Callable[..., int]] = {"limbeck": with_limbeck, "torchdistill": with_torchdistill}


def train(net: nn.Module, epochs: int) -> nn.Module:
    """The teacher, on labels."""
    x, y = digits()
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for rows in torch.randperm(TRAIN).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
    return net.eval()


def measure(way: str, method: str, epochs: int, seed: int, out: Any) -> None:
    """Teach one student in this process: accuracy, milliseconds a step, megabytes more at most."""
    import importlib

    for name in ("limbeck", "limbeck.core.engine", "torchdistill.core.distillation"):
        importlib.import_module(name)  # not counted, of either
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = train(Net((32, 64, 128)), 30)
    torch.manual_seed(seed)
    student = Net((4, 6, 8))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    steps = WAYS[way](method, teacher, student, epochs, seed)
    took = time.process_time() - start
    rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    x, y = digits()
    with torch.no_grad():
        right = float((student.eval()(x[VALID:]).argmax(1) == y[VALID:]).float().mean())
    out.put((100 * right, 1000 * took / steps, rise))


def lines_of(way: str) -> int:
    """Lines of code that a user writes for the four methods."""
    return sum(bool(line.strip()) for line in inspect.getsource(WAYS[way]).splitlines())


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description="torchdistill and limbeck, side by side")
    parser.add_argument("--methods", default="kd,rkd,crd,at")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("| method | library | accuracy | spread | ms a step | MB more |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for method in args.methods.split(","):
        rows: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
        for seed in range(args.seeds):
            for way in WAYS:  # in turn, so that a busy machine is unfair to neither
                out = context.SimpleQueue()
                job = context.Process(target=measure, args=(way, method, args.epochs, seed, out))
                job.start()
                job.join()
                if job.exitcode:
                    raise SystemExit(f"{method} with {way} failed")
                rows[way].append(out.get())
        for way, found in rows.items():
            right, took, more = zip(*found, strict=True)
            spread = statistics.stdev(right) if len(right) > 1 else 0.0
            numbers = f"{statistics.mean(right):.1f} | {spread:.1f} | {min(took):.2f}"
            print(f"| {method} | {way} | {numbers} | {statistics.median(more):.0f} |", flush=True)
    print()
    for way in WAYS:
        print(f"Lines of user code for all four with {way}: {lines_of(way)}")


if __name__ == "__main__":
    main()
