"""Answers that the teacher writes, in its own tokens, as the student's tokens cut the same text."""

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
from limbeck.core.text.facts import Text
from limbeck.core.text.generate import beams, generate
from limbeck.core.text.places import IGNORED, labels_of, wanted
from limbeck.core.text.replay import joined, prompts_of
from limbeck.core.text.seq2seq import end_of
from limbeck.core.text.tokens import tokens
from limbeck.errors import UsageError
from limbeck.language._kit.kept import in_pieces

__all__ = ["Answers"]

ROWS = 256  # prompts that are answered together


@dataclass(frozen=True)
class Answers:
    """How the teacher writes: the likeliest token each time.

    Attributes:
        text: the task's text side.
        new: tokens of an answer at most.
        least: tokens of a prompt at least; plain text begins with as many.
    """

    text: Text
    new: int
    least: int

    def __call__(self, teacher: Teacher, source: Any, name: str) -> dict[str, Any]:
        """The set `source` with the teacher's answers, as columns; stages are name/0, ...

        Raises:
            UsageError: the teacher cannot write, or a context has no room.
        """
        if not isinstance(teacher, Frozen):
            raise UsageError(
                f"uld has the teacher write the answers, and this one is a {type(teacher).__name__}"
                "; give a model that is at hand, or answers='data'"
            )
        table, device = Table(source), current().device
        live = teacher.attach(Setting(device=device))

        def write(numbers: Tensor) -> dict[str, Tensor]:
            return self.written(live.module, table.rows(numbers, "in order").to(device))

        x = table.rows(torch.arange(len(table)), "in order").x
        sides = ("", "t_") if "t_ids" in x else ("",)
        none = torch.zeros(0, self.text.context, dtype=torch.int64)
        empty = {f"{side}{n}": none for side in sides for n in ("ids", "mask", "y")}
        try:
            found = in_pieces(name, len(table), ROWS, write, empty)
        finally:
            live.close()
        kept = {n: value for n, value in x.items() if n.endswith(("source_ids", "source_mask"))}
        for side in sides:
            longest = int(found[f"{side}mask"].any(0).sum())
            kept |= {f"{side}{n}": found[f"{side}{n}"][:, :longest] for n in ("ids", "mask")}
        if "t_" in sides:
            kept["t_wanted"] = wanted(found["t_y"])[:, : kept["t_ids"].shape[1]]
        y = found["y"][:, : kept["ids"].shape[1]]
        return {"x": kept, "y": y, "changed": torch.ones(len(table), dtype=torch.bool)}

    def written(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What a model answers, for each side ids, mask and y (B, context), right padded."""
        side = "t_" if "t_ids" in batch.x else ""
        starts = self._starts(batch) if side else None
        words = self.text.other if side else self.text.tokenizer
        pad = words.pad_token_id if side else self.text.pad
        end = end_of(words) if side else None
        eos = self.text.eos if not side else () if end is None else (end,)
        vocab = len(words) if side else self.text.vocab
        start = self._prompts(batch, side, pad, None if starts is None else starts[1])
        if f"{side}source_ids" in batch.x:
            source = batch.x[f"{side}source_ids"], batch.x[f"{side}source_mask"]
            found = beams(model, *source, new=self.new, beams=1, eos=eos, pad=pad, vocab=vocab)
            ids, mask, y = joined(*start, found.ids[:, 0], found.mask[:, 0], pad)
        else:
            made = generate(
                (model,), *start, new=self.new, draws=None, eos=eos, pad=pad, temperature=0.0,
                vocab=vocab,
            )  # fmt: skip
            ids, mask, y = made.ids, made.mask, made.y
        out = self._wide(side, ids, mask, y, pad)
        if starts is not None:
            out |= self._wide("", *self._cut(batch, starts[0], ids, mask, y, eos), self.text.pad)
        return out

    def _prompts(
        self, batch: Batch, side: str, pad: int, first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What a side's answers go on from: prompts, or what its decoder begins with."""
        ids, mask = batch.x[f"{side}ids"], batch.x[f"{side}mask"]
        if f"{side}source_ids" in batch.x:
            return ids[:, :1], mask[:, :1].long()
        y, least = batch.y, self.least
        if first is not None:
            place = torch.arange(ids.shape[1], device=ids.device)
            y, least = ids.masked_fill((place < first[:, None]) | (mask == 0), IGNORED), 1
        here = Batch(x={"ids": ids, "mask": mask}, y=y)
        return prompts_of(here, self.new, self.text.context, pad, least)

    def _starts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """How many tokens of each row an answer goes on from, of student and teacher (B,)."""
        x, sides = batch.x, ((batch.y, ""), (labels_of(batch, "t_"), "t_"))
        mine, theirs = (
            (x[f"{side}mask"] * ((y != IGNORED).cumsum(1) == 0)).sum(1) for y, side in sides
        )
        if "chunk" not in x:
            return mine, theirs
        for b in (mine == 1).nonzero()[:, 0].tolist():  # plain text: both go on from one place
            chunk, t_chunk = x["chunk"][b], x["t_chunk"][b]
            after = chunk[self.least - 1 :]
            if not bool((after >= 0).any()):
                mine[b], theirs[b] = x["mask"][b].sum(), x["t_mask"][b].sum()
                continue
            number = after[after >= 0][0]
            mine[b], theirs[b] = (1 + (c == number).nonzero()[-1, 0] for c in (chunk, t_chunk))
        return mine, theirs

    def _cut(
        self, batch: Batch, first: Tensor, t_ids: Tensor, t_mask: Tensor, t_y: Tensor, eos: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The student's prompts with what the teacher wrote after its own: ids, mask, y (B, L)."""
        pair, rows, told = "source_ids" in batch.x, [], []
        for b in range(len(batch)):
            whole, said = t_ids[b][t_mask[b].bool()].tolist(), t_y[b][t_y[b] != IGNORED].tolist()
            ended = bool(said) and said[-1] in eos
            answer = self._tokens(self._said(whole, len(said)), ended, pair)
            prompt = batch.x["ids"][b, : int(first[b])].tolist()
            rows.append(torch.tensor([*prompt, *answer])[: self.text.context])
            told.append(len(prompt))
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.text.pad)
        sizes, starts = torch.tensor([len(row) for row in rows]), torch.tensor(told)
        place = torch.arange(ids.shape[1])
        mask = place < sizes[:, None]
        return ids, mask.long(), ids.masked_fill(~mask | (place < starts[:, None]), IGNORED)

    def _said(self, ids: list[int], count: int) -> str:
        """The text of the last `count` tokens, as it stands behind those before."""
        decode, start = self.text.other.decode, len(ids) - count
        both, before = (decode(part, skip_special_tokens=True) for part in (ids, ids[:start]))
        if both.startswith(before):
            return str(both[len(before) :])
        return str(decode(ids[start:], skip_special_tokens=True))

    def _tokens(self, text: str, ended: bool, pair: bool) -> list[int]:
        """An answer in the student's tokens."""
        words, end = self.text.tokenizer, end_of(self.text.tokenizer)
        if not pair:
            own = tokens(words, [text])[0]
        else:
            own = list(words(text_target=text, verbose=False)["input_ids"])
            own = own[:-1] if own[-1:] == [end] else own
        return [*own, end] if ended and end is not None else own

    def _wide(self, side: str, ids: Tensor, mask: Tensor, y: Tensor, pad: int) -> dict[str, Tensor]:
        wide = (0, self.text.context - ids.shape[1])
        fills = {"ids": (ids, pad), "mask": (mask, 0), "y": (y, IGNORED)}
        return {f"{side}{n}": F.pad(t, wide, value=v).cpu() for n, (t, v) in fills.items()}
