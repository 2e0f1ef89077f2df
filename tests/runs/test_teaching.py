"""A teacher that was trained by an earlier run: what is said where it does not serve this one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import limbeck
from limbeck.core.untrained import Untrained
from limbeck.runs.teaching import kept

pytestmark = pytest.mark.xdist_group("teaching")

TOLD = "a teacher Net is kept that was trained"


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> limbeck.Task:
    """A task whose teacher was trained, and kept."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    task = limbeck.Task(
        teacher=Untrained(lambda: nn.Linear(3, 2), "Net"),
        student=lambda: nn.Linear(3, 2),
        train=(x, (x[:, 0] > 0).long()),
        budget=limbeck.Budget(steps=2, batch=8),
    )
    limbeck.run("kd", task)
    assert kept(task).notes == ("the teacher Net was trained by an earlier run, and kept",)
    return task


def test_other_samples_and_another_augment_are_told_apart(task: limbeck.Task) -> None:
    x, y = task.train
    fewer = replace(task, train=(x[:30], y[:30]))
    assert kept(fewer).notes == (
        f"{TOLD} on other samples (40 there, 30 here), so a run trains it anew",
    )
    drawn = replace(task, train=(x + 1, y), about={"augment": "crop,flip"})
    assert kept(drawn).notes == (
        f"{TOLD} with --augment none, and this run has --augment crop,flip, so a run trains it "
        "anew",
    )


def test_another_budget_is_told_by_what_differs(task: limbeck.Task) -> None:
    longer = replace(task, budget=limbeck.Budget(steps=3, batch=8))
    assert kept(longer).notes == (
        f"{TOLD} with 2 steps, and this run asks for 3 steps, so a run trains it anew",
    )
