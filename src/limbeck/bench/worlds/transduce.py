"""`transduce`: a made-up language put into another, in which most sentences have several forms.

Some are commoner than others, as in what people write, so that a teacher has a mode to be found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from limbeck.bench.worlds._build import whole
from limbeck.bench.worlds._text import rate, taught
from limbeck.bench.worlds._text_models import BOS, EOS, PAD, Words, padded, seq2seq, spoken
from limbeck.core.objectives import NextTokens
from limbeck.core.rng import generator
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.text.bleu import bleu
from limbeck.core.text.facts import Text
from limbeck.core.text.generate import beams as search
from limbeck.core.text.places import IGNORED
from limbeck.core.text.scores import nll
from limbeck.core.text.seq2seq import Seq2Seq

NOUNS, ADJECTIVES, VERBS, ADVERBS = 60, 20, 30, 6
LENGTH = 9  # tokens of a sentence at most, BOS and EOS among them
Sentence = tuple[str, ...]


def task(
    *,
    teacher: str | None = None,
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task: pairs of sentences, of the translations of each source one by (uneven) chance.

    `data["bleu"](model, beams=1, on="test")` is the BLEU of what a model writes to a set, against
    all translations that are right. A word counts as one byte.

    Args:
        teacher: a BART as layers x width, of encoder and decoder alike, 2x128 by default; 'none'.
        student: the same; 1x32 by default.
        seed: of the run; makes no difference here.
        tiny: 320 pairs and 24 steps.
        n: training pairs; 4000 by default.
        data_seed: of all sentences.
    """
    n = whole("n", n or (320 if tiny else 4000), 64, 100_000)
    held = (32, 32) if tiny else (300, 500)
    sources = drawn(n + sum(held), data_seed)
    rows = {"test": sources[: held[1]], "valid": sources[held[1] : sum(held)]}
    rows["train"] = sources[sum(held) :]
    vocab = len(VOCABULARY)
    sets = {part: columns(rows[part], data_seed, part) for part in ("train", "valid", "test")}
    made = Task(
        teacher=None,
        student=seq2seq(student or ("1x16" if tiny else "1x32"), "student", vocab, LENGTH),
        train=sets["train"],
        valid=sets["valid"],
        test=sets["test"],
        score=nll,
        budget=rate(24, 1e-2, 16) if tiny else rate(1500, 3.5e-3),
        data={
            "text": Text(vocab, LENGTH, (EOS,), PAD, Words(VOCABULARY)),
            "bleu": Bleu({name: tuple(rows[name]) for name in ("valid", "test")}),
        },
        readers={"student": Seq2Seq(vocab), "teacher": Seq2Seq(vocab)},
        name="transduce",
    )
    if teacher == "none":
        return made
    family = teacher or ("1x64" if tiny else "2x128")
    make = seq2seq(family, "teacher", vocab, LENGTH)
    budget = rate(500, 5e-3, 16) if tiny else rate(1000, 2e-3)
    alone = replace(made, readers={"student": Seq2Seq(vocab)})
    return replace(
        made, teacher=Frozen(taught(f"transduce-{family}", make, NextTokens(), alone, budget))
    )


# --- the grammar ---------------------------------------------------------------------------------


def translations(source: Sentence) -> list[Sentence]:
    """All sentences that a source can be put into, each once, the commoner first.

    A source is [adverb] [adjective] noun verb [adjective] noun. In the other language

    * the second half of the nouns have two words each: of those with an even number either is
      right, of the others the verb decides (by whether its number is even or odd);
    * an adjective comes after its noun, in a form of the noun's gender (number modulo 3);
    * of every third verb a particle goes to the end of the clause;
    * verb and object change places or not; an adverb comes first or last.

    Args:
        source: words such as "adverb2", "noun17".
    """
    words = list(source)
    adverb = words.pop(0) if words[0].startswith("adverb") else None
    place = next(i for i, word in enumerate(words) if word.startswith("verb"))
    verb = words[place]
    number = _number(verb)
    subjects, objects = (_phrases(part, number) for part in (words[:place], words[place + 1 :]))
    end = (f"particle{number // 3 % 2}",) if number % 3 == 0 else ()
    found = []
    for one, other, swapped, first in product(
        subjects, objects, (False, True), (False, True) if adverb else (False,)
    ):
        said = (f"V{number}",)
        clause = (*one, *(other + said if swapped else said + other), *end)
        also = (f"ADV{_number(adverb)}",) if adverb else ()
        found.append(also + clause if first else clause + also)
    return found


