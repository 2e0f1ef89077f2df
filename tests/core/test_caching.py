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


def test_a_list_of_places_is_kept_in_its_order(tmp_path: Path) -> None:
    from limbeck.bench import worlds

    task = worlds.make("digits(tiny=True)")
    cached = cache_teacher(task, tmp_path / "cache", ("logits", "blocks"))
    nst = limbeck.get("nst")(at="blocks", nst=1.0)
    live, read = (limbeck.run(nst, t).model for t in (task, replace(task, teacher=cached)))
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


class Shifted(torch.utils.data.Dataset):
    """Augments: each sample is shifted at random, anew in each epoch."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i] + 0.3 * torch.randn(5), self.y[i]


def augmented() -> Task:
    task = make()
    return replace(task, train=Shifted(*task.train), budget=Budget(epochs=3, batch=8))


@pytest.mark.parametrize("workers", [0, 1])
def test_augmented_inputs_are_kept_by_seed_and_epoch(tmp_path: Path, workers: int) -> None:
    task = augmented()
    task = replace(task, budget=replace(task.budget, workers=workers))
    with pytest.raises(UsageError, match="say how many epochs"):
        cache_teacher(task, tmp_path / "cache")
    done = []
    told = lambda now, rows: done.append((now, rows))  # noqa: E731
    cached = cache_teacher(task, tmp_path / "cache", batch=20, epochs=3, seed=4, told=told)
    assert done == [(k * 48 + n, 144) for k in range(3) for n in (20, 40, 48)]
    live = limbeck.run("kd", task, seed=4).model
    read = limbeck.run("kd", replace(task, teacher=cached), seed=4).model
    for a, b in zip(live.parameters(), read.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(UsageError, match="augmented with seed 4, and this run has seed 0"):
        limbeck.run("kd", replace(task, teacher=cached))
    longer = replace(task, teacher=cached, budget=Budget(epochs=4, batch=8))
    with pytest.raises(UsageError, match="holds 3 epochs, and this run goes on"):
        limbeck.run("kd", longer, seed=4)


def test_one_epochs_rows_would_not_do_for_the_next(tmp_path: Path) -> None:
    """The premise of the test above: without its key an augmented cache would be wrong."""
    table = limbeck.core.data.Table(augmented().train)
    some = torch.arange(4)
    assert not torch.equal(table.rows(some, 4, 0).x, table.rows(some, 4, 1).x)
    assert torch.equal(table.rows(some, 4, 1).x, table.rows(some, 4, 1).x)
