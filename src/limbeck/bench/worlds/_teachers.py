"""Teachers of the worlds: trained once by a plain loop, then read from the cache.

The cache is the folder `teachers` in LIMBECK_CACHE, or in ~/.cache/limbeck. A file's name holds a
hash of all that makes the teacher: the training data, the recipe, and the text of the files with
models and loop. Whatever is changed there is trained anew; nothing stale is read.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from limbeck.bench.worlds import _families, _models
from limbeck.core.files import cache_folder, digest_tensors, write_atomic
from limbeck.core.rng import generator, globals_kept, seed_globals
from limbeck.errors import UsageError

Samples = tuple[Tensor, Tensor]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a teacher is trained: AdamW under a cosine after a warm-up, with clipped gradients.

    Attributes:
        epochs: passes over the training data; a ViT gets twice as many.
        batch: samples in a step.
        lr: the highest learning rate.
        weight_decay: of AdamW.
    """

    epochs: int
    batch: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05


def trained(
    world: str, family: str, seed: int, train: Samples, test: Samples, classes: int, recipe: Recipe
) -> nn.Module:
    """Give a trained teacher in eval mode, from the cache where it is there and whole.

    Args:
        world: name of the world, for the file's name.
        family: name of the model family.
        seed: of the initial weights and the data order.
        train: x (N, ...) and y (N,).
        test: the same; its accuracy is noted in the file.
        classes: number of classes.
        recipe: how it is trained.
    """
    make = _families.factory(family, train[0].shape[1:], classes)
    path = cache_folder() / "teachers" / f"{world}-{family}-{_hash(family, seed, train, recipe)}"
    path = path.with_name(path.name + ".safetensors")
    with globals_kept():
        seed_globals("teacher", world, family, seed)
        model = make()
        if not _read(path, model):
            epochs = recipe.epochs * (2 if isinstance(model, _models.ViT) else 1)
            _log.info("training the teacher %s of the world %s, once", family, world)
            _fit(model, train, epochs, recipe, generator("teacher", world, family, seed))
            _write(path, model, {"world": world, "family": family, "seed": str(seed)}, test)
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Give the accuracy of a model in eval mode; its mode is put back."""
    training = model.training
    model.eval()
    with torch.no_grad():
        guess = torch.cat([model(part).argmax(1) for part in torch.split(x, 1000)])
    model.train(training)
    return float((guess == y).double().mean())


def _fit(
    model: nn.Module, train: Samples, epochs: int, recipe: Recipe, rng: torch.Generator
) -> None:
    x, y = train
    each = max(1, len(x) // recipe.batch)  # the last, smaller batch of an epoch is left out
    steps, step = each * epochs, 0
    optimiser = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=rng)
        for rows in torch.split(order[: each * recipe.batch], recipe.batch):
            ramp = min(1.0, (step + 1) / (0.1 * steps))
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr * ramp * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.zero_grad()
            torch.autograd.backward(cross_entropy(model(x[rows]), y[rows]))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1


def _hash(family: str, seed: int, train: Samples, recipe: Recipe) -> str:
    """Hash all that makes a teacher what it is; the data stand for the world's own text."""
    texts = [
        Path(str(f)).read_text("utf-8") for f in (_models.__file__, _families.__file__, __file__)
    ]
    data = digest_tensors({"x": train[0], "y": train[1]})
    facts = repr((family, seed, data, sorted(asdict(recipe).items()), texts))
    return blake2b(facts.encode(), digest_size=8).hexdigest()


def _read(path: Path, model: nn.Module) -> bool:
    """Fill the model from a cached file; False where that is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            keys = file.keys()
            tensors = {name: file.get_tensor(name) for name in keys}
        if facts.get("digest") != digest_tensors(tensors):
            return False
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError, ValueError):
        return False
    return True


def _write(path: Path, model: nn.Module, facts: Mapping[str, str], test: Samples) -> None:
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    told = {"accuracy": f"{accuracy(model, *test):.6f}", "digest": digest_tensors(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(tensors, {**facts, **told}))
    except (OSError, UsageError) as error:  # a cache saves time; without it all still works
        _log.warning("the teacher is not kept for later: %s", error)
