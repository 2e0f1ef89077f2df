"""Students made of their teacher: fewer of its layers, a narrower copy, or random weights.

truncate:10           ten of its layers, evenly spread, first and last among them
truncate:0,3,6,29     these layers
width:0.5             half of its heads, neurons and channels: those of largest weights
config:hidden_size=256,num_hidden_layers=4    its architecture of other sizes, random weights
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.core.rng import globals_kept
from limbeck.errors import UsageError, nearest

if TYPE_CHECKING:
    from limbeck.core.text.models import Found

__all__ = ["found", "is_words", "make", "opened"]

State = dict[str, Tensor]
Plan = tuple[Any, Callable[[], nn.Module]]  # a configuration, and what makes a module of it


def is_words(text: str) -> bool:
    """Say whether words name a student that is made of its teacher."""
    return text.partition(":")[0] in _MAKERS and ":" in text


def make(words: str, teacher: Found) -> Callable[[], nn.Module]:
    """A factory of the student that words name; see `found`."""
    return found(words, teacher).make


def found(words: str, teacher: Found) -> Found:
    """The student that words name; it has the teacher's tokenizer and kind.

    Its `make` makes the teacher each time, unless the weights are random: these are drawn by the
    generators that the caller seeds.

    Raises:
        UsageError: the words cannot be read, or this teacher cannot be cut in that way.
    """
    if not is_words(words):
        raise UsageError(f"the student is '{words}'; give truncate:10, width:0.5 or config:NAME=1")
    head, _, rest = words.partition(":")
    if teacher.kind == "seq2seq":
        what = f"the teacher '{teacher.name}' an encoder with a decoder, which is not cut"
        raise UsageError(f"the student is '{words}' and {what}; name a student of its own")
    config, made = _MAKERS[head](rest, teacher)
    why = "its weights are random" if head == "config" else "it is cut out of its teacher"
    return replace(teacher, make=made, config=config, name=words, untrained=why)


def opened(module: nn.Module, tokenizer: Any) -> nn.Module:
    """A module in eval mode, a classifier told the padding; its end of text learns though it pads.

    An embedding keeps the row of padding from its gradient.
    """
    table: Any = module.get_input_embeddings()  # type: ignore[operator]
    if getattr(table, "padding_idx", None) == tokenizer.eos_token_id:
        table.padding_idx = None
    config: Any = module.config
    if "SequenceClassification" in type(module).__name__ and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id  # it looks for a text's last token by it
    return module.eval()


def _changed(teacher: Found, changes: dict[str, Any]) -> Any:
    """The teacher's configuration with changes, checked by making a module without memory."""
    fields = {**teacher.config.to_dict(), **changes}
    try:
        config = type(teacher.config).from_dict({k: v for k, v in fields.items() if v is not ...})
        config.dtype = teacher.config.dtype
        config._attn_implementation = teacher.config._attn_implementation
        _skeleton(teacher, config)
    except Exception as error:  # configurations and modules check their sizes in many ways
        told, kind = " ".join(str(error).split()), teacher.architecture.__name__
        shown = ", ".join(f"{k}={v}" for k, v in changes.items() if v is not ...)
        raise UsageError(f"no {kind} can have {shown} ({told}); change them") from error
    return config


def _skeleton(teacher: Found, config: Any) -> nn.Module:
    """A module without weights."""
    with torch.device("meta"):
        return teacher.architecture._from_config(copy.deepcopy(config))  # type: ignore[no-any-return]


def _filled(teacher: Found, config: Any, cut: Callable[[State], State]) -> nn.Module:
    """A module of a configuration with what is cut of the teacher's weights."""
    from transformers.initialization import no_init_weights

    big: Any = teacher.make()
    with globals_kept(), no_init_weights():
        small = teacher.architecture._from_config(copy.deepcopy(config))
    small.tie_weights()
    small.load_state_dict(cut(big.state_dict()))
    if big.can_generate():
        small.generation_config = copy.deepcopy(big.generation_config)
    return opened(small, teacher.tokenizer)


def _by_layer(config: Any) -> dict[str, list[Any]]:
    """What a configuration lists for each layer."""
    lists = {k: v for k, v in config.to_dict().items() if "layer" in k and isinstance(v, list)}
    return {k: v for k, v in lists.items() if len(v) == config.num_hidden_layers}


