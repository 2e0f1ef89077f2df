"""Joining what micro-batches hold."""

import pytest
import torch

from limbeck.core.processes import averaged


@pytest.mark.parametrize("n", [2, 3, 5, 6, 7])
def test_a_buffer_that_nobody_moved_keeps_its_bits(n: int) -> None:
    same = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(averaged([[same.clone()] for _ in range(n)])[0], same)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_floats_are_averaged_and_of_integers_the_highest_counts(n: int) -> None:
    g = torch.Generator().manual_seed(1)
    floats = [torch.randn(4, 2, generator=g) for _ in range(n)]
    counts = [torch.tensor(k) for k in range(n)]
    mean, most = averaged([[f, c] for f, c in zip(floats, counts, strict=True)])
    expected = sum(f.double() for f in floats) / n
    torch.testing.assert_close(mean.double(), expected, rtol=0, atol=1e-6)
    assert int(most) == n - 1
