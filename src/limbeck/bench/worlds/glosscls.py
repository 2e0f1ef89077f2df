"""`glosscls`: WordNet's glosses of nouns, and which of 26 files of nouns each is from."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.bench.worlds._build import stratified, whole
from limbeck.bench.worlds._text import rate, taught
from limbeck.bench.worlds._text_models import classifier
from limbeck.core.files import cache_folder, write_atomic
from limbeck.core.hub import library
from limbeck.core.objectives import Labels
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.text import encode
from limbeck.core.text.facts import Text
from limbeck.core.text.view import Classifier
from limbeck.errors import Missing, UsageError

DEBIAN = Path("/usr/share/wordnet")  # of the package wordnet-base
NAMES = (
    "Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event",
    "feeling", "food", "group", "location", "motive", "object", "person", "phenomenon", "plant",
    "possession", "process", "quantity", "relation", "shape", "state", "substance", "time",
)  # fmt: skip
_FIRST = 3  # the number of the first of these files, as in lexnames(5WN)
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_POOL = 60_000  # glosses to learn from


def task(
    *,
    teacher: str | None = None,
    student: str | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task: definitions without their examples, as tokens of an own WordPiece vocabulary.

    Args:
        teacher: a BERT as layers x width, 4x128 by default, or 'bow', a bag of words, which learns
            from five times as many glosses as the student; or 'none'.
        student: the same but for 'none'; 2x64 by default.
        seed: of the run; makes no difference here.
        tiny: 320 glosses of 16 tokens at most, 500 tokens in all, and 24 steps.
        n: training glosses; 6000 by default.
        data_seed: of the split.
    """
    n = whole("n", n or (320 if tiny else 6000), 64, _POOL)
    context, vocab = (16, 500) if tiny else (24, 5000)
    texts, labels = glosses()
    held = (64, 64) if tiny else (1000, 3000)
    order = stratified(torch.tensor(labels), "glosscls", data_seed)
    test, valid, pool = order[: held[1]], order[held[1] : sum(held)], order[sum(held) :]
    train = pool[:n]
    tokenizer = word_pieces([texts[i] for i in train.tolist()], vocab)

    def part(rows: Tensor) -> dict[str, Any]:
        chosen = [{"text": texts[i], "label": labels[i]} for i in rows.tolist()]
        x, y, _ = encode.labelled(chosen, tokenizer, context)
        return {"x": x, "y": y, "bytes": torch.tensor([len(r["text"].encode()) for r in chosen])}

    made = Task(
        teacher=None,
        student=classifier(
            student or ("1x32" if tiny else "2x64"), "student", tokenizer, len(NAMES), context
        ),
        train=part(train),
        valid=part(valid),
        test=part(test),
        budget=rate(24, 1e-2, 16) if tiny else rate(1000, 3e-3),
        data={
            "text": Text(len(tokenizer), context, (), tokenizer.pad_token_id, tokenizer),
            "names": NAMES,
        },
        readers={"student": Classifier(), "teacher": Classifier()},
        classes=len(NAMES),
        name="glosscls",
    )
    if teacher == "none":
        return made
    family = teacher or ("2x64" if tiny else "4x128")
    make = classifier(family, "teacher", tokenizer, len(NAMES), context)
    budget = rate(200, 3e-3, 16) if tiny else rate(2500, 5e-4)
    alone = replace(made, train=part(pool[: 5 * n]), readers={"student": Classifier()})
    return replace(
        made, teacher=Frozen(taught(f"glosscls-{family}", make, Labels(), alone, budget))
    )


@cache
def glosses() -> tuple[Sequence[str], Sequence[int]]:
    """Definitions of all nouns that have one of their own, and the numbers of their classes.

    Raises:
        Missing: WordNet is not on this machine.
    """
    path = DEBIAN / "data.noun"
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        raise Missing(
            f"WordNet is not on this machine: {path} is not there; install Debian's package "
            "wordnet-base"
        ) from None
    found: dict[str, int] = {}
    for line in lines:
        head, bar, gloss = line.partition(" | ")
        if not bar or line.startswith("  "):  # the licence
            continue
        text = gloss.partition('; "')[0].strip()
        if text in found and found[text] != int(head.split()[1]) - _FIRST:
            found[text] = -1  # of two classes
        else:
            found.setdefault(text, int(head.split()[1]) - _FIRST)
    kept = {text: label for text, label in found.items() if text and label >= 0}
    return tuple(kept), tuple(kept.values())


def word_pieces(texts: Sequence[str], size: int) -> Any:
    """A tokenizer of transformers with a WordPiece vocabulary of some texts, in lower case.

    It is trained once, then read from the cache folder: ties are broken at random in training.
    """
    tokenizers, transformers = library("tokenizers"), library("transformers")
    facts = repr((size, _SPECIAL, list(texts)))
    name = f"glosscls-{blake2b(facts.encode(), digest_size=8).hexdigest()}.json"
    path = cache_folder() / "tokenizers" / name
    try:
        made = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except Exception:  # missing or damaged; the package has no error of its own
        made = _trained(tokenizers, texts, size)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, made.to_str().encode())
        except (OSError, UsageError):
            pass  # a cache saves time; without it all still works
    pad, unk, cls, sep = _SPECIAL
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, unk_token=unk, cls_token=cls, sep_token=sep
    )


def _trained(tokenizers: Any, texts: Sequence[str], size: int) -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=_SPECIAL[1]))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=list(_SPECIAL), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made
