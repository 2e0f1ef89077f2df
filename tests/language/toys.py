"""Small causal models and texts for the tests of language methods."""

import torch

from limbeck.core.task import Budget, Optimiser, Task
from limbeck.core.text.facts import Text
from limbeck.core.text.places import IGNORED
from limbeck.core.text.scores import nll
from limbeck.core.text.view import Causal

VOCAB, CONTEXT, EOS, PAD = 20, 16, 1, 0


def model(layers: int = 1, width: int = 16, seed: int = 0) -> torch.nn.Module:
    import pytest

    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config).eval()


def texts(n: int, seed: int = 0, prompt: int = 4) -> dict:
    """Texts of 8 to 16 tokens; the first `prompt` are not trained on."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCAB, (n, CONTEXT), generator=generator)
    ids[:, 1::2] = (ids[:, ::2] * 3) % (VOCAB - 2) + 2
    lengths = torch.randint(8, CONTEXT + 1, (n, 1), generator=generator)
    mask = (torch.arange(CONTEXT) < lengths).long()
    ids = ids.masked_fill(mask == 0, PAD)
    y = ids.masked_fill(mask == 0, IGNORED)
    y[:, :prompt] = IGNORED
    return {"x": {"ids": ids, "mask": mask}, "y": y}


def task(steps: int = 6, batch: int = 4, n: int = 16, **more) -> Task:
    """A random teacher of two layers, and a student of one."""
    budget = more.pop("budget", {})
    return Task(
        teacher=more.pop("teacher", None) or model(2, 24, seed=1),
        student=lambda: model(),
        train=texts(n),
        valid=texts(6, seed=1),
        test=texts(6, seed=2),
        score=nll,
        budget=Budget(steps=steps, batch=batch, optimiser=Optimiser("adamw", 3e-3), **budget),
        readers={"student": Causal(VOCAB), "teacher": Causal(VOCAB)},
        data={"text": Text(VOCAB, CONTEXT, (EOS,), PAD), **more.pop("data", {})},
        name="toy",
        **more,
    )
