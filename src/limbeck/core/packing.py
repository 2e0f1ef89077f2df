"""A language teacher's outputs in few bytes: its likeliest tokens, or draws, in rows of one width.

50 entries of a vocabulary of 49,152 take 116 bytes. The rows of a `Layout` have one width, so that
they are mapped from a file and read in any order. A row is a string of bits, the first of a byte
its most significant one; of k ids in ascending order out of V, with l = floor(log2(V / k)) or 0:

    scale   two float16, little-endian: r and m (not there without values)
    low     k numbers of l bits: the low bits of each id
    high    k + ceil(V / 2^l) bits, of which bit (id_i >> l) + i is set for each i: Elias-Fano
    codes   k numbers of `bits` bits (not there without values), then zeros up to a whole byte

A value p is kept as v = (p / p_max)^(1/8), at least e^-8, in 2^bits even steps from 1 (code 0) down
to the token's least, r; the values are then scaled to their sum. Of probabilities m holds what is
smaller, 2^16 times the kept mass or -2^16 times the tail (at least 2^-20, which keeps the sum below
1); of weights the log of their sum. So mass and tail are right to float16, whatever the codes do.
With h = (1 - r) / (2 (2^bits - 1)) and b_i = 8 log(1 + h / max(v_i - h, r)), the log-probability
of an entry is wrong by no more than b_i + log(sum_j p_j e^b_j / sum_j p_j) + 0.005.

What 6 bits cost: KL(original || unpacked) over the 50 likeliest and the tail is 1.25e-4 nats in
the mean, 5.7e-4 at most, on 2,000 tokens of WordNet glosses as SmolLM2-135M-Instruct sees them (tau
2: 1.8e-5, 3.6e-4; 5 bits: 5.2e-4, 2.1e-3; 8 bits: 7.7e-6, 4.0e-5). The eighth root was found by
trial: even steps in log p cost 1.33e-4 and 1.5e-3, in p^(1/4) 1.6e-4 and 4.0e-4, in p 0.018, 0.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.errors import NonFinite, UsageError

__all__ = ["Layout", "draw", "drawn", "select_topk"]

Array = npt.NDArray[Any]

_ROOT = 8  # values are kept as their eighth roots
_LEAST = math.exp(-8)  # of a root: values below e^-64 of the largest are kept as that
_TAIL = 2.0**-20  # the least tail: float32 rounding cannot carry the kept mass over 1
_UNIT = 2.0**16  # a mass is at most 1/2, and float16 is precise between 2^-14 and 2^16


def select_topk(logits: Tensor, k: int, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    """Choose the k likeliest tokens of logits (N, V), of any floating type, at temperature tau.

    Returns:
        ids (N, k) int64, ascending, and their log-probabilities (N, k) float32 among all V.

    Raises:
        UsageError: k is not in 1 ... V, or tau not above 0; or (NonFinite) a row has no softmax.
    """
    logp = _logp(logits, tau)
    most = logp.shape[-1]
    if not 1 <= k <= most:
        raise UsageError(f"the {k} likeliest of {most} tokens were asked for; ask for 1 to {most}")
    ids = logp.topk(k, sorted=False).indices.sort().values
    return ids, logp.gather(-1, ids).float()


def draw(
    logits: Tensor, n: int, u: float, rng: torch.Generator, tau: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw n tokens a row of logits (N, V), by a generator on their device: see `drawn`."""
    logp = _logp(logits, tau)
    shape = (*logp.shape[:-1], max(n, 0))
    return drawn(logp, torch.rand(shape, generator=rng, dtype=torch.float64, device=logp.device), u)


def drawn(logp: Tensor, at: Tensor, u: float = 1.0) -> tuple[Tensor, Tensor]:
    """Tokens that uniform numbers draw, independent and with repeats, from r(v) ~ p(v)^u.

    Args:
        logp: log-probabilities (N, V).
        at: (N, n) in [0, 1), float64.
        u: 1 draws from p itself, 0 evenly from all that p gives a chance; up to 16.

    Returns:
        ids (N, n) int64, ascending, and weights (N, n) float32, p / (n r): the expectation of
        sum_i w_i f(id_i) is that of f under p. With u = 1 all weights are 1 / n.

    Raises: UsageError: there is no draw, or u cannot be.
    """
    n = at.shape[-1]
    if n < 1 or not 0 <= u <= 16:
        raise UsageError(f"{n} draws from p^{u} were asked for; ask for 1 or more, u in 0 ... 16")
    tilted = logp if u == 1 else torch.where(logp.isneginf(), logp, u * logp)
    # In float64, where tokens of 1e-8 keep their rate. A number in [0, 1) times the last sum stays
    # below it, and a token that adds nothing is never the first above.
    sums = tilted.double().exp_().cumsum_(-1)
    ids = torch.searchsorted(sums, at.sort().values * sums[..., -1:], right=True)
    if u == 1:
        return ids, torch.full(ids.shape, 1 / n, device=logp.device)
    log_w = (1 - u) * logp.gather(-1, ids).double() + sums[..., -1:].log() - math.log(n)
    return ids, log_w.exp().float()


