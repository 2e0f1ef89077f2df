"""Stages in pairs: which go together, unit vectors, and the connector of two methods."""

import math

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.vision._kit.maps import unit, wide
from limbeck.vision._kit.stages import connector, paired, shares

G = torch.Generator().manual_seed(5)


def test_stages_at_the_same_share_of_the_depth_go_together() -> None:
    def stages(n: int) -> list[torch.Tensor]:
        return [torch.full((1, 1, 2, 2), float(k)) for k in range(1, n + 1)]

    for n, m, want in (
        (3, 3, [(1, 1), (2, 2), (3, 3)]),
        (3, 12, [(1, 4), (2, 8), (3, 12)]),
        (5, 2, [(3, 1), (5, 2)]),
        (1, 4, [(1, 4)]),
        (3, 4, [(1, 2), (2, 3), (3, 4)]),
    ):
        found = [(int(a.mean()), int(b.mean())) for a, b in paired(stages(n), stages(m), "it")]
        assert found == want
    (one,) = paired(torch.ones(2, 3), [torch.ones(2, 5, 4, 4)], "it compares")
    assert [x.shape for x in one] == [(2, 3, 1, 1), (2, 5, 4, 4)]
    with pytest.raises(UsageError, match=r"it compares, but .*\(2, 3, 3, 3, 3\)"):
        paired([torch.ones(2, 3, 3, 3, 3)], one[1], "it compares")


def test_tokens_are_maps_without_the_class_token() -> None:
    tokens = torch.randn(2, 10, 4, generator=G)
    ((a, _),) = paired([tokens], [torch.ones(2, 1, 3, 3)], "it")
    for i in range(3):
        for j in range(3):
            assert torch.equal(a[:, :, i, j], tokens[:, 1 + 3 * i + j])


def test_half_precision_becomes_float32() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert wide(torch.ones(2, dtype=dtype)).dtype == torch.float32
    assert wide(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
    ((a, b),) = paired([torch.ones(2, 3).half()], [torch.ones(2, 3)], "it")
    assert a.dtype == b.dtype == torch.float32


def test_unit_vectors_and_zeros() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    assert unit(x).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]
    (grad,) = torch.autograd.grad(unit(x).sum(), x)
    # (1 - u (u . 1)) / 5 with u = (0.6, 0.8)
    assert grad[0].tolist() == pytest.approx([(1 - 0.6 * 1.4) / 5, (1 - 0.8 * 1.4) / 5], abs=1e-6)
    assert grad[1].tolist() == [0.0, 0.0]


def test_shares_double_up_to_one() -> None:
    assert shares(1) == [1.0]
    assert shares(4) == [0.125, 0.25, 0.5, 1.0]


def test_connector() -> None:
    made = connector(64, 400, torch.Generator().manual_seed(1))
    assert made[0].bias is None
    assert float(made[0].weight.detach().std()) == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    x = torch.randn(4, 64, 3, 3, generator=G)
    with torch.no_grad():
        by_hand = torch.einsum("oc,bchw->bohw", made[0].weight[:, :, 0, 0], x)
        mean, var = by_hand.mean((0, 2, 3)), by_hand.var((0, 2, 3), unbiased=False)
        by_hand = (by_hand - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
    torch.testing.assert_close(made(x).detach(), by_hand, atol=1e-5, rtol=1e-5)
