"""The student's weights in safetensors, where possible so that its own library loads them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.runs._export_student import Ask, Form, Student, compact, short

FILE = "model.safetensors"
_AUTO = (
    "AutoModelForImageClassification",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForSeq2SeqLM",
)


def write_weights(student: Student, folder: Path, about: dict[str, Any]) -> Form:
    """model.safetensors, tied tensors once; with a config.json where timm or transformers made it.

    A library's form is kept only if the library builds the same student from it; a student that
    was changed since (pruned, with another head) is left as weights for its class.
    """
    compact(student.model)
    note = ""
    for library, write in (("timm", _timm), ("transformers", _transformers)):
        if not _made_by(student.model, library):
            continue
        try:
            load = write(student, folder, about)
            check = student.compare(load())
            if check.holds:
                return Form(library, FILE, load)
            why = f"its outputs differ by {check.difference:.2g}"
        except Exception as error:
            why = short(error)
        for file in folder.iterdir():
            file.unlink()
        note = (
            f"{library} does not build this student again, since it was changed ({why}); what is "
            "written are its weights alone"
        )
    return Form("class", FILE, _plain(student, folder), note)


def _made_by(model: nn.Module, library: str) -> bool:
    """Whether a model is one of a library's."""
    marks = {"timm": "pretrained_cfg", "transformers": "save_pretrained"}
    homes = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    return library in homes and hasattr(model, marks[library])


def _plain(student: Student, folder: Path) -> Callable[[], Ask]:
    """The state dict as `safetensors.torch.load_model` takes it."""
    path = folder / FILE
    for name, value in student.model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f"the student's state holds '{name}', a {type(value).__name__}, which safetensors "
                "cannot keep; export it to pt2 or onnx"
            )
    save_model(student.model, str(path))

    def load() -> Ask:
        fresh = copy.deepcopy(student.model)
        for tensor in fresh.state_dict().values():
            tensor.zero_()
        load_model(fresh, path)
        return student.ask(fresh)

    return load


def _timm(student: Student, folder: Path, about: dict[str, Any]) -> Callable[[], Ask]:
    """A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    import timm
    from timm.models import save_for_hf

    model: Any = student.model
    names = about.get("names")
    told = {"label_names": list(names)} if names and len(names) == model.num_classes else {}
    save_for_hf(
        model,
        str(folder),
        model_config=told,
        safe_serialization=True,
        data_config=_pictures(about),
    )
    return lambda: student.ask(timm.create_model(f"local-dir:{folder}", pretrained=True).eval())


def _pictures(about: dict[str, Any]) -> dict[str, Any]:
    """How pictures are brought to what the student takes, in timm's words."""
    inputs = about.get("inputs") or {}
    if inputs.get("kind") != "pictures":
        return {}
    config = {k: inputs[k] for k in ("mean", "std", "interpolation") if inputs.get(k)}
    if inputs.get("size"):
        config |= {"input_size": tuple(inputs["size"]), "crop_pct": 1.0}
    return config


def _transformers(student: Student, folder: Path, about: dict[str, Any]) -> Callable[[], Ask]:
    """A folder for `from_pretrained`, with the classes' names in its config."""
    model: Any = student.model
    names = about.get("names")
    if names and len(names) == getattr(model.config, "num_labels", None):
        model.config.id2label = dict(enumerate(map(str, names)))
        model.config.label2id = {str(name): i for i, name in enumerate(names)}
    model.save_pretrained(folder)
    shown = _pictures(about)
    if shown.get("input_size", ())[:1] == (3,):
        _processor(shown).save_pretrained(folder)
    loader = transformers_class(model)

    def load() -> Ask:
        import transformers

        kind = getattr(transformers, loader)
        return student.ask(kind.from_pretrained(folder, local_files_only=True).eval())

    return load


def _processor(shown: dict[str, Any]) -> Any:
    """What brings pictures to the student's size and scale, for pipelines of transformers."""
    import transformers

    _, height, width = shown["input_size"]
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": min(height, width)},
        crop_size={"height": height, "width": width},
        resample=3 if shown.get("interpolation") == "bicubic" else 2,  # Pillow's numbers
        image_mean=shown.get("mean") or [0.0] * 3,
        image_std=shown.get("std") or [1.0] * 3,
    )


def transformers_class(model: nn.Module) -> str:
    """The class of transformers that loads a model of its own: an Auto class where one does."""
    import transformers

    for name in _AUTO:
        known = getattr(transformers, name)._model_mapping
        config = type(model.config)
        if config in known and known[config] is type(model):
            return name
    return type(model).__name__