def _logp(logits: Tensor, tau: float) -> Tensor:
    if not 0 < tau < math.inf:
        raise UsageError(f"a temperature must be above 0 and finite, and was {tau}")
    z = logits.detach() if logits.dtype == torch.float64 else logits.detach().float()
    logp = (z / tau).log_softmax(-1)
    if bad := int(logp[..., 0].isnan().sum()):  # if one is, all of its row are
        raise NonFinite(
            f"{bad} of {logp[..., 0].numel()} rows of the teacher's logits hold NaN, +inf or "
            "nothing but -inf, so they have no softmax; look at its precision and its inputs"
        )
    return logp


@dataclass(frozen=True)
class Layout:
    """How the entries of one token lie in a row of bytes; see the module.

    Attributes:
        kind: "topk", with log-probabilities, or "sampled", with weights: ids may repeat.
        k: how many entries a token.
        vocab: V.
        bits: 1 to 8 for each value; 0 keeps ids alone: draws whose weights are all 1 / k.

    Raises:
        UsageError: one of them cannot be.
    """

    kind: str
    k: int
    vocab: int
    bits: int = 6

    def __post_init__(self) -> None:
        topk = self.kind == "topk"
        if not topk and self.kind != "sampled":
            raise UsageError(f"entries are packed as 'topk' or 'sampled', not as {self.kind!r}")
        if not topk <= self.bits <= 8:
            raise UsageError(f"'{self.kind}' packs values in {topk:d} to 8 bits, not {self.bits}")
        if not 1 <= self.vocab < 2**31:
            raise UsageError(f"a vocabulary has 1 to 2^31 - 1 tokens, not {self.vocab}")
        if not 1 <= self.k <= (self.vocab if topk else math.inf):
            most = ", at most all" if topk else ""
            raise UsageError(f"'{self.kind}' packs at least 1 of {self.vocab}{most}, not {self.k}")

    @property
    def low(self) -> int:
        """How many low bits of an id are kept as they are."""
        return max(0, (self.vocab // self.k).bit_length() - 1)

    @property
    def high(self) -> int:
        """How many bits mark the high parts of the ids."""
        return self.k + -(-self.vocab // (1 << self.low))

    @property
    def width(self) -> int:
        """Bytes a token."""
        return 4 * bool(self.bits) + -(-(self.k * (self.low + self.bits) + self.high) // 8)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Layout:
        """Make it again from what `to_json` gave; UsageError where a field cannot be."""
        kinds = {"kind": str, "k": int, "vocab": int, "bits": int}
        if {name: type(value) for name, value in fields.items()} != kinds:
            told = dict(fields)
            raise UsageError(f"a layout is a kind (text) and whole k, vocab and bits, not {told}")
        return cls(**fields)

    def pack(self, ids: Tensor, values: Tensor) -> Tensor:
        """Pack ids (..., k), in any order, with their log-probabilities or weights (..., k).

        Returns:
            rows (..., width) uint8, on the CPU.

        Raises:
            UsageError: the shapes do not fit, an id is not in the vocabulary or is twice in a set,
                or the values are no log-probabilities or weights.
        """
        if ids.shape != values.shape or ids.shape[-1:] != (self.k,):
            shapes = f"{tuple(ids.shape)} and {tuple(values.shape)}"
            raise UsageError(f"ids and values (..., {self.k}) are packed, and these are {shapes}")
        number, value = self._sorted(ids, values)
        body = np.zeros((len(number), self.k * (self.low + self.bits) + self.high), np.uint8)
        places = (number >> self.low) + np.arange(self.k) + self.k * self.low
        body.reshape(-1)[places + body.shape[1] * np.arange(len(body))[:, None]] = 1
        body[:, : self.k * self.low] = _spell(number, self.low)
        rows = np.empty((len(body), self.width), np.uint8)
        if self.bits:
            codes, rows[:, :4] = self._coded(value)
            body[:, self.k * self.low + self.high :] = _spell(codes, self.bits)
        elif len(value) and not np.allclose(value, 1 / self.k, rtol=1e-5, atol=0):
            reach = f"{value.min():.6g} to {value.max():.6g}"
            raise UsageError(f"weights from {reach} are not all 1/{self.k}; give the layout bits")
        rows[:, 4 * bool(self.bits) :] = np.packbits(body, axis=1)
        return torch.from_numpy(rows).reshape(*ids.shape[:-1], self.width)

    def _sorted(self, ids: Tensor, values: Tensor) -> tuple[Array, Array]:
        """Ids (N, k) int64, ascending, and their values (N, k) float32."""
        number = ids.detach().cpu().numpy().reshape(-1, self.k).astype(np.int64, copy=False)
        value = values.detach().float().cpu().numpy().reshape(-1, self.k)
        if len(number) and (number.min() < 0 or number.max() >= self.vocab):
            reach = f"{number.min()} to {number.max()}"
            raise UsageError(f"ids from {reach} do not lie in a vocabulary of {self.vocab} tokens")
        if (number[:, 1:] < number[:, :-1]).any():
            order = number.argsort(axis=1, kind="stable")
            number, value = (np.take_along_axis(a, order, 1) for a in (number, value))
        if self.kind == "topk" and (number[:, 1:] == number[:, :-1]).any():
            raise UsageError("an id is twice among the likeliest tokens; pack draws as 'sampled'")
        return number, value

    def _coded(self, value: Array) -> tuple[Array, Array]:
        """Codes (N, k) int64 and the scale (N, 4) uint8."""
        if self.kind == "topk":
            kept = np.exp(value, dtype=np.float64).sum(1)
            if not ((kept >= 2.0**-40) & (kept < 1.001)).all():
                sums = f"sums to {kept.min():.3g} ... {kept.max():.6g}, not to 1e-12 ... 1"
                raise UsageError(f"these are no log-probabilities: over each token exp {sums}")
            tail = np.maximum(1 - kept, _TAIL)
            mass = _UNIT * np.where(kept <= 0.5, kept, -tail)
            root = np.exp((value - value.max(1, keepdims=True)) / _ROOT)
        else:
            if not ((value >= 0) & (value < np.inf)).all():
                raise UsageError("weights must be at least 0 and finite, and some of these are not")
            tiny = np.finfo(np.float32).tiny
            mass = np.log(np.maximum(value.sum(1, dtype=np.float64), tiny))
            root = (value / np.maximum(value.max(1, keepdims=True), tiny)) ** (1 / _ROOT)
        root = np.maximum(root, _LEAST)
        scale = np.stack([root.min(1), mass], 1).astype("<f2")
        span = np.maximum(1 - scale[:, :1].astype(np.float32), 2.0**-12)
        last = 2**self.bits - 1
        codes = np.rint((1 - root) * (last / span)).clip(0, last).astype(np.int64)
        return codes, scale.view(np.uint8)

    def unpack(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Read rows (..., width) uint8.

        Returns:
            ids (..., k) int64, ascending, and log-probabilities or weights (..., k) float32.

        Raises:
            UsageError: the rows are of another width or type, or hold no k ids of the vocabulary.
        """
        if rows.dtype != torch.uint8 or rows.shape[-1:] != (self.width,):
            there = f"{tuple(rows.shape)} of {rows.dtype}"
            raise UsageError(f"rows (..., {self.width}) of torch.uint8 are read, not {there}")
        row = rows.cpu().numpy().reshape(-1, self.width)
        body = np.unpackbits(row[:, 4 * bool(self.bits) :], axis=1)
        start, stop = self.k * self.low, self.k * self.low + self.high
        number = self._ids(_read(body[:, :start], self.k), body[:, start:stop])
        shape = (*rows.shape[:-1], self.k)
        ids = torch.from_numpy(number).reshape(shape)
        if not self.bits:
            return ids, torch.full(shape, 1 / self.k)
        codes = _read(body[:, stop : stop + self.k * self.bits], self.k)
        return ids, torch.from_numpy(self._values(codes, row[:, :4])).reshape(shape)

    def _ids(self, low: Array, marks: Array) -> Array:
        """Ids (N, k) int64 from their low bits (N, k) and the marks of the others (N, high)."""
        found = np.flatnonzero(marks)
        if len(found) == low.size:
            before = np.arange(len(low))[:, None] * self.high + np.arange(self.k)
            ids: Array = (found.reshape(low.shape) - before) << self.low | low
            if not low.size or (ids.min() >= 0 and ids.max() < self.vocab):
                return ids
        what = f"{self.k} ids of a vocabulary of {self.vocab} each"
        raise UsageError(f"these rows do not hold {what}: they are damaged, or of another layout")

    def _values(self, codes: Array, scale: Array) -> Array:
        """Log-probabilities or weights (N, k) float32 from codes (N, k) and scales (N, 4)."""
        least, mass = np.ascontiguousarray(scale).view("<f2").astype(np.float64).T[:, :, None]
        step = ((1 - least) / (2**self.bits - 1)).astype(np.float32)
        root = 1 - codes.astype(np.float32) * step
        eighth = np.square(np.square(np.square(root)))
        total = eighth.sum(1, keepdims=True, dtype=np.float64)
        if self.kind == "topk":
            kept = np.where(mass > 0, mass, _UNIT + mass) / _UNIT
            values: Array = _ROOT * np.log(root) + np.log(kept / total).astype(np.float32)
        else:
            values = eighth * (np.exp(mass) / total).astype(np.float32)
        return values


def _spell(numbers: Array, bits: int) -> Array:
    """The bits (N, k * bits) uint8 of numbers (N, k), the most significant first."""
    spelt = (numbers[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    return spelt.reshape(len(numbers), numbers.shape[1] * bits).astype(np.uint8)


def _read(bits: Array, k: int) -> Array:
    """The numbers (N, k) int32 that bits (N, k * bits) spell."""
    each = bits.reshape(len(bits), k, bits.shape[1] // k)
    numbers = np.zeros(each.shape[:2], np.int32)
    for bit in range(each.shape[2]):
        numbers = (numbers << 1) | each[:, :, bit]
    return numbers
