"""Teacher and student of a text task, from what a user gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from limbeck.core.hub import library
from limbeck.core.sources.specs import Model, model_of
from limbeck.core.teacher import Teacher
from limbeck.core.teachers import BlackBox, Frozen, Nobody
from limbeck.core.text import encode, students
from limbeck.core.text.lora import lora
from limbeck.core.text.masking import Masked
from limbeck.core.text.models import Classes, Found, load, tokenizer_of
from limbeck.core.text.seq2seq import Seq2Seq
from limbeck.core.text.served import served
from limbeck.core.text.tagged import Tagger
from limbeck.core.text.view import Causal, Classifier, is_linear
from limbeck.core.untrained import Untrained
from limbeck.errors import UsageError

__all__ = ["adapted", "check_kinds", "context_of", "is_ready", "once", "other_of", "reader_of"]
__all__ += ["served_of", "server_of", "student_of", "teacher_of"]


def is_ready(teacher: Any) -> bool:
    return teacher is None or teacher == "none" or isinstance(teacher, Teacher)


def server_of(teacher: Any, classes: Classes) -> Model | None:
    """What words say of a teacher behind an OpenAI-compatible server, if they name one."""
    if not (isinstance(teacher, str) and teacher.startswith("openai:")):
        return None
    server = model_of(teacher, "teacher")
    if classes:
        raise UsageError(
            f"these texts have labels, and {server.name} gives next tokens, not classes; leave the "
            "labels out, or name a classifier"
        )
    return server


def served_of(
    server: Model, tokenizer: Any, inputs: Mapping[str, Tensor], requests: int | None
) -> BlackBox:
    """The teacher behind a server, which is asked about the first of these texts."""
    ids = inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist()
    return served(server.name, server.model, tokenizer, ids, requests=requests)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars that transformers draws for each tensor that it reads."""
    log = library("transformers").utils.logging
    drawn = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            log.enable_progress_bar()


def once(found: Found) -> Found:
    """The same, with its weights read from the disk once."""
    made: list[nn.Module] = []

    def make() -> nn.Module:
        if not made:
            with quiet():
                made.append(found.make())
        return copy.deepcopy(made[0])

    return replace(found, make=make) if found.trained else found


def student_of(given: Any, teacher: Found | None, classes: Classes) -> Found:
    if not (isinstance(given, str) and students.is_words(given)):
        return load(given, "student", classes)
    if teacher is None:
        raise UsageError(
            f"the student '{given}' is made of its teacher, and there is none in words or with its "
            "tokenizer; name the student itself"
        )
    return students.found(given, teacher)


def check_kinds(one: Found | None, two: Found, classes: Classes) -> None:
    own = "causal" if two.kind in ("classifier", "tagger") else two.kind
    wanted = ("tagger" if isinstance(classes, tuple) else "classifier") if classes else own
    writers = {"causal", "seq2seq"}
    for side, model in (("teacher", one), ("student", two)):
        both = {wanted, model.kind} if model is not None else set()
        if model is not None and model.kind != wanted and not both <= writers:
            labels = "tags" if isinstance(classes, tuple) else "labels"
            rows = f"have {labels}" if classes else "have no labels"
            raise UsageError(
                f"the {side} '{model.name}' is a {model.kind} model, and these texts {rows}: with "
                f"the student '{two.name}' they are for a {wanted} one"
            )
        if model is not None and isinstance(classes, tuple):
            _check_tags(side, model, classes)


def _check_tags(side: str, model: Found, tags: tuple[str, ...]) -> None:
    """Refuse a module that was given, or a file's, whose tags are not the data's in their order.

    A config that names none (LABEL_0, ...), or data with numbers, say only how many there are.
    """
    named = model.config.id2label
    theirs = tuple(str(named[i]) for i in sorted(named))
    unnamed = tuple(f"LABEL_{i}" for i in range(len(tags)))
    numbers = tuple(map(str, range(len(theirs))))
    if theirs in (tags, unnamed) or tags == numbers:
        return
    if len(theirs) != len(tags):
        what = f"has {len(theirs)} tags and the data {len(tags)}"
    elif set(theirs) == set(tags):
        what = "has the data's tags in another order"
    else:
        what = f"has other tags than the data ({', '.join(theirs[:8])})"
    raise UsageError(
        f"the {side} '{model.name}' {what} ({', '.join(tags)}); give a model with a head for these"
    )


def context_of(asked: int, models: Sequence[Found]) -> int:
    """What is asked, within what the models can see."""
    if asked < 8:
        raise UsageError(f"a context of {asked} tokens was asked for; give at least 8")
    sizes = [getattr(model.config, "max_position_embeddings", None) or asked for model in models]
    return int(min([asked, *sizes]))


def other_of(one: Found | None, two: Found, server: Model | None = None) -> Any:
    """The teacher's tokenizer, where its columns are not the student's."""
    if server is not None and server.tokenizer:
        named = tokenizer_of(server.tokenizer)
        return None if encode.same(named, two.tokenizer) else named
    if one is None or one.kind == "classifier":
        return None
    if one.kind == two.kind and encode.same(one.tokenizer, two.tokenizer):
        return None
    if two.kind not in ("causal", "seq2seq"):
        raise UsageError(
            f"the teacher {one.name} has another tokenizer than the student {two.name}, and only "
            f"models that write are taught across tokenizers, not {two.kind} ones; give one with "
            "the student's"
        )
    return one.tokenizer


def teacher_of(given: Any, found: Found | None, pretrained: bool) -> Teacher:
    if found is None:
        return given if isinstance(given, Teacher) else Nobody()
    if found.trained and pretrained:
        return Frozen(found.make())
    why = found.untrained or "its weights were not wanted"
    return Untrained(found.make if pretrained else _scratch(found), found.name, why)


def _scratch(found: Found) -> Callable[[], nn.Module]:
    return lambda: students.opened(found.architecture(found.config), found.tokenizer)


def adapted(make: Callable[[], nn.Module], rank: int) -> Callable[[], nn.Module]:
    """The student's factory, with low-rank adapters where these alone are to be trained."""

    def new() -> nn.Module:
        with quiet():
            made = make()
            return lora(made, rank, 2 * rank) if rank else made

    return new


def reader_of(
    model: Found, make: Callable[[], nn.Module], x: Mapping[str, Tensor], side: str
) -> Any:
    """How a side is looked at; whether its head is a matrix is tried on a sample."""
    if model.kind == "classifier":
        return Classifier()
    if model.kind == "tagger":
        return Tagger()
    vocab = len(model.tokenizer)
    if model.kind == "masked":
        return Masked(vocab)
    kind = Seq2Seq if model.kind == "seq2seq" else Causal
    reader = kind(vocab, side)
    return replace(reader, linear=is_linear(make(), reader(x), vocab))
