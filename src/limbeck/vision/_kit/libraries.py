"""Architectures and pretrained weights of timm, torchvision and transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from limbeck.core.hub import hub, library, reason
from limbeck.errors import Missing, UsageError, nearest
from limbeck.vision._kit.readers import Wants

__all__ = ["LIBRARIES", "Architecture", "Weights", "wants_of"]


@dataclass(frozen=True)
class Weights:
    """Pretrained weights: the state, the number of classes (None: no head), and their names."""

    state: Mapping[str, Tensor]
    classes: int | None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """A model of a library.

    Args:
        at: gives a fresh one for pictures of so many pixels, with the data's number of classes.
        wants: how its pretrained weights are shown pictures.
        fetch: gets those weights, from a hub or its cache; None where there are none.
    """

    at: Callable[[int], nn.Module]
    wants: Wants
    fetch: Callable[[], Weights] | None


def of_timm(name: str, classes: int) -> Architecture:
    """timm:NAME, with or without a tag."""
    timm = library("timm")
    if not timm.is_model(name):
        raise Missing(f"timm has no model '{name}'{nearest(name, timm.list_models())}")
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # the tag
        arch = name.partition(".")[0]
        tags = timm.list_models(f"{arch}.*", pretrained=True)
        raise Missing(f"timm has no weights '{name}'{nearest(name, tags)}") from None
    fixed = config is not None and config.fixed_input_size

    def at(size: int) -> nn.Module:
        given = {"img_size": size} if fixed else {}
        return timm.create_model(name, num_classes=classes, **given)  # type: ignore[no-any-return]

    def fetch() -> Weights:
        with hub():
            module = timm.create_model(name, pretrained=True)
        return Weights(module.state_dict(), module.num_classes or None)

    known = config is not None and config.has_weights
    return Architecture(at, _of_timm_config(config), fetch if known else None)


def _of_timm_config(config: Any) -> Wants:
    if config is None:
        return Wants(channels=3)
    told = config if isinstance(config, dict) else config.to_dict()
    data = library("timm").data.resolve_data_config(pretrained_cfg=told)
    channels, *sides = data["input_size"]
    how = "bilinear" if data["interpolation"] == "bilinear" else "bicubic"
    return Wants(max(sides), channels, tuple(data["mean"]), tuple(data["std"]), how)


def of_torchvision(name: str, classes: int) -> Architecture:
    """torchvision:NAME, of its classification models."""
    models = library("torchvision").models
    known = models.list_models(module=models)
    if name not in known:
        raise Missing(f"torchvision has no classification model '{name}'{nearest(name, known)}")
    try:
        weights = models.get_model_weights(name).DEFAULT
    except AttributeError:  # an architecture without weights
        weights = None

    def at(size: int) -> nn.Module:
        given = {"image_size": size} if name.startswith("vit_") else {}
        return models.get_model(name, weights=None, num_classes=classes, **given)  # type: ignore[no-any-return]

    if weights is None:
        return Architecture(at, Wants(224, 3), None)

    def fetch() -> Weights:
        names = tuple(weights.meta["categories"])
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        return Weights(state, len(names), names)

    shown = weights.transforms()
    how = "bilinear" if shown.interpolation.value == "bilinear" else "bicubic"
    wants = Wants(shown.crop_size[0], 3, tuple(shown.mean), tuple(shown.std), how)
    return Architecture(at, wants, fetch)


def of_transformers(name: str, classes: int) -> Architecture:
    """hf:ID of an image classifier; ID is a name on the hub or a folder."""
    transformers = library("transformers")
    kind = transformers.AutoModelForImageClassification
    try:
        with hub():
            config = transformers.AutoConfig.from_pretrained(name)
    except Exception as error:
        raise Missing(
            f"hf:{name} cannot be had ({reason(error)}); give a folder of save_pretrained, a "
            "name on the hub, or try again with a connection"
        ) from error
    if type(config) not in kind._model_mapping:
        raise UsageError(f"hf:{name} is a {config.model_type} model, which classifies no pictures")

    def at(size: int) -> nn.Module:
        own = copy.deepcopy(config)
        own.num_labels = classes
        before = getattr(own, "image_size", None)
        if before is not None:
            own.image_size = size if isinstance(before, int) else [size, size]
        return kind.from_config(own)  # type: ignore[no-any-return]

    def fetch() -> Weights:
        with hub():
            module, said = kind.from_pretrained(
                name, use_safetensors=True, output_loading_info=True
            )
        drawn = {*said["missing_keys"], *(key for key, *_ in said["mismatched_keys"])}
        state = {k: v for k, v in module.state_dict().items() if k not in drawn}
        names = tuple(config.id2label[i] for i in sorted(config.id2label))
        return Weights(state, None if drawn else config.num_labels, names)

    return Architecture(at, _of_transformers_config(name, config), fetch)


def _of_transformers_config(name: str, config: Any) -> Wants:
    """What the model's image processor says; without one, what its configuration does."""
    size = getattr(config, "image_size", None)
    wants = Wants(
        max(size) if isinstance(size, list | tuple) else size,
        getattr(config, "num_channels", 3),
        keyword="pixel_values",
    )
    try:
        with hub():
            made = library("transformers").AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError):
        return wants
    if hasattr(made, "data_config"):  # a model of timm, wrapped
        return replace(_of_timm_config(made.data_config), keyword="pixel_values")
    told = made.to_dict()
    shape = (told.get("do_center_crop") and told.get("crop_size")) or told.get("size") or {}
    shape = shape if isinstance(shape, Mapping) else {"height": shape}
    side = shape.get("height") or shape.get("shortest_edge")
    normal = told.get("do_normalize")
    return replace(
        wants,
        size=side or wants.size,
        mean=tuple(told["image_mean"]) if normal else None,
        std=tuple(told["image_std"]) if normal else None,
        interpolation="bilinear" if told.get("resample") == 2 else "bicubic",
    )


LIBRARIES: dict[str, Callable[[str, int], Architecture]] = {
    "timm": of_timm,
    "torchvision": of_torchvision,
    "hf": of_transformers,
}


def wants_of(module: nn.Module) -> Wants:
    """How a module that was made elsewhere is shown pictures, as far as it says so."""
    told = getattr(module, "pretrained_cfg", None)
    if isinstance(told, dict) and "mean" in told:
        return replace(_of_timm_config(told), channels=_channels_of(module))
    config = getattr(module, "config", None)
    if getattr(module, "main_input_name", None) == "pixel_values" and config is not None:
        place = str(getattr(config, "_name_or_path", ""))
        wants = _of_transformers_config(place, config) if place else Wants(keyword="pixel_values")
        return replace(wants, channels=_channels_of(module))
    return Wants(channels=_channels_of(module))


def _channels_of(module: nn.Module) -> int | None:
    """Channels of the first convolution, where it takes grey or colour."""
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else None
