"""Taps are moved before the ReLU that a stage ends in, and stay where that cannot be tapped."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.bench.worlds._models import CNN, MLP, ResNet, ViT
from limbeck.core.task import Task
from limbeck.core.views import Look
from limbeck.vision._kit.prerelu import before_relu, places

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def read(model: nn.Module, path: str) -> Tensor:
    found = Look(model, "teacher", {"mid": path}).side_of(X).mid
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("model", [CNN((1, 8, 8), 4), ResNet((1, 8, 8), 4), MLP((1, 8, 8), 4)])
def test_what_is_read_is_what_the_relu_is_given(model: Any) -> None:
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = places(model, model.taps["blocks"], X)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    model.eval()
    for old, new in zip(model.taps["blocks"], found, strict=True):
        assert new.path != old
        value, after = read(model, new.path), read(model, old)
        assert (value < 0).any()
        pooled = value.relu()
        if pooled.shape != after.shape:
            pooled = F.max_pool2d(pooled, 2)
        torch.testing.assert_close(pooled, after)
        if new.norm is not None:
            assert isinstance(model.get_submodule(new.norm), nn.BatchNorm2d)
            torch.testing.assert_close(read(model, new.norm), value)
    assert all(place.norm for place in found) == isinstance(model, CNN)


class Odd(nn.Module):
    """ReLUs that cannot be moved before: in place, used twice, not the last, within a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True))
        self.relu = nn.ReLU()
        self.norm = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))
        self.sum = nn.ReLU()
        self.twice = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.relu(self.place(x))))
        x = x + self.sum(x)
        return self.twice(x).mean((2, 3))


def test_taps_stay_where_no_relu_ends_a_stage() -> None:
    model = Odd()
    for path, norm in (("place", None), ("norm", "norm.2"), ("twice", None), ("sum:in", None)):
        (found,) = places(model, [path], X)
        assert (found.path, found.norm) == (path, norm)
    (found,) = places(model, ["sum"], X)
    assert found.path == "sum:in"
    (missing,) = places(model, ["nothing.here"], X)
    assert missing.path == "nothing.here"
    vit = ViT((1, 8, 8), 4)
    assert [p.path for p in places(vit, vit.taps["blocks"], X)] == vit.taps["blocks"]


def test_the_taps_of_a_task() -> None:
    teacher, student = CNN((1, 8, 8), 4, (4, 4)), ResNet((1, 8, 8), 4, (4, 4), (1, 1))
    paths = (teacher.taps["blocks"], student.taps["blocks"])
    data = (X, torch.arange(6) % 4)
    task = Task(teacher, student, data, taps={"blocks": paths, "embedding": ("head:in", "head:in")})
    moved, norms = before_relu(task, student)
    assert moved.taps["blocks"] == (
        ["body.0.2:in", "body.1.2:in"],
        ["body.0.0.relu2:in", "body.1.0.relu2:in"],
    )
    assert norms == ["body.0.1", "body.1.1"]
    assert moved.taps["embedding"] == task.taps["embedding"]
    single = Task(teacher, student, data, taps={"blocks": ("body.1", "body.0")})
    assert before_relu(single, student)[0].taps["blocks"][0] == ["body.1.2:in"]
    bare = Task(None, student, data)
    assert before_relu(bare, student)[0].taps == {}
