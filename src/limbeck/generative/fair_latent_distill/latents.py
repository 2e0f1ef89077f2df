"""Small generators of latents, fitted on those of the training rows: two GANs and a diffusion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.method import Clock, Facts, Objective, Rng
from limbeck.core.task import Optimiser
from limbeck.core.updates import Phase
from limbeck.core.views import Side

from .rows import dense

NOISE = 64  # numbers that a GAN's generator starts from


class Maker(nn.Module):
    """Noise (n, 64) -> latents (n, d), by linear layers of 128, 256, 128 and 64 units."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.net = dense(NOISE, 128, 256, 128, 64, latent)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 64) -> (n, d)."""
        return self.net(x)  # type: ignore[no-any-return]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """New latents (n, d)."""
        made: Tensor = self(torch.randn(n, NOISE, generator=generator))
        return made


@dataclass(frozen=True)
class Adversary(Objective):
    """LSGAN, or WGAN with a gradient penalty: the student makes latents, a critic judges them."""

    wasserstein: bool
    judge: float
    fool: float
    penalty: float

    def asks(self) -> tuple[str, ...]:
        return ("student:logits",)

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        seen = batch.replace(x=rng("noise", batch.index).randn(NOISE), real=batch.x)
        return seen, seen

    def build(self, s: Side, t: Side, batch: Batch, facts: Facts) -> nn.Module:
        return dense(batch.x.shape[1], 64, 128, 64, 1)

    def update(self) -> tuple[Phase, ...]:
        repeat, adam = 5 if self.wasserstein else 1, Optimiser("adam", lr=1e-3, betas=(0.5, 0.999))
        return (
            Phase("critic", ("parts",), repeat, optimisers={"parts": adam}),
            Phase("maker", ("student",), optimisers={"student": adam}),
        )

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        made, real = s.logits.float(), s.batch.real
        if clock.phase == "maker":
            judged = parts(made)
            miss = -judged.mean() if self.wasserstein else (judged - 1).square().mean()
            return {"fool": self.fool * miss}
        made = made.detach()
        if not self.wasserstein:
            miss = (parts(real) - 1).square().mean() + parts(made).square().mean()
            return {"judge": self.judge * miss}
        out = {"judge": self.judge * (parts(made).mean() - parts(real).mean())}
        if not self.penalty:
            return out
        mix = clock.rng("mix", batch.index).rand(1)
        between = (mix * real + (1 - mix) * made).requires_grad_()
        (slope,) = torch.autograd.grad(parts(between).sum(), between, create_graph=True)
        out["penalty"] = self.penalty * (slope.norm(dim=1) - 1).square().mean()
        return out


def kept(steps: int) -> Tensor:
    """The share of signal that is left after each of so many steps: a cosine, 1 to 0; (steps,)."""
    t = (torch.arange(1, steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008
    return (t * math.pi / 2).cos().square().clamp(min=1e-4).float()


class Denoiser(nn.Module):
    """The noise in latents (n, d) after t of `steps` steps."""

    def __init__(self, latent: int, steps: int) -> None:
        super().__init__()
        self.latent, self.steps = latent, steps
        self.net = dense(latent + 4, 128, 128, latent)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """Z (n, d), t (n,) from 0 to steps - 1 -> (n, d)."""
        angle = (t[:, None] + 1) / self.steps * math.pi * z.new_tensor([0.5, 1.0])
        return self.net(torch.cat((z, angle.sin(), angle.cos()), 1))  # type: ignore[no-any-return]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """New latents (n, d), by ancestral sampling."""
        left = kept(self.steps)
        z = torch.randn(n, self.latent, generator=generator)
        for t in reversed(range(self.steps)):
            noise = self(z, torch.full((n,), t))
            before = left[t - 1] if t else torch.ones(())
            alpha = left[t] / before
            z = (z - (1 - alpha) / (1 - left[t]).sqrt() * noise) / alpha.sqrt()
            if t:
                spread = ((1 - before) / (1 - left[t]) * (1 - alpha)).sqrt()
                z = z + spread * torch.randn(z.shape, generator=generator)
        return z


@dataclass(frozen=True)
class Diffusion(Objective):
    """DDPM: the student tells the noise that was laid over latents."""

    steps: int
    denoise: float

    def asks(self) -> tuple[str, ...]:
        return ("student:logits",)

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        t = rng("time", batch.index).randint(self.steps)
        noise = rng("noise", batch.index).randn(batch.x.shape[1])
        left = kept(self.steps)[t.cpu(), None].to(batch.x)
        z = left.sqrt() * batch.x + (1 - left).sqrt() * noise
        seen = batch.replace(x={"z": z, "t": t}, noise=noise)
        return seen, seen

    def update(self) -> tuple[Phase, ...]:
        return (Phase(train=("student",), optimisers={"student": Optimiser("adam", lr=1e-3)}),)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        gap = s.logits.float() - s.batch.noise
        return {"denoise": self.denoise * gap.square().mean()}
