"""A teacher that is run once and read many times gives what the live one gives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import limbeck
from limbeck import Budget, Nobody, Task, UsageError
from limbeck.core.caching import cache_teacher


def make(seed: int = 0) -> Task:
    torch.manual_seed(seed)
    teacher = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    student = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(48, 5)
    budget = Budget(steps=7, batch=8)
    return Task(teacher, student, (x, x[:, :3].argmax(1)), budget=budget, taps={"mid": ("0", "0")})


def test_cached_equals_live_bit_for_bit(tmp_path: Path) -> None:
    task = make()
    cached = cache_teacher(task, tmp_path / "cache", ("logits", "mid"), batch=10)
    live = limbeck.run("kd", task).model
    read = limbeck.run("kd", replace(task, teacher=cached)).model
    for a, b in zip(live.parameters(), read.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rows_hold_the_teachers_outputs_in_eval_mode(tmp_path: Path) -> None:
    task = make()
    cache_teacher(task, tmp_path / "cache", ("logits", "mid"), batch=10)
    rows = limbeck.core.cache.Cache(tmp_path / "cache").rows(torch.tensor([40, 3]))
    x = task.train[0][[40, 3]]
    with torch.no_grad():
        torch.testing.assert_close(rows["logits"], task.teacher.eval()(x))
        torch.testing.assert_close(rows["mid"], task.teacher[0](x))


def test_a_second_call_writes_nothing_and_another_teacher_is_refused(tmp_path: Path) -> None:
    task = make()
    cache_teacher(task, tmp_path / "cache")
    calls = []
    task.teacher.register_forward_hook(lambda *_: calls.append(1))
    cached = cache_teacher(task, tmp_path / "cache")
    assert not calls
    with pytest.raises(UsageError, match="teacher"):
        cache_teacher(make(1), tmp_path / "cache")
    other = replace(task, train=(task.train[0] + 1, task.train[1]), teacher=cached)
    with pytest.raises(UsageError, match="stale: it differs in its samples"):
        limbeck.run("kd", other)


def test_what_the_cache_lacks_is_named(tmp_path: Path) -> None:
    task = make()
    cached = cache_teacher(task, tmp_path / "cache")
    with pytest.raises(UsageError, match="asked for 'embedding', but it gives logits"):
        limbeck.run(
            "crd(negatives=8, dim=4)",
            replace(task, teacher=cached, taps={"embedding": (None, "2:in")}),
        )
    with pytest.raises(UsageError, match="only a module's outputs are cached"):
        cache_teacher(replace(task, teacher=Nobody()), tmp_path / "none")
