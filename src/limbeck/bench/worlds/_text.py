"""Texts, small language models and their trained teachers, for the worlds of language."""

import logging
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from shutil import which

from safetensors.torch import save
from torch import Tensor, nn

from limbeck.bench.worlds._teachers import _read
from limbeck.core.engine import fit
from limbeck.core.files import cache_folder, digest_tensors, write_atomic
from limbeck.core.hub import library
from limbeck.core.method import Objective
from limbeck.core.rng import globals_kept, seed_globals
from limbeck.core.run import Run
from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.teachers import Nobody
from limbeck.errors import Missing, UsageError

_log = logging.getLogger(__name__)


@cache
def english(source: str) -> str:
    """English text: "kjv", the King James Version that Debian's bible-kjv prints, or "topics".

    The latter is the help that every Python carries, which differs a little between versions.
    """
    if source == "topics":
        topics: Mapping[str, str] = import_module("pydoc_data.topics").topics
        return "\n".join(topics[name] for name in sorted(topics))
    program = which("bible")
    if source != "kjv" or program is None:
        raise Missing(
            f"the text {source!r} is not on this machine; install Debian's bible-kjv for 'kjv', or "
            "give text='topics', which needs nothing"
        )
    said = subprocess.run(
        [program, "-f", "gen1:1-rev22:21"], capture_output=True, text=True, timeout=60, check=True
    )
    return "\n".join(line.partition(" ")[2] for line in said.stdout.splitlines())


def usual() -> str:
    """The text of this machine: the King James Version where it is there."""
    return "kjv" if which("bible") else "topics"


def sizes(given: str, side: str) -> tuple[int, int]:
    """Layers and width, from words such as "4x128"."""
    layers, cross, width = str(given).partition("x")
    if not cross or not layers.isdigit() or not width.isdigit() or int(width) % 8 or not int(width):
        raise UsageError(
            f"the {side} is {given!r}; give layers x width, such as 2x64 (the width a multiple of "
            "8)"
        )
    return int(layers), int(width)


def causal(given: str, side: str, vocab: int, context: int) -> Callable[[], nn.Module]:
    """A factory of small Llamas with tied embeddings; ids 0 and 1 are padding and EOS."""
    layers, width = sizes(given, side)
    transformers = library("transformers")
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        num_key_value_heads=max(1, width // 32),
        max_position_embeddings=2 * context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.05,
    )
    return lambda: transformers.LlamaForCausalLM(config)


def rate(steps: int, lr: float, batch: int = 32) -> Budget:
    """AdamW under a cosine after a warm-up, with clipped gradients."""
    spec = Optimiser("adamw", lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    return Budget(steps=steps, batch=batch, optimiser=spec, warmup=0.1, clip=1.0)


def taught(
    name: str, make: Callable[[], nn.Module], truth: Objective, task: Task, budget: Budget
) -> nn.Module:
    """A teacher that learned a task's training set, in eval mode; trained once, then read.

    Args:
        name: of world and model.
        make: gives the module.
        truth: what it learns.
        task: its `train`, with x and y, and the student's reader, with which it is looked at.
        budget: of its training.
    """
    x, y = task.train["x"], task.train["y"]
    rows: dict[str, Tensor] = {**(x if isinstance(x, Mapping) else {"x": x}), "y": y}
    facts = repr((name, digest_tensors(rows), budget, truth))
    with globals_kept():
        seed_globals("teacher", name)
        model = make()
        facts += digest_tensors(model.state_dict())
        digest = blake2b(facts.encode(), digest_size=8).hexdigest()
        path = cache_folder() / "teachers" / f"{name}-{digest}.safetensors"
        if not _read(path, model):
            _log.info("training the teacher %s, once", name)
            with Run(task, device="cpu"):
                batches = task.batches()
                fit(truth, model, Nobody(), batches, name="teacher", task=task, budget=budget)
            _keep(path, model)
    return model.eval()


def _keep(path: Path, model: nn.Module) -> None:
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(tensors, {"digest": digest_tensors(tensors)}))
    except (OSError, UsageError) as error:  # a cache saves time; without it all still works
        _log.warning("the teacher is not kept for later: %s", error)
