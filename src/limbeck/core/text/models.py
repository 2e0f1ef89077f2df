"""Language models and their tokenizers, from a few words or from values of Python."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from limbeck.core.files import read_json
from limbeck.core.hub import hub, library, reason
from limbeck.core.rng import globals_kept
from limbeck.core.sources import own
from limbeck.core.sources.models import from_file, from_run, load_weights
from limbeck.core.sources.specs import Model, model_of
from limbeck.core.text import students
from limbeck.core.text.gguf import read_once
from limbeck.core.text.tagged import head_for
from limbeck.errors import Missing, UsageError

__all__ = ["Found", "Kind", "load", "tokenizer_of"]

Kind = Literal["causal", "masked", "classifier", "tagger", "seq2seq"]
Classes = int | tuple[str, ...] | None
"""How many classes texts have, or the names of their words' tags."""
_AUTO: dict[Kind, str] = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "classifier": "AutoModelForSequenceClassification",
    "tagger": "AutoModelForTokenClassification",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
_GIVE = "hf:ID, a folder of save_pretrained, FILE.gguf, FILE.py:NAME or a run's folder"


@dataclass(frozen=True)
class Found:
    """A language model that can be made.

    Attributes:
        make: gives a fresh module of transformers; of a module that was given, a copy.
        tokenizer: a fast one where there is one, with a token for padding; its length is how many
            rows of the model's embeddings mean something.
        kind: what the model does.
        name: for sentences.
        config: of transformers; its dtype is the weights'.
        architecture: the class of the module.
        untrained: half a sentence: why its weights are not (all) trained; empty where they are.
    """

    make: Callable[[], nn.Module]
    tokenizer: Any
    kind: Kind
    name: str
    config: Any
    architecture: Any
    untrained: str = ""

    @property
    def trained(self) -> bool:
        return not self.untrained


def load(
    given: Any, side: str, classes: Classes = None, dtype: torch.dtype = torch.float32
) -> Found:
    """Find the model and the tokenizer that words or values of Python name.

    Args:
        given: words ("hf:ID", a folder, FILE.gguf, FILE.py:NAME, a run's folder), a `specs.Model`,
            (model, tokenizer), or a model with its tokenizer as the attribute `tokenizer`.
        side: "teacher" or "student", for the sentences.
        classes: of labelled texts: hf:ID and a folder then name a classifier of so many classes; of
            tagged words, a tuple of names: a tagger. A teacher may have further tags.
        dtype: of the weights that are read from a folder, the hub or a GGUF file.

    Raises:
        Missing: the model, its weights or its tokenizer are not there, or cannot be read.
        UsageError: they are of another kind.
    """
    if isinstance(given, nn.Module | tuple):
        return _of_value(given, f"the {side}")
    model = given
    if isinstance(given, str) and given and (Path(given) / "config.json").is_file():
        model = Model(given, "run" if (Path(given) / "run.json").exists() else "hf", given)
    model = model if isinstance(model, Model) else model_of(given, side)
    if model.kind == "file":
        return _of_file(model, side, classes)
    if model.kind == "run":
        return _of_run(model, side, dtype)
    if model.kind not in ("hf", "gguf"):
        raise UsageError(f"the {side} '{model.text}' is no language model; give {_GIVE}")
    return _of_words(model, side, classes, dtype)


def tokenizer_of(words: str) -> Any:
    """The tokenizer that "hf:ID" or a folder names.

    Raises:
        Missing: it is not there, or cannot be read.
    """
    name = words.removeprefix("hf:")
    with _reading(Model(words, "hf", name), "teacher", "the tokenizer of "):
        made = library("transformers").AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if len(made) <= len(made.all_special_tokens):
            raise FileNotFoundError("it has no files there")
    return _padded(made, f"the tokenizer {words}")


