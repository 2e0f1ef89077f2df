"""English, character by character: small causal models of transformers."""

from dataclasses import replace

import torch
from torch import Tensor

from limbeck.bench.worlds._build import whole
from limbeck.bench.worlds._text import causal, english, rate, taught, usual
from limbeck.core.objectives import NextTokens
from limbeck.core.rng import generator
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.text.facts import Text
from limbeck.core.text.places import IGNORED
from limbeck.core.text.scores import bits_per_byte
from limbeck.core.text.view import Causal
from limbeck.errors import UsageError

PAD, EOS = 0, 1


def task(
    seed: int = 0,
    tiny: bool = False,
    teacher: str | None = None,
    student: str | None = None,
    n: int | None = None,
    context: int | None = None,
    text: str | None = None,
    prompted: bool = False,
) -> Task:
    """Make the task.

    Args:
        seed: not read: data and teacher are fixed.
        tiny: a small vocabulary of steps, texts and models.
        teacher: layers x width, 4x128 by default, trained on up to five times as many samples; or
            "none".
        student: layers x width, 2x64 by default.
        n: training samples, of `context` characters each.
        context: characters of a sample, 64 by default.
        text: "kjv" or "topics"; the first where it is on the machine.
        prompted: whether the first half of a sample is a prompt that is not trained on.

    Raises:
        UsageError: an option cannot be. Missing: the text or transformers is not there.
    """
    size = whole("context", context or (16 if tiny else 64), 8, 4096)
    many = whole("n", n or (160 if tiny else 4000), 32, 10**6)
    words = english(text or usual())
    held = max(32, many // 10)
    if (many + 2 * held) * size > len(words):
        raise UsageError(
            f"{many + 2 * held} samples of {size} characters are more than the text has "
            f"({len(words)}); give a smaller n"
        )
    total = many + 2 * held
    pieces = coded(words, min(total + 4 * many, len(words) // size), size)
    ids = pieces[torch.randperm(total, generator=generator("charlm"))]
    sets = [columns(part, prompted) for part in torch.split(ids, [many, held, held])]
    vocab = len(letters(words)) + 2
    reader = Causal(vocab)
    made = Task(
        teacher=None,
        student=causal(student or ("1x32" if tiny else "2x64"), "student", vocab, size),
        train=sets[0],
        valid=sets[1],
        test=sets[2],
        score=bits_per_byte,
        budget=rate(24, 1e-2, 16) if tiny else rate(600, 5e-3),
        data={"text": Text(vocab, size, (EOS,), PAD, _Letters(letters(words)))},
        readers={"student": reader, "teacher": reader},
        name="charlm",
    )
    if teacher == "none":
        return made
    family = teacher or ("2x64" if tiny else "4x128")
    make = causal(family, "teacher", vocab, size)
    budget = rate(300, 5e-3, 16) if tiny else rate(2000, 2e-3)
    much = columns(torch.cat([ids[:many], pieces[total:]]), prompted)
    alone = replace(made, train=much, readers={"student": reader})
    return replace(
        made, teacher=Frozen(taught(f"charlm-{family}", make, NextTokens(), alone, budget))
    )


def letters(words: str) -> list[str]:
    """All characters of a text, in their order; that of place i has the id i + 2."""
    return sorted(set(words))


def coded(words: str, n: int, size: int) -> Tensor:
    """Ids of the first n pieces of a text, (n, size)."""
    table = {letter: i + 2 for i, letter in enumerate(letters(words))}
    return torch.tensor([table[c] for c in words[: n * size]]).view(n, size)


def columns(ids: Tensor, prompted: bool) -> dict[str, object]:
    """A set of samples (N, T)."""
    y = ids.clone()
    y[:, : ids.shape[1] // 2 if prompted else 1] = IGNORED
    size = (y != IGNORED).sum(1)
    return {"x": {"ids": ids, "mask": torch.ones_like(ids)}, "y": y, "bytes": size}


class _Letters:
    """What writes ids out."""

    def __init__(self, letters: list[str]) -> None:
        self.letters = letters

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; padding and EOS are nothing."""
        return "".join(self.letters[i - 2] for i in ids if i > 1)
