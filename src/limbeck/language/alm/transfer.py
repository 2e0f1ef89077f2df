"""Embeddings for a new vocabulary out of those of an old one (fast vocabulary transfer)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.run import rng
from limbeck.core.teachers import Frozen
from limbeck.core.text.facts import Text
from limbeck.errors import UsageError
from limbeck.language.alm.pieces import Pieces, tokenizers_of

ROLES = ("mask", "sep", "cls", "unk", "pad", "eos", "bos")  # what comes later wins


def fvt(rows: Tensor, old: Any, new: Any, generator: torch.Generator) -> Tensor:
    """Rows of embeddings for the tokens of `new`, (V, H), from those of `old`, (V', H).

    A token that `old` has too keeps its row, a special one that of the same role. Others get the
    mean over the tokens that `old` cuts them into; what it cannot cut is drawn from a normal
    distribution with each column's mean and deviation.

    Args:
        rows: (V', H) and more where the model is padded.
        old: the tokenizer that the rows are of.
        new: the tokenizer that rows are wanted of.
        generator: for what is drawn.
    """
    source, target = Pieces(old), Pieces(new)
    roles = _roles(old, new)
    drawn = torch.randn(len(new), rows.shape[1], generator=generator).to(rows)
    known = rows[: len(old)]
    made = known.mean(0) + known.std(0, correction=0) * drawn
    for i, (name, part) in enumerate(zip(target.names, target.spelled, strict=True)):
        if i in roles:
            parts = [roles[i]]
        elif part is None:
            parts = [old.get_vocab()[name]] if name in old.get_vocab() else []
        else:
            parts = _parts(source, part)
        if parts:
            made[i] = known[parts].mean(0)
    return made


def _parts(source: Pieces, data: bytes) -> list[int]:
    """The tokens that bytes are cut into; none where that cannot be."""
    if data in source.by_bytes:
        return [source.by_bytes[data]]
    text = source.written(data)
    found = source.cut(text) if text else []
    if b"".join(source.spelled[i] or b"?" for i in found) == data:
        return found
    single = [source.by_bytes.get(bytes([byte])) for byte in data]
    return [i for i in single if i is not None] if None not in single else []


def _roles(old: Any, new: Any) -> dict[int, int]:
    """The special tokens of `new` with those of `old` of the same role."""
    found = {}
    for role in ROLES:
        ours, theirs = (getattr(t, f"{role}_token_id", None) for t in (new, old))
        if ours is not None and theirs is not None:
            found[ours] = theirs
    return found


@torch.no_grad()
def transfer(
    student: nn.Module, teacher: nn.Module, new: Any, old: Any, generator: torch.Generator
) -> None:
    """Give a student's embeddings, and its head where it has its own, rows out of the teacher's.

    Args:
        student: of transformers, with the tokenizer `new`; its rows are written.
        teacher: of transformers, with the tokenizer `old`.
        new: the student's tokenizer.
        old: the teacher's.
        generator: for what is drawn.

    Raises:
        UsageError: the two are not of one width.
    """
    pairs = [(m.get_input_embeddings(), m.get_output_embeddings()) for m in (student, teacher)]  # type: ignore[operator]
    done: set[int] = set()
    for mine, theirs in zip(*pairs, strict=True):
        if mine is None or theirs is None or mine.weight.data_ptr() in done:
            continue
        done.add(mine.weight.data_ptr())
        if mine.weight.shape[1] != theirs.weight.shape[1]:
            raise UsageError(
                f"the student's embeddings are {mine.weight.shape[1]} wide and the teacher's "
                f"{theirs.weight.shape[1]}; rows pass over between models of one width only, so "
                "give init='none'"
            )
        made = fvt(theirs.weight.cpu(), old, new, generator)
        mine.weight[: len(made)] = made.to(mine.weight)


def embed(student: nn.Module, teacher: Any, text: Text) -> None:
    """`transfer` in a run, from its live teacher."""
    if not isinstance(teacher, Frozen):
        raise UsageError("embeddings are made of a live teacher's; give one, or init='none'")
    mine, theirs = tokenizers_of(text, "init='none'")
    transfer(student, teacher.module, mine, theirs, rng("fvt"))
