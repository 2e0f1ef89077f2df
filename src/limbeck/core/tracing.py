"""One forward pass of a model, with what each of its modules took and gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from limbeck.core.evaluate import evaluating
from limbeck.core.views import call_model, entries_of
from limbeck.errors import UsageError

__all__ = ["Pass", "Seen", "entries", "tensors", "trace"]


@dataclass
class Seen:
    """A module that ran: its tensors of this pass, and how often it ran."""

    path: str
    kind: str
    given: Tensor | None
    out: Tensor | None
    runs: int = 1
    version: int = 0


@dataclass
class Pass:
    """One forward pass: the modules in the order in which they ended, and the output."""

    batch: int = 0
    seen: dict[str, Seen] = field(default_factory=dict)
    output: Any = None


def entries(output: Any) -> dict[str, Any]:
    """The named entries of a model's output; none where it is of another kind."""
    try:
        return dict(entries_of(output))
    except UsageError:
        return {}


def tensors(value: Any) -> list[Tensor]:
    """The tensors in what a module takes or gives, one level deep."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [v for v in value if isinstance(v, Tensor)] if isinstance(value, tuple | list) else []


def trace(model: nn.Module, x: Any) -> Pass:
    """Run a batch through in eval mode, with a hook on each module.

    Raises:
        UsageError: the model does not take such a batch.
    """
    inputs = tensors(x)
    here = Pass(len(inputs[0]) if inputs else 0)
    handles = [
        module.register_forward_hook(_hook(here, path))
        for path, module in model.named_modules()
        if path
    ]
    try:
        with evaluating(model):
            here.output = call_model(model, x)
    except UsageError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        shapes = " and ".join(str(tuple(t.shape)) for t in inputs) or type(x).__name__
        raise UsageError(
            f"{type(model).__name__} does not take a batch {shapes}: {told}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return here


def _hook(here: Pass, path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        given, out = tensors(args), output[0] if isinstance(output, tuple | list) else output
        runs = here.seen.pop(path).runs + 1 if path in here.seen else 1
        out = out if isinstance(out, Tensor) else None
        here.seen[path] = Seen(
            path,
            type(module).__name__,
            given[0] if given else None,
            out,
            runs,
            0 if out is None else out._version,
        )

    return hook
