"""Randomness is a function of place."""

import random

import numpy as np
import pytest
import torch

from limbeck.core.method import Clock
from limbeck.core.rng import Draws, generator, globals_kept, seed_globals, seed_of

PLACE = (3, "fit", 7, "", 0)


def clock(**changes: object) -> Clock:
    values = {"seed": 3, "stage": "fit", "step": 7, "steps": 10, "steps_per_epoch": 4, **changes}
    return Clock(**values)  # type: ignore[arg-type]


def test_the_same_place_gives_the_same_draws_and_another_one_others() -> None:
    first = torch.rand(4, generator=generator(1, "a"))
    assert torch.equal(first, torch.rand(4, generator=generator(1, "a")))
    assert not torch.equal(first, torch.rand(4, generator=generator(1, "b")))
    assert len({seed_of(a, b) for a in range(30) for b in range(30)}) == 900


@pytest.mark.parametrize(
    "changes",
    [{"seed": 4}, {"stage": "x"}, {"step": 8}, {"phase": "p"}, {"repeat": 1}, {"n": 1}],
)
def test_each_part_of_a_clocks_place_moves_its_draws(changes: dict[str, object]) -> None:
    index = torch.arange(3)
    mine, other = clock(), clock(**changes)
    alike = torch.equal(
        torch.rand(5, generator=mine.rng("a")), torch.rand(5, generator=other.rng("a"))
    )
    assert not alike
    by_sample = torch.equal(mine.rng("a", index).rand(5), other.rng("a", index).rand(5))
    assert by_sample == ("n" in changes)  # draws of samples do not know the micro-batch


def test_draws_belong_to_samples_however_the_batch_is_split() -> None:
    index = torch.tensor([5, 900, 17, 5])
    for draw in (lambda d: d.rand(2, 3), lambda d: d.randn(4), lambda d: d.randint(11, 6)):
        whole = draw(Draws(index, *PLACE))
        parts = [draw(Draws(part, *PLACE)) for part in index.split(1)]
        assert torch.equal(whole, torch.cat(parts))
        assert torch.equal(whole[0], whole[3])
        assert not torch.equal(whole[0], whole[1])


def test_uniform_draws_are_uniform_and_independent() -> None:
    u = Draws(torch.arange(2000), *PLACE).rand(50).double()
    counts = torch.histc(u, 64, 0, 1)
    expected = u.numel() / 64
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert 30 < chi < 110  # 63 degrees of freedom: beyond both ends with probability below 1e-3
    assert u.min() >= 0
    assert u.max() < 1
    for a, b in ((u[:, :-1], u[:, 1:]), (u[:-1], u[1:])):  # along draws, and along samples
        r = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]
        assert abs(float(r)) < 4 / a.numel() ** 0.5


def test_integers_hit_every_value_alike() -> None:
    k = Draws(torch.arange(3000), *PLACE).randint(7, 10)
    counts = torch.bincount(k.flatten(), minlength=7).double()
    assert len(counts) == 7
    expected = k.numel() / 7
    assert float(((counts - expected) ** 2 / expected).sum()) < 23  # 6 degrees, 1e-3


def test_normal_draws_have_the_moments_and_tails_of_a_normal() -> None:
    z = Draws(torch.arange(4000), *PLACE).randn(25).double().flatten()
    n = len(z)
    assert abs(float(z.mean())) < 4 / n**0.5
    assert abs(float(z.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((z**4).mean()) - 3) < 4 * (96 / n) ** 0.5
    beyond = float((z.abs() > 1.959964).double().mean())
    assert abs(beyond - 0.05) < 4 * (0.05 * 0.95 / n) ** 0.5


def test_global_generators_are_put_back_even_after_an_error() -> None:
    seed_globals("before")
    expected = (torch.rand(2), np.random.rand(), random.random())
    seed_globals("before")

    def fails() -> None:
        with globals_kept():
            seed_globals("inside")
            torch.rand(9)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert torch.equal(torch.rand(2), expected[0])
    assert (np.random.rand(), random.random()) == expected[1:]


def test_a_clocks_epochs_and_fraction() -> None:
    assert [clock(step=s).epoch for s in (0, 3, 4, 9)] == [0, 0, 1, 2]
    assert clock().epochs == 3
    assert [clock(step=s).fraction for s in (0, 9)] == [0, 1]
    assert clock(step=0, steps=1).fraction == 0
