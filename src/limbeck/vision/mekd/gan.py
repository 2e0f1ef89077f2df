"""The DCGAN of the first stage, and batches of latent points with the pictures made of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.data import Batch, Batches, Table
from limbeck.core.method import Clock
from limbeck.errors import UsageError

EPS = 0.8  # of the BatchNorms after convolutions, as in the authors' code


class Painter(nn.Module):
    """G: latent points (B, K), one number for each class -> pictures (B, C, H, W) in [-1, 1].

    A linear map to a quarter of the sides, rounded up, twice doubled; what is over is cut off.

    Args:
        classes: K.
        shape: (C, H, W).
    """

    def __init__(self, classes: int, shape: Sequence[int]) -> None:
        super().__init__()
        channels, *self.sides = shape
        self.start = [-(-side // 4) for side in self.sides]
        self.linear = nn.Linear(classes, 128 * self.start[0] * self.start[1])
        self.body = nn.Sequential(
            nn.BatchNorm2d(128),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.BatchNorm2d(128, EPS),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64, EPS),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, channels, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, K) -> (B, C, H, W)."""
        out: Tensor = self.body(self.linear(z).unflatten(1, (128, *self.start)))
        return out[..., : self.sides[0], : self.sides[1]]


class Critic(nn.Module):
    """D: pictures (B, C, H, W) in [-1, 1] -> logits (B,) of being real.

    Four convolutions halve the sides, rounding up, but leave at least 2: on a single place the last
    BatchNorm would give real and made batches one mean logit, so that D could not tell them apart.

    Args:
        shape: (C, H, W).
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        here, *sides = shape
        layers: list[nn.Module] = []
        for out in (16, 32, 64, 128):
            strides = [2 if side > 2 else 1 for side in sides]
            sides = [-(-side // by) for side, by in zip(sides, strides, strict=True)]
            conv = nn.Conv2d(here, out, 3, stride=(strides[0], strides[1]), padding=1)
            layers += [conv, nn.LeakyReLU(0.2), nn.Dropout2d(0.25)]
            layers += [nn.BatchNorm2d(out, EPS)] if out > 16 else []
            here = out
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(128 * sides[0] * sides[1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B,)."""
        out: Tensor = self.head(self.body(x))
        return out.squeeze(1)


def started(module: nn.Module, rng: torch.Generator) -> nn.Module:
    """Draw convolutions from N(0, 0.02), the factors of BatchNorms from N(1, 0.02), in place."""
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, nn.Conv2d | nn.BatchNorm2d):
                m.weight.normal_(float(isinstance(m, nn.BatchNorm2d)), 0.02, generator=rng)
    return module


def floats(x: Tensor) -> Tensor:
    """Pictures in float32; bytes become numbers in [0, 1], as a reader of pictures takes them."""
    return x.float() if x.is_floating_point() else x.float() / 255


@dataclass(frozen=True)
class Span:
    """The range of the data, by channel (C, 1, 1), which stands for [-1, 1] in the GAN."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, table: Table) -> Span:
        """The range of a table of pictures.

        Raises:
            UsageError: its inputs are no pictures of one size.
        """
        lows, highs = [], []
        for batch in table.chunks(512):
            x = batch.columns["x"]
            if not isinstance(x, Tensor) or x.dim() != 4:
                told = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise UsageError(
                    f"mekd makes pictures (B, C, H, W), but '{table.name}' holds inputs {told}; "
                    "give tensors of one size"
                )
            x = floats(x)
            lows.append(x.amin((0, 2, 3)))
            highs.append(x.amax((0, 2, 3)))
        low, high = (torch.stack(lows).amin(0), torch.stack(highs).amax(0))
        return cls(low[:, None, None], high[:, None, None])

    def unit(self, x: Tensor) -> Tensor:
        """From the data's range to [-1, 1]. x (B, C, H, W)."""
        low, high = self.low.to(x.device), self.high.to(x.device)
        return 2 * (floats(x) - low) / (high - low).clamp(min=1e-6) - 1

    def data(self, u: Tensor) -> Tensor:
        """From [-1, 1] to the data's range. u (B, C, H, W)."""
        low, high = self.low.to(u.device), self.high.to(u.device)
        return low + (u.float() + 1) / 2 * (high - low)


class Latent(Batches):
    """Batches of z ~ N(0, I) as `x` (B, K), and as `made` the pictures of them, for both sides.

    A point is a function of seed, place and its number, so that no picture need be stored.

    Args:
        classes: K.
        span: from [-1, 1] to the data's range.
        samples: points in an epoch.
        generator: makes the pictures, in eval mode and without gradient.
    """

    def __init__(
        self, classes: int, span: Span, samples: int, generator: nn.Module | None = None
    ) -> None:
        self.classes, self.span, self.samples = classes, span, samples
        self.generator = generator

    def points(self, clock: Clock) -> Batch:
        """The points of the clock's micro-batch."""
        size = clock.batch // clock.of
        start = clock.draw * clock.batch + clock.n * size
        index = torch.arange(start, start + size)
        return Batch(x=clock.rng("z", index).randn(self.classes), index=index)

    def painted(self, batch: Batch, generator: nn.Module) -> Batch:
        """The points with their pictures."""
        with torch.no_grad():
            made = generator(batch.columns["x"].to(next(generator.parameters()).device))
        return batch.replace(made=self.span.data(made))

    def __call__(self, student: nn.Module, teacher: Any, clock: Clock) -> Batch:
        assert self.generator is not None
        return self.painted(self.points(clock), self.generator)

    def first(self) -> Batch:
        batch = Batch(x=torch.zeros(4, self.classes), index=torch.arange(4))
        return batch if self.generator is None else self.painted(batch, self.generator)


class Rounds(Latent):
    """The first stage's two batches of a step, each with points of its own.

    For the critic with `real` pictures in [-1, 1]; for the generator, which is the fit's student,
    with what it makes of them in train mode, if the teacher is to be asked about it.

    Args:
        classes: K.
        span: from the data's range to [-1, 1] and back.
        real: the local data.
        asks: whether the teacher is asked.
    """

    def __init__(self, classes: int, span: Span, real: Batches, asks: bool) -> None:
        super().__init__(classes, span, real.samples)
        self.real, self.asks = real, asks

    def __call__(self, student: nn.Module, teacher: Any, clock: Clock) -> Batch:
        points = self.points(clock)
        if clock.phase == "generator":
            if not self.asks:
                return points
            return self.painted(points, copy.deepcopy(student).train())  # its buffers stay
        shown = self.real(student, teacher, replace(clock, draw=clock.draw // 2))
        return points.replace(real=self.span.unit(shown.columns["x"]))

    def per_epoch(self, batch: int) -> int:
        return 2 * self.real.per_epoch(batch)
