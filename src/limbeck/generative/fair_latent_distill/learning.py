"""What the fair teacher and the student's encoder are trained by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.data import Batch
from limbeck.core.method import Clock, Objective, Rng
from limbeck.core.task import Optimiser
from limbeck.core.updates import Phase
from limbeck.core.views import Side

from .rows import drawn, moments


def density_dcov(posterior: Tensor, s: Tensor) -> Tensor:
    """V^2 = sum_g (n_g / n)^2 integral (p(z | g) - p(z))^2 dz, for mixtures of Gaussians.

    With K_ij = integral q_i q_j = N(mu_i - mu_j; 0, v_i + v_j) and a_g = [i in g] / n_g - 1 / n it
    is sum_g (n_g / n)^2 a_g^T K a_g. K goes through its logarithm.
    Shapes: posterior (B, 2 d) means and log-variances, s (B,) groups -> ().
    """
    mean, spread = moments(posterior)
    v = spread.exp()
    both = v[:, None] + v
    apart = (mean[:, None] - mean).square() / both
    k = (-0.5 * ((2 * math.pi * both).log() + apart).sum(2)).exp()
    member = F.one_hot(s).to(k.dtype).T
    member = member[member.sum(1) > 0]
    share = member.mean(1)
    a = member / member.sum(1, keepdim=True) - 1 / len(s)
    return (share.square() * ((a @ k) * a).sum(1)).sum()


def sample_dcov(z: Tensor, s: Tensor) -> Tensor:
    """Szekely's squared distance covariance of z and s: the mean product of centred distances.

    The distance of two attributes is 0 or 1. Shapes: z (B, d), s (B,) -> ().
    """
    gap = (z[:, None] - z).square().sum(2)
    a = (gap + torch.eye(len(z), dtype=z.dtype, device=z.device)).sqrt()  # no slope at 0
    a = a - torch.eye(len(z), dtype=z.dtype, device=z.device)
    b = (s[:, None] != s).to(z.dtype)
    a, b = (x - x.mean(0) - x.mean(1, keepdim=True) + x.mean() for x in (a, b))
    return (a * b).mean()


def gaussian_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of diagonal Gaussians (mean, log-variance), summed over dimensions.

    Shapes: p (B, 2 d), q (B, 2 d) -> (B,).
    """
    (m, a), (w, b) = moments(p), moments(q)
    return 0.5 * (b - a + ((a - b).exp() + (m - w).square() / b.exp()) - 1).sum(1)


def dcov(kind: str, posterior: Tensor, s: Tensor, noise: Tensor) -> Tensor:
    """The distance covariance `kind` of latents and attribute: of densities or of a sample.

    Shapes: posterior (B, 2 d), s (B,), noise (B, d) -> ().
    """
    if kind == "density":
        return density_dcov(posterior, s)
    return sample_dcov(drawn(posterior, noise), s)


@dataclass(frozen=True)
class Teach(Objective):
    """The fair VAE: batch.x are codes, batch.y the attribute."""

    widths: tuple[int, ...]
    latent: int
    recon: float
    prior: float
    beta: float
    dcov: str
    rate: float

    def asks(self) -> tuple[str, ...]:
        return ("student:logits", "y")

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        noise = rng("noise", batch.index).randn(self.latent)
        x = {"codes": batch.x, "s": batch.y, "noise": noise}
        return batch.replace(x=x), batch

    def update(self) -> tuple[Phase, ...]:
        return (Phase(train=("student",), optimisers={"student": Optimiser("adam", lr=self.rate)}),)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        out = s.logits.float()
        posterior, logits = out.split([2 * self.latent, sum(self.widths)], 1)
        columns = zip(logits.split(self.widths, 1), batch.x.unbind(1), strict=True)
        terms = {}
        if self.recon:
            read = torch.stack([F.cross_entropy(z, c) for z, c in columns]).sum()
            terms["recon"] = self.recon * read
        if self.prior:
            normal = torch.zeros_like(posterior)
            terms["prior"] = self.prior * gaussian_kl(posterior, normal).mean()
        if self.beta:
            noise = s.batch.x["noise"]
            terms["beta"] = self.beta * dcov(self.dcov, posterior, batch.y, noise)
        return terms


@dataclass(frozen=True)
class Distil(Objective):
    """A smaller encoder gives the teacher's posteriors."""

    quality: float
    utility: float
    fair: float
    match: str
    dcov: str
    rate: float

    def asks(self) -> tuple[str, ...]:
        return ("student:logits", "teacher:logits", "y")

    def prepare(self, batch: Batch, rng: Rng) -> tuple[Batch, Batch]:
        seen = batch.replace(x={"codes": batch.x, "s": batch.y})
        return seen, seen

    def update(self) -> tuple[Phase, ...]:
        return (Phase(train=("student",), optimisers={"student": Optimiser("adam", lr=self.rate)}),)

    def terms(self, parts: Any, s: Side, t: Side, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        q, p, out = s.logits.float(), t.logits.detach().float(), {}
        noise = clock.rng("noise", batch.index).randn(q.shape[1] // 2)
        if self.quality:
            noise_of = noise if self.match == "draws" else torch.zeros_like(noise)
            gap = drawn(q, noise_of) - drawn(p, noise_of)
            out["quality"] = self.quality * gap.square().sum(1).mean()
        if self.utility:
            out["utility"] = self.utility * gaussian_kl(p, q).mean()
        if self.fair:
            out["fair"] = self.fair * dcov(self.dcov, q, batch.y, noise)
        return out
