"""What a run's language models write to some prompts of the judged set: how well, how fast."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.data import Batch, Table
from limbeck.core.evaluate import evaluating
from limbeck.core.text.facts import Text
from limbeck.core.text.generate import beams, generate
from limbeck.core.text.places import IGNORED
from limbeck.core.text.replay import prompts_of
from limbeck.core.text.rouge import mean_rouge_l
from limbeck.core.text.seq2seq import is_pair

__all__ = ["written"]

PROMPTS, NEW = 8, 32


def written(
    text: Text,
    models: Mapping[str, nn.Module],
    table: Table,
    sides: dict[str, dict[str, Any]],
    device: torch.device,
) -> list[dict[str, Any]]:
    """What each side writes, greedily, to the first prompts; how fast; how near to the text."""
    batch = table.rows(torch.arange(min(PROMPTS, len(table)))).to(device)
    new = min(NEW, text.context // 2)
    ids, mask, true = _prompts(text, batch, new)
    out = [
        {"prompt": _words(text, row[there.bool()]), "text": _words(text, then)}
        for row, there, then in zip(ids, mask, true, strict=True)
    ]
    for name, model in models.items():
        began = time.perf_counter()
        with evaluating(model):
            answers, held = _greedy(text, model, ids, mask, new, is_pair(batch))
        took = time.perf_counter() - began
        sides[name]["tokens_per_second"] = sum(map(len, answers)) / took
        sides[name] |= {} if held is None else {"cache_bytes": held}
        said = [_words(text, row) for row in answers]
        for k, each in enumerate(said):
            out[k][name] = each
        near = mean_rouge_l([each["text"] for each in out], said)
        sides[name]["rouge_l"], sides[name]["rouge_l_se"] = near
    return out


def _prompts(text: Text, batch: Batch, new: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Prompts (B, P) of a batch, their mask, and of each row what follows, `new` tokens at most."""
    if is_pair(batch):
        true = [row[row != IGNORED][:new] for row in batch.y]
        return batch.x["source_ids"], batch.x["source_mask"], true
    ids, mask = prompts_of(batch, new, text.context, text.pad, min(16, text.context // 4))
    rows = zip(batch.x["ids"], batch.x["mask"], mask.sum(1), strict=True)
    return ids, mask, [row[there.bool()][n : n + new] for row, there, n in rows]


def _greedy(
    text: Text, model: nn.Module, ids: Tensor, mask: Tensor, new: int, pair: bool
) -> tuple[list[Tensor], int | None]:
    """What a model writes to prompts, the likeliest token each time, and its cache in bytes.

    Of encoder-decoders, which transformers has write, the latter is not known.
    """
    if pair:
        found = beams(
            model, ids, mask, new=new, beams=1, eos=text.eos, pad=text.pad, vocab=text.vocab
        )
        rows = zip(found.ids[:, 0], found.mask[:, 0].bool(), strict=True)
        return [row[there] for row, there in rows], None
    written = generate(
        (model,), ids, mask, new=new, draws=None, eos=text.eos, pad=text.pad,
        temperature=0.0, vocab=text.vocab,
    )  # fmt: skip
    return [row[row != IGNORED] for row in written.y], written.cache


def _words(text: Text, ids: Tensor) -> str:
    if text.tokenizer is None:
        return " ".join(map(str, ids.tolist()))
    return str(text.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
