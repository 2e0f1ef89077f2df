"""A data set whose answers the teacher wrote, once: by beam search, kept as it goes along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.run import current
from limbeck.core.tables import Table
from limbeck.core.teacher import Setting, Teacher
from limbeck.core.teachers import Frozen
from limbeck.core.text.bleu import bleu
from limbeck.core.text.facts import Text
from limbeck.core.text.generate import Hypotheses, beams
from limbeck.core.text.places import IGNORED
from limbeck.core.text.replay import joined, prompts_of
from limbeck.core.text.seq2seq import is_pair
from limbeck.errors import UsageError
from limbeck.language._kit.kept import in_pieces

__all__ = ["Writer", "answers", "nearest_of", "writing"]

ROWS = 512
"""Sources of one search at most: fewer where rows * beams * vocabulary * tokens pass `ROOM`."""

ROOM = 2**28


@dataclass(frozen=True)
class Writer:
    """How the teacher writes.

    Attributes:
        text: the task's text side.
        beam: hypotheses of a search.
        new: tokens of an answer at most.
        least: tokens of a prompt at least; plain text begins with as many.
        length_penalty: a hypothesis's score is its log-probability / tokens ** this.
        near: take the hypothesis that is nearest to the data's answer, not the likeliest.
    """

    text: Text
    beam: int
    new: int
    least: int
    length_penalty: float
    near: bool = False

    def __call__(self, teacher: Teacher, source: Any, name: str) -> dict[str, Any]:
        """The set `source` with written answers, as columns; stages are name/0, name/1, ...

        They are "changed", so that a cache of the teacher on the data itself is refused.
        """
        table, device = Table(source), current().device
        rows = min(ROWS, max(1, ROOM // (self.beam * self.text.vocab * self.new)))
        none = torch.zeros(0, self.text.context, dtype=torch.int64)
        live = writing(teacher).attach(Setting(device=device))

        def write(numbers: Tensor) -> dict[str, Tensor]:
            return self.written(live.module, table.rows(numbers, "in order"))

        try:
            empty = dict.fromkeys(("ids", "mask", "y"), none)
            found = in_pieces(name, len(table), rows, write, empty)
        finally:
            live.close()
        longest = int(found["mask"].any(0).sum())
        ids, mask, y = (found[n][:, :longest] for n in ("ids", "mask", "y"))
        x = table.rows(torch.arange(len(table)), "in order").x
        changed = torch.ones(len(table), dtype=torch.bool)
        return {"x": {**x, "ids": ids, "mask": mask}, "y": y, "changed": changed}

    def written(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What `model` answers to a batch: ids, mask and y (B, context), right padded."""
        text, device = self.text, next(model.parameters()).device
        check_model(model, batch)
        here = batch.to(device)
        start = source = self._start(here)
        if is_pair(batch):
            source = here.x["source_ids"], here.x["source_mask"]
        found = beams(
            model,
            *source,
            new=self.new,
            beams=self.beam,
            eos=text.eos,
            pad=text.pad,
            length_penalty=self.length_penalty,
            vocab=text.vocab,
        )
        pick = torch.zeros(len(batch), dtype=torch.int64)
        if self.near:
            truths = answers(batch, text.eos, self.new, self.least)
            pick = torch.tensor(
                [nearest_of(row, t) for row, t in zip(said_in(found, text), truths, strict=True)]
            )
        every = torch.arange(len(batch))
        rows = joined(*start, found.ids[every, pick], found.mask[every, pick], text.pad)
        fills = {"ids": text.pad, "mask": 0, "y": IGNORED}
        wide = text.context - rows[0].shape[1]
        padded = zip(fills.items(), rows, strict=True)
        return {name: F.pad(row, (0, wide), value=fill).cpu() for (name, fill), row in padded}

    def _start(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What an answer goes on from: a prompt, or what a decoder begins with."""
        if is_pair(batch):
            return batch.x["ids"][:, :1], batch.x["mask"][:, :1].long()
        return prompts_of(batch, self.new, self.text.context, self.text.pad, self.least)


def answers(batch: Batch, eos: tuple[int, ...], new: int, least: int) -> list[list[int]]:
    """The data's own answers in `batch`: of each text the first tokens that are trained on.

    They end before an `eos`, a token that is not trained on, or after `new`; of plain text they
    begin after `least` tokens, as what is written does.
    """
    found = []
    for y, there in zip(batch.y.cpu(), batch.x["mask"].cpu().bool(), strict=True):
        row = y[there].tolist()
        first = next((i for i, token in enumerate(row) if token != IGNORED), len(row))
        if first == 1 and not is_pair(batch):
            first = least
        stops = (i for i in range(first, len(row)) if row[i] == IGNORED or row[i] in eos)
        found.append(row[first : next(stops, len(row))][:new])
    return found


def said_in(found: Hypotheses, text: Text) -> list[list[list[int]]]:
    """The hypotheses of each row without padding and EOS."""
    return [
        [
            [i for i, here in zip(ids, mask, strict=True) if here and i not in text.eos]
            for ids, mask in zip(*beam, strict=True)
        ]
        for beam in zip(found.ids.tolist(), found.mask.tolist(), strict=True)
    ]


def nearest_of(said: list[list[int]], truth: list[int]) -> int:
    """Which hypothesis has the largest BLEU; `truth` itself wins, then the likelier, first one."""
    return max(range(len(said)), key=lambda k: (said[k] == truth, bleu([said[k]], [[truth]]), -k))


def writing(teacher: Teacher) -> Frozen:
    """The `teacher`, which has to write.

    Raises:
        UsageError: it cannot.
    """
    if not isinstance(teacher, Frozen):
        raise UsageError(
            f"seqkd trains on what the teacher writes, and this teacher is a "
            f"{type(teacher).__name__}; give a model that is at hand, or first='data' with inter=0 "
            "for word-level distillation alone"
        )
    return teacher


def check_model(model: nn.Module, batch: Batch) -> None:
    """Refuse a `model` that cannot answer a `batch`, or batches that it would misread."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "generate"):
        raise UsageError(
            f"seqkd has the teacher search by its `generate`, and a {type(model).__name__} has "
            "none; give a model of transformers"
        )
    pair = is_pair(batch)
    if bool(config.is_encoder_decoder) != pair:
        kinds = ("a causal model", "an encoder-decoder")
        raise UsageError(
            f"the teacher is {kinds[not pair]}, and the data are for {kinds[pair]}; give both of "
            "one kind"
        )
    if pair and bool(((batch.y[:, 0] != IGNORED) | (batch.y[:, 1] == IGNORED)).any()):
        raise UsageError(
            "seqkd has an encoder-decoder write from its first token, and here the labels do not "
            "begin at the second one; give targets whose first token alone is not trained on"
        )
