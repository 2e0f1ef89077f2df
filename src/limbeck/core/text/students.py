"""Students made of their teacher: fewer of its layers, a narrower copy, or random weights.

truncate:10           ten of its layers, evenly spread, first and last among them; of an
                      encoder-decoder so many of either's
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
from limbeck.core.text.narrow import FIELDS, axes_of, dim_of, narrowed
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
    stacks = _stacks(teacher)
    kept = {stem: _layers(words, total, teacher.name) for stem, (_, total) in stacks.items()}
    changes: dict[str, Any] = {field: len(kept[stem]) for stem, (field, _) in stacks.items()}
    for field, values in _by_layer(teacher.config).items():
        changes[field] = [values[i] for i in next(iter(kept.values()))]
    config = _changed(teacher, changes)

    def cut(state: State) -> State:
        left: State = {}
        for key, value in state.items():
            stem = next((stem for stem in kept if key.startswith(f"{stem}.")), None)
            if stem is None:
                left[key] = value
                continue
            layer, _, rest = key.removeprefix(f"{stem}.").partition(".")
            if int(layer) in kept[stem]:
                left[f"{stem}.{kept[stem].index(int(layer))}.{rest}"] = value
        return left

    there = cut(_skeleton(teacher, teacher.config).state_dict())
    lacking = _skeleton(teacher, config).state_dict().keys() - there
    if lacking:  # T5's first layers know where tokens stand
        raise UsageError(
            f"the student is 'truncate:{words}', and its '{min(lacking)}' is in a layer of the "
            f"teacher {teacher.name} that is left out; keep layer 0"
        )
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


# What configurations call the depths of an encoder and of a decoder.
_DEPTHS = {"encoder": ("encoder_layers", "num_layers")}
_DEPTHS |= {"decoder": ("decoder_layers", "num_decoder_layers")}


def _stacks(teacher: Found) -> dict[str, tuple[str, int]]:
    """By name the lists of a model's layers: the field with their number, and that number."""
    config, module = teacher.config, _skeleton(teacher, teacher.config)
    if not config.is_encoder_decoder:
        field = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        return {_stem(module, config.num_hidden_layers): (field, config.num_hidden_layers)}
    found, known = {}, config.to_dict()
    for part, names in _DEPTHS.items():
        field = next((name for name in names if isinstance(known.get(name), int)), "")
        if not field:
            raise UsageError(
                f"the configuration of a {type(module).__name__} does not say how many layers its "
                f"{part} has, so it is not truncated; name a student of its own"
            )
        found[_stem(module, known[field], part)] = (field, known[field])
    return found


def _stem(module: nn.Module, total: int, part: str = "") -> str:
    """The name of the list of a model's layers, or of its encoder's or decoder's."""
    lists: dict[str, int] = {
        n: len(m) for n, m in module.named_modules() if isinstance(m, nn.ModuleList)
    }
    outer = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    there = [n for n in outer if lists[n] == total and (not part or part in n.split("."))]
    if len(there) != 1:
        what = f"a {type(module).__name__} does not keep its {total} layers in one list"
        raise UsageError(f"{what}, so it is not truncated; name a student of its own")
    return there[0]


def _width(words: str, teacher: Found) -> Plan:
    share = float(words) if words.replace(".", "", 1).isdecimal() else 0.0
    if not 0 < share <= 1:
        raise UsageError(f"the student is 'width:{words}'; give a share above 0 and up to 1")
    config, skeleton = teacher.config, _skeleton(teacher, teacher.config)
    for key, value in skeleton.state_dict().items():
        if axes_of(key, value, config) is None:
            what = f"models built like Llama, and a {type(skeleton).__name__} has '{key}'"
            fix = "give truncate:10 or config:NAME=1"
            raise UsageError(f"the student is 'width:{words}', which narrows {what}; {fix}")
    size = {axis: getattr(config, field) for axis, field in FIELDS.items()}
    groups = max(1, round(size["groups"] * share + 1e-9))
    each = min(
        size["heads"] // size["groups"], max(1, round(size["heads"] * share / groups + 1e-9))
    )
    kept = {"heads": groups * each, "groups": groups}
    for axis, step in (("hidden", math.lcm(8, groups * each)), ("wide", 8)):
        near = max(step, step * round(size[axis] * share / step + 1e-9))  # heads must divide hidden
        kept[axis] = size[axis] if share == 1 else min(size[axis], near)
    fields = {field: kept[axis] for axis, field in FIELDS.items()}
    small = _changed(teacher, {**fields, "head_dim": dim_of(config)})
    return small, lambda: _filled(teacher, small, lambda state: narrowed(state, config, kept))


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
