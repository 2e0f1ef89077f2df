"""The student that is taken home: a copy of its own, how it is called, and whether a file is it."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.checkpoints import of_module
from limbeck.core.evaluate import evaluating
from limbeck.core.files import digest_tensors
from limbeck.core.views import entries_of
from limbeck.errors import UsageError

Inputs = dict[str, Tensor]
Ask = Callable[[Inputs], Tensor]

# The largest difference between two ways to compute the same student, over its largest output.
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 2e-2}
USUALLY = 1e-4


@dataclass(frozen=True)
class Check:
    """How far a written file is from the student: over all outputs, on batches of these sizes."""

    difference: float
    tolerance: float
    samples: int
    batches: tuple[int, ...]

    @property
    def holds(self) -> bool:
        """Whether the file is the student."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Form:
    """A student as it was written into a folder.

    `how` it is read again ("pt2", "onnx", "timm", "transformers" or "class"), `load` does so;
    `note` is a sentence for whoever asked.
    """

    how: str
    main: str
    load: Callable[[], Ask]
    note: str = ""


class Student:
    """A copy of a model in eval mode on the CPU, with samples of what it takes.

    Args:
        model: left as it is.
        samples: a tensor (N, ...), or a tuple or dict of such: positions or keywords of `forward`.

    Attributes:
        gives: the name of the output that counts; `picks`, how Python takes it from all, as "[0]".

    Raises:
        UsageError: they are something else, or the model cannot answer them.
    """

    def __init__(self, model: nn.Module, samples: Any) -> None:
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"the student to export is a {type(model).__name__}; give a torch module"
            )
        self.samples, self.keywords = _read(samples)
        self.model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        try:
            with torch.no_grad():
                raw = self._raw(self.model, self.batch(2))
                entries = entries_of(raw)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"the student does not take the samples it is to be tried on: {short(error)}"
            ) from error
        tensors = [name for name, value in entries.items() if isinstance(value, Tensor)]
        if not tensors:
            raise UsageError("the student gives no tensor, so there is nothing to export")
        self.gives = "logits" if "logits" in tensors else tensors[0]
        self.picks = f"[{self.gives!r}]" if isinstance(raw, Mapping) else ""
        self.picks = "[0]" if isinstance(raw, tuple | list) else self.picks
        self.shape = tuple(entries[self.gives].shape[1:])
        self.dtype = entries[self.gives].dtype

    def batch(self, size: int) -> Inputs:
        """The samples, from the first on and over again, `size` of them."""
        rows = torch.arange(size) % self.count
        return {name: value[rows] for name, value in self.samples.items()}

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.samples.values())))

    def _raw(self, model: Callable[..., Any], inputs: Inputs) -> Any:
        return model(**inputs) if self.keywords else model(*inputs.values())

    def ask(self, model: Callable[..., Any]) -> Ask:
        """What a module that is called as the student gives under the student's name."""
        return lambda inputs: entries_of(self._raw(model, inputs))[self.gives]

    def digest(self) -> str:
        """A digest of all weights and buffers."""
        return digest_tensors(of_module(self.model))

    def compare(self, other: Ask) -> Check:
        """Set another's outputs against the student's, on all samples and other batch sizes."""
        sizes = tuple(sorted({1, 2, 5, self.count}))
        worst, largest = 0.0, 1.0
        with evaluating(self.model):
            for size in sizes:
                inputs = self.batch(size)
                ours, theirs = self.ask(self.model)(inputs).double(), other(inputs).double()
                if not torch.isfinite(ours).all():
                    raise UsageError(
                        "the student gives infinite or not-a-number outputs on the samples, so "
                        "nothing can be checked against it"
                    )
                if ours.shape != theirs.shape:
                    worst = float("inf")
                    break
                largest = max(largest, float(ours.abs().max()))
                apart = float((ours - theirs).abs().max())
                worst = max(worst, apart) if apart == apart else float("inf")
        tolerance = TOLERANCE.get(self.dtype, USUALLY) * largest
        return Check(worst, tolerance, self.count, sizes)


def _read(samples: Any) -> tuple[Inputs, bool]:
    """The samples by name, and whether names are keywords of the student."""
    named: Mapping[str, Any]
    if isinstance(samples, Mapping):
        named = dict(samples)
    elif isinstance(samples, tuple):
        named = {f"x{i}": value for i, value in enumerate(samples)}
    else:
        named = {"x": samples}
    wrong = [v for v in named.values() if not isinstance(v, Tensor) or v.dim() == 0]
    if wrong or not named:
        kind = f"a {type(wrong[0]).__name__}" if wrong else "nothing"
        raise UsageError(
            f"the samples hold {kind}; give what the student takes: a tensor (N, ...), or a "
            "dict or tuple of such tensors"
        )
    odd = next((n for n in named if not str(n).isidentifier() or iskeyword(n)), None)
    if odd is not None:
        raise UsageError(f"a sample's field is called {odd!r}; give it a name that Python takes")
    counts = {len(value) for value in named.values()}
    if len(counts) > 1 or 0 in counts:
        told = ", ".join(f"{name} {len(value)}" for name, value in named.items())
        raise UsageError(f"the samples differ in number, or there are none ({told}); give some")
    return {k: v.detach().cpu() for k, v in named.items()}, isinstance(samples, Mapping)


def short(error: BaseException) -> str:
    """The reason of another library's error in a few words, with the line it names."""
    whole = str(error)
    while error.__cause__ is not None:
        error = error.__cause__
    fixed = re.search(r"specialized it to be a constant \((\d+)\)", whole)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"its code fixes the batch size at {fixed[1]}" if fixed else (lines or [""])[0]
    reason = reason.partition("  ")[0].rstrip(".!:;") or type(error).__name__
    reason = reason if len(reason) <= 200 else f"{reason[:200]} ..."
    at = re.search(r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)', whole)
    return f"{reason}, at {Path(at[1]).name}, line {at[2]}: {at[3]}" if at and not fixed else reason


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing printed, logged or warned of, whichever library wishes to."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def compact(model: nn.Module) -> None:
    """Store apart what is a slice of a tensor that is not in the model, as a pruned buffer is."""

    def place(t: Tensor) -> int:
        return t.untyped_storage().data_ptr()

    def whole(t: Tensor) -> bool:
        return t.numel() * t.element_size() == t.untyped_storage().nbytes()

    tensors = list(itertools.chain(model.parameters(), model.buffers()))
    kept = {place(t) for t in tensors if whole(t)}
    for t in tensors:
        if not whole(t) and place(t) not in kept:
            t.data = t.data.clone(memory_format=torch.contiguous_format)