def _phrases(words: Sequence[str], verb: int) -> list[Sentence]:
    """All translations of [adjective] noun beside a verb."""
    noun = _number(words[-1])
    kinds = ("a",) if noun < NOUNS // 2 else ("a", "b") if noun % 2 == 0 else ("ab"[verb % 2],)
    form = tuple(f"ADJ{_number(word)}{'xyz'[noun % 3]}" for word in words[:-1])
    return [(f"N{noun}{kind}", *form) for kind in kinds]


def _number(word: str) -> int:
    return int(word.lstrip("abcdefghijklmnopqrstuvwxyz"))


def _vocabulary() -> list[str | None]:
    """Words of all ids, of both languages."""
    sizes = {"noun": NOUNS, "adjective": ADJECTIVES, "verb": VERBS, "adverb": ADVERBS}
    words: list[str | None] = [f"{kind}{i}" for kind, many in sizes.items() for i in range(many)]
    words += [f"N{i}{kind}" for i in range(NOUNS) for kind in "ab"[: 1 + (i >= NOUNS // 2)]]
    words += [f"ADJ{i}{form}" for i in range(ADJECTIVES) for form in "xyz"]
    words += [f"V{i}" for i in range(VERBS)] + [f"ADV{i}" for i in range(ADVERBS)]
    return [None, None, None, *words, "particle0", "particle1"]


VOCABULARY = _vocabulary()
_IDS = {word: i for i, word in enumerate(VOCABULARY) if word is not None}


def drawn(n: int, data_seed: int) -> list[Sentence]:
    """So many different sources; the i-th does not depend on how many there are."""
    rng = generator("transduce", data_seed, "sources")
    found: dict[Sentence, None] = {}
    while len(found) < n:
        picks = torch.rand(1024, 9, generator=rng, dtype=torch.float64).tolist()
        found |= dict.fromkeys(_source(row) for row in picks)
    return list(found)[:n]


def _source(u: Sequence[float]) -> Sentence:
    """A source of nine numbers in [0, 1)."""
    kinds = (("adverb", ADVERBS), ("adjective", ADJECTIVES), ("noun", NOUNS), ("verb", VERBS))
    adverb, adjective, noun, verb = kinds
    slots = (adverb, adjective, noun, verb, adjective, noun)
    there = (u[0] < 0.5, u[1] < 0.5, True, True, u[2] < 0.5, True)
    each = zip(slots, there, u[3:], strict=True)
    return tuple(f"{kind}{int(many * x)}" for (kind, many), here, x in each if here)


def columns(sources: Sequence[Sentence], data_seed: int, part: str) -> dict[str, Any]:
    """A set of pairs; all of a translation is trained on, and its EOS.

    Of n translations the first k are given with a probability of (k / n) ** (1 / 3): the first of
    two at 79 %, of eight at 50 %, the last of eight at 4 %.
    """
    u = torch.rand(len(sources), generator=generator("transduce", data_seed, part)).tolist()
    chosen = [
        (all_ := translations(s))[int(x**3 * len(all_))] for s, x in zip(sources, u, strict=True)
    ]
    theirs, seen = padded([[*(_IDS[w] for w in s), EOS] for s in sources], LENGTH)
    ids, mask = padded([[BOS, *(_IDS[w] for w in s), EOS] for s in chosen], LENGTH)
    y = ids.masked_fill(mask == 0, IGNORED)
    y[:, 0] = IGNORED
    x = {"source_ids": theirs, "source_mask": seen, "ids": ids, "mask": mask}
    return {"x": x, "y": y, "bytes": (y != IGNORED).sum(1)}


# --- BLEU ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bleu:
    """BLEU of what a model writes to some sources, by beam search.

    Attributes:
        sources: sentences of each set.
    """

    sources: Mapping[str, tuple[Sentence, ...]]

    def __call__(self, model: nn.Module, beams: int = 1, on: str = "test") -> float:
        """BLEU from 0 to 1; one beam is the likeliest word each time."""
        device, sources = next(model.parameters()).device, self.sources[on]
        said: list[Sentence] = []
        for i in range(0, len(sources), 100):
            rows = [[*(_IDS[w] for w in s), EOS] for s in sources[i : i + 100]]
            ids, mask = (t.to(device) for t in padded(rows, LENGTH))
            found = search(model, ids, mask, new=LENGTH - 1, beams=beams, eos=(EOS,), pad=PAD)
            said += [
                tuple(str(VOCABULARY[i]) for i in spoken(row)) for row in found.ids[:, 0].tolist()
            ]
        return bleu(said, [translations(source) for source in sources])
