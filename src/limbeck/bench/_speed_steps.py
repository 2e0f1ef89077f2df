"""Steps of training a small language model: from a live teacher, a cache, and its own texts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.caching import cache_teacher
from limbeck.core.hub import library
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.text.facts import Text
from limbeck.core.text.kept import Keep
from limbeck.core.text.scores import nll
from limbeck.core.text.view import Causal
from limbeck.errors import Missing
from limbeck.registry import make

VOCAB, CONTEXT, BATCH, NEW = 8192, 64, 8, 32
RATE = 1e-3
Loop = Callable[[], float]


def model(layers: int, width: int) -> nn.Module:
    """A llama of random weights."""
    transformers = library("transformers")
    torch.manual_seed(layers)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
    )
    made: nn.Module = transformers.LlamaForCausalLM(config)
    return made


def task(steps: int) -> Task:
    """Random texts without an end, so that each way handles equally many tokens."""
    ids = torch.randint(VOCAB, (2 * BATCH, CONTEXT), generator=torch.Generator().manual_seed(0))
    y = ids.clone()
    y[:, 0] = -100
    rows = {"x": {"ids": ids, "mask": torch.ones_like(ids)}, "y": y}
    few = {"x": {k: v[:1] for k, v in rows["x"].items()}, "y": y[:1]}  # type: ignore[attr-defined]
    reader = Causal(VOCAB)
    return Task(
        model(4, 256).eval(),
        lambda: model(2, 128),
        rows,
        valid=few,
        score=nll,
        budget=Budget(steps=steps, batch=BATCH, optimiser=Optimiser("sgd", lr=RATE)),
        readers={"student": reader, "teacher": reader},
        data={"text": Text(VOCAB, CONTEXT, (), 0)},
    )


def fitted(method: str, given: Task, **fields: Any) -> float:
    """Seconds of a step of a method's one fit."""
    began: list[float] = []
    with Run(given, device="cpu", on_fit=lambda _: began.append(time.perf_counter())):
        make(method, **fields).run(given)
    steps = given.budget.steps
    assert steps is not None
    return (time.perf_counter() - began[0]) / steps


def bare(given: Task) -> float:
    """Seconds of a step of cross-entropy on the labels, as one writes it down."""
    student, steps = given.new_student(0), given.budget.steps
    assert steps is not None
    sgd = torch.optim.SGD(student.parameters(), lr=RATE)
    ids = given.train["x"]["ids"]
    start = time.perf_counter()
    for step in range(steps):
        batch = ids.roll(-BATCH * step, 0)[:BATCH]
        z = student(input_ids=batch).logits[:, :-1]
        loss = F.cross_entropy(z.flatten(0, 1), batch[:, 1:].flatten())
        sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()
    return (time.perf_counter() - start) / steps


def taught(steps: int, folder: Path) -> dict[str, Loop]:
    """Ways to a step on the data's texts: labels only, a live teacher, caches."""
    live = task(steps)
    keeps = {"sampled": Keep("sampled", k=12), "topk": Keep("topk", k=50)}
    kept = {
        kind: replace(live, teacher=cache_teacher(live, folder / kind, keep=keep))
        for kind, keep in keeps.items()
    }
    whole = {"own": 0.0, "divergence": "forward_kl", "per": "token"}
    return {
        "plain cross-entropy": lambda: bare(live),
        "cached, 12 draws": lambda: fitted("rs_kd", kept["sampled"]),
        "cached, 50 likeliest": lambda: fitted("gkd", kept["topk"], **whole),
        "live teacher": lambda: fitted("gkd", live, **whole),
    }


def written(steps: int) -> dict[str, Loop]:
    """Seconds of a token of a response that is trained on: of the data, written anew, replayed."""
    given = task(steps)
    how = {"new": NEW, "corpus": 0.0, "every": 10**6, "ratio": "constant", "least": 16}

    def way(**fields: Any) -> Loop:
        return lambda: fitted("distillm", given, **how, **fields) / (BATCH * NEW)

    return {
        "written at each step": way(phi=1.0, replay=10**6),
        "half of them replayed": way(phi=1.0, replay=BATCH),
    }


def told(
    quick: bool, best: Callable[[Mapping[str, Loop], int], dict[str, float]]
) -> Iterator[tuple[str, Mapping[str, float], str, str, Mapping[str, float]]]:
    """Rows: name, seconds, unit, target, bytes; none without transformers."""
    try:
        library("transformers")
    except Missing:
        return
    steps, times = (2, 1) if quick else (6, 3)
    with tempfile.TemporaryDirectory() as folder:
        found = best(taught(steps, Path(folder)), times)
    name = f"step of a language model, V={VOCAB}, {BATCH} x {CONTEXT} tokens"
    yield name, found, "ms/step", "cached draws at most 1.1x plain cross-entropy", {}
    found = best(written(2 * steps), times)
    name = f"on-policy, responses of {NEW} tokens, batch {BATCH}"
    yield name, found, "ms/token", "replay gives more tokens a second", {}
