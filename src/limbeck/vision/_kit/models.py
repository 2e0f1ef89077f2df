"""Teachers and students, from words or values of Python, fitted to a set of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.core.files import read_json
from limbeck.core.hub import reason
from limbeck.core.rng import globals_kept
from limbeck.core.sources.classes import names_of
from limbeck.core.sources.models import from_file, from_run, inputs_of, load_weights
from limbeck.core.sources.specs import Model, model_of
from limbeck.core.task import build_model
from limbeck.errors import UsageError
from limbeck.vision._kit.libraries import LIBRARIES, Architecture, Weights, wants_of
from limbeck.vision._kit.readers import Wants

__all__ = ["MOST", "Net", "of_module", "of_words"]

MOST = 224  # pixels a side that a model is shown where nothing says how many


@dataclass(frozen=True)
class Net:
    """A model before it is fitted to the data.

    Args:
        side: "teacher" or "student".
        name: for sentences.
        at: gives a module for pictures of so many pixels a side.
        wants: how its own configuration says that it is shown pictures.
        trained: whether the module knows the data's classes already.
        kept: whether it has weights that were trained on what its configuration says.
        why: half a sentence: why it is not trained.
        sized: whether `at` makes modules for any size (a library's), not one as it is.
        names: of the classes that its weights know.
        usual: as `at`, with its own number of classes, which may be the data's.
    """

    side: str
    name: str
    at: Callable[[int], nn.Module]
    wants: Wants
    trained: bool = False
    kept: bool = False
    why: str = ""
    sized: bool = True
    names: tuple[str, ...] = ()
    usual: Callable[[int], nn.Module] | None = None


def of_words(model: Model, side: str, classes: int, pretrained: bool = False) -> Net:
    """The model that words name.

    Args:
        model: of a library, a file, or a run.
        side: "teacher" or "student".
        classes: of the data.
        pretrained: whether to use a library's pretrained weights, where they can be had.
    """
    if model.kind in LIBRARIES:
        whole = LIBRARIES[model.kind](model.name, classes)
        net = Net(side, model.short, whole.at, whole.wants)
        if model.weights is not None:
            file = model.weights

            def loaded(size: int) -> nn.Module:
                module = whole.at(size)
                load_weights(module, file, classes)
                return module

            wants = _wants_of(inputs_of(file), whole.wants)
            return replace(net, at=loaded, trained=True, kept=True, wants=wants)
        return _pretrained(net, whole, classes) if pretrained else replace(net, why=_NOT_ASKED)
    if model.kind == "file":
        return _of_file(model, side, classes, pretrained)
    if model.kind == "run":
        wants = _wants_of_run(Path(model.name))

        def build(words: str, count: int | None) -> nn.Module:
            inner = of_words(model_of(words, side), side, count or classes)
            return inner.at(wants.size or MOST)

        made = from_run(model, build)
        own = wants_of(build_model(made.make, 0, side))
        wants = replace(wants, keyword=own.keyword)
        names = tuple(names_of(model.name))
        return Net(side, made.name, lambda size: made.make(), wants, True, True, "", False, names)
    raise UsageError(f"the {side} is '{model.text}', which the room 'vision' does not make")


def _of_file(model: Model, side: str, classes: int, pretrained: bool) -> Net:
    """A user's own model: a teacher is trained unless it is a class, or said not to be."""
    made = from_file(model, classes)
    usual, trained = made.usual, made.trained and pretrained
    return Net(
        side,
        made.name,
        lambda size: made.make(),
        wants_of(build_model(made.make, 0, side)),
        trained,
        why="it was said not to be trained yet" if made.trained else "it has no weights",
        sized=False,
        usual=(lambda size: usual()) if usual is not None and trained else None,
    )


_NOT_ASKED = "its pretrained weights were not asked for"


def _wants_of_run(folder: Path) -> Wants:
    """How a run's student is shown pictures, as the run's files say."""
    for file in ("run.json", "result.json"):
        there = read_json(folder / file) if (folder / file).exists() else {}
        told = (there.get("about") or {}).get("inputs") or {}
        if told.get("kind") == "pictures":
            return _wants_of(told, Wants())
    return Wants()


def _wants_of(told: Mapping[str, Any], usual: Wants) -> Wants:
    """How pictures are shown, as the facts say that limbeck keeps of a model's inputs."""
    if told.get("kind") != "pictures":
        return usual
    channels, size, _ = told["size"]
    mean, std = tuple(told["mean"]), tuple(told["std"])
    return Wants(size or usual.size, channels, mean, std, told["interpolation"], usual.keyword)


def _pretrained(net: Net, whole: Architecture, classes: int) -> Net:
    """With pretrained weights: all, all but the head, or none where they cannot be had."""
    if whole.fetch is None:
        return replace(net, why="there are no pretrained weights for it")
    try:
        with globals_kept():  # a library draws weights before it loads others over them
            weights = whole.fetch()
    except Exception as error:  # hubs and their clients fail in many ways; none may end a run
        return replace(net, why=f"its pretrained weights cannot be had ({reason(error)})")
    right = weights.classes == classes
    has = f"it has {weights.classes} classes" if weights.classes else "it has no trained head"
    return replace(
        net,
        at=lambda size: _filled(whole.at(size), weights),
        trained=right,
        kept=True,
        why="" if right else f"{has} and the data have {classes}",
        names=weights.names if right else (),
    )


def _filled(module: nn.Module, weights: Weights) -> nn.Module:
    """Give a module all weights that fit; those of a head for other classes do not."""
    state = module.state_dict()
    fitting = {k: v for k, v in weights.state.items() if k in state and state[k].shape == v.shape}
    module.load_state_dict({**state, **fitting})
    return module


def of_module(given: Any, side: str, name: str, trained: bool) -> Net:
    """A module or a factory of Python's."""
    module = given if isinstance(given, nn.Module) else build_model(given, 0, side)
    make = (lambda size: given) if isinstance(given, nn.Module) else (lambda size: given())
    return Net(side, name, make, wants_of(module), trained, sized=False)
