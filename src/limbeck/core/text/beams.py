"""Beam search: the likeliest texts over each prompt, by transformers' own search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.core.evaluate import evaluating
from limbeck.core.text.lengths import fits
from limbeck.core.text.replay import left_padded, right_padded

__all__ = ["Hypotheses", "beams", "inner"]


@dataclass(frozen=True, eq=False)
class Hypotheses:
    """The K texts of a beam search over each prompt, the best first; the prompt is not in them.

    Attributes:
        ids: (B, K, N) int64, right padded.
        mask: (B, K, N) int64.
        logp: (B, K), log-probability of the whole text at temperature 1.
        scores: (B, K), logp / tokens ** length_penalty.
    """

    ids: Tensor
    mask: Tensor
    logp: Tensor
    scores: Tensor


def beams(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    *,
    new: int,
    beams: int,
    eos: tuple[int, ...],
    pad: int,
    length_penalty: float = 1.0,
    vocab: int | None = None,
) -> Hypotheses:
    """All K = `beams` hypotheses of transformers' beam search; one beam is the likeliest each time.

    The model is causal or an encoder-decoder, which reads ids (B, P). Of its own settings only
    those of first tokens hold: no penalties, no least lengths. A `length_penalty` above 0 favours
    long texts, below 0 short ones; all else, `vocab` too, is as in `generate`. While it runs it
    keeps B * K * V * new log-probabilities.
    """
    model = inner(model)
    seq2seq = bool(model.config.is_encoder_decoder)
    left, seen = left_padded(ids, mask, pad)
    if seq2seq:
        fits(model, left.shape[1], 0)
        left, seen, _ = right_padded(left, seen)
    fits(model, 1 if seq2seq else left.shape[1], new)
    penalty = {"length_penalty": length_penalty} if beams > 1 else {}
    known = [] if vocab is None else [lambda _, scores: _within(scores, vocab)]
    with evaluating(model), _searching(model, new, beams, eos, pad, penalty) as search:
        out = model.generate(
            left, attention_mask=seen, generation_config=search, logits_processor=known
        )
        steps = model.compute_transition_scores(
            out.sequences,
            out.scores,
            getattr(out, "beam_indices", None),
            normalize_logits=beams == 1,
        )
    written = out.sequences[:, -steps.shape[1] :]
    ended = torch.isin(written, torch.tensor(eos, device=ids.device)).long()
    valid = ended.cumsum(1) - ended == 0
    logp = steps.masked_fill(~valid, 0).sum(1)
    shape = (len(ids), beams)
    return Hypotheses(
        torch.where(valid, written, pad).view(*shape, -1),
        valid.long().view(*shape, -1),
        logp.view(shape),
        (logp / valid.sum(1) ** length_penalty).view(shape),
    )


def _within(scores: Tensor, vocab: int) -> Tensor:
    """Log-probabilities (B, V') of the first `vocab` tokens, which are all there are."""
    kept = scores[:, :vocab].log_softmax(-1)
    return torch.nn.functional.pad(kept, (0, scores.shape[1] - vocab), value=-torch.inf)


def inner(model: Any) -> Any:
    """The model of transformers itself, adapters inside."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _searching(
    model: Any, new: int, beams: int, eos: tuple[int, ...], pad: int, more: dict[str, float]
) -> Iterator[Any]:
    """Settings of a search, instead of the model's own, which would fill in what they leave out."""
    own = model.generation_config
    first = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
    model.generation_config = type(own)(
        **{name: getattr(own, name, None) for name in first},
        max_new_tokens=new,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        eos_token_id=list(eos) or None,
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_scores=True,
        **more,
    )
    try:
        yield model.generation_config
    finally:
        model.generation_config = own
