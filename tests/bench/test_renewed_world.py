"""The world `renewed`."""

import pytest
import torch

from limbeck.bench import worlds
from limbeck.errors import UsageError

pytestmark = pytest.mark.xdist_group("renewed")


def test_the_teacher_has_seen_the_first_half() -> None:
    new, old = worlds.make("renewed", tiny=True), worlds.make("digits(n=96)", tiny=True)
    assert torch.equal(new.train[0][:96], old.train[0])
    assert len(new.train[0]) == 192
    half = worlds.make("digits(teacher='cnn-tiny', n=96)", tiny=True).teacher.module
    pairs = zip(half.state_dict().values(), new.teacher.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(new.test[0], old.test[0])


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(UsageError, match="n is 64; give a whole number from 128 to 1000"):
        worlds.make("renewed(n=64)")
