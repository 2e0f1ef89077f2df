"""Low-rank adapters on a language model, and the plain model that they give."""

from __future__ import annotations

from typing import Any

from torch import nn

from limbeck.core.hub import library
from limbeck.errors import UsageError

__all__ = ["lora", "merged"]


def lora(model: nn.Module, rank: int, alpha: float) -> nn.Module:
    """Give all linear layers but the head low-rank adapters, in place; they alone train.

    The head of a classifier, of texts or of their words, trains whole. Adapters start as nothing:
    the wrapped model answers as the model does. They are drawn by the generators that the caller
    seeds.

    Args:
        model: of transformers.
        rank: of the matrices that are added.
        alpha: what is added counts alpha / rank.

    Raises:
        Missing: peft is not installed.
        UsageError: the rank or alpha is no positive number, or the model has adapters already.
    """
    if rank < 1 or not alpha > 0:
        raise UsageError(f"adapters have rank {rank} and alpha {alpha}; give positive numbers")
    if hasattr(model, "peft_config"):
        raise UsageError("the model has adapters already; merge them first")
    peft = library("peft")
    kinds = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}
    name = type(model).__name__
    kind = next((task for kind, task in kinds.items() if kind in name), None)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        task_type=kind,
        # peft keeps "all-linear" off the heads of classifiers of texts only
        exclude_modules=["classifier", "score"] if kind == "TOKEN_CLS" else None,
    )
    made: nn.Module = peft.get_peft_model(model, config)
    return made


def merged(model: Any) -> nn.Module:
    """The user's own model with the adapters added to its weights, all of which train again.

    The adapters are gone after that.
    """
    plain: nn.Module = model.merge_and_unload()
    return plain.requires_grad_(True)