def _of_words(model: Model, side: str, classes: Classes, dtype: torch.dtype) -> Found:
    """hf:ID, hf:FOLDER, FILE.gguf: the configuration and tokenizer now, the weights by `make`."""
    transformers = library("transformers")
    place, packed = model.name, {}
    more: dict[str, str] = {}
    if model.kind == "gguf":
        library("gguf")
        place, more = str(Path(model.name).parent), {"gguf_file": Path(model.name).name}
        packed = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    with _reading(model, side):
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, **more)
        if model.kind == "hf" and model.weights is None and Path(place).is_dir():
            next(Path(place).glob("*.safetensors"))
    config.dtype, named = dtype, (config.architectures or [""])[0]
    kind, architecture = _kind_of(config, named, model, side, classes)
    with _reading(model, side, "the tokenizer of "):
        made = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False, **more)
        if len(made) <= len(made.all_special_tokens):  # what transformers makes of no files
            raise FileNotFoundError("it has no files there")
    tokenizer = _checked(made, config, f"the {side}")
    why = _classes(config, named, side, classes) if model.weights is None else ""

    def read() -> tuple[nn.Module, list[str]]:
        """The module, and the names of weights that it draws."""
        safe = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
        how = {**more, **packed, **safe, "ignore_mismatched_sizes": bool(why)}
        with _reading(model, side):
            module, told = architecture.from_pretrained(
                place, config=copy.deepcopy(config), dtype=dtype, **how
            )
        return module, sorted({*told["missing_keys"], *(k for k, *_ in told["mismatched_keys"])})

    def make() -> nn.Module:
        if model.weights is None:
            module, drawn = read()
            if drawn and not why:
                raise UsageError(f"the weights of the {side} {model.text} lack '{drawn[0]}'")
        else:
            module = architecture._from_config(copy.deepcopy(config))
            load_weights(module, model.weights)
        return students.opened(module, tokenizer)

    if named != architecture.__name__ and not (why or packed or model.weights):
        with globals_kept():  # only the weights can say whether they have the head
            drawn = read()[1]
        why = f"its files lack '{drawn[0]}'" if drawn else ""
    return Found(make, tokenizer, kind, model.short, config, architecture, why)


def _classes(config: Any, named: str, side: str, classes: Classes) -> str:
    """Tell a configuration the number of classes; why the head must be drawn then, if it must."""
    if isinstance(classes, tuple):
        return head_for(config, named, classes, more=side == "teacher")
    there = config.num_labels
    if classes not in (None, there):
        config.num_labels = classes
    if classes is not None and "SequenceClassification" not in named:
        return "it has no head for classes"
    return (
        f"it has {there} classes and the data have {classes}" if there != config.num_labels else ""
    )


def _kind_of(config: Any, named: str, model: Model, side: str, classes: Classes) -> Any:
    """What a model does, and its class: as it is named, else what its kind of model can do."""
    there = _architectures(config)
    kind = next((k for k, c in there.items() if c.__name__ == named), None)
    if classes is not None:
        kind = "tagger" if isinstance(classes, tuple) else "classifier"
    elif config.is_encoder_decoder:
        kind = "seq2seq"
    elif kind is None:
        kind = "masked" if "masked" in there and model.kind != "gguf" else "causal"
    if kind not in there:
        what = f"a {config.model_type} model, which is no {kind} language model"
        raise UsageError(f"the {side} '{model.text}' is {what}; give another")
    return kind, there[kind]


def _architectures(config: Any) -> dict[Kind, Any]:
    """The classes of transformers that a configuration can be of, by what they do."""
    maps = {k: getattr(library("transformers"), auto)._model_mapping for k, auto in _AUTO.items()}
    there = {kind: m[type(config)] for kind, m in maps.items() if type(config) in m}
    return {k: c[0] if isinstance(c, tuple | list) else c for k, c in there.items()}


def _checked(tokenizer: Any, config: Any, who: str) -> Any:
    """The tokenizer with a token for padding; refused if the model lacks rows for its tokens."""
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        sizes = f"{len(tokenizer)} tokens and its model {rows} rows of embeddings"
        raise UsageError(f"{who}'s tokenizer has {sizes}; give the tokenizer of that model")
    return _padded(tokenizer, f"{who}'s tokenizer")


