"""Tables as categories and back, the encoder and decoder of them, and what draws new rows."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UsageError

WIDEST = 6.0  # posterior log-variances lie between -this and this: narrower ones blow V2 up


class Columns(nn.Module):
    """The columns (N, C) of a table in categories, and back.

    They are a column's own values where it has at most `bins`, else about equally full stretches.
    """

    edges: Tensor  # (C, bins - 1): where the next category begins; infinite where there is none
    ordered: Tensor  # (C, N): the values of each column in their order
    begins: Tensor  # (C, bins + 1): where in that order each category begins

    def __init__(self, table: Tensor, bins: int) -> None:
        super().__init__()
        ordered = table.T.contiguous().sort(dim=1).values
        edges = torch.full((len(ordered), bins - 1), torch.inf)
        places = torch.arange(1, bins) * table.shape[0] // bins
        for column, values in enumerate(ordered):
            own = torch.unique(values)
            cuts = own[1:] if len(own) <= bins else torch.unique(values[places])
            cuts = cuts[cuts > own[0]]
            edges[column, : len(cuts)] = cuts
        begins = torch.searchsorted(ordered, edges)
        begins = F.pad(begins, (1, 0), value=0)
        self.register_buffer("edges", edges)
        self.register_buffer("ordered", ordered)
        self.register_buffer("begins", F.pad(begins, (0, 1), value=len(table)))
        self.widths = [int(row.isfinite().sum()) + 1 for row in edges]

    def codes(self, table: Tensor) -> Tensor:
        """The category of each value; shapes: (N, C) -> (N, C) int64."""
        return torch.searchsorted(self.edges, table.T.contiguous(), right=True).T.contiguous()

    def values(self, codes: Tensor, u: Tensor) -> Tensor:
        """A value of the training table in each category, chosen by u, uniform in [0, 1).

        Shapes: codes (n, C), u (n, C) -> (n, C).
        """
        first, last = self.begins.gather(1, codes.T), self.begins.gather(1, codes.T + 1)
        place = first + (u.T * (last - first)).long()
        return self.ordered.gather(1, place.clamp(max=self.ordered.shape[1] - 1)).T


def dense(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for here, there in pairwise(widths):
        layers += [nn.Linear(here, there), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Encoder(nn.Module):
    """q(z | x, s) by one hidden layer, from the columns' one-hot codes and the attribute's."""

    def __init__(self, widths: list[int], groups: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.sizes = [*widths, groups]
        self.net = dense(sum(self.sizes), hidden, 2 * latent)

    def forward(self, codes: Tensor, s: Tensor) -> Tensor:
        """Means and log-variances; shapes: codes (B, C), s (B,) -> (B, 2 d)."""
        columns = [*codes.unbind(1), s]
        hot = [F.one_hot(c, n) for c, n in zip(columns, self.sizes, strict=True)]
        return self.net(torch.cat(hot, 1).float())  # type: ignore[no-any-return]


class VAE(nn.Module):
    """The teacher: an encoder, and a decoder that is told the attribute, so that z need not be."""

    def __init__(self, widths: list[int], groups: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.groups = groups
        self.encoder = Encoder(widths, groups, hidden, latent)
        self.decoder = dense(latent + groups, hidden, sum(widths))

    def decode(self, z: Tensor, s: Tensor) -> Tensor:
        """The logits of all columns; shapes: z (B, d), s (B,) -> (B, sum of the widths)."""
        hot = F.one_hot(s, self.groups).to(z.dtype)
        return self.decoder(torch.cat((z, hot), 1))  # type: ignore[no-any-return]

    def forward(self, codes: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """Posteriors and logits side by side; noise (B, d) -> (B, 2 d + sum of the widths)."""
        posterior = self.encoder(codes, s)
        return torch.cat((posterior, self.decode(drawn(posterior, noise), s)), 1)


def moments(posterior: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log-variances, the latter within bounds; shapes: (B, 2 d) -> two of (B, d)."""
    mean, spread = posterior.chunk(2, 1)
    return mean, spread.clamp(-WIDEST, WIDEST)


def drawn(posterior: Tensor, noise: Tensor) -> Tensor:
    """Z = mean + deviation * noise; shapes: posterior (B, 2 d), noise (B, d) -> (B, d)."""
    mean, spread = moments(posterior)
    return mean + (spread / 2).exp() * noise.to(mean)


def groups_of(values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The groups' values in their order, and each row's group (N,)."""
    own, s = torch.unique(values, return_inverse=True)
    if not 2 <= len(own) <= bins:
        raise UsageError(
            f"the sensitive column has {len(own)} different values; name one (sensitive=) that "
            f"parts the rows into 2 to {bins} groups"
        )
    return own, s


class Sampler(nn.Module):
    """Draws rows (n, F + 1): the columns of x in their order, then the label.

    A latent is that of a training row, anew from its posterior, or a small generator's; the
    attribute is drawn from its shares, whatever the latent is. With `apart` the label's attribute
    is drawn for itself, so that nothing of the row's can reach the label.
    """

    posteriors: Tensor
    values: Tensor
    shares: Tensor

    def __init__(
        self,
        vae: VAE,
        student: nn.Module,
        columns: Columns,
        posteriors: Tensor,
        groups: tuple[Tensor, Tensor],
        place: int,
        apart: bool,
        latents: nn.Module | None,
    ) -> None:
        super().__init__()
        self.vae, self.student, self.columns, self.latents = vae, student, columns, latents
        self.place, self.apart = place, apart
        own, s = groups
        self.register_buffer("posteriors", posteriors)
        self.register_buffer("values", own)
        self.register_buffer("shares", torch.bincount(s, minlength=len(own)).double() / len(s))

    def _latents(self, n: int, generator: torch.Generator) -> Tensor:
        if self.latents is not None:
            made: Tensor = self.latents.sample(n, generator)  # type: ignore[operator]
            return made
        rows = torch.randint(len(self.posteriors), (n,), generator=generator)
        noise = torch.randn(n, self.posteriors.shape[1] // 2, generator=generator)
        return drawn(self.posteriors[rows], noise)

    @torch.no_grad()
    def forward(self, n: int, generator: torch.Generator) -> Tensor:
        """New rows, as many as n: (n, F + 1)."""
        z = self._latents(n, generator)
        s, other = torch.multinomial(self.shares, 2 * n, True, generator=generator).chunk(2)
        logits = torch.split(self.vae.decode(z, s), self.columns.widths, 1)
        if self.apart:
            label = torch.split(self.vae.decode(z, other), self.columns.widths, 1)[-1]
            logits = (*logits[:-1], label)
        chances = [x.double().softmax(1) for x in logits]
        codes = [torch.multinomial(p, 1, generator=generator) for p in chances]
        u = torch.rand(n, len(codes), generator=generator)
        rows = self.columns.values(torch.cat(codes, 1), u)
        before, after = rows[:, : self.place], rows[:, self.place :]
        return torch.cat((before, self.values[s, None].to(rows), after), 1)
