"""Models that a few words name: of a user's own file, or the student of a run."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from limbeck.core import checkpoints
from limbeck.core.files import read_json
from limbeck.core.seeds import resume
from limbeck.core.sources import own
from limbeck.core.sources.classes import names_of
from limbeck.core.sources.specs import Model, model_of
from limbeck.errors import Missing, UsageError

__all__ = ["Build", "Made", "from_file", "from_run", "inputs_of", "load_weights", "meta_of"]

Shape = tuple[int, ...]
Build = Callable[[str, int | None], nn.Module]
"""Makes the module that words name, for a number of classes (None: the model's own)."""


@dataclass(frozen=True)
class Made:
    """A model that can be made.

    Args:
        make: gives a fresh module.
        trained: whether that module is trained already.
        name: of the model, for a sentence.
        usual: gives the module with its own number of classes, where `make` was told the data's
            and need not have been; else None.
    """

    make: Callable[[], nn.Module]
    trained: bool
    name: str
    usual: Callable[[], nn.Module] | None = None


def from_file(model: Model, classes: int | None) -> Made:
    """The model that FILE.py:NAME[@weights] names.

    NAME is a module (trained as it stands), a function that gives one (taken as trained), or a
    class of modules (untrained). Function and class may have an argument `classes`; it is given
    the number of classes, where that is known. With weights the model is trained.

    Args:
        model: of kind "file".
        classes: of the data; None when they are not known.

    Raises:
        Missing: there is no such name.
        UsageError: executing the file fails, or the name is none of these.
    """
    value = own.value_of(model.name)
    file = model.name.rpartition(":")[0]
    if isinstance(value, nn.Module):
        return Made(_weighted(lambda: copy.deepcopy(value), model, None), True, model.short)
    if not callable(value):
        raise UsageError(
            f"{model.name} is a {type(value).__name__}; name a torch module, or a function or "
            "class that makes one"
        )
    given, free = _arguments(value, model, classes)

    def called(arguments: Mapping[str, Any]) -> nn.Module:
        with own.running(file):
            made = value(**arguments)
        if not isinstance(made, nn.Module):
            raise UsageError(
                f"{model.name} gave a {type(made).__name__}; it must give a torch module"
            )
        return made

    trained = model.weights is not None or not isinstance(value, type)
    usual = (lambda: called({})) if free and model.weights is None else None
    return Made(_weighted(lambda: called(given), model, classes), trained, model.short, usual)


def _arguments(value: Any, model: Model, classes: int | None) -> tuple[dict[str, Any], bool]:
    """What to call a factory with, and whether it could do without the number of classes."""
    try:
        known = inspect.signature(value).parameters
    except (TypeError, ValueError):  # a builtin says nothing of its arguments
        return {}, False
    empty = inspect.Parameter.empty
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [n for n, p in known.items() if p.default is empty and p.kind not in starred]
    others = [n for n in needed if n != "classes"]
    if others:
        raise UsageError(
            f"{model.name} needs the argument '{others[0]}'; it is called with 'classes' or "
            "nothing, so give that a default"
        )
    if "classes" not in known:
        return {}, False
    if classes is None:
        if needed:
            raise UsageError(f"{model.name} needs the number of classes, which is not known here")
        return {}, False
    return {"classes": classes}, not needed


def _weighted(
    make: Callable[[], nn.Module], model: Model, classes: int | None
) -> Callable[[], nn.Module]:
    """The same with the weights that the words name, if they do."""
    if model.weights is None:
        return make
    file = model.weights

    def made() -> nn.Module:
        module = make()
        load_weights(module, file, classes)
        return module

    return made


def load_weights(module: nn.Module, file: str | Path, classes: int | None = None) -> None:
    """Load a module's state from a safetensors file, in place.

    It may be limbeck's own or another's; a tied tensor may stand in it under one of its names.

    Args:
        module: that gets the weights.
        file: with them.
        classes: of the data, where the module was made for them; weights for another number are
            told apart from those of another model.

    Raises:
        Missing: there is no such file.
        UsageError: it is damaged, or does not fit: the first name that is missing, unexpected or of
            another shape is told.
    """
    there = _tensors(Path(file))
    state = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    what = f"the weights {file} do not fit {type(module).__name__}"
    unlike = {
        name: (tuple(tensor.shape), tuple(state[name].shape))
        for name, tensor in there.items()
        if name in state and not is_lazy(state[name]) and state[name].shape != tensor.shape
    }
    if unlike:
        if count := _classes_in(list(unlike.values()), classes):
            raise UsageError(
                f"{file} has {count} classes, the data have {classes}; give weights for {classes} "
                f"classes, or leave '@{Path(file).name}' out"
            )
        name, (a, b) = next(iter(unlike.items()))
        raise UsageError(f"{what}: '{name}' is {a} in the file and {b} in the model")
    odd = module.load_state_dict(there, strict=False)
    state = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    held = {_place(state[name]) for name in there if name in state}
    absent = [n for n in odd.missing_keys if n in state and _place(state[n]) not in held]
    told = [f"the model has '{n}', which the file lacks" for n in absent[:1]]
    told += [f"the file has '{n}', which the model lacks" for n in odd.unexpected_keys[:1]]
    if told:
        raise UsageError(f"{what}: {', and '.join(told)}")


def _classes_in(unlike: list[tuple[Shape, Shape]], classes: int | None) -> int | None:
    """The classes of a file of weights, from shapes there and in a model that differ in them."""
    heads = {a[0] if a[:1] and b == (classes, *a[1:]) else None for a, b in unlike}
    return heads.pop() if len(heads) == 1 else None


def inputs_of(file: str | Path) -> dict[str, Any]:
    """What limbeck wrote beside a model's weights of its inputs; empty for others' files."""
    inputs = meta_of(file).get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def meta_of(file: str | Path) -> dict[str, Any]:
    """What limbeck wrote beside a model's weights; empty for others' files."""
    try:
        with safe_open(file, "pt") as opened:
            told = json.loads((opened.metadata() or {}).get("limbeck", "{}")).get("meta") or {}
    except (SafetensorError, OSError, ValueError, AttributeError):
        return {}  # whoever loads the weights says so
    return told if isinstance(told, dict) else {}


def _place(tensor: Tensor) -> Any:
    """What tied tensors have in common."""
    return id(tensor) if is_lazy(tensor) else (tensor.data_ptr(), tensor.shape)


def _tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise Missing(f"there is no file {file} to load weights from")
    try:
        with safe_open(file, "pt") as opened:
            if not _is_ours(opened.metadata() or {}):
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{file} cannot be read as safetensors ({error}); it is damaged or another kind of file"
        ) from None
    try:
        return checkpoints.load(file)[0]
    except UsageError as error:
        raise UsageError(
            f"the weights {file} are damaged: they are not as they were written; give a whole copy"
        ) from error


