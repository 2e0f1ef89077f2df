"""`limbeck.language.task`: from language models and texts to a task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.score import accuracy
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teacher import Teacher
from limbeck.core.teachers import Nobody
from limbeck.core.text import students, tagged, texts
from limbeck.core.text.facts import MaskedText, TaggedText, Text
from limbeck.core.text.masking import Masking, fixed, masked_nll
from limbeck.core.text.models import Classes, Found, load
from limbeck.core.text.places import IGNORED
from limbeck.core.text.scores import bits_per_byte
from limbeck.core.text.seq2seq import end_of
from limbeck.core.text.view import Causal
from limbeck.errors import UsageError
from limbeck.language._kit import sides
from limbeck.language._kit.samples import cut

__all__ = ["task"]

_SCORES = dict.fromkeys(("causal", "seq2seq"), bits_per_byte)
_SCORES |= {"classifier": accuracy, "tagger": tagged.words_right, "masked": masked_nll}
RATE = 3e-4  # of AdamW, for students that begin with trained weights


def task(
    teacher: Any,
    student: Any,
    data: Any,
    *,
    test: Any = None,
    target: str | None = None,
    taps: Mapping[str, Any] | None = None,
    pretrained: bool = True,
    augment: str = "none",
    requests: int | None = None,
    context: int = 512,
    rank: int = 0,
    budget: Budget | None = None,
) -> Task:
    """Make a task of language modelling, or of classifying texts or words that have labels.

    Of masked models (BERT and its kind) it is to fill in hidden tokens of plain texts; of
    encoder-decoders (T5, BART) to write the responses of prompts.

    Args:
        teacher: words ("hf:HuggingFaceTB/SmolLM2-135M-Instruct", a folder of save_pretrained,
            FILE.gguf, "FILE.py:make", a run's folder, "none"; behind an OpenAI-compatible server
            "openai:http://host:8000/v1#MODEL", with "@hf:ID" or "@FOLDER" after it where its
            tokenizer is not the student's), (model, tokenizer), a `Teacher` of the student's
            tokens, or None.
        student: the same, without "none"; or made of the teacher: "truncate:10" (so many of its
            layers), "width:0.5", "config:num_hidden_layers=4,hidden_size=256" (from scratch).
        data: a folder, .txt, .jsonl or .parquet files, "hf:ID", or values, of texts, prompts with
            responses, chats, texts with labels, or words with tags; see `core.text.texts.read`.
        test: further data for the score; without any, 10 % of the rows are held out.
        target: the column of the labels.
        taps: {"mid": (teacher path, student path)}.
        pretrained: False begins a teacher of a library from scratch: it is trained first.
        augment: texts are not augmented: "none".
        requests: to a served teacher, at most; None for no limit.
        context: tokens of a sample at most.
        rank: of low-rank adapters on the student, which alone are trained; 0 trains all of it.
        budget: one epoch in batches of 8 by default.

    Raises:
        UsageError: something given cannot work; the sentence says what.
    """
    if augment != "none":
        raise UsageError(f"augment is '{augment}', and texts are not augmented; leave it out")
    found = texts.read(data, test, target)
    tags = "tags" in found.train[0]
    classes: Classes = found.names if tags else len(found.names) or None
    server = sides.server_of(teacher, classes)
    there = server is not None or sides.is_ready(teacher)
    one = None if there else sides.once(load(teacher, "teacher", classes))
    if tags and one is not None:
        found, classes = texts.in_order(found, one.config.id2label)
    two = sides.student_of(student, one, classes)
    sides.check_kinds(one, two, classes)
    context = sides.context_of(context, [m for m in (one, two) if m is not None])
    other = sides.other_of(one, two, server)
    sets, notes = _encoded(found, one, two, other, context)
    first = {name: value[:1] for name, value in sets["train"]["x"].items()}
    make = sides.adapted(two.make, rank)
    readers: dict[str, Any] = {"student": sides.reader_of(two, make, first, "")}
    if server is not None:
        words = two.tokenizer if other is None else other
        readers["teacher"] = Causal(len(words), "" if other is None else "t_")
        box = sides.served_of(server, words, readers["teacher"](first), requests)
        ready: Teacher = box
        notes += box.ask.notes  # type: ignore[attr-defined]
    else:
        ready = sides.teacher_of(teacher, one, pretrained)
        if one is not None or not isinstance(ready, Nobody):
            readers["teacher"] = _reader(one, first, other) or readers["student"]
    begins = isinstance(student, str) and student.startswith(("truncate:", "width:"))
    rows = {part: len(samples["y"]) for part, samples in sets.items()}
    return Task(
        teacher=ready,
        student=make,
        **{part: sets[part] for part in ("train", "valid", "test")},
        score=_SCORES[two.kind],
        budget=budget or _budget(rows["train"]),
        data={
            "names": found.names,
            "text": _text(two, other, context),
        },
        taps=dict(taps or {}),
        readers=readers,
        classes=None if isinstance(classes, tuple) else classes,
        name=re.sub(r"[^A-Za-z0-9_.]+", "-", f"{_short(student, two)}-{found.name}"),
        notes=(*found.notes, *notes, *_said(two, other, context, "chunk" in first)),
        about={
            "inputs": {"kind": "text", "context": context},
            "names": list(found.names),
            **({"tags": True} if tags else {}),
            "source": found.name,
            "split": {**rows, "made": found.made},
            **({"begins": str(student)} if begins else {}),
        },
        split=found.cut,
    )


def _reader(teacher: Found | None, first: Mapping[str, Tensor], other: Any) -> Any:
    """How a teacher that words or values name is looked at; None for one that is ready."""
    if teacher is None:
        return None
    return sides.reader_of(teacher, teacher.make, first, "" if other is None else "t_")


# --- texts ----------------------------------------------------------------------------------------


def _encoded(
    found: texts.Texts, teacher: Found | None, student: Found, other: Any, context: int
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The sets as columns, and what was cut."""
    sets, notes = {}, []
    for part in ("train", "valid", "test"):
        rows = getattr(found, part)
        samples = cut(rows, bool(found.names), teacher, student, other, context)
        columns: dict[str, Any] = {"x": samples.x, "y": samples.y}
        if student.kind == "masked":
            columns = fixed(samples.x, samples.y, _masking(student), part)
        elif not found.names:
            columns["bytes"] = _bytes(samples.y, student.tokenizer)
        sets[part] = columns
        notes += [f"{part}: {note}" for note in samples.notes]
    return sets, notes


def _masking(student: Found) -> Masking:
    """How tokens are hidden in what is scored."""
    if student.tokenizer.mask_token_id is None:
        raise UsageError(
            f"the student {student.name} fills in hidden tokens, and its tokenizer has none that "
            "stands for one; set its mask_token"
        )
    return Masking(student.tokenizer.mask_token_id, len(student.tokenizer))


def _text(student: Found, other: Any, context: int) -> Text | MaskedText | TaggedText:
    """What methods need to know of the texts."""
    words = student.tokenizer
    if student.kind == "tagger":
        return TaggedText(context, words)
    if student.kind == "masked":
        return MaskedText(
            len(words), context, words.mask_token_id, words.pad_token_id, tokenizer=words
        )
    end = end_of(words) if student.kind == "seq2seq" else words.eos_token_id
    return Text(
        vocab=len(words),
        context=context,
        eos=() if end is None else (end,),
        pad=words.pad_token_id,
        tokenizer=words,
        other=other,
    )


def _bytes(y: Tensor, tokenizer: Any) -> Tensor:
    """Bytes of the text that is trained on, by sample."""
    spoken = tokenizer.batch_decode(
        [row[row != IGNORED].tolist() for row in y], skip_special_tokens=True
    )
    return torch.tensor([len(text.encode()) for text in spoken])


# --- what is said ---------------------------------------------------------------------------------


def _budget(samples: int) -> Budget:
    return Budget(
        epochs=1,
        batch=min(8, max(1, samples // 4)),
        optimiser=Optimiser("adamw", lr=RATE, betas=(0.9, 0.95), weight_decay=0.01),
        warmup=0.05,
        clip=1.0,
    )


def _short(given: Any, found: Found) -> str:
    return given if isinstance(given, str) and students.is_words(given) else Path(found.name).name


def _said(two: Found, other: Any, context: int, aligned: bool) -> list[str]:
    notes = [f"samples are of {context} tokens at most"]
    if other is not None:
        sizes = f"({len(other):,} and {len(two.tokenizer):,} tokens)"
        notes.append(
            f"teacher and student have other tokenizers {sizes}: texts are aligned by bytes"
            if aligned
            else f"teacher and student read in other tokens {sizes} or ways: their tokens are not "
            "aligned"
        )
    if two.untrained:
        notes.append(f"the student '{two.name}': {two.untrained}")
    return notes
