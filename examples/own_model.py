"""Bring your own modules and your own table, and teach from inside the teacher (FitNets).

Run it by `python examples/own_model.py`.
"""

import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import limbeck


class Teacher(nn.Module):
    """Any module will do: it takes x and gives logits (B, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(13, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.head = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class Student(nn.Module):
    """Fewer units, other names, other widths: nothing has to match."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(13, 8)
        self.second = nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.second(torch.relu(self.first(x)))))


# 178 wines by 13 measurements from three growers: 60 to learn from, the rest to judge by.
x, y = (torch.as_tensor(part) for part in load_wine(return_X_y=True))
rows, rest = train_test_split(range(len(y)), train_size=60, stratify=y, random_state=0)
x = ((x - x[rows].mean(0)) / x[rows].std(0)).float()
train, test = (x[rows], y[rows]), (x[rest], y[rest])

budget = limbeck.Budget(steps=300, batch=20, optimiser=limbeck.Optimiser("adamw", lr=3e-3))

# A teacher that is not trained yet is a student without a teacher.
teacher = limbeck.run(
    limbeck.Labels(), limbeck.Task(None, Teacher, train, test=test, budget=budget)
).model

# The student is a factory, so that every run can draw a new one. FitNets reads a middle layer of
# each side, `mid`; the tap says where that is: a path in the teacher, a path in the student. Paths
# are names of submodules; a misspelt one is answered with the nearest names.
task = limbeck.Task(teacher, Student, train, test=test, budget=budget)
result = limbeck.run("fitnets", task, taps={"mid": ("encoder.1", "first")})

size = sum(p.numel() for p in teacher.parameters())
print(
    f"of {len(rest)} wines never seen, the teacher with {size} parameters knows "
    f"{result.facts['teacher']:.1%}, the student with {result.facts['parameters']} knows "
    f"{result.facts['score']:.1%}"
)
