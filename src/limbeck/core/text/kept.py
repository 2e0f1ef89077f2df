"""A language teacher's signal on disk: a few entries of each place, packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core.data import Batch
from limbeck.core.packing import Layout, draw, select_topk
from limbeck.core.rng import generator
from limbeck.core.signals import Sampled, Signal, TopK, is_whole
from limbeck.core.text.places import told
from limbeck.errors import UsageError

__all__ = ["Keep", "Packed", "packed"]

_PLACES = 256  # whose logits exist at a time


@dataclass(frozen=True)
class Keep:
    """What is kept of each place.

    Attributes:
        kind: "topk", the likeliest tokens with their log-probabilities; "sampled", draws.
        k: how many.
        tau: temperature of the teacher's distribution; losses must ask for the same.
        u: draws are from p^u.
        bits: of each value; draws with u = 1 need none.
    """

    kind: Literal["topk", "sampled"] = "topk"
    k: int = 50
    tau: float = 1.0
    u: float = 1.0
    bits: int = 6

    def layout(self, vocab: int) -> Layout:
        """How a place lies in bytes."""
        plain = self.kind == "sampled" and self.u == 1
        return Layout(self.kind, min(self.k, vocab), vocab, 0 if plain else self.bits)

    def entries(self, logits: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Ids and values (N, k) of logits (N, V)."""
        k = min(self.k, logits.shape[-1])
        if self.kind == "topk":
            return select_topk(logits, k, self.tau)
        return draw(logits, k, self.u, rng, self.tau)

    def of(self, signal: TopK) -> tuple[Tensor, Tensor]:
        """Ids and values (N, k) of places whose likeliest tokens alone are known.

        Raises:
            UsageError: other things are asked, or a place has fewer tokens.
        """
        if self.kind != "topk" or self.tau != signal.tau:
            raise UsageError(
                f"the teacher shows its likeliest tokens at temperature {signal.tau:g}, and a "
                f"cache of {self.kind} at {self.tau:g} was asked; give --signal topk --tau "
                f"{signal.tau:g}, or a teacher with weights"
            )
        fewest = int((signal.ids >= 0).sum(-1).min())
        k = min(self.k, signal.vocab)
        if fewest < k:
            raise UsageError(
                f"the teacher shows {fewest} tokens of a place, and {k} were to be kept; give "
                f"--k {fewest}"
            )
        best = signal.logp.topk(k).indices
        return signal.ids.gather(-1, best), signal.logp.gather(-1, best)

    def to_json(self, vocab: int) -> dict[str, Any]:
        """For the cache's record."""
        return {**asdict(self), "vocab": vocab}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> tuple[Keep, Layout]:
        """What `to_json` gave, and the layout of its rows."""
        fields = dict(told)
        vocab = fields.pop("vocab", None)
        try:
            keep = cls(**fields)
            return keep, keep.layout(vocab)
        except TypeError:
            raise UsageError(
                f"a cache says that it keeps {dict(told)}, which is not read"
            ) from None


class Packed(Signal):
    """Rows (B, T, width) as they lie on disk; the places that are picked are unpacked."""

    def __init__(self, rows: Tensor, told: Mapping[str, Any]) -> None:
        self.rows, (self.keep, self.layout) = rows, Keep.from_json(told)
        self.vocab, self.shape = self.layout.vocab, rows.shape[:-1]

    def at(self, where: Tensor | slice) -> TopK | Sampled:
        """Unpacked."""
        ids, values = self.layout.unpack(self.rows[where].cpu())
        ids, values = ids.to(self.rows.device), values.to(self.rows.device)
        made = TopK if self.keep.kind == "topk" else Sampled
        return made(ids, values, self.vocab, self.keep.tau)


def packed(keep: Keep, signal: Signal, batch: Batch, seed: int) -> Tensor:
    """The wanted places of a batch as rows (B, T, width); the others are zero.

    Draws are a function of (seed, sample, place), however the set is cut into batches.

    Raises:
        UsageError: the teacher shows less of its distributions than is to be kept.
    """
    if not (is_whole(signal) or isinstance(signal, TopK)):
        raise UsageError(f"the teacher shows {signal}; a cache is made of a whole distribution")
    layout = keep.layout(signal.vocab)
    rows = torch.zeros(*batch.y.shape, layout.width, dtype=torch.uint8)
    where = told(batch.y, signal)
    for b, number in enumerate(batch.index.tolist()):
        here = where[b].nonzero()[:, 0]
        for start in range(0, len(here), _PLACES):
            places = here[start : start + _PLACES]
            at = torch.zeros_like(where)
            at[b, places] = True
            shown = signal.at(at)
            if isinstance(shown, TopK):
                ids, values = keep.of(shown)
            else:  # on the CPU, where the same seed draws the same on every machine
                draws = generator(seed, "kept", number, start)
                ids, values = keep.entries(shown.log_p(1.0).cpu(), draws)
            rows[b, places.cpu()] = layout.pack(ids, values)
    return rows
