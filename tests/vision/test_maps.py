"""Features as maps, and two maps on one grid."""

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.vision._kit.maps import alike, spatial


def test_patches_keep_their_places_and_the_class_token_goes() -> None:
    picture = torch.arange(2 * 3 * 9.0).reshape(2, 3, 3, 3)
    rows = [[picture[b, :, i, j] for i in range(3) for j in range(3)] for b in range(2)]
    tokens = torch.stack([torch.stack([torch.full((3,), -1.0), *row]) for row in rows])
    assert torch.equal(spatial(tokens, "a test"), picture)
    assert torch.equal(spatial(tokens[:, 1:], "a test"), picture)


def test_maps_stay_and_vectors_have_one_place() -> None:
    picture, vector = torch.rand(2, 3, 4, 5), torch.rand(2, 3)
    assert spatial(picture, "a test") is picture
    assert torch.equal(spatial(vector, "a test")[:, :, 0, 0], vector)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(UsageError, match=r"at compares maps, but a feature of shape \(2, 60, 3\)"):
        spatial(torch.zeros(2, 60, 3), "at compares maps")


def test_each_side_is_averaged_down_to_the_smaller() -> None:
    s, t = torch.rand(2, 3, 4, 2), torch.rand(2, 5, 2, 6)
    one, two = alike(s, t)
    assert one.shape == (2, 3, 2, 2)
    assert two.shape == (2, 5, 2, 2)
    torch.testing.assert_close(one[:, :, 0, 1], (s[:, :, 0, 1] + s[:, :, 1, 1]) / 2)
    torch.testing.assert_close(two[:, :, 1, 0], t[:, :, 1, :3].mean(-1))
    assert alike(s, s)[0] is s