def _is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether a file is limbeck's: others may write a word of that name too."""
    try:
        told = json.loads(metadata.get("limbeck", "null"))
    except ValueError:
        return False
    return isinstance(told, dict) and {"alias", "digest"} <= set(told)


def from_run(model: Model, build: Build | None = None) -> Made:
    """The trained student of a run that was begun on the command line.

    Args:
        model: of kind "run".
        build: makes the module that the run's words for its student name; by itself this function
            knows those of files and runs.

    Raises:
        Missing: the run is not finished, or gave no model.
        UsageError: it does not say how its student is made, or that cannot be made here.
    """
    folder = Path(model.name)
    weights = folder / "student.safetensors"
    if not weights.is_file():
        done = (folder / "result.json").exists()
        told = read_json(folder / "run.json")
        how = "its method gives no model" if done else f"finish it with: {resume(folder, told)}"
        raise Missing(f"the run in {folder} holds no trained student; {how}")
    request = read_json(folder / "run.json").get("request") or {}
    words = (request.get("own") or {}).get("student")
    if not isinstance(words, str):
        raise UsageError(
            f"the run in {folder} was not begun with --student, so it does not say how its student "
            f"is made; give the model as FILE.py:NAME@{weights}"
        )
    classes = len(names_of(folder)) or None

    def make() -> nn.Module:
        module = (build or _plain_build)(words, classes)
        load_weights(module, weights)
        return module

    return Made(make, True, model.short)


def _plain_build(words: str, classes: int | None) -> nn.Module:
    model = model_of(words, "student")
    if model.kind == "file":
        return from_file(model, classes).make()
    if model.kind == "run":
        return from_run(model).make()
    raise UsageError(
        f"the student of that run is '{words}', which the room 'plain' does not make; name the "
        "room that does, with --room"
    )