def _truncate(words: str, teacher: Found) -> Plan:
    total = teacher.config.num_hidden_layers
    kept = _layers(words, total, teacher.name)
    stem = _stem(_skeleton(teacher, teacher.config), total)
    depth = teacher.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    lists = {k: [v[i] for i in kept] for k, v in _by_layer(teacher.config).items()}
    config = _changed(teacher, {depth: len(kept), **lists})

    def cut(state: State) -> State:
        place, left = {str(layer): i for i, layer in enumerate(kept)}, {}
        for key, value in state.items():
            layer, _, rest = key.removeprefix(f"{stem}.").partition(".")
            if not key.startswith(f"{stem}."):
                left[key] = value
            elif layer in place:
                left[f"{stem}.{place[layer]}.{rest}"] = value
        return left

    return config, lambda: _filled(teacher, config, cut)


def _layers(words: str, total: int, name: str) -> list[int]:
    """The layers that "10" or "0,3,6" names, rising."""
    parts = words.split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    right = len(numbers) == len(parts) and numbers == sorted({*numbers}) and numbers[-1] < total
    if len(parts) == 1 and numbers:
        count, gaps = numbers[0], max(numbers[0] - 1, 1)
        right = 1 <= count <= total
        numbers = [(2 * i * (total - 1) + gaps) // (2 * gaps) for i in range(count)]
    if not right:
        raise UsageError(
            f"the student is 'truncate:{words}' and the teacher '{name}' has {total} layers; give "
            f"how many to keep, or their numbers from 0 to {total - 1}, rising, with commas"
        )
    return numbers


def _stem(module: nn.Module, total: int) -> str:
    """The name of the list of a model's layers."""
    lists: dict[str, int] = {
        n: len(m) for n, m in module.named_modules() if isinstance(m, nn.ModuleList)
    }
    outer = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    there: list[str] = [n for n in outer if lists[n] == total]
    if len(there) != 1:
        what = f"a {type(module).__name__} does not keep its {total} layers in one list"
        raise UsageError(f"{what}, so it is not truncated; name a student of its own")
    return there[0]


# What the rows and the columns of a matrix are, in models that are built like Llama.
_AXES = {
    **dict.fromkeys(("embed_tokens", "lm_head", "score"), ("", "hidden")),
    **dict.fromkeys(("gate_proj", "up_proj"), ("wide", "hidden")),
    **dict.fromkeys(("k_proj", "v_proj"), ("groups", "hidden")),
    **{"q_proj": ("heads", "hidden"), "o_proj": ("hidden", "heads")},
    "down_proj": ("hidden", "wide"),
}
_FIELDS = {"hidden": "hidden_size", "wide": "intermediate_size"}
_FIELDS |= {"heads": "num_attention_heads", "groups": "num_key_value_heads"}


def _width(words: str, teacher: Found) -> Plan:
    share = float(words) if words.replace(".", "", 1).isdecimal() else 0.0
    if not 0 < share <= 1:
        raise UsageError(f"the student is 'width:{words}'; give a share above 0 and up to 1")
    config, skeleton = teacher.config, _skeleton(teacher, teacher.config)
    for key, value in skeleton.state_dict().items():
        if _axes(key, value, config) is None:
            what = f"models built like Llama, and a {type(skeleton).__name__} has '{key}'"
            fix = "give truncate:10 or config:NAME=1"
            raise UsageError(f"the student is 'width:{words}', which narrows {what}; {fix}")
    size = {axis: getattr(config, field) for axis, field in _FIELDS.items()}
    groups = max(1, round(size["groups"] * share + 1e-9))
    each = min(
        size["heads"] // size["groups"], max(1, round(size["heads"] * share / groups + 1e-9))
    )
    kept = {"heads": groups * each, "groups": groups}
    for axis, step in (("hidden", math.lcm(8, groups * each)), ("wide", 8)):
        near = max(step, step * round(size[axis] * share / step + 1e-9))  # heads must divide hidden
        kept[axis] = size[axis] if share == 1 else min(size[axis], near)
    fields = {field: kept[axis] for axis, field in _FIELDS.items()}
    small = _changed(teacher, {**fields, "head_dim": _dim(config)})
    return small, lambda: _filled(teacher, small, lambda state: _narrow(state, config, kept))


def _dim(config: Any) -> int:
    """Channels of an attention head, which narrowing leaves alone."""
    dim = getattr(config, "head_dim", None)
    return int(dim or config.hidden_size // config.num_attention_heads)


def _axes(key: str, value: Tensor, config: Any) -> tuple[str, ...] | None:
    """What the dimensions of a weight are ("": left whole); None where that is not known."""
    if not all(hasattr(config, field) for field in _FIELDS.values()):
        return None
    name, dim = key.split(".")[-2], _dim(config)
    if name in ("q_norm", "k_norm"):  # of each head
        return ("",) if value.shape == (dim,) else None
    size = {axis: getattr(config, field) for axis, field in _FIELDS.items()}
    size |= {"": value.shape[0], "heads": size["heads"] * dim, "groups": size["groups"] * dim}
    axes = ("hidden",) if name.endswith("norm") else _AXES.get(name, ())[: value.dim()]
    return axes if value.shape == tuple(size[axis] for axis in axes) else None


def _narrow(state: State, config: Any, kept: dict[str, int]) -> State:
    """The weights between the channels, neurons and heads whose weights are largest."""
    axes = {key: _axes(key, value, config) or () for key, value in state.items()}
    scores: dict[tuple[str, str], Any] = {}
    for key, value in state.items():
        if value.dim() == 2:
            square = value.double().square()  # each matrix counts alike, whatever its scale
            square /= square.mean().clamp_min(torch.finfo(torch.float64).tiny)
            for place, axis in enumerate(axes[key]):
                where = _where(key, axis)
                scores[where] = scores.get(where, 0) + square.mean(1 - place)
    picks = {where: _picked(*where, scores, kept, _dim(config)) for where in scores if where[1]}
    for key in state:
        for place, axis in enumerate(axes[key]):
            if axis:
                state[key] = state[key].index_select(place, picks[_where(key, axis)])
    return state


def _where(key: str, axis: str) -> tuple[str, str]:
    """Each layer chooses its heads and neurons; the channels are one choice for all layers."""
    return ("" if axis == "hidden" else key.rsplit(".", 2)[0], axis)


def _picked(layer: str, axis: str, scores: Any, kept: dict[str, int], dim: int) -> Tensor:
    """Rows or columns to keep, rising; of each group of heads that share a key as many queries."""
    if axis in ("hidden", "wide"):
        return _top(scores[layer, axis], kept[axis])
    queries, keys = (scores[layer, a].view(-1, dim).sum(1) for a in ("heads", "groups"))
    queries = queries.view(len(keys), -1)
    heads = groups = _top(keys + queries.sum(1), kept["groups"])
    if axis == "heads":
        count, per = kept["heads"] // len(groups), queries.shape[1]
        heads = torch.cat([g * per + _top(queries[g], count) for g in groups])
    return (heads[:, None] * dim + torch.arange(dim, device=heads.device)).flatten()


def _top(scores: Tensor, count: int) -> Tensor:
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def _config(words: str, teacher: Found) -> Plan:
    given, config = dict(_field(word, teacher.config) for word in words.split(",")), teacher.config
    names = config.attribute_map
    changes = {names.get(name, name): value for name, value in given.items()}
    if names.get("num_hidden_layers", "num_hidden_layers") in changes:
        changes |= dict.fromkeys(_by_layer(config), ...)  # made anew for so many layers
    if getattr(config, "head_dim", None) == config.hidden_size // config.num_attention_heads:
        changes = {"head_dim": ..., **changes}
    small = _changed(teacher, changes)
    heads, groups = small.num_attention_heads, getattr(small, "num_key_value_heads", None) or 1
    if heads % groups:
        what = f"{heads} num_attention_heads, which its {groups} num_key_value_heads do not divide"
        raise UsageError(f"the student is 'config:{words}' with {what}; give both")
    new = teacher.architecture._from_config
    return small, lambda: opened(new(copy.deepcopy(small)), teacher.tokenizer)


def _field(word: str, config: Any) -> tuple[str, Any]:
    """A field of the configuration and its new value, of the same kind as the old one."""
    name, _, text = (part.strip() for part in word.partition("="))
    plain = {k for k, v in config.to_dict().items() if not isinstance(v, list | dict)}
    known = sorted({*plain, *config.attribute_map} - {"vocab_size", "model_type", "dtype"})
    if name not in known:
        raise UsageError(f"the teacher's model has no '{name}' to change{nearest(name, known)}")
    old = getattr(config, name)
    try:
        new = json.loads(text)
    except ValueError:
        new = text
    new = float(new) if (type(old), type(new)) == (float, int) else new
    if old is not None and type(new) is not type(old):
        raise UsageError(f"the student has {name}={text or None}; give it as {name}={old!r} is")
    return name, new


_MAKERS = {"truncate": _truncate, "width": _width, "config": _config}
