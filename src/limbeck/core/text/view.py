"""How a causal language model is looked at: hidden states and a head, logits only when asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.signals import Dense, Head, Linear
from limbeck.core.text.places import columns
from limbeck.core.views import Lazy
from limbeck.errors import UsageError

__all__ = ["Causal", "Classifier", "body_of", "head_of", "is_linear"]


@dataclass(frozen=True)
class Causal:
    """The reader of a side: picks its tokens, and shows a Hugging Face causal model.

    Attributes:
        vocab: how many tokens mean something; columns beyond are padding.
        side: which tokens it reads, "" or "t_".
        linear: whether its logits are head(hidden), as `is_linear` says.
    """

    vocab: int
    side: str = ""
    linear: bool = True

    def __call__(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the model: (B, T) without the columns that are padding in every row."""
        ids, mask = columns(x, self.side)
        return {"input_ids": ids, "attention_mask": mask}

    def view(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Lazy:
        """The entries signal, logits (B, T, V), hidden (B, T, H) and head of (B, T) places."""
        if not self.linear:
            logits = functools.cache(lambda: model(**inputs).logits[..., : self.vocab])
            return Lazy(logits=logits, signal=lambda: Dense(logits()), side=lambda: self.side)
        if hasattr(model, "set_requires_gradient_sync") and hasattr(model, "unshard"):
            both = functools.cache(lambda: _gathered(model, inputs, self.vocab))
            return self._lazy(lambda: both()[0], lambda: both()[1])
        return self._lazy(
            functools.cache(lambda: body_of(model)(**inputs, use_cache=False)[0]),
            functools.cache(lambda: head_of(model, self.vocab)),
        )

    def _lazy(self, body: Callable[[], Tensor], head: Callable[[], Head]) -> Lazy:
        return Lazy(
            signal=lambda: Linear(body(), head()),
            logits=lambda: head()(body()),
            hidden=body,
            head=head,
            side=lambda: self.side,
        )


@dataclass(frozen=True)
class Classifier:
    """The reader of a side that classifies texts: a Hugging Face model's own `logits` (B, C)."""

    def __call__(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the model, without the columns that are padding in every row."""
        ids, mask = columns(x)
        return {"input_ids": ids, "attention_mask": mask}


def body_of(model: nn.Module) -> nn.Module:
    """The model below its head, which gives (hidden states, ...); adapters stay in it."""
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    body: nn.Module = getattr(inner, getattr(inner, "base_model_prefix", ""), inner)
    return body


def head_of(model: nn.Module, vocab: int) -> Head:
    """The head of a Hugging Face model: its matrix, scale and soft cap; low-rank additions too."""
    layer = model.get_output_embeddings()  # type: ignore[operator]
    config: Any = model.config
    config = getattr(config, "get_text_config", lambda: config)()
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    return Head(
        _weight_of(layer),
        getattr(layer, "bias", None),
        vocab,
        float(scale or 1.0) / float(divisor or 1.0),
        getattr(config, "final_logit_softcapping", None),
    )


def _gathered(model: Any, inputs: Mapping[str, Tensor], vocab: int) -> tuple[Tensor, Head]:
    """Hidden states and head of a model under `fully_shard`, whose own hooks gather and reduce.

    They stand around the model's forward pass, so this is one. The head outlives it as a copy: the
    wrapper may free what it gathered.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    def look() -> tuple[Tensor, Tensor, Tensor | None, Head]:
        head = head_of(model, vocab)
        bias = None if head.bias is None else head.bias.clone()
        return body_of(model)(**inputs, use_cache=False)[0], head.weight.clone(), bias, head

    model.limbeck_look = look
    try:
        register_fsdp_forward_method(model, "limbeck_look")
        hidden, weight, bias, head = model.limbeck_look()
    finally:
        del model.limbeck_look
    return hidden, replace(head, weight=weight, bias=bias)


def _weight_of(layer: Any) -> Tensor:
    """The matrix (V', H) that a linear layer applies, adapters and shards included."""
    if hasattr(layer, "get_base_layer"):  # peft
        weight = layer.get_base_layer().weight
        for name in layer.active_adapters:
            if name not in getattr(layer, "lora_A", {}):
                raise UsageError(
                    f"the head carries the adapter '{name}', which is no LoRA; leave the head out "
                    "of it"
                )
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            weight = weight + layer.scaling[name] * (b @ a).to(weight.dtype)
    else:
        weight = layer.weight
    whole = getattr(weight, "full_tensor", None)  # of a sharded one
    found: Tensor = weight if whole is None else whole()
    return found if torch.is_grad_enabled() else found.detach()  # a teacher's gets no graph


def is_linear(model: nn.Module, inputs: Mapping[str, Tensor], vocab: int) -> bool:
    """Whether head(hidden) gives this model's own logits, on some inputs."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            own = model(**inputs).logits[..., :vocab]
            made = head_of(model, vocab)(body_of(model)(**inputs, use_cache=False)[0])
        return own.shape == made.shape and torch.allclose(own, made, rtol=1e-3, atol=1e-3)
    except (AttributeError, TypeError, RuntimeError):  # an architecture of another make
        return False
    finally:
        for m, training in modes:
            m.training = training
