"""A teacher asked outside a fit: over the whole training set, as the first epoch shows it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from limbeck.core.caching import cache_teacher
from limbeck.core.data import Table
from limbeck.core.looking import asking, look_over
from limbeck.core.method import Clock
from limbeck.core.run import Run
from limbeck.core.task import Task
from limbeck.core.teacher import Setting
from limbeck.core.teachers import Cached, Frozen
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("looking")

X, Y = torch.randn(23, 4, generator=torch.Generator().manual_seed(1)), torch.arange(23) % 3


def net() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    model(torch.randn(64, 4))  # so that its averages are no longer 0 and 1
    return model.train()


def task(teacher: object, train: object = (X, Y), **more: object) -> Task:
    return Task(teacher, nn.Linear(4, 3), train, taps={"embedding": ("3:in", None)}, **more)


def seen(given: Task, size: int = 10, seed: int = 0) -> tuple[list[Tensor], ...]:
    with Run(given, seed=seed, device="cpu"):
        found = [(b.index, b.x, t.logits, t.embedding) for b, t in look_over(given, size)]
    return tuple(map(list, zip(*found, strict=True)))


class Jittered(Dataset):
    """Each sample is moved at random whenever it is read."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return X[i] + torch.randn(4), Y[i]


def test_all_samples_are_seen_in_order_in_eval_mode_and_nothing_stays() -> None:
    model = net()
    index, x, logits, embedding = seen(task(model))
    assert [len(i) for i in index] == [10, 10, 3]
    assert torch.equal(torch.cat(index), torch.arange(23))
    assert torch.equal(torch.cat(x), X)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.eval()
    inner = model[1](model[0](X))
    torch.testing.assert_close(torch.cat(embedding), inner.detach())
    torch.testing.assert_close(torch.cat(logits), model[3](inner).detach())


def test_readers_are_used() -> None:
    _, _, logits, _ = seen(task(net(), readers={"teacher": lambda x: 2 * x}))
    torch.testing.assert_close(torch.cat(logits), net().eval()(2 * X).detach())


def test_a_set_that_augments_is_seen_as_in_its_first_epoch() -> None:
    given = task(net(), Jittered())
    index, x, *_ = seen(given, seed=4)
    epoch = given.batches()
    first = [
        epoch(given.student, None, Clock(4, "fit", step, 99, 4, draw=step, batch=5))
        for step in range(4)
    ]
    rows = torch.cat([b.index for b in first])
    assert len(rows) == 20
    torch.testing.assert_close(torch.cat(x)[rows], torch.cat([b.x for b in first]))
    assert not torch.equal(torch.cat(x), torch.cat(seen(given, seed=5)[1]))
    assert torch.equal(torch.cat(index), torch.arange(23))


def test_a_cache_gives_the_same(tmp_path: Path) -> None:
    given = task(net(), Jittered())
    cached = cache_teacher(given, tmp_path, ("logits", "embedding"), epochs=2, seed=4)
    _, _, *live = seen(given, seed=4)
    _, _, *read = seen(task(cached, Jittered()), seed=4)
    for one, two in zip(live, read, strict=True):
        torch.testing.assert_close(torch.cat(one), torch.cat(two))
    with pytest.raises(UsageError, match="give --seed 4"):
        seen(task(cached, Jittered()), seed=5)


def test_a_cache_of_other_samples_is_refused(tmp_path: Path) -> None:
    model = net()
    cache_teacher(task(model), tmp_path)
    other = task(Cached(tmp_path, model), (X + 1, Y))
    with pytest.raises(UsageError, match=r"cache"):
        seen(other)


def test_a_look_that_is_given_up_leaves_the_teacher_as_it_was() -> None:
    model = net()
    with Run(task(model), device="cpu") as run:
        assert run.task is not None
        look = look_over(run.task)
        _, side = next(look)
        assert torch.is_grad_enabled()  # the look is not over, and gradients are the caller's
        assert not side.logits.requires_grad
        assert not model.training
        look.close()
    assert model.training
    with pytest.raises(ZeroDivisionError), asking(Frozen(model), Setting(), Table((X, Y))):
        raise ZeroDivisionError
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
