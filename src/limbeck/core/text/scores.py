"""How well a language model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.core.data import Batch
from limbeck.core.score import Score
from limbeck.core.text.places import cross_entropy, labels_of

__all__ = ["bits_per_byte", "nll"]


def _nll(entries: Mapping[str, Any], batch: Batch) -> tuple[Tensor, Tensor]:
    """Nats and tokens."""
    own = batch.replace(y=labels_of(batch, entries.get("side", "")))
    mean = cross_entropy(entries["signal"], own)
    return mean.sum.double(), torch.as_tensor(mean.count).double()


def _bits(entries: Mapping[str, Any], batch: Batch) -> tuple[Tensor, Tensor]:
    """Bits and bytes of text."""
    nats, _ = _nll(entries, batch)
    return nats / math.log(2), batch.columns["bytes"].double().sum()


nll = Score("nll", False, each=_nll)
"""Nats a token: the logarithm of perplexity. It compares models of one tokenizer."""

bits_per_byte = Score("bits per byte", False, each=_bits)
"""Bits a byte of text, whatever the tokenizer. Batches have `bytes` (B,), of the wanted tokens."""
