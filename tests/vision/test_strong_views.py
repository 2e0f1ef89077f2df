"""The strong view of pictures: each operation beside Pillow's, ranges, draws, and the square."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.vision._kit.strong import DRAWS, OPERATIONS, strong

pytestmark = pytest.mark.xdist_group("mlkd")
G = torch.Generator().manual_seed(24)
BYTES = torch.randint(0, 200, (4, 3, 26, 22), generator=G, dtype=torch.uint8) + 20
AFFINE = Image.Transform.AFFINE


def affine(*six: float) -> Callable[[Any, float], Any]:
    return lambda p, v: p.transform(p.size, AFFINE, six)


PILLOW: dict[str, Callable[[Any, float], Any]] = {
    "autocontrast": lambda p, v: ImageOps.autocontrast(p),
    "brightness": lambda p, v: ImageEnhance.Brightness(p).enhance(v),
    "colour": lambda p, v: ImageEnhance.Color(p).enhance(v),
    "contrast": lambda p, v: ImageEnhance.Contrast(p).enhance(v),
    "equalise": lambda p, v: ImageOps.equalize(p),
    "identity": lambda p, v: p,
    "posterise": lambda p, v: ImageOps.posterize(p, int(v)),
    "rotate": lambda p, v: p.rotate(v),
    "sharpness": lambda p, v: ImageEnhance.Sharpness(p).enhance(v),
    "shear_x": lambda p, v: affine(1, v, 0, 0, 1, 0)(p, v),
    "shear_y": lambda p, v: affine(1, 0, 0, v, 1, 0)(p, v),
    "solarise": lambda p, v: ImageOps.solarize(p, v),
    "translate_x": lambda p, v: affine(1, 0, v * p.size[0], 0, 1, 0)(p, v),
    "translate_y": lambda p, v: affine(1, 0, 0, 0, 1, v * p.size[1])(p, v),
}


def by_pillow(name: str, picture: Tensor, v: float) -> Tensor:
    given = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    return torch.from_numpy(np.array(PILLOW[name](given, v))).permute(2, 0, 1).float()


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_an_operation_is_pillows(name: str) -> None:
    change, least, most = OPERATIONS[name]
    v = least + (most - least) * torch.tensor([0.03, 0.35, 0.71, 0.97])
    seen = 255 * change(BYTES.double() / 255, v.double()[:, None, None, None])
    moved = 0.0
    for b in range(4):
        theirs = by_pillow(name, BYTES[b], float(v[b]))
        gap = (seen[b] - theirs).abs()
        # bytes are rounded there; a pixel on the edge of two may be read from the other
        assert float((gap > 1.5).double().mean()) < 0.01, (name, b)
        moved = max(moved, float((theirs - BYTES[b]).abs().max()))
    assert (moved > 1) == (name != "identity")
    assert list(OPERATIONS) == list(PILLOW)


def test_few_pixels_are_not_equalised() -> None:
    x = torch.rand(2, 1, 8, 8, generator=G)
    assert torch.equal(OPERATIONS["equalise"][0](x, x[:, :1, :1, :1]), x)


def view(x: Tensor, u: Tensor) -> Tensor:
    return strong(x, u, "a test turns")


def one(name: str, v: float, x: Tensor) -> Tensor:
    """A view by one operation, beside identity and without a square."""
    names = list(OPERATIONS)
    u = torch.zeros(len(x), DRAWS)
    u[:, 0], u[:, 2] = (names.index(name) + 0.5) / 14, v
    u[:, 1] = (names.index("identity") + 0.5) / 14
    return view(x, u)


def test_draws_choose_the_operation_and_its_strength() -> None:
    x = BYTES.float() / 255
    for name, (change, least, most) in OPERATIONS.items():
        v = torch.full((4, 1, 1, 1), least + (most - least) * 0.25)
        torch.testing.assert_close(one(name, 0.25, x), change(x, v))
    both = torch.zeros(4, DRAWS)
    both[:, 0], both[:, 1] = 1.5 / 14, 12.5 / 14  # brightness, then translate_x
    both[:, 2], both[:, 3] = 0.5, 1.0
    seen = view(x, both)
    shifted = torch.zeros_like(x)
    shifted[..., : 22 - 7] = x[..., 7:]  # 0.3 of 22 is 6.6
    torch.testing.assert_close(seen, 0.5 * shifted)


def test_a_range_of_its_own_stays() -> None:
    x = BYTES.double() / 255
    centred = (x - 0.4) / 0.2
    dark = one("brightness", 0.5, centred)
    low = centred.flatten(1).amin(1)[:, None, None, None]
    torch.testing.assert_close(dark, low + 0.5 * (centred - low))
    assert float(one("rotate", 1.0, centred)[0, :, 0, 0].max()) == pytest.approx(float(low[0]))
    turned = one("solarise", 0.0, centred)
    top = centred.flatten(1).amax(1)[:, None, None, None]
    torch.testing.assert_close(turned, low + top - centred)
    flat = torch.full((2, 1, 5, 5), 3.0)
    assert torch.equal(one("autocontrast", 0.5, flat), flat)


def test_bytes_are_floats_and_a_sample_does_not_know_its_neighbours() -> None:
    u = torch.rand(4, DRAWS, generator=G)
    torch.testing.assert_close(view(BYTES, u), view(BYTES.float() / 255, u))
    torch.testing.assert_close(view(BYTES[1:3], u[1:3]), view(BYTES, u)[1:3])


def test_the_square() -> None:
    u = torch.zeros(1, DRAWS)
    u[:, :2] = 5.5 / 14  # identity twice
    u[:, 4:] = torch.tensor([0.5, 0.5, 0.25])
    x = torch.zeros(1, 1, 16, 16)
    x[..., 0, 0] = 1
    seen = view(x, u)
    # side 4 about (8, 4): from 6 to 10 along, from 2 to 6 down, as Pillow draws both ends
    by_hand = torch.zeros(16, 16)
    by_hand[2:7, 6:11] = 0.5
    by_hand[0, 0] = 1
    assert torch.equal(seen[0, 0], by_hand)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a test turns pictures \(B, C, H, W\), but"):
        view(torch.zeros(4, 6), torch.zeros(4, DRAWS))
