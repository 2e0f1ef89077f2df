"""Words with a tag each: rows, tensors, how a tagger is looked at, and its score.

The tag of a word stands on its first token. `places` reads what stands at i + 1 as the label of
place i; a tagger answers at the place itself, so `y` (B, T + 1) has the tag of token i at i + 1.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.data import Batch
from limbeck.core.score import Score
from limbeck.core.signals import Dense
from limbeck.core.sources.labels import numbered
from limbeck.core.text.chat import specials
from limbeck.core.text.places import IGNORED, columns, labels, told
from limbeck.core.text.tokens import array, stacked
from limbeck.core.views import Lazy
from limbeck.errors import UsageError

__all__ = ["TAGS", "Tagger", "encoded", "head_for", "renumbered", "rows_of", "words_right"]

TAGS = ("tags", "ner_tags", "pos_tags", "labels")
"""Columns of tags, beside that of `tokens`."""

Row = dict[str, Any]


def rows_of(
    cells: Sequence[Any],
    tags: Sequence[Any],
    what: str,
    named: Sequence[str] | None,
    known: Sequence[str] | None,
) -> tuple[list[Row | None], tuple[str, ...]]:
    """Rows {"tokens", "tags"} with numbered tags, None where there is no word; and the tags' names.

    Args:
        cells: words of each row.
        tags: of each row, texts or numbers, one a word.
        what: where they come from, for sentences.
        named: names of the numbers, where the table brings them.
        known: names of the tags, of the data that came before; None for the first.

    Raises:
        UsageError: words are no texts, tags are not as many as words, or new.
    """
    rows: list[Row | None] = []
    for i, (words, own) in enumerate(zip(cells, tags, strict=True)):
        for name, value in (("tokens", words), ("tags", own)):
            if value is not None and not isinstance(value, list | tuple | np.ndarray):
                raise UsageError(
                    f"row {i} of {what}: its {name} are a {type(value).__name__}; give a list, one "
                    "for each word"
                )
        spoken, own = list(() if words is None else words), list(() if own is None else own)
        odd = next((w for w in spoken if not isinstance(w, str)), None)
        if odd is not None:
            raise UsageError(
                f"row {i} of {what} has a {type(odd).__name__} among its tokens; give words"
            )
        if len(spoken) != len(own):
            raise UsageError(
                f"row {i} of {what} has {len(spoken)} tokens and {len(own)} tags; give each word "
                "one tag"
            )
        rows.append({"tokens": spoken, "tags": own} if spoken else None)
    kept = [row for row in rows if row is not None]
    given = list(chain.from_iterable(row["tags"] for row in kept))
    if not given:
        return rows, tuple(known or ())
    if named is not None:  # the tags are numbers of these
        given, known = [named[i] for i in given], named if known is None else known
    place = [i for i, row in enumerate(rows) for _ in (row or {"tags": ()})["tags"]]
    y, names = numbered(given, f"{what} (tags)", known, lambda i: f"row {place[i]}")
    numbers = iter(y.tolist())
    for row in kept:
        row["tags"] = [next(numbers) for _ in row["tags"]]
    return rows, tuple(names)


def renumbered(rows: Sequence[Row], names: Sequence[str], order: Sequence[str]) -> list[Row]:
    """Rows whose tags, numbers of `names`, are numbers of `order`, which has all of these."""
    new = [list(order).index(name) for name in names]
    return [{**row, "tags": [new[tag] for tag in row["tags"]]} for row in rows]


def encoded(
    rows: Sequence[Row], tokenizer: Any, context: int
) -> tuple[dict[str, Tensor], Tensor, tuple[str, ...]]:
    """Ids and mask (N, T); y (N, T + 1), the tag of token i at i + 1; and notes.

    Args:
        rows: of {"tokens", "tags"}, the tags being numbers.
        tokenizer: of transformers, a fast one.
        context: tokens of a row at most, special ones included; words beyond are left out.

    Raises:
        UsageError: the tokenizer cannot tell the words of its tokens, or there is no room.
    """
    if not tokenizer.is_fast:
        raise UsageError(
            f"a {type(tokenizer).__name__} cannot tell of which word a token is; give a model with "
            "a fast tokenizer"
        )
    before, after = specials(tokenizer)
    room = context - len(before) - len(after)
    if room < 1:
        raise UsageError(f"a context of {context} tokens has no room for words; give a longer one")
    try:
        cut = tokenizer(
            [row["tokens"] for row in rows],
            is_split_into_words=True,
            add_special_tokens=False,
            verbose=False,
        )
    except (AssertionError, ValueError) as error:  # of byte-level ones, cutting words without space
        raise UsageError(
            f"this {type(tokenizer).__name__} does not take single words ({error}); write it with "
            "add_prefix_space=True beside the model"
        ) from error
    ids, tags, lost = [], [], 0
    for i, row in enumerate(rows):
        words = cut.word_ids(i)[:room]
        first = [words.index(w) for w in sorted(set(words))]
        lost += len(row["tags"]) - len(first)
        own = np.full(len(words), IGNORED)
        own[first] = [row["tags"][words[place]] for place in first]
        ids.append(array([*before, *cut["input_ids"][i][:room], *after]))
        tags.append(F.pad(torch.from_numpy(own), (1 + len(before), len(after)), value=IGNORED))
    x, _ = stacked(ids, [np.ones(len(i), dtype=np.bool_) for i in ids], tokenizer)
    wide = x["ids"].shape[1] + 1
    y = torch.stack([F.pad(own, (0, wide - len(own)), value=IGNORED) for own in tags])
    total = sum(len(row["tags"]) for row in rows)
    note = f"{lost:,} of {total:,} words have no token within the context of {context} tokens"
    return x, y, (f"{note} and are left out",) if lost else ()


def head_for(config: Any, named: str, tags: Sequence[str], more: bool) -> str:
    """Tell a configuration the names of tags; half a sentence where its head is not for these.

    Args:
        config: of transformers, changed where its head is not for these tags.
        named: the class of the model.
        tags: their names in order.
        more: whether it may have them in another order, and others beside them.
    """
    theirs = [str(config.id2label[i]) for i in sorted(config.id2label)]
    if "TokenClassification" not in named:
        why = "it has no head for tags"
    elif theirs == list(tags) or (more and set(tags) <= set(theirs)):
        return ""
    elif set(theirs) == set(tags):
        why = "it has the tags in another order"
    elif theirs == [f"LABEL_{i}" for i in range(len(tags))]:  # whoever wrote it named none
        why = ""
    else:
        shown = ", ".join(theirs[:8]) + (", ..." if len(theirs) > 8 else "")
        why = f"its head is for other tags ({shown})"
    config.id2label = dict(enumerate(tags))
    config.label2id = {tag: i for i, tag in enumerate(tags)}
    return why


@dataclass(frozen=True)
class Tagger:
    """The reader of a side that tags words: a token classifier of transformers."""

    def __call__(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the model: (B, T) without the columns that are padding in every row."""
        ids, mask = columns(x)
        return {"input_ids": ids, "attention_mask": mask}

    def view(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Lazy:
        """The entries logits (B, T, C) and signal, the distribution over tags at each place."""
        logits = functools.cache(lambda: model(**inputs).logits)
        return Lazy(logits=logits, signal=lambda: Dense(logits()))


def _right(entries: Mapping[str, Any], batch: Batch) -> tuple[Tensor, Tensor]:
    """Words whose tag is the likeliest, and words."""
    signal, truth = entries["signal"], labels(batch.y)
    guess = signal.at(told(batch.y, signal)).log_p().argmax(-1)
    return (guess == truth).double().sum(), torch.tensor(float(len(truth)))


words_right = Score("accuracy", True, each=_right)
"""The share of words that have their tag."""