def _padded(tokenizer: Any, who: str) -> Any:
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UsageError(f"{who} has no pad_token and no eos_token; set one")
        tokenizer = copy.deepcopy(tokenizer)  # the user's own stays as it is
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _of_value(given: Any, who: str) -> Found:
    """A module of transformers with its tokenizer, or the pair of them."""
    transformers = library("transformers")
    parts = given if isinstance(given, tuple) else (given, getattr(given, "tokenizer", None))
    module, tokenizer = parts if len(parts) == 2 else (None, None)
    kinds = (transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase)
    if not isinstance(module, kinds[0]) or not isinstance(tokenizer, kinds[1]):
        what = " and ".join(type(part).__name__ for part in parts if part is not None)
        fix = "give (model, tokenizer) of transformers, or set model.tokenizer"
        if hasattr(module, "merge_and_unload"):
            fix = "it carries adapters, so give what its merge_and_unload() gives"
        raise UsageError(f"{who} is {what or 'empty'}; {fix}")
    config, name = copy.deepcopy(module.config), type(module).__name__
    config.dtype = module.dtype
    kind = next((k for k, c in _architectures(config).items() if isinstance(module, c)), None)
    if kind is None:
        raise UsageError(f"{who} is a {name}; give a model of {', '.join(_AUTO.values())}")
    tokenizer = _checked(tokenizer, config, who)
    make = lambda: students.opened(copy.deepcopy(module), tokenizer)  # noqa: E731
    return Found(make, tokenizer, kind, name, config, type(module))


def _of_file(model: Model, side: str, classes: Classes) -> Found:
    """FILE.py:NAME: a pair, or as for any room a module, function or class, with a `tokenizer`."""
    value, who = own.value_of(model.name), f"the {side} '{model.text}'"
    if isinstance(value, tuple):
        return replace(_of_value(value, who), name=model.short)
    made = from_file(model, len(classes) if isinstance(classes, tuple) else classes)
    with globals_kept():
        found = _of_value(made.make(), who)
    why = "" if made.trained else "it has no weights"
    return replace(found, make=made.make, name=made.name, untrained=why)


def _of_run(model: Model, side: str, dtype: torch.dtype) -> Found:
    """A run's student, made as its words say, with the tokenizer that they bring."""

    def named(words: str, classes: Classes) -> Found:
        classes = tuple(names) if tagged else classes
        if not students.is_words(words):
            return load(words, side, classes, dtype)
        teacher = load(told["request"]["own"]["teacher"], "teacher", classes, dtype)
        return students.found(words, teacher)

    told = read_json(Path(model.name) / "run.json")
    about = told.get("about") or {}
    names, tagged = about.get("names") or (), about.get("tags", False)
    made = from_run(model, lambda words, classes: named(words, classes).make())
    found = named(told["request"]["own"]["student"], len(names) or None)
    return replace(found, make=made.make, name=made.name, untrained="")


@contextmanager
def _reading(model: Model, side: str, part: str = "") -> Iterator[None]:
    """Say in a sentence why what words name cannot be read."""
    try:
        with hub(model.name), read_once() if model.kind == "gguf" else nullcontext():
            yield
    except Exception as error:  # of transformers, hubs and formats: they fail in many ways
        files = list(Path(model.name).glob("*"))  # of a folder
        ends = {file.suffix for file in files}
        why, fix = reason(error), f"give {_GIVE}"
        if model.kind == "gguf":
            fix = "it is cut short, damaged or of a kind that transformers does not know"
        elif "trust_remote_code" in str(error):
            why, fix = "it needs program code of its own", "that is never executed; give another"
        elif part:
            fix = "write it beside the model, with tokenizer.save_pretrained"
        elif not files:
            why = f"it is no folder here, and of the hub: {why}"
        elif not (Path(model.name) / "config.json").is_file():
            why = "the folder has no config.json"
        elif ".safetensors" not in ends:
            why = "its weights are pickled" if ends & {".bin", ".pt"} else "it has no weights"
            fix = "write .safetensors files, with save_pretrained"
        raise Missing(f"{part}the {side} '{model.text}' cannot be read ({why}); {fix}") from error
