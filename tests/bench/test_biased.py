"""The world `biased`: a colour that tells the class in training, and no longer in the test."""

import pytest
import torch
from torch import Tensor

from limbeck.bench import worlds
from limbeck.bench.worlds import biased
from limbeck.bench.worlds._teachers import accuracy
from limbeck.errors import UsageError


def nearest(x: Tensor) -> Tensor:
    """The class whose colour the corners have, which no shape covers."""
    corner = x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean(2) * 0.3 + 0.45
    own = 0.8 * biased.colours(torch.arange(8) / 8)
    return torch.cdist(corner, own).argmin(1)


def test_what_the_colour_tells() -> None:
    for kind, share in (("alike", 0.9 + 0.1 / 8), ("random", 1 / 8), ("reversed", 0.0)):
        x, y = biased.draw(2000, 0, "train", kind)
        assert float((nearest(x) == y).float().mean()) == pytest.approx(share, abs=0.04)
        if kind == "reversed":
            assert float((nearest(x) == (y + 4) % 8).float().mean()) > 0.95


def test_equal_parts_have_equal_shapes() -> None:
    pictures = {k: biased.draw(64, 0, "test", k)[0] for k in ("random", "inverted", "noise")}
    raw = {k: x * 0.3 + 0.45 for k, x in pictures.items()}
    assert float((raw["inverted"] - (1 - raw["random"])).abs().mean()) < 0.1
    assert float((raw["noise"] - raw["random"]).abs().mean()) > 0.1
    with pytest.raises(UsageError, match="of the kind 'blue'"):
        biased.draw(8, 0, "test", "blue")


def test_a_picture_does_not_depend_on_how_many_there_are() -> None:
    few, many = (biased.draw(n, 0, "train", "diverse")[0] for n in (20, 50))
    torch.testing.assert_close(few, many[:20])


def test_the_tiny_task() -> None:
    task = worlds.make("biased", tiny=True)
    assert set(task.data["shifts"]) == {"alike", *biased.SHIFTS}
    assert [len(s[1]) for s in (task.train, task.valid, task.test)] == [192, 64, 256]
    assert task.train[0].shape[1:] == (3, 16, 16)
    teacher = task.teacher.module
    assert accuracy(teacher, *task.data["shifts"]["random"]) > 1 / 8 + 0.2
    again = worlds.make("biased", tiny=True, seed=1)
    assert torch.equal(again.train[0], task.train[0])
    state = task.new_student(0).state_dict()
    assert all(state[n].shape == p.shape for n, p in teacher.state_dict().items())
    assert not torch.equal(
        worlds.make("biased(data_seed=1, teacher='none')", tiny=True).train[0], task.train[0]
    )
